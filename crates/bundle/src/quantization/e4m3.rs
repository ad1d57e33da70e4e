//! E4M3FN: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, one NaN of each sign.
//!
//! Micikevicius et al. 2022, arXiv:2209.05433; ONNX names it `FLOAT8E4M3FN`. The bytes 0 to 0x7e encode the values 0 to
//! 448 in ascending order.

/// The largest value.
pub const MAX: f32 = 448.0;

/// The smallest value with a full mantissa, 2⁻⁶. Below it values are multiples of [`MIN_SUBNORMAL`].
pub const MIN_NORMAL: f32 = 0.015_625;

/// The smallest value above 0, 2⁻⁹.
pub const MIN_SUBNORMAL: f32 = 0.001_953_125;

const SIGN: u8 = 0x80;
const LARGEST: u8 = 0x7e;
const NAN: u8 = 0x7f;

/// Mantissa bits that an `f32` has more.
const EXTRA_MANTISSA: u32 = 23 - 3;
/// Difference of the exponent biases.
const EXTRA_BIAS: u32 = 127 - 7;

/// Encodes the nearest value, the even byte on a tie. Values beyond ±448 and infinities become ±448; NaN stays NaN;
/// signs are kept, also of 0 and NaN.
pub fn encode(value: f32) -> u8 {
    let magnitude = value.abs();
    let byte = if magnitude.is_nan() {
        NAN
    } else if magnitude >= MAX {
        LARGEST
    } else if magnitude < MIN_NORMAL {
        // Bytes of this range count multiples; rounding up to 8 of them gives the byte of the first normal value.
        (magnitude / MIN_SUBNORMAL).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let is_odd = (bits >> EXTRA_MANTISSA) & 1;
        let below_half = (1 << (EXTRA_MANTISSA - 1)) - 1;
        // A carry out of the mantissa correctly raises the exponent.
        let rounded = (bits + below_half + is_odd) >> EXTRA_MANTISSA;
        (rounded - (EXTRA_BIAS << 3)) as u8
    };
    if value.is_sign_negative() { byte | SIGN } else { byte }
}

/// Decodes a byte; exact.
pub fn decode(byte: u8) -> f32 {
    let magnitude = byte & !SIGN;
    let value = if magnitude == NAN {
        f32::NAN
    } else if magnitude < 8 {
        f32::from(magnitude) * MIN_SUBNORMAL
    } else {
        f32::from_bits((u32::from(magnitude) << EXTRA_MANTISSA) + (EXTRA_BIAS << 23))
    };
    if byte & SIGN == 0 { value } else { -value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of a byte by the definition of the format, independent of the bits of an `f32`.
    fn by_definition(byte: u8) -> f64 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (i32::from(byte >> 3 & 0xf), f64::from(byte & 7));
        match (exponent, byte & 7) {
            (15, 7) => f64::NAN,
            (0, _) => sign * mantissa / 8.0 * 2_f64.powi(-6),
            _ => sign * (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
        }
    }

    #[test]
    fn every_byte_decodes_to_its_value() {
        for byte in 0..=u8::MAX {
            let (found, expected) = (decode(byte), by_definition(byte));
            assert!(
                f64::from(found) == expected || (found.is_nan() && expected.is_nan()),
                "{byte:#x}: {found}"
            );
        }
        assert_eq!([0x7e, 0x08, 0x01].map(decode), [MAX, MIN_NORMAL, MIN_SUBNORMAL]);
        assert_eq!(decode(0x80).to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    fn every_byte_survives_decoding_and_encoding() {
        for byte in 0..=u8::MAX {
            assert_eq!(encode(decode(byte)), byte);
        }
    }

    #[test]
    fn values_between_neighbours_round_to_the_nearest_and_to_even_on_a_tie() {
        for byte in 0..LARGEST {
            let (below, above) = (decode(byte), decode(byte + 1));
            let tie = f32::midpoint(below, above);
            let even = if byte % 2 == 0 { byte } else { byte + 1 };
            for (value, expected) in [(tie.next_down(), byte), (tie, even), (tie.next_up(), byte + 1)] {
                assert_eq!(encode(value), expected, "{value} is between {below} and {above}");
                assert_eq!(encode(-value), expected | SIGN, "{value} is between -{below} and -{above}");
            }
        }
    }

    #[test]
    fn values_out_of_range_are_saturated() {
        for value in [448.0_f32.next_up(), 463.9, 464.0, 465.0, 480.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(value), encode(-value)), (0x7e, 0xfe), "{value}");
        }
    }

    #[test]
    fn signs_of_zero_and_of_nan_are_kept() {
        assert_eq!((encode(0.0), encode(-0.0)), (0x00, 0x80));
        assert_eq!((encode(f32::NAN.copysign(1.0)), encode(f32::NAN.copysign(-1.0))), (0x7f, 0xff));
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
    }

    #[test]
    fn the_smallest_f32_values_become_zero() {
        for value in [f32::from_bits(1), f32::MIN_POSITIVE, MIN_SUBNORMAL / 2.0] {
            assert_eq!((encode(value), encode(-value)), (0x00, 0x80), "{value}");
        }
        assert_eq!(encode((MIN_SUBNORMAL / 2.0).next_up()), 0x01);
        assert_eq!(encode(MIN_NORMAL.next_down()), 0x08);
    }

    proptest! {
        #[test]
        fn no_byte_is_nearer_than_the_encoded_one(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            let inside = f64::from(value.clamp(-MAX, MAX));
            let distance = (f64::from(decode(encode(value))) - inside).abs();
            for byte in (0..=u8::MAX).filter(|byte| byte & !SIGN != NAN) {
                prop_assert!(distance <= (by_definition(byte) - inside).abs(), "{value} is nearer to {byte:#x}");
            }
        }
    }
}
