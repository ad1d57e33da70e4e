//! The decoder of a Wan2.1 VAE: one latent frame to one frame (the first) or `stride` frames (each later one).
//!
//! Inside, frames are the batch: `[t,C,h,w]`. Only causal convolutions mix them, through caches of two frames.

pub use super::causal_convolution::Chunk;
use super::causal_convolution::{Caches, Kernel, causal_convolution};
use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::VaeSpec;
use graph::{Attention, Dim, GraphBuilder, Model, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn decoder_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    let mut decoder = Decoder { g: &mut graph, weights, caches: Caches::new(chunk) };
    let x = decoder.latent(spec)?;
    let x = decoder.trunk(spec, &x)?;
    let frames = decoder.upsampler(spec, &x)?;
    graph.output("frames", &frames)?;
    Ok(graph.finish())
}

/// Builds the part of [`decoder_graph`] that works at the latent's resolution, up to the features.
///
/// Its attention makes every position depend on every other; all that comes after looks a few positions far.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn decoder_trunk_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "decoder_stem_first",
        Chunk::Next => "decoder_stem_next",
    });
    let mut decoder = Decoder { g: &mut graph, weights, caches: Caches::new(chunk) };
    let x = decoder.latent(spec)?;
    let features = decoder.trunk(spec, &x)?;
    let features = decoder.g.cast(&features, ElementType::F32);
    graph.output("features", &features)?;
    Ok(graph.finish())
}

/// Builds the part of [`decoder_graph`] that makes frames of the features.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn decoder_upsampler_graph(
    spec: &VaeSpec,
    chunk: Chunk,
    weights: GraphWeights<'_>,
) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "decoder_rise_first",
        Chunk::Next => "decoder_rise_next",
    });
    let shape = [1.into(), spec.deepest_width().into(), Dim::symbol("h"), Dim::symbol("w")];
    let features = graph.input("features", ElementType::F32, &shape);
    let mut decoder = Decoder { g: &mut graph, weights, caches: Caches::new(chunk) };
    let features = decoder.g.cast(&features, weights.lowering().compute);
    let frames = decoder.upsampler(spec, &features)?;
    graph.output("frames", &frames)?;
    Ok(graph.finish())
}

struct Decoder<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    caches: Caches,
}

/// From the deepest level up: the width after each level, and whether going up from it also doubles time.
fn levels(spec: &VaeSpec) -> impl Iterator<Item = (usize, Option<bool>)> {
    let widths = spec.multipliers.iter().rev().map(|times| times * spec.base);
    let doubles_time = spec.temporal_downsample.iter().rev().copied().map(Some);
    widths.zip(doubles_time.chain(std::iter::repeat(None)))
}

