//! The decoder of a Wan2.1 VAE with quantised convolutions.
//!
//! Frames have their channels last, `[t,h,w,C]`: integer products run along channels without a change of layout, the
//! norm over channels is one pass, and the three taps of time lie one after the other, so that a weight is stored as
//! `[out,3·in,k,k]`. Histories and pixels that are doubled are moved as codes, a quarter of the bytes.

use super::causal_convolution::{Caches, Chunk};
use super::channels_last::{
    EPSILON, Kernel, attend, double_pixels, history_shape, incomplete, latent_frame, split_frames,
};
use super::graph_weights::GraphWeights;
use crate::Error;
use crate::quantized::SCALES;
use bundle::quantization::LayerNumerics;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::VaeSpec;
use graph::{GraphBuilder, Model, QuantizedRange, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one. Convolutions that the numbers leave
/// out run in f32.
///
/// # Errors
/// A weight that is missing or does not fit the spec.
pub fn integer_decoder_graph(
    spec: &VaeSpec,
    chunk: Chunk,
    weights: GraphWeights<'_>,
) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    let x = latent_frame(&mut graph, spec)?;
    let z = spec.latent_channels;
    let mut decoder = Decoder { g: &mut graph, weights, caches: Caches::new(chunk) };
    let x = decoder.pointwise("post_quant_conv", &x, [z, z])?;
    let frames = decoder.decode(spec, &x)?;
    graph.output("frames", &frames)?;
    Ok(graph.finish())
}

