//! Hyper-parameters of the three models, as data.

use crate::geometry::{Patch, VaeStride};
use serde::{Deserialize, Serialize};

/// Rows of text states that a denoiser attends to: real tokens first, then zeros.
pub const TEXT_ROWS: usize = 512;

/// A umT5 encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextEncoderSpec {
    /// Rows of the embedding table.
    pub vocabulary: usize,
    /// Width of the text states, D.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of one head; `heads × head_width` need not be `width`.
    pub head_width: usize,
    /// Width of the gated feed-forward layer.
    pub feed_forward: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Buckets of the relative position table.
    pub buckets: usize,
    /// Distance from which on all positions share the last bucket.
    pub max_distance: usize,
    /// Added under the root of every normalisation.
    pub epsilon: f64,
}

/// A Wan denoiser: all experts of a model share one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DenoiserSpec {
    /// Attention heads.
    pub heads: usize,
    /// Width of one head, even.
    pub head_width: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Channels of the input: the latent's and those of the conditioning.
    pub in_channels: usize,
    /// Channels of the velocity.
    pub out_channels: usize,
    /// Latent positions per token.
    pub patch: Patch,
    /// Width of the text states.
    pub text_width: usize,
    /// Width of the sinusoidal time embedding, even.
    pub frequency_width: usize,
    /// Added under the root of every normalisation.
    pub epsilon: f64,
}

impl DenoiserSpec {
    /// Model width, d.
    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// How a head is split among the axes of rotary embedding: time, height, width; each even, together `head_width`.
    ///
    /// Source: Wan gives height and width `2·⌊head/6⌋` each and time the rest.
    pub fn rotary_split(&self) -> [usize; 3] {
        let space = 2 * (self.head_width / 6);
        [self.head_width - 2 * space, space, space]
    }

    /// Floating-point operations of one step over `tokens` tokens (multiply and add counted apart).
    ///
    /// Source: every matrix product of one forward pass, text projections included.
    pub fn step_flops(&self, tokens: usize) -> f64 {
        let [l, d, f, t] = [tokens, self.width(), self.feed_forward, TEXT_ROWS].map(as_f64);
        let patch = as_f64(self.patch.time * self.patch.height * self.patch.width);
        let block = l * (12.0 * d * d + 4.0 * d * f) + 4.0 * l * l * d + 4.0 * l * t * d + 4.0 * t * d * d;
        as_f64(self.layers) * block
            + 2.0 * l * d * patch * as_f64(self.in_channels + self.out_channels)
            + 2.0 * t * (as_f64(self.text_width) * d + d * d)
    }
}

fn as_f64(value: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let value = value as f64;
    value
}

/// A causal video VAE of the Wan2.1 kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaeSpec {
    /// Channels at full resolution in the decoder.
    pub base: usize,
    /// Latent channels.
    pub latent_channels: usize,
    /// Width of each level as a multiple of `base`, from full resolution down.
    pub multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub residual_blocks: usize,
    /// Whether each downsampling, from full resolution down, also halves time.
    pub temporal_downsample: Vec<bool>,
    /// Mean of each latent channel.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f32>,
}

impl VaeSpec {
    /// Frames and pixels per latent position.
    pub fn stride(&self) -> VaeStride {
        let halvings = self.temporal_downsample.iter().filter(|halves| **halves).count();
        VaeStride { time: 1 << halvings, space: 1 << self.temporal_downsample.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{wan_denoiser, wan21_vae};

    #[test]
    fn rotary_split_of_wan_is_44_42_42_and_always_even() {
        assert_eq!(wan_denoiser(40, 40, 13824).rotary_split(), [44, 42, 42]);
        for head in (2..=256).step_by(2) {
            let split = DenoiserSpec { head_width: head, ..wan_denoiser(1, 1, 1) }.rotary_split();
            assert_eq!(split.iter().sum::<usize>(), head);
            assert!(split.iter().all(|axis| axis % 2 == 0), "{head}: {split:?}");
        }
    }

    #[test]
    fn a_step_of_a14b_at_720p_costs_6_52_petaflop() {
        let flops = wan_denoiser(40, 40, 13824).step_flops(75_600);
        assert!((flops / 6.52e15 - 1.0).abs() < 0.005, "{flops:e}");
    }

    #[test]
    fn the_stride_follows_from_the_levels() {
        assert_eq!(wan21_vae().stride(), VaeStride { time: 4, space: 8 });
    }
}
