//! Hyper-parameters of the models.

use crate::geometry::{Patch, VaeStride};
use crate::work::Work;
use serde::{Deserialize, Serialize};

/// Rows of text states that a denoiser attends to: tokens first, then zeros.
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
    /// Distance from which all positions share the last bucket.
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
    /// Channels of the input: latent and conditioning.
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
    /// Returns the model width, d.
    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Returns the split of a head among the axes of rotary embedding: time, height, width. Each is even; the sum is
    /// `head_width`.
    ///
    /// Source: in Wan, height and width have `2·⌊head/6⌋` each and time has the rest.
    pub fn rotary_split(&self) -> [usize; 3] {
        let space = 2 * (self.head_width / 6);
        [self.head_width - 2 * space, space, space]
    }

    /// Returns the operations of one forward pass over `tokens` tokens: every matrix product, including those of the text.
    ///
    /// With L tokens, T = [`TEXT_ROWS`], width d and feed-forward width f, a block has the products
    /// `L·(12d² + 4d·f) + 4T·d²`: queries, keys, values and output of self-attention (8d²) and queries and output of
    /// cross-attention (4d²), the two layers of the feed-forward layer, and keys and values of the text. Its attention has
    /// `4L²·d` (self) and `4L·T·d` (cross).
    pub fn step_work(&self, tokens: usize) -> Work {
        let [l, d, f, t] = [tokens, self.width(), self.feed_forward, TEXT_ROWS].map(as_f64);
        let patch = as_f64(self.patch.time * self.patch.height * self.patch.width);
        let block = Work {
            products: l * (12.0 * d * d + 4.0 * d * f) + 4.0 * t * d * d,
            attention: 4.0 * l * l * d + 4.0 * l * t * d,
            convolutions: 0.0,
        };
        let ends = 2.0 * l * d * patch * as_f64(self.in_channels + self.out_channels)
            + 2.0 * t * (as_f64(self.text_width) * d + d * d);
        block * as_f64(self.layers) + Work { products: ends, ..Work::default() }
    }

    /// Returns the floating-point operations of one forward pass over `tokens` tokens (multiply and add count as two).
    pub fn step_flops(&self, tokens: usize) -> f64 {
        self.step_work(tokens).total()
    }
}

fn as_f64(value: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let value = value as f64;
    value
}

/// A causal video VAE of the Wan2.1 family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VaeSpec {
    /// Decoder channels at full resolution.
    pub base: usize,
    /// Latent channels.
    pub latent_channels: usize,
    /// Width of each level as a multiple of `base`, from full resolution down to latent resolution.
    pub multipliers: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub residual_blocks: usize,
    /// For each downsampling, from full resolution down: true if it also halves time.
    pub temporal_downsample: Vec<bool>,
    /// Mean of each latent channel.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f32>,
}

impl VaeSpec {
    /// Returns the decoder channels at latent resolution.
    pub fn deepest_width(&self) -> usize {
        self.base * self.multipliers.last().copied().unwrap_or(1)
    }

    /// Returns the frames and pixels per latent position.
    pub fn stride(&self) -> VaeStride {
        let halvings = self.temporal_downsample.iter().filter(|halves| **halves).count();
        VaeStride { time: 1 << halvings, space: 1 << self.temporal_downsample.len() }
    }
}

impl TextEncoderSpec {
    /// Returns the operations of encoding `tokens` tokens: every matrix product of one forward pass.
    pub fn work(&self, tokens: usize) -> Work {
        let inner = self.heads * self.head_width;
        let [s, d, n, f] = [tokens, self.width, inner, self.feed_forward].map(as_f64);
        let layer = Work {
            products: 2.0 * s * (4.0 * d * n + 3.0 * d * f),
            attention: 4.0 * s * s * n,
            convolutions: 0.0,
        };
        layer * as_f64(self.layers)
    }

    /// Returns the floating-point operations of encoding `tokens` tokens (multiply and add count as two).
    pub fn flops(&self, tokens: usize) -> f64 {
        self.work(tokens).total()
    }
}

impl VaeSpec {
    /// Returns the floating-point operations of decoding the first latent frame, of `height x width` (multiply and add
    /// count as two). Only the newest tap of each causal convolution has an input.
    pub fn first_frame_flops(&self, height: usize, width: usize) -> f64 {
        self.first_frame_work(height, width).total()
    }

    /// Returns the floating-point operations of decoding a later latent frame.
    pub fn next_frames_flops(&self, height: usize, width: usize) -> f64 {
        self.next_frames_work(height, width).total()
    }

    /// Returns the operations of decoding the first latent frame, of `height x width`.
    pub fn first_frame_work(&self, height: usize, width: usize) -> Work {
        self.decoder_work(as_f64(height * width), false)
    }

    /// Returns the operations of decoding a later latent frame, of `height x width`.
    pub fn next_frames_work(&self, height: usize, width: usize) -> Work {
        self.decoder_work(as_f64(height * width), true)
    }

