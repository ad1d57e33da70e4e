//! The decoder of a Wan2.1 VAE on Rushes kernels.
//!
//! The same model and the same numbers as the stock graph of bytes, in other operators: frames have their channels last,
//! norms write codes, and a convolution reads three frames where they lie, doubles pixels on the way and adds what
//! flows past it. Between convolutions values stay f32; histories are codes. Convolutions that are not packed run in f32.

use super::causal_convolution::{Caches, Chunk};
use super::channels_last::{
    EPSILON, Kernel, attend, double_pixels, history_shape, incomplete, latent_frame, split_frames,
};
use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::quantization::Affine;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::VaeSpec;
use graph::{GraphBuilder, Model, PackedKernel, QuantizedFrames, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn kernel_decoder_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    let x = latent_frame(&mut graph, spec)?;
    let z = spec.latent_channels;
    let mut decoder = Decoder { g: &mut graph, weights, caches: Caches::new(chunk) };
    let x = decoder.pointwise("post_quant_conv", &x, [z, z], None)?;
    let frames = decoder.decode(spec, &x)?;
    graph.output("frames", &frames)?;
    Ok(graph.finish())
}

/// A norm over channels before a convolution.
struct Norm<'a> {
    name: &'a str,
    /// Of its gain, as it is stored.
    shape: &'a [usize],
    /// Whether SiLU follows.
    activates: bool,
}

/// What a convolution reads: codes and their range where it is packed, else the values.
struct Arrived {
    tensor: Tensor,
    range: Option<Affine>,
}

struct Decoder<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    caches: Caches,
}

