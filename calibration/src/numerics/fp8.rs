//! E4M3: one scale per weight, one per input, and the layers that are not quantised.
//!
//! Source: NVIDIA's Model-Optimizer for Wan. Embedders, the head and the blocks at both ends are not quantised.

use super::activations::exact_from;
use crate::codec::fp8::{MAX, decode, encode};
use bundle::dtype::WeightType;
use bundle::manifest::Component;
use bundle::quantization::Affine;
use bundle::quantization::layers::LayerGroup;

/// The scale for values with largest magnitude `amax`: `amax / 448`, rounded up to a number of 16 bits, because
/// accelerators read it in the number format of the activations: that of the exported `weights`, or bf16.
pub fn range(amax: f32, weights: WeightType) -> Affine {
    let format = if weights == WeightType::F16 { weights } else { WeightType::Bf16 };
    let scale = if amax == 0.0 { 1.0 } else { exact_from(format, (amax / MAX).max(f32::MIN_POSITIVE)) };
    Affine { scale, zero_point: 0 }
}

/// The nearest value that E4M3 with this scale can represent.
pub(super) fn nearest(scale: f32, value: f32) -> f32 {
    decode(encode(value / scale)) * scale
}

/// The relative error of rounding an input, as a ratio of mean squares.
pub(super) fn input_error<'a>(samples: impl Iterator<Item = &'a f32>, scale: f32) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for value in samples {
        error += f64::from(nearest(scale, *value) - value).powi(2);
        signal += f64::from(*value).powi(2);
    }
    if signal > 0.0 { error / signal } else { 0.0 }
}

/// Number of blocks at each end that are not quantised: 7.5 %, rounded up.
pub fn unquantized_end_blocks(blocks: usize) -> usize {
    (blocks * 75).div_ceil(1000)
}

/// The reason why a group is not quantised, if it is not.
pub(super) fn keep_reason(component: &Component, group: &LayerGroup, blocks: usize) -> Option<String> {
    if !matches!(component, Component::Expert(_)) {
        return None;
    }
    let Some(block) = group.block else {
        return Some("embedders and the head stay in high precision".into());
    };
    let ends = unquantized_end_blocks(blocks);
    (block < ends || block >= blocks - ends)
        .then(|| format!("the first and last {ends} of {blocks} blocks stay in high precision"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_blocks_at_each_end_of_forty_are_not_quantised() {
        assert_eq!([6, 30, 40].map(unquantized_end_blocks), [1, 3, 3]);
    }

    #[test]
    fn the_largest_magnitude_maps_to_the_largest_e4m3_value() {
        for weights in [WeightType::F32, WeightType::Bf16, WeightType::F16] {
            assert_eq!(range(448.0, weights).scale, 1.0);
            assert_eq!(range(0.0, weights).scale, 1.0);
            assert!(range(f32::from_bits(1), weights).scale > 0.0);
        }
        assert!(range(f32::from_bits(1), WeightType::Bf16).scale.is_normal());
    }
}
