//! The integers of quantised activations, and numbers that their number formats hold exactly.

use bundle::dtype::WeightType;
use bundle::quantization::Affine;
use half::f16;

/// The largest unsigned value.
const LARGEST: f32 = 255.0;

/// The integers of quantised activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationFormat {
    /// Unsigned, with a zero point: on the CPU.
    Unsigned,
    /// Signed around 0, as TensorRT requires: half of them are not used after an activation function. Scales and
    /// divisors of channels are exact in the number format of the graph, which reads them in that format.
    Signed(WeightType),
}

impl ActivationFormat {
    /// Maps the range `low..=high`, extended to contain 0, to 256 quantised values.
    pub fn affine(self, low: f32, high: f32) -> Affine {
        let Self::Signed(_) = self else { return unsigned(low, high) };
        let largest = low.abs().max(high.abs());
        let scale = if largest == 0.0 { 1.0 } else { (largest / 127.0).max(f32::MIN_POSITIVE) };
        Affine { scale: self.scale(scale), zero_point: Affine::SIGNED }
    }

    /// The smallest scale from `scale` upward that graphs hold exactly.
    pub fn scale(self, scale: f32) -> f32 {
        match self {
            Self::Unsigned => scale,
            Self::Signed(weights) => exact_from(weights, scale),
        }
    }

    /// A divisor near `divisor` by which graphs divide exactly: a power of two.
    pub fn divisor(self, divisor: f32) -> f32 {
        match self {
            Self::Unsigned => divisor,
            Self::Signed(_) => divisor.log2().round().exp2(),
        }
    }
}

/// Maps the range `low..=high`, extended to contain 0, to 256 quantised values.
pub(super) fn unsigned(low: f32, high: f32) -> Affine {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = high / LARGEST - low / LARGEST;
    if scale == 0.0 {
        return Affine { scale: 1.0, zero_point: 0 };
    }
    let scale = scale.max(f32::MIN_POSITIVE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    let zero_point = (-low / scale).round_ties_even().clamp(0.0, LARGEST) as u8;
    Affine { scale, zero_point }
}

/// The smallest number of a format from a positive number upward, or the largest there is.
pub(super) fn exact_from(format: WeightType, value: f32) -> f32 {
    match format {
        WeightType::F32 => value,
        WeightType::Bf16 => {
            const LOWER: u32 = 0xffff;
            f32::from_bits(value.to_bits().saturating_add(LOWER) & !LOWER)
        }
        WeightType::F16 => {
            let nearest = f16::from_f32(value);
            let above =
                if nearest.to_f32() < value { f16::from_bits(nearest.to_bits() + 1) } else { nearest };
            if above.is_finite() { above.to_f32() } else { f16::MAX.to_f32() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    #[test]
    fn divisors_are_powers_of_two_where_graphs_divide_in_16_bits() {
        let signed = ActivationFormat::Signed(WeightType::Bf16);
        assert_eq!(
            [0.3, 1.0, 1.4, 1.5, 700.0].map(|value| signed.divisor(value)),
            [0.25, 1.0, 1.0, 2.0, 512.0]
        );
        assert_eq!(ActivationFormat::Unsigned.divisor(0.3), 0.3);
    }

    #[test]
    fn a_signed_range_is_symmetric_and_holds_both_ends() {
        let range = ActivationFormat::Signed(WeightType::F32).affine(-0.17, 12.7);
        assert_eq!((range.scale, range.signed_scale()), (12.7 / 127.0, Some(12.7 / 127.0)));
        let empty = ActivationFormat::Signed(WeightType::F16).affine(0.0, 0.0);
        assert_eq!(empty.signed_scale(), Some(1.0));
    }

    proptest! {
        #[test]
        fn numbers_are_exact_in_their_format_and_hardly_larger(exponent in -13.0_f32..15.0, part in 1.0_f32..2.0) {
            let value = exponent.floor().exp2() * part;
            let steps = [(WeightType::F32, 0.0), (WeightType::Bf16, 1.0 / 128.0), (WeightType::F16, 1.0 / 1024.0)];
            for (format, step) in steps {
                let found = exact_from(format, value);
                let stored = match format {
                    WeightType::F32 => found,
                    WeightType::Bf16 => bf16::from_f32(found).to_f32(),
                    WeightType::F16 => f16::from_f32(found).to_f32(),
                };
                prop_assert_eq!(stored, found);
                prop_assert!(found >= value && found <= value * (1.0 + step), "{value} to {found} in {format}");
            }
        }
    }
}
