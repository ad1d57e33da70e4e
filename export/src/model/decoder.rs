//! The structure of the decoder of a Wan2.1 VAE: one latent frame to one frame (the first) or `stride` frames (each
//! later one).
//!
//! The structure is the same in every lowering. [`Operators`] are the operators of one lowering: their layout of
//! frames, their number formats and their caches.

use super::causal_convolution::Chunk;
use crate::Error;
use bundle::spec::VaeSpec;
use graph::{GraphBuilder, Tensor};

/// A convolution of the decoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Convolution<'a> {
    /// Name of the layer.
    pub(super) name: &'a str,
    /// Output channels.
    pub(super) out: usize,
    /// Input channels.
    pub(super) channels: usize,
    /// Taps in time: 3 for a causal convolution with a cache, else 1.
    pub(super) taps: usize,
    /// Height and width of the kernel: 1 or 3.
    pub(super) side: usize,
    /// True if the checkpoint stores the kernel with a time axis.
    pub(super) has_time_axis: bool,
}

impl<'a> Convolution<'a> {
    /// A causal convolution `[out,in]` with a cache of two frames.
    fn causal(name: &'a str, [out, channels]: [usize; 2], side: usize) -> Self {
        Self { name, out, channels, taps: 3, side, has_time_axis: true }
    }

    /// A 1×1×1 convolution `[out,in]`.
    fn pointwise(name: &'a str, [out, channels]: [usize; 2]) -> Self {
        Self { name, out, channels, taps: 1, side: 1, has_time_axis: true }
    }

    /// A convolution `[out,in]` of single frames, stored without a time axis.
    fn of_frames(name: &'a str, [out, channels]: [usize; 2], side: usize) -> Self {
        Self { name, out, channels, taps: 1, side, has_time_axis: false }
    }
}

/// A norm over channels before a convolution: `x / ‖x‖₂ · √C · γ`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm<'a> {
    /// Name of the layer.
    pub(super) name: &'a str,
    /// The stored shape of its gain; the first extent is the channels.
    pub(super) shape: &'a [usize],
    /// True if SiLU follows.
    pub(super) activates: bool,
}

/// The operators of a lowering of the decoder.
pub(super) trait Operators {
    /// The input of a convolution.
    type Input;

    /// The graph that is being built.
    fn graph(&mut self) -> &mut GraphBuilder;

    /// The latent frames that the graph is for.
    fn chunk(&self) -> Chunk;

    /// Declares the input `latent` and returns it at VAE scale.
    fn latent(&mut self, spec: &VaeSpec) -> Result<Tensor, Error>;

    /// Converts `x` to the input of the convolution `next`.
    fn prepare(&mut self, next: &str, x: &Tensor) -> Result<Self::Input, Error>;

