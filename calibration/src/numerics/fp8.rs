//! E4M3: one scale for a weight, one for its input, and the layers that stay in high precision.
//!
//! Source: NVIDIA's Model-Optimizer for Wan: embedders and head stay, and so do the blocks at both ends.

use crate::codec::fp8::{MAX, decode, encode};
use crate::observe::statistics::Statistics;
use bundle::manifest::Component;
use bundle::quantization::Affine;
use bundle::quantization::layers::LayerGroup;

/// The scale of values of a largest magnitude: `amax / 448`, rounded up to a number of bf16, since accelerators read it in
/// the number format of the activations.
pub fn range(amax: f32) -> Affine {
    let scale = if amax == 0.0 { 1.0 } else { up_to_bf16((amax / MAX).max(f32::MIN_POSITIVE)) };
    Affine { scale, zero_point: 0 }
}

/// The least bf16 that is not below a positive number.
fn up_to_bf16(value: f32) -> f32 {
    const LOWER: u32 = 0xffff;
    f32::from_bits(value.to_bits().saturating_add(LOWER) & !LOWER)
}

/// The nearest value that a scale can hold.
pub(super) fn nearest(scale: f32, value: f32) -> f32 {
    decode(encode(value / scale)) * scale
}

/// What rounding adds to an input, relative to it, both as mean squares.
pub(super) fn input_error(statistics: &Statistics, scale: f32) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for value in &statistics.samples {
        error += f64::from(nearest(scale, *value) - value).powi(2);
        signal += f64::from(*value).powi(2);
    }
    if signal > 0.0 { error / signal } else { 0.0 }
}

/// How many blocks at each end stay in high precision: 7.5 %, rounded up.
pub fn blocks_kept(blocks: usize) -> usize {
    (blocks * 75).div_ceil(1000)
}

/// Why a group stays in high precision, if it does.
pub(super) fn kept(component: &Component, group: &LayerGroup, blocks: usize) -> Option<String> {
    if !matches!(component, Component::Expert(_)) {
        return Some("only denoisers are quantised to E4M3".into());
    }
    let Some(block) = group.block else {
        return Some("embedders and the head stay in high precision".into());
    };
    let ends = blocks_kept(blocks);
    (block < ends || block >= blocks - ends)
        .then(|| format!("the first and last {ends} of {blocks} blocks stay in high precision"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_blocks_at_each_end_of_forty_stay() {
        assert_eq!([6, 30, 40].map(blocks_kept), [1, 3, 3]);
    }

    #[test]
    fn the_largest_value_gets_the_largest_code() {
        assert_eq!(range(448.0).scale, 1.0);
        assert_eq!(range(0.0).scale, 1.0);
        assert!(range(f32::from_bits(1)).scale.is_normal());
    }
}
