//! E4M3FN: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, one NaN of each sign.
//!
//! Micikevicius et al. 2022, arXiv:2209.05433; ONNX names it `FLOAT8E4M3FN`. Codes 0 to 0x7e, read as whole numbers, rise
//! with the values 0 to 448 that they stand for.

/// The largest value.
pub const MAX: f32 = 448.0;

/// The smallest value with a full mantissa, 2⁻⁶. Below it values are multiples of [`MIN_SUBNORMAL`].
pub const MIN_NORMAL: f32 = 0.015_625;

/// The smallest value above 0, 2⁻⁹.
pub const MIN_SUBNORMAL: f32 = 0.001_953_125;

const SIGN: u8 = 0x80;
const LARGEST: u8 = 0x7e;
const NAN: u8 = 0x7f;

/// Bits that the mantissa of an `f32` has more.
const EXTRA_MANTISSA: u32 = 23 - 3;
/// How much larger the exponent bias of an `f32` is.
const EXTRA_BIAS: u32 = 127 - 7;

/// The code whose value is nearest, the even one on a tie. Values beyond ±448 and infinities become ±448; NaN stays NaN;
/// signs are kept, also of 0 and NaN.
pub fn encode(value: f32) -> u8 {
    let magnitude = value.abs();
    let code = if magnitude.is_nan() {
        NAN
    } else if magnitude >= MAX {
        LARGEST
    } else if magnitude < MIN_NORMAL {
        // Codes of this range count multiples; rounding up to 8 of them gives the code of the first normal value.
        (magnitude / MIN_SUBNORMAL).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let is_odd = (bits >> EXTRA_MANTISSA) & 1;
        let below_half = (1 << (EXTRA_MANTISSA - 1)) - 1;
        // A carry out of the mantissa raises the exponent, as it should.
        let rounded = (bits + below_half + is_odd) >> EXTRA_MANTISSA;
        (rounded - (EXTRA_BIAS << 3)) as u8
    };
    if value.is_sign_negative() { code | SIGN } else { code }
}

/// The value of a code; exact.
pub fn decode(code: u8) -> f32 {
    let magnitude = code & !SIGN;
    let value = if magnitude == NAN {
        f32::NAN
    } else if magnitude < 8 {
        f32::from(magnitude) * MIN_SUBNORMAL
    } else {
        f32::from_bits((u32::from(magnitude) << EXTRA_MANTISSA) + (EXTRA_BIAS << 23))
    };
    if code & SIGN == 0 { value } else { -value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of a code by the definition of the format, without a look at the bits of an `f32`.
    fn by_definition(code: u8) -> f64 {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f64::from(code & 7));
        match (exponent, code & 7) {
            (15, 7) => f64::NAN,
            (0, _) => sign * mantissa / 8.0 * 2_f64.powi(-6),
            _ => sign * (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
        }
    }

    #[test]
    fn every_code_has_its_value() {
        for code in 0..=u8::MAX {
            let (found, expected) = (decode(code), by_definition(code));
            assert!(
                f64::from(found) == expected || (found.is_nan() && expected.is_nan()),
                "{code:#x}: {found}"
            );
        }
        assert_eq!([0x7e, 0x08, 0x01].map(decode), [MAX, MIN_NORMAL, MIN_SUBNORMAL]);
        assert_eq!(decode(0x80).to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    fn every_code_comes_back() {
        for code in 0..=u8::MAX {
            assert_eq!(encode(decode(code)), code);
        }
    }

    #[test]
    fn between_neighbours_the_nearest_wins_and_the_even_on_a_tie() {
        for code in 0..LARGEST {
            let (below, above) = (decode(code), decode(code + 1));
            let tie = f32::midpoint(below, above);
            let even = if code % 2 == 0 { code } else { code + 1 };
            for (value, expected) in [(tie.next_down(), code), (tie, even), (tie.next_up(), code + 1)] {
                assert_eq!(encode(value), expected, "{value} lies between {below} and {above}");
                assert_eq!(encode(-value), expected | SIGN, "{value} lies between -{below} and -{above}");
            }
        }
    }

    #[test]
    fn what_lies_beyond_is_saturated() {
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
    fn the_smallest_values_of_f32_are_zero() {
        for value in [f32::from_bits(1), f32::MIN_POSITIVE, MIN_SUBNORMAL / 2.0] {
            assert_eq!((encode(value), encode(-value)), (0x00, 0x80), "{value}");
        }
        assert_eq!(encode((MIN_SUBNORMAL / 2.0).next_up()), 0x01);
        assert_eq!(encode(MIN_NORMAL.next_down()), 0x08);
    }

    proptest! {
        #[test]
        fn no_code_is_nearer_than_the_one_chosen(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            let inside = f64::from(value.clamp(-MAX, MAX));
            let distance = (f64::from(decode(encode(value))) - inside).abs();
            for code in (0..=u8::MAX).filter(|code| code & !SIGN != NAN) {
                prop_assert!(distance <= (by_definition(code) - inside).abs(), "{value} is nearer to {code:#x}");
            }
        }
    }
}