    /// Applies a norm and converts the result to the input of the convolution `next`.
    fn norm(&mut self, norm: &Norm<'_>, x: &Tensor, next: &str) -> Result<Self::Input, Error>;

    /// A convolution; `residual` is added. A causal one reads and writes its cache.
    fn convolve(
        &mut self,
        convolution: Convolution<'_>,
        x: &Self::Input,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error>;

    /// Attention with one head among the positions of each frame, from queries, keys and values as `3·channels`.
    fn attend(&mut self, qkv: &Tensor, channels: usize) -> Result<Tensor, Error>;

    /// Declares the cache of the causal convolution `name` with zeros, for the first chunk, which skips it.
    fn leave_empty(&mut self, name: &str, x: &Tensor) -> Result<(), Error>;

    /// Repeats each pixel to 2×2 and convolves. With `splits_frames`, each frame of `x` has two frames as halves of its
    /// channels, which are separated first.
    fn upsample(
        &mut self,
        convolution: Convolution<'_>,
        x: &Tensor,
        splits_frames: bool,
    ) -> Result<Tensor, Error>;

    /// Converts the result of the last convolution to f32 `[t,3,h,w]`.
    fn frames(&mut self, x: &Tensor) -> Result<Tensor, Error>;
}

/// Builds the whole decoder: the input `latent`, the output `frames` and the caches.
pub(super) fn build(o: &mut impl Operators, spec: &VaeSpec) -> Result<(), Error> {
    let features = trunk(o, spec)?;
    upsampler(o, spec, &features)
}

/// Builds the layers at latent resolution, from the input `latent` to the features.
pub(super) fn trunk(o: &mut impl Operators, spec: &VaeSpec) -> Result<Tensor, Error> {
    let (z, deepest) = (spec.latent_channels, spec.deepest_width());
    let x = o.latent(spec)?;
    let x = convolve(o, Convolution::pointwise("post_quant_conv", [z, z]), &x)?;
    let mut x = convolve(o, Convolution::causal("decoder.conv_in", [deepest, z], 3), &x)?;
    x = residual(o, "decoder.mid_block.resnets.0", &x, [deepest, deepest])?;
    x = attention(o, "decoder.mid_block.attentions.0", &x, deepest)?;
    x = residual(o, "decoder.mid_block.resnets.1", &x, [deepest, deepest])?;
    residuals(o, 0, spec, &x, [deepest, deepest])
}

/// Builds the layers from the features to the output `frames`.
pub(super) fn upsampler(o: &mut impl Operators, spec: &VaeSpec, features: &Tensor) -> Result<(), Error> {
    let mut x = features.clone();
    let mut channels = spec.deepest_width();
    for (level, (width, doubles_time)) in levels(spec).enumerate() {
        if level > 0 {
            x = residuals(o, level, spec, &x, [width, channels])?;
            channels = width;
        }
        if let Some(doubles_time) = doubles_time {
            let name = format!("decoder.up_blocks.{level}.upsamplers.0");
            x = upsample(o, &name, &x, channels, doubles_time)?;
            // Each up-convolution halves the channels.
            channels /= 2;
        }
    }
    let norm = Norm { name: "decoder.norm_out", shape: &[channels, 1, 1, 1], activates: true };
    let last = Convolution::causal("decoder.conv_out", [3, channels], 3);
    let h = o.norm(&norm, &x, last.name)?;
    let x = o.convolve(last, &h, None)?;
    let x = o.frames(&x)?;
    let frames = o.graph().clamp(&x, -1.0, 1.0)?;
    Ok(o.graph().output("frames", &frames)?)
}

/// From the deepest level up: the width of each level, and whether the upsampling after it also doubles time; none
/// after the last level.
fn levels(spec: &VaeSpec) -> impl Iterator<Item = (usize, Option<bool>)> {
    let widths = spec.multipliers.iter().rev().map(|times| times * spec.base);
    let doubles_time = spec.temporal_downsample.iter().rev().copied().map(Some);
    widths.zip(doubles_time.chain(std::iter::repeat(None)))
}

fn convolve(o: &mut impl Operators, convolution: Convolution<'_>, x: &Tensor) -> Result<Tensor, Error> {
    let x = o.prepare(convolution.name, x)?;
    o.convolve(convolution, &x, None)
}

/// The residual blocks of a level: `[out,in]`.
fn residuals(
    o: &mut impl Operators,
    level: usize,
    spec: &VaeSpec,
    x: &Tensor,
    [out, channels]: [usize; 2],
) -> Result<Tensor, Error> {
    let mut x = x.clone();
    for index in 0..=spec.residual_blocks {
        let input = if index == 0 { channels } else { out };
        x = residual(o, &format!("decoder.up_blocks.{level}.resnets.{index}"), &x, [out, input])?;
    }
    Ok(x)
}

/// Two causal convolutions and a shortcut: `[out,in]`.
fn residual(
    o: &mut impl Operators,
    name: &str,
    x: &Tensor,
    [out, channels]: [usize; 2],
) -> Result<Tensor, Error> {
    let part = |part: &str| format!("{name}.{part}");
    let shortcut = if out == channels {
        x.clone()
    } else {
        convolve(o, Convolution::pointwise(&part("conv_shortcut"), [out, channels]), x)?
    };
    let (norm, conv) = (part("norm1"), part("conv1"));
    let norm = Norm { name: &norm, shape: &[channels, 1, 1, 1], activates: true };
    let h = o.norm(&norm, x, &conv)?;
    let h = o.convolve(Convolution::causal(&conv, [out, channels], 3), &h, None)?;
    let (norm, conv) = (part("norm2"), part("conv2"));
    let norm = Norm { name: &norm, shape: &[out, 1, 1, 1], activates: true };
    let h = o.norm(&norm, &h, &conv)?;
    o.convolve(Convolution::causal(&conv, [out, out], 3), &h, Some(&shortcut))
}

/// Attention with one head among the positions of each frame.
fn attention(o: &mut impl Operators, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
    let part = |part: &str| format!("{name}.{part}");
    let (norm, qkv, proj) = (part("norm"), part("to_qkv"), part("proj"));
    let norm = Norm { name: &norm, shape: &[channels, 1, 1], activates: false };
    let h = o.norm(&norm, x, &qkv)?;
    let h = o.convolve(Convolution::of_frames(&qkv, [3 * channels, channels], 1), &h, None)?;
    let h = o.attend(&h, channels)?;
    let h = o.prepare(&proj, &h)?;
    o.convolve(Convolution::of_frames(&proj, [channels, channels], 1), &h, Some(x))
}

/// Doubles height and width, halves the channels, and doubles the frames if `doubles_time`. The first latent frame of a
/// clip stays one frame and does not enter the history.
fn upsample(
    o: &mut impl Operators,
    name: &str,
    x: &Tensor,
    channels: usize,
    doubles_time: bool,
) -> Result<Tensor, Error> {
    let (time, conv) = (format!("{name}.time_conv"), format!("{name}.resample.1"));
    let splits_frames = doubles_time && o.chunk() == Chunk::Next;
    let x = if splits_frames {
        convolve(o, Convolution::causal(&time, [2 * channels, channels], 1), x)?
    } else {
        if doubles_time {
            o.leave_empty(&time, x)?;
        }
        x.clone()
    };
    o.upsample(Convolution::of_frames(&conv, [channels / 2, channels], 3), &x, splits_frames)
}
