//! E4M3: one scale per weight, one per input, and the layers that are not quantised.
//!
//! Source: NVIDIA's Model-Optimizer for Wan. Embedders, the head and the blocks at both ends are not quantised.

use crate::codec::fp8::{MAX, decode, encode};
use crate::observe::statistics::Statistics;
use bundle::manifest::Component;
use bundle::quantization::Affine;
use bundle::quantization::layers::LayerGroup;

/// The scale for values with largest magnitude `amax`: `amax / 448`, rounded up to bf16, because accelerators read it
/// in the number format of the activations.
pub fn range(amax: f32) -> Affine {
    let scale = if amax == 0.0 { 1.0 } else { up_to_bf16((amax / MAX).max(f32::MIN_POSITIVE)) };
    Affine { scale, zero_point: 0 }
}

/// The smallest bf16 number that is not below a positive number.
fn up_to_bf16(value: f32) -> f32 {
    const LOWER: u32 = 0xffff;
    f32::from_bits(value.to_bits().saturating_add(LOWER) & !LOWER)
}

/// The nearest value that E4M3 with this scale can represent.
pub(super) fn nearest(scale: f32, value: f32) -> f32 {
    decode(encode(value / scale)) * scale
}

/// The relative error of rounding an input, as a ratio of mean squares.
pub(super) fn input_error(statistics: &Statistics, scale: f32) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for value in &statistics.samples {
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
        return Some("only denoisers are quantised to E4M3".into());
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
        assert_eq!(range(448.0).scale, 1.0);
        assert_eq!(range(0.0).scale, 1.0);
        assert!(range(f32::from_bits(1)).scale.is_normal());
    }
}