impl Decoder<'_> {
    fn decode(&mut self, spec: &VaeSpec, x: &Tensor) -> Result<Tensor, Error> {
        // From the deepest level up: the widths after each level, and whether going up also doubles time.
        let widths: Vec<usize> = spec.multipliers.iter().rev().map(|times| times * spec.base).collect();
        let doubles_time: Vec<bool> = spec.temporal_downsample.iter().rev().copied().collect();
        let deepest = widths[0];
        let arrived = self.arrive("decoder.conv_in", x)?;
        let mut x = self.causal("decoder.conv_in", &arrived, [deepest, spec.latent_channels], 3, None)?;
        x = self.residual("decoder.mid_block.resnets.0", &x, [deepest, deepest])?;
        x = self.attention("decoder.mid_block.attentions.0", &x, deepest)?;
        x = self.residual("decoder.mid_block.resnets.1", &x, [deepest, deepest])?;
        let mut channels = deepest;
        for (level, width) in widths.iter().copied().enumerate() {
            let of = |part: String| format!("decoder.up_blocks.{level}.{part}");
            for index in 0..=spec.residual_blocks {
                x = self.residual(&of(format!("resnets.{index}")), &x, [width, channels])?;
                channels = width;
            }
            if let Some(doubles_time) = doubles_time.get(level) {
                x = self.upsample(&of("upsamplers.0".into()), &x, channels, *doubles_time)?;
                // Each up-convolution halves the channels.
                channels /= 2;
            }
        }
        let norm = Norm { name: "decoder.norm_out", shape: &[channels, 1, 1, 1], activates: true };
        let h = self.normed("decoder.conv_out", &x, &norm)?;
        let x = self.causal("decoder.conv_out", &h, [3, channels], 3, None)?;
        let x = self.g.transpose(&x, &[0, 3, 1, 2])?;
        Ok(self.g.clamp(&x, -1.0, 1.0)?)
    }

    /// The range of the codes that the layer `name` reads; nothing where it is not packed.
    fn range(&self, name: &str) -> Result<Option<Affine>, Error> {
        if !self.weights.has(&format!("{name}.packed")) {
            return Ok(None);
        }
        let numbers = self.weights.layer(name).ok_or_else(|| incomplete(name))?;
        Ok(Some(numbers.input.ok_or_else(|| incomplete(name))?))
    }

    /// `x` as the layer `name` reads it.
    fn arrive(&mut self, name: &str, x: &Tensor) -> Result<Arrived, Error> {
        let Some(range) = self.range(name)? else { return Ok(Arrived { tensor: x.clone(), range: None }) };
        let constants = self.g.range_u8(range)?;
        Ok(Arrived { tensor: self.g.quantize(x, &constants)?, range: Some(range) })
    }

    /// `x` after a norm, as the layer `next` reads it.
    fn normed(&mut self, next: &str, x: &Tensor, norm: &Norm<'_>) -> Result<Arrived, Error> {
        let name = format!("{}.gamma", norm.name);
        let gain = self.weights.load_view(self.g, &name, norm.shape, &norm.shape[..1])?;
        if let Some(range) = self.range(next)? {
            #[expect(clippy::cast_possible_truncation, reason = "a guard against 0")]
            let epsilon = EPSILON as f32;
            let tensor = self.g.channel_norm_quantized(x, &gain, epsilon, norm.activates, range)?;
            return Ok(Arrived { tensor, range: Some(range) });
        }
        let mut tensor = self.g.rms_norm(x, &gain, EPSILON)?;
        if norm.activates {
            tensor = self.g.silu(&tensor)?;
        }
        Ok(Arrived { tensor, range: None })
    }

    /// Two causal convolutions around a shortcut: `[out,in]`.
    fn residual(&mut self, name: &str, x: &Tensor, [out, channels]: [usize; 2]) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let shortcut = if out == channels {
            x.clone()
        } else {
            self.pointwise(&of("conv_shortcut"), x, [out, channels], None)?
        };
        let (norm, conv) = (of("norm1"), of("conv1"));
        let norm = Norm { name: &norm, shape: &[channels, 1, 1, 1], activates: true };
        let h = self.normed(&conv, x, &norm)?;
        let h = self.causal(&conv, &h, [out, channels], 3, None)?;
        let (norm, conv) = (of("norm2"), of("conv2"));
        let norm = Norm { name: &norm, shape: &[out, 1, 1, 1], activates: true };
        let h = self.normed(&conv, &h, &norm)?;
        self.causal(&conv, &h, [out, out], 3, Some(&shortcut))
    }

    /// Attention with one head among the positions of each frame.
    fn attention(&mut self, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let (norm, qkv) = (of("norm"), of("to_qkv"));
        let h = self.normed(&qkv, x, &Norm { name: &norm, shape: &[channels, 1, 1], activates: false })?;
        let kernel = Kernel { out: 3 * channels, channels, taps: 1, side: 1 };
        let h = self.convolve(&qkv, &h, kernel, None)?;
        let h = attend(self.g, &h, channels)?;
        self.pointwise(&of("proj"), &h, [channels, channels], Some(x))
    }

    /// Twice the height and width at half the channels, and, where the level says so, twice the frames.
    fn upsample(
        &mut self,
        name: &str,
        x: &Tensor,
        channels: usize,
        doubles_time: bool,
    ) -> Result<Tensor, Error> {
        let (time, conv) = (format!("{name}.time_conv"), format!("{name}.resample.1"));
        let kernel = Kernel { out: channels / 2, channels, taps: 1, side: 3 };
        let splits_frames = doubles_time && self.caches.chunk() == Chunk::Next;
        let x = if splits_frames {
            let arrived = self.arrive(&time, x)?;
            self.causal(&time, &arrived, [2 * channels, channels], 1, None)?
        } else {
            if doubles_time {
                self.leave_empty(&time, x)?;
            }
            x.clone()
        };
        let arrived = self.arrive(&conv, &x)?;
        if let Some(range) = arrived.range {
            let frames = QuantizedFrames {
                doubles_pixels: true,
                splits_frames,
                ..QuantizedFrames::new(&arrived.tensor, range)
            };
            let kernel = self.packed(&conv, kernel)?;
            return Ok(self.g.convolve_quantized_frames(frames, &kernel, None)?);
        }
        let x = if splits_frames { split_frames(self.g, &x, channels)? } else { x };
        let doubled = double_pixels(self.g, &x)?;
        self.convolve(&conv, &Arrived { tensor: doubled, range: None }, kernel, None)
    }

    /// A 1×1 convolution; `residual` is added.
    fn pointwise(
        &mut self,
        name: &str,
        x: &Tensor,
        [out, channels]: [usize; 2],
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let arrived = self.arrive(name, x)?;
        self.convolve(name, &arrived, Kernel { out, channels, taps: 1, side: 1 }, residual)
    }

    /// Declares a cache that the first chunk leaves empty.
    fn leave_empty(&mut self, name: &str, x: &Tensor) -> Result<(), Error> {
        let number = self.caches.next_number();
        let zeros = self.g.zeros(&history_shape(x))?;
        let zeros = self.arrive(name, &zeros)?.tensor;
        Ok(self.g.output(&format!("{CACHE_OUTPUT}{number}"), &zeros)?)
    }

    /// A causal convolution `[out,in]` of depth 3 and `side` in space; reads and writes its cache of two frames.
    fn causal(
        &mut self,
        name: &str,
        x: &Arrived,
        [out, channels]: [usize; 2],
        side: usize,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let number = self.caches.next_number();
        let output = format!("{CACHE_OUTPUT}{number}");
        let kernel = Kernel { out, channels, taps: 3, side };
        let tensor = &x.tensor;
        let frames = tensor.shape()[0].fixed().unwrap_or(1);
        if self.caches.chunk() == Chunk::First {
            let zeros = self.g.zeros(&history_shape(tensor))?;
            let empty = self.arrive(name, &zeros)?.tensor;
            let newest = self.g.slice(&empty, 0, 0, 1)?;
            let history = self.g.concat(&[&newest, tensor], 0)?;
            self.g.output(&output, &history)?;
            return self.convolve(name, x, kernel, residual);
        }
        let input = format!("{CACHE_INPUT}{number}");
        let cache = self.g.input(&input, tensor.element(), &history_shape(tensor));
        let newest = if frames == 1 {
            let last = self.g.slice(&cache, 0, 1, 2)?;
            self.g.concat(&[&last, tensor], 0)?
        } else {
            self.g.slice(tensor, 0, frames - 2, frames)?
        };
        self.g.output(&output, &newest)?;
        if let Some(range) = x.range {
            let frames = QuantizedFrames { history: Some(&cache), ..QuantizedFrames::new(tensor, range) };
            let kernel = self.packed(name, kernel)?;
            return Ok(self.g.convolve_quantized_frames(frames, &kernel, residual)?);
        }
        let history = self.g.concat(&[&cache, tensor], 0)?; // [t+2,h,w,C]
        let [oldest, middle, newest] = [0, 1, 2].map(|tap| self.g.slice(&history, 0, tap, tap + frames));
        let stacked = self.g.concat(&[&oldest?, &middle?, &newest?], 3)?;
        let weight = self.values(name, kernel)?;
        self.convolve_values(name, &stacked, &weight, residual)
    }

    /// A convolution with nothing but zeros before its frames: of three taps only the newest is read.
    fn convolve(
        &mut self,
        name: &str,
        x: &Arrived,
        kernel: Kernel,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        if let Some(range) = x.range {
            let kernel = self.packed(name, kernel)?;
            return Ok(self.g.convolve_quantized_frames(
                QuantizedFrames::new(&x.tensor, range),
                &kernel,
                residual,
            )?);
        }
        let mut weight = self.values(name, kernel)?;
        if kernel.taps == 3 {
            weight = self.g.slice(&weight, 1, 2 * kernel.channels, 3 * kernel.channels)?;
        }
        self.convolve_values(name, &x.tensor, &weight, residual)
    }

    fn packed(&mut self, name: &str, kernel: Kernel) -> Result<PackedKernel, Error> {
        let Kernel { out, channels, taps, side } = kernel;
        let products = taps * side * side * channels;
        let mut load = |what: &str, shape: &[usize]| {
            self.weights.load_stored(self.g, &format!("{name}.{what}"), shape, shape)
        };
        Ok(PackedKernel {
            packed: load("packed", &[out.div_ceil(kernels::GROUP), products.div_ceil(4), 64])?,
            sums: load("sums", &[taps, out])?,
            scales: load("scales", &[out])?,
            bias: load("bias", &[out])?,
            side,
        })
    }

    /// The weight of a convolution in f32, its taps before its channels.
    fn values(&mut self, name: &str, kernel: Kernel) -> Result<Tensor, Error> {
        let Kernel { out, channels, taps, side } = kernel;
        self.weights.load(self.g, &format!("{name}.weight"), &[out, taps * channels, side, side])
    }

    fn convolve_values(
        &mut self,
        name: &str,
        x: &Tensor,
        weight: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let out = weight.shape()[0].fixed().unwrap_or(1);
        let bias = self.weights.load(self.g, &format!("{name}.bias"), &[out])?;
        let x = self.g.transpose(x, &[0, 3, 1, 2])?;
        let x = self.g.convolve(&x, weight, &bias)?;
        let x = self.g.transpose(&x, &[0, 2, 3, 1])?;
        match residual {
            Some(residual) => Ok(self.g.add(&x, residual)?),
            None => Ok(x),
        }
    }
}