impl Decoder<'_> {
    /// The latent as the decoder takes it: `[1,z,h,w]` at VAE scale.
    fn latent(&mut self, spec: &VaeSpec) -> Result<Tensor, Error> {
        let (height, width) = (Dim::symbol("h"), Dim::symbol("w"));
        let z = spec.latent_channels;
        let shape = [1.into(), z.into(), 1.into(), height.clone(), width.clone()];
        let latent = self.g.input("latent", ElementType::F32, &shape);
        let x = self.g.reshape(&latent, &[1.into(), z.into(), height, width])?;
        let x = self.denormalize(spec, &x)?;
        let x = self.g.cast(&x, self.weights.lowering().compute);
        self.pointwise("post_quant_conv", &x, [z, z])
    }

    /// Latent at model scale to latent at VAE scale, channel by channel.
    fn denormalize(&mut self, spec: &VaeSpec, x: &Tensor) -> Result<Tensor, Error> {
        let shape = [spec.latent_channels, 1, 1];
        let mean = self.g.constant("latents_mean", &shape, &spec.latents_mean)?;
        let std = self.g.constant("latents_std", &shape, &spec.latents_std)?;
        let scaled = self.g.multiply(x, &std)?;
        Ok(self.g.add(&scaled, &mean)?)
    }

    /// All that happens at the latent's resolution.
    fn trunk(&mut self, spec: &VaeSpec, x: &Tensor) -> Result<Tensor, Error> {
        let deepest = spec.deepest_width();
        let mut x = self.causal("decoder.conv_in", x, [deepest, spec.latent_channels], 3)?;
        x = self.residual("decoder.mid_block.resnets.0", &x, [deepest, deepest])?;
        x = self.attention("decoder.mid_block.attentions.0", &x, deepest)?;
        x = self.residual("decoder.mid_block.resnets.1", &x, [deepest, deepest])?;
        self.residuals(0, spec, &x, [deepest, deepest])
    }

    /// From features at the latent's resolution to frames.
    fn upsampler(&mut self, spec: &VaeSpec, features: &Tensor) -> Result<Tensor, Error> {
        let mut x = features.clone();
        let mut channels = spec.deepest_width();
        for (level, (width, doubles_time)) in levels(spec).enumerate() {
            if level > 0 {
                x = self.residuals(level, spec, &x, [width, channels])?;
                channels = width;
            }
            if let Some(doubles_time) = doubles_time {
                let name = format!("decoder.up_blocks.{level}.upsamplers.0");
                x = self.upsample(&name, &x, channels, doubles_time)?;
                // Each up-convolution halves the channels.
                channels /= 2;
            }
        }
        let x = self.norm("decoder.norm_out", &x, channels)?;
        let x = self.g.silu(&x)?;
        let x = self.causal("decoder.conv_out", &x, [3, channels], 3)?;
        let x = self.g.cast(&x, ElementType::F32);
        Ok(self.g.clamp(&x, -1.0, 1.0)?)
    }

    /// The residual blocks of a level: `[out,in]`.
    fn residuals(
        &mut self,
        level: usize,
        spec: &VaeSpec,
        x: &Tensor,
        [out, channels]: [usize; 2],
    ) -> Result<Tensor, Error> {
        let mut x = x.clone();
        for index in 0..=spec.residual_blocks {
            let from = if index == 0 { channels } else { out };
            x = self.residual(&format!("decoder.up_blocks.{level}.resnets.{index}"), &x, [out, from])?;
        }
        Ok(x)
    }

    /// A causal convolution `[out,in]` of depth 3 and `side` in space.
    fn causal(
        &mut self,
        name: &str,
        x: &Tensor,
        [out, channels]: [usize; 2],
        side: usize,
    ) -> Result<Tensor, Error> {
        let (weights, caches) = (self.weights, &mut self.caches);
        self.g
            .scoped(name, |g| causal_convolution(g, weights, caches, name, x, Kernel { out, channels, side }))
    }

    /// A 1×1(×1) convolution `[out,in]`.
    fn pointwise(&mut self, name: &str, x: &Tensor, [out, channels]: [usize; 2]) -> Result<Tensor, Error> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let view = [out, channels, 1, 1];
        let weight = self.weights.load_view(self.g, &weight, &[out, channels, 1, 1, 1], &view)?;
        let bias = self.weights.load(self.g, &bias, &[out])?;
        Ok(self.g.convolve(x, &weight, &bias)?)
    }

    /// `x / ‖x‖₂ · √C · γ` over channels.
    fn norm_with(&mut self, gain: &Tensor, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let root = (channels as f32).sqrt();
        let root = self.g.constant(&format!("root of {channels}"), &[], &[root])?;
        let root = self.g.cast(&root, gain.element());
        let gain = self.g.multiply(gain, &root)?;
        Ok(if self.weights.lowering().is_for_accelerators {
            self.g.channel_norm_by_sum(x, &gain)?
        } else {
            self.g.channel_norm(x, &gain)?
        })
    }

    fn norm(&mut self, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        let (gamma, shape) = (format!("{name}.gamma"), [channels, 1, 1, 1]);
        let gain = self.weights.load_view(self.g, &gamma, &shape, &[channels, 1, 1])?;
        self.norm_with(&gain, x, channels)
    }

    /// Two causal convolutions around a shortcut: `[out,in]`.
    fn residual(&mut self, name: &str, x: &Tensor, [out, channels]: [usize; 2]) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let shortcut = if out == channels {
            x.clone()
        } else {
            self.pointwise(&of("conv_shortcut"), x, [out, channels])?
        };
        let h = self.norm(&of("norm1"), x, channels)?;
        let h = self.g.silu(&h)?;
        let h = self.causal(&of("conv1"), &h, [out, channels], 3)?;
        let h = self.norm(&of("norm2"), &h, out)?;
        let h = self.g.silu(&h)?;
        let h = self.causal(&of("conv2"), &h, [out, out], 3)?;
        Ok(self.g.add(&h, &shortcut)?)
    }

    /// Attention with one head among the positions of each frame.
    fn attention(&mut self, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let gain = self.weights.load(self.g, &of("norm.gamma"), &[channels, 1, 1])?;
        let h = self.norm_with(&gain, x, channels)?;
        let h = self.image_pointwise(&of("to_qkv"), &h, [3 * channels, channels])?;
        let shape = h.shape().to_vec();
        let positions = shape[2].times(shape[3].clone());
        let h = self.g.reshape(&h, &[shape[0].clone(), shape[1].clone(), positions])?;
        let h = self.g.transpose(&h, &[0, 2, 1])?; // [t,hw,3C]
        let q = self.g.slice(&h, 2, 0, channels)?;
        let k = self.g.slice(&h, 2, channels, 2 * channels)?;
        let v = self.g.slice(&h, 2, 2 * channels, 3 * channels)?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let scale = 1.0 / (channels as f32).sqrt();
        let h = self.g.attention(Attention { heads: 1, scale }, &q, &k, &v, None)?;
        let h = self.g.transpose(&h, &[0, 2, 1])?;
        let h = self.g.reshape(&h, x.shape())?;
        let h = self.image_pointwise(&of("proj"), &h, [channels, channels])?;
        Ok(self.g.add(&h, x)?)
    }

    /// A 1×1 convolution stored without a time axis.
    fn image_pointwise(
        &mut self,
        name: &str,
        x: &Tensor,
        [out, channels]: [usize; 2],
    ) -> Result<Tensor, Error> {
        let weight = self.weights.load(self.g, &format!("{name}.weight"), &[out, channels, 1, 1])?;
        let bias = self.weights.load(self.g, &format!("{name}.bias"), &[out])?;
        Ok(self.g.convolve(x, &weight, &bias)?)
    }

    /// Twice the height and width at half the channels, and, where the level says so, twice the frames.
    fn upsample(
        &mut self,
        name: &str,
        x: &Tensor,
        channels: usize,
        doubles_time: bool,
    ) -> Result<Tensor, Error> {
        let x = if doubles_time {
            self.double_frames(&format!("{name}.time_conv"), x, channels)?
        } else {
            x.clone()
        };
        let doubled = if self.weights.lowering().is_for_accelerators {
            self.g.double_pixels_by_expanding(&x)?
        } else {
            self.g.double_pixels(&x)?
        };
        let conv = format!("{name}.resample.1");
        let shape = [channels / 2, channels, 3, 3];
        let weight = self.weights.load(self.g, &format!("{conv}.weight"), &shape)?;
        let bias = self.weights.load(self.g, &format!("{conv}.bias"), &[channels / 2])?;
        Ok(self.g.convolve(&doubled, &weight, &bias)?)
    }

    /// `[t,C,h,w]` to `[2t,C,h,w]`. The first latent frame of a clip stays one frame and does not enter the history.
    fn double_frames(&mut self, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        if self.caches.chunk() == Chunk::First {
            self.caches.leave_empty(self.g, x)?;
            return Ok(x.clone());
        }
        let both = self.causal(name, x, [2 * channels, channels], 1)?; // [t,2C,h,w]
        let mut shape = x.shape().to_vec();
        shape[0] = shape[0].times(2);
        Ok(self.g.reshape(&both, &shape)?)
    }
}