impl Kernel {
    fn shape(self) -> [usize; 4] {
        [self.out, self.taps * self.channels, self.side, self.side]
    }
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
        let mut x = self.causal("decoder.conv_in", x, [deepest, spec.latent_channels], 3)?;
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
        let x = self.norm("decoder.norm_out", &x, &[channels, 1, 1, 1])?;
        let x = self.g.silu(&x)?;
        let x = self.causal("decoder.conv_out", &x, [3, channels], 3)?;
        let x = self.g.transpose(&x, &[0, 3, 1, 2])?;
        Ok(self.g.clamp(&x, -1.0, 1.0)?)
    }

    /// `x / ‖x‖₂ · √C · γ` over channels, which is a root-mean-square norm.
    fn norm(&mut self, name: &str, x: &Tensor, shape: &[usize]) -> Result<Tensor, Error> {
        let gain = self.weights.load_view(self.g, &format!("{name}.gamma"), shape, &shape[..1])?;
        Ok(self.g.rms_norm(x, &gain, EPSILON)?)
    }

    /// Two causal convolutions around a shortcut: `[out,in]`.
    fn residual(&mut self, name: &str, x: &Tensor, [out, channels]: [usize; 2]) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let shortcut = if out == channels {
            x.clone()
        } else {
            self.pointwise(&of("conv_shortcut"), x, [out, channels])?
        };
        let h = self.norm(&of("norm1"), x, &[channels, 1, 1, 1])?;
        let h = self.g.silu(&h)?;
        let h = self.causal(&of("conv1"), &h, [out, channels], 3)?;
        let h = self.norm(&of("norm2"), &h, &[out, 1, 1, 1])?;
        let h = self.g.silu(&h)?;
        let h = self.causal(&of("conv2"), &h, [out, out], 3)?;
        Ok(self.g.add(&h, &shortcut)?)
    }

    /// Attention with one head among the positions of each frame.
    fn attention(&mut self, name: &str, x: &Tensor, channels: usize) -> Result<Tensor, Error> {
        let of = |part: &str| format!("{name}.{part}");
        let h = self.norm(&of("norm"), x, &[channels, 1, 1])?;
        let h = self.pointwise(&of("to_qkv"), &h, [3 * channels, channels])?;
        let h = attend(self.g, &h, channels)?;
        let h = self.pointwise(&of("proj"), &h, [channels, channels])?;
        Ok(self.g.add(&h, x)?)
    }

    /// Twice the height and width at half the channels, and, where the level says so, twice the frames.
    fn upsample(
        &mut self,
        name: &str,
        x: &Tensor,
        channels: usize,
        doubles_time: bool,
    ) -> Result<Tensor, Error> {
        let mut x = x.clone();
        if doubles_time {
            let conv = format!("{name}.time_conv");
            if self.caches.chunk() == Chunk::First {
                self.leave_empty(&conv, &x)?;
            } else {
                let both = self.causal(&conv, &x, [2 * channels, channels], 1)?;
                x = split_frames(self.g, &both, channels)?;
            }
        }
        let conv = format!("{name}.resample.1");
        let kernel = Kernel { out: channels / 2, channels, taps: 1, side: 3 };
        let (codes, range) = self.codes(&conv, &x)?;
        let doubled = double_pixels(self.g, &codes)?;
        self.convolve(&conv, &doubled, range.as_ref(), kernel)
    }

    /// What a layer reads: codes and their range where it is quantised, else the values.
    fn codes(&mut self, name: &str, x: &Tensor) -> Result<(Tensor, Option<QuantizedRange>), Error> {
        let Some(numbers) = self.weights.layer(name) else { return Ok((x.clone(), None)) };
        let range = self.g.range_u8(numbers.input.ok_or_else(|| incomplete(name))?)?;
        Ok((self.g.quantize(x, &range)?, Some(range)))
    }

    /// A 1×1 convolution.
    fn pointwise(&mut self, name: &str, x: &Tensor, [out, channels]: [usize; 2]) -> Result<Tensor, Error> {
        let (codes, range) = self.codes(name, x)?;
        self.convolve(name, &codes, range.as_ref(), Kernel { out, channels, taps: 1, side: 1 })
    }

    /// Two frames of zeros like a frame of `x`, as the layer `name` reads them.
    fn empty_history(&mut self, name: &str, x: &Tensor) -> Result<Tensor, Error> {
        let zeros = self.g.zeros(&history_shape(x))?;
        Ok(self.codes(name, &zeros)?.0)
    }

    /// Declares a cache that the first chunk leaves empty.
    fn leave_empty(&mut self, name: &str, x: &Tensor) -> Result<(), Error> {
        let number = self.caches.next_number();
        let zeros = self.empty_history(name, x)?;
        Ok(self.g.output(&format!("{CACHE_OUTPUT}{number}"), &zeros)?)
    }

    /// A causal convolution `[out,in]` of depth 3 and `side` in space; reads and writes its cache of two frames.
    fn causal(
        &mut self,
        name: &str,
        x: &Tensor,
        [out, channels]: [usize; 2],
        side: usize,
    ) -> Result<Tensor, Error> {
        let number = self.caches.next_number();
        let output = format!("{CACHE_OUTPUT}{number}");
        let (codes, range) = self.codes(name, x)?;
        let kernel = Kernel { out, channels, taps: 3, side };
        let frames = x.shape()[0].fixed().unwrap_or(1);
        match self.caches.chunk() {
            Chunk::First => {
                let empty = self.empty_history(name, x)?;
                let newest = self.g.slice(&empty, 0, 0, 1)?;
                let history = self.g.concat(&[&newest, &codes], 0)?;
                self.g.output(&output, &history)?;
                self.convolve_newest(name, &codes, range.as_ref(), kernel)
            }
            Chunk::Next => {
                let cache =
                    self.g.input(&format!("{CACHE_INPUT}{number}"), codes.element(), &history_shape(x));
                let history = self.g.concat(&[&cache, &codes], 0)?; // [t+2,h,w,C]
                let newest = self.g.slice(&history, 0, frames, frames + 2)?;
                self.g.output(&output, &newest)?;
                let taps = [0, 1, 2].map(|tap| self.g.slice(&history, 0, tap, tap + frames));
                let [oldest, middle, newest] = taps;
                let stacked = self.g.concat(&[&oldest?, &middle?, &newest?], 3)?;
                self.convolve(name, &stacked, range.as_ref(), kernel)
            }
        }
    }

    /// Codes where the input is, else values.
    fn weight(
        &mut self,
        name: &str,
        range: Option<&QuantizedRange>,
        kernel: Kernel,
    ) -> Result<Tensor, Error> {
        let (name, shape) = (format!("{name}.weight"), kernel.shape());
        match range {
            Some(_) => self.weights.load_stored(self.g, &name, &shape, &shape),
            None => self.weights.load(self.g, &name, &shape),
        }
    }

    fn convolve(
        &mut self,
        name: &str,
        x: &Tensor,
        range: Option<&QuantizedRange>,
        kernel: Kernel,
    ) -> Result<Tensor, Error> {
        let weight = self.weight(name, range, kernel)?;
        self.convolve_with(name, x, &weight, range)
    }

    /// With the newest of the three taps alone: the others would meet nothing but zeros.
    fn convolve_newest(
        &mut self,
        name: &str,
        x: &Tensor,
        range: Option<&QuantizedRange>,
        kernel: Kernel,
    ) -> Result<Tensor, Error> {
        let weight = self.weight(name, range, kernel)?;
        let newest = self.g.slice(&weight, 1, 2 * kernel.channels, 3 * kernel.channels)?;
        self.convolve_with(name, x, &newest, range)
    }

    fn convolve_with(
        &mut self,
        name: &str,
        x: &Tensor,
        weight: &Tensor,
        range: Option<&QuantizedRange>,
    ) -> Result<Tensor, Error> {
        let out = weight.shape()[0].fixed().unwrap_or(1);
        let bias = format!("{name}.bias");
        match (range, self.weights.layer(name)) {
            (Some(range), Some(LayerNumerics { output: Some(output), .. })) => {
                let scales = self.weights.load(self.g, &format!("{name}.{SCALES}"), &[out])?;
                let bias = self.weights.load_stored(self.g, &bias, &[out], &[out])?;
                let output = self.g.range_u8(*output)?;
                let codes = self.g.integer_convolve(x, range, [weight, &scales, &bias], &output)?;
                Ok(self.g.dequantize(&codes, &output)?)
            }
            (None, None) => {
                let bias = self.weights.load(self.g, &bias, &[out])?;
                let x = self.g.transpose(x, &[0, 3, 1, 2])?;
                let x = self.g.convolve(&x, weight, &bias)?;
                Ok(self.g.transpose(&x, &[0, 2, 3, 1])?)
            }
            _ => Err(incomplete(name)),
        }
    }
}