    /// Counts every convolution of the decoder, also those of one position, and its attention.
    fn decoder_work(&self, latent_positions: f64, later: bool) -> Work {
        let taps = if later { 3.0 } else { 1.0 };
        let product = |out: usize, channels: usize| 2.0 * as_f64(out) * as_f64(channels);
        let causal = |out: usize, channels: usize| 9.0 * taps * product(out, channels);
        let residual = |out: usize, channels: usize| {
            let shortcut = if out == channels { 0.0 } else { product(out, channels) };
            shortcut + causal(out, channels) + causal(out, out)
        };
        let widths: Vec<usize> = self.multipliers.iter().rev().map(|times| times * self.base).collect();
        let mut channels = widths.first().copied().unwrap_or(self.base);
        let mut positions = latent_positions;
        let attention = 4.0 * positions * positions * as_f64(channels);
        let mut convolutions = positions
            * (product(self.latent_channels, self.latent_channels)
                + causal(channels, self.latent_channels)
                + 2.0 * residual(channels, channels)
                + 4.0 * product(channels, channels));
        let doubles_time: Vec<bool> = self.temporal_downsample.iter().rev().copied().collect();
        for (level, width) in widths.iter().copied().enumerate() {
            for _ in 0..=self.residual_blocks {
                convolutions += positions * residual(width, channels);
                channels = width;
            }
            if let Some(doubles_time) = doubles_time.get(level) {
                if *doubles_time && later {
                    convolutions += positions * 3.0 * product(2 * channels, channels);
                    positions *= 2.0;
                }
                positions *= 4.0;
                convolutions += positions * 9.0 * product(channels / 2, channels);
                channels /= 2;
            }
        }
        Work { products: 0.0, attention, convolutions: convolutions + positions * causal(3, channels) }
    }
}

/// A tiny decoder for previews, in the published `taew2_1` or `taew2_2` layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TinyDecoderSpec {
    /// Latent channels.
    pub latent_channels: usize,
    /// Channels at 1, 2 and 4 times the latent's resolution, and at full resolution.
    pub widths: [usize; 4],
    /// Pixels per position of the last layer, in each direction.
    pub patch: usize,
    /// Frames per input frame that the stored weights of each level produce; at least [`Self::GROWTH`].
    pub stored_growth: [usize; 3],
}

impl TinyDecoderSpec {
    /// Output frames of each level per input frame.
    pub const GROWTH: [usize; 3] = [1, 2, 2];

    /// Returns the frames and pixels per latent position.
    pub fn stride(&self) -> VaeStride {
        VaeStride { time: Self::GROWTH.iter().product(), space: 8 * self.patch }
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
    fn a_step_of_a14b_at_720p_takes_6_52_petaflop() {
        let flops = wan_denoiser(40, 40, 13824).step_flops(75_600);
        assert!((flops / 6.52e15 - 1.0).abs() < 0.005, "{flops:e}");
    }

    /// The numbers of the published cost model: PFLOP of the linear layers, of self-attention and of cross-attention.
    #[test]
    fn attention_is_53_percent_of_a_step_of_a14b_at_480p_and_72_at_720p() {
        let spec = wan_denoiser(40, 40, 13824);
        for (tokens, products, attention, share) in
            [(32_760, 7.83e14, 8.79e14 + 1.37e13, 0.53), (75_600, 1.81e15, 4.68e15 + 3.17e13, 0.72)]
        {
            let work = spec.step_work(tokens);
            assert!((work.products / products - 1.0).abs() < 0.01, "{work:?}");
            assert!((work.attention / attention - 1.0).abs() < 0.005, "{work:?}");
            assert!((work.attention / work.total() - share).abs() < 0.005, "{work:?}");
        }
    }

    #[test]
    fn a_step_of_one_small_layer_is_that_of_its_products_counted_by_hand() {
        // Width 4, feed-forward 8, 3 tokens, 16 channels in and out, 2x2 positions for each token, text width 4096.
        let spec = DenoiserSpec { head_width: 4, ..wan_denoiser(1, 1, 8) };
        let work = spec.step_work(3);
        let block = 3.0 * (12.0 * 16.0 + 4.0 * 4.0 * 8.0) + 4.0 * 512.0 * 16.0;
        let ends = 2.0 * 3.0 * 4.0 * 4.0 * 32.0 + 2.0 * 512.0 * (4096.0 * 4.0 + 16.0);
        assert_eq!(work.products, block + ends);
        assert_eq!(work.attention, 4.0 * 9.0 * 4.0 + 4.0 * 3.0 * 512.0 * 4.0);
        assert_eq!(work.convolutions, 0.0);
    }

    #[test]
    fn the_text_encoder_of_512_tokens_takes_4_8_teraflop() {
        let work = crate::catalog::umt5_xxl().work(512);
        assert!((work.total() / 4.8e12 - 1.0).abs() < 0.02, "{work:?}");
    }

    /// 13.6 TFLOP for a latent frame of 832x480 and 31.5 for one of 1280x720, by an independent count.
    #[test]
    fn a_later_latent_frame_takes_13_6_teraflop_at_480p_and_31_5_at_720p() {
        for (height, width, published) in [(60, 104, 13.6e12), (90, 160, 31.5e12)] {
            let work = wan21_vae().next_frames_work(height, width);
            assert!((work.total() / published - 1.0).abs() < 0.02, "{work:?}");
        }
    }

    #[test]
    fn decoder_flops_are_those_of_its_convolutions() {
        let vae = wan21_vae();
        let (first, next) = (vae.first_frame_flops(30, 52), vae.next_frames_flops(30, 52));
        // Four frames and three taps give a factor of 12, less for levels before the frames are doubled.
        assert!((8.0..8.4).contains(&(next / first)), "{}", next / first);
        // The widest level alone: three blocks of two convolutions of 96 channels at full resolution.
        let widest = 6.0 * 9.0 * 2.0 * 96.0 * 96.0 * (1560.0 * 64.0);
        assert!((4.0..4.3).contains(&(first / widest)), "{}", first / widest);
    }

    #[test]
    fn the_stride_follows_from_the_levels() {
        assert_eq!(wan21_vae().stride(), VaeStride { time: 4, space: 8 });
    }
}
