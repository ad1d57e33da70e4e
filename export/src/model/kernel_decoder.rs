//! The decoder with Rushes kernels.
//!
//! The same model and numbers as the integer decoder for ONNX Runtime, with other operators. Frames are channels last.
//! Norms output quantised values. A convolution reads its cache and its frames without a copy, repeats pixels and adds
//! the residual. Between convolutions values are f32; caches are quantised. Convolutions without packed weights run in
//! f32.

use super::causal_convolution::{Caches, Chunk};
use super::channels_last::{
    EPSILON, attend, double_pixels, history_shape, incomplete, latent_frame, split_frames,
};
use super::decoder::{self, Convolution, Norm, Operators};
use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::quantization::Affine;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::VaeSpec;
use graph::{GraphBuilder, Model, PackedKernel, QuantizedFrames, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn kernel_decoder_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    decoder::build(&mut KernelOperators { g: &mut graph, weights, caches: Caches::new(chunk) }, spec)?;
    Ok(graph.finish()?)
}

/// The input of a convolution: quantised values and their range, or f32 without a range.
struct Input {
    tensor: Tensor,
    range: Option<Affine>,
}

struct KernelOperators<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    caches: Caches,
}

impl Operators for KernelOperators<'_> {
    type Input = Input;

    fn graph(&mut self) -> &mut GraphBuilder {
        self.g
    }

    fn chunk(&self) -> Chunk {
        self.caches.chunk()
    }

    fn latent(&mut self, spec: &VaeSpec) -> Result<Tensor, Error> {
        latent_frame(self.g, spec)
    }

    fn prepare(&mut self, next: &str, x: &Tensor) -> Result<Input, Error> {
        let Some(range) = self.range(next)? else { return Ok(Input { tensor: x.clone(), range: None }) };
        let constants = self.g.range_u8(range)?;
        Ok(Input { tensor: self.g.quantize(x, &constants)?, range: Some(range) })
    }

    fn norm(&mut self, norm: &Norm<'_>, x: &Tensor, next: &str) -> Result<Input, Error> {
        let gamma = format!("{}.gamma", norm.name);
        let gain = self.weights.load_view(self.g, &gamma, norm.shape, &norm.shape[..1])?;
        if let Some(range) = self.range(next)? {
            #[expect(clippy::cast_possible_truncation, reason = "a guard against 0")]
            let epsilon = EPSILON as f32;
            let tensor = self.g.channel_norm_quantized(x, &gain, epsilon, norm.activates, range)?;
            return Ok(Input { tensor, range: Some(range) });
        }
        let mut tensor = self.g.rms_norm(x, &gain, EPSILON)?;
        if norm.activates {
            tensor = self.g.silu(&tensor)?;
        }
        Ok(Input { tensor, range: None })
    }

    fn convolve(
        &mut self,
        convolution: Convolution<'_>,
        x: &Input,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        if convolution.taps == 1 {
            self.convolve_newest(convolution, x, residual)
        } else {
            self.convolve_causal(convolution, x, residual)
        }
    }

    fn attend(&mut self, qkv: &Tensor, channels: usize) -> Result<Tensor, Error> {
        attend(self.g, qkv, channels)
    }

    fn leave_empty(&mut self, name: &str, x: &Tensor) -> Result<(), Error> {
        let number = self.caches.next_number();
        let zeros = self.g.zeros(&history_shape(x))?;
        let zeros = self.prepare(name, &zeros)?.tensor;
        Ok(self.g.output(&format!("{CACHE_OUTPUT}{number}"), &zeros)?)
    }

    fn upsample(
        &mut self,
        convolution: Convolution<'_>,
        x: &Tensor,
        splits_frames: bool,
    ) -> Result<Tensor, Error> {
        let Input { tensor, range } = self.prepare(convolution.name, x)?;
        if let Some(range) = range {
            let frames = QuantizedFrames {
                doubles_pixels: true,
                splits_frames,
                ..QuantizedFrames::new(&tensor, range)
            };
            let kernel = self.packed(convolution)?;
            return Ok(self.g.convolve_quantized_frames(frames, &kernel, None)?);
        }
        let x = if splits_frames { split_frames(self.g, &tensor, convolution.channels)? } else { tensor };
        let doubled = double_pixels(self.g, &x)?;
        self.convolve_newest(convolution, &Input { tensor: doubled, range: None }, None)
    }

    fn frames(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.g.transpose(x, &[0, 3, 1, 2])?)
    }
}

impl KernelOperators<'_> {
    /// The input range of the layer `name`; none if it has no packed weights.
    fn range(&self, name: &str) -> Result<Option<Affine>, Error> {
        if !self.weights.has(&format!("{name}.packed")) {
            return Ok(None);
        }
        let numbers = self.weights.layer(name).ok_or_else(|| incomplete(name))?;
        Ok(Some(numbers.input.ok_or_else(|| incomplete(name))?))
    }

    /// A causal convolution; reads and writes its cache of two frames.
    fn convolve_causal(
        &mut self,
        convolution: Convolution<'_>,
        x: &Input,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let name = convolution.name;
        let number = self.caches.next_number();
        let output = format!("{CACHE_OUTPUT}{number}");
        let tensor = &x.tensor;
        let frames = tensor.shape()[0].fixed().unwrap_or(1);
        if self.caches.chunk() == Chunk::First {
            let zeros = self.g.zeros(&history_shape(tensor))?;
            let empty = self.prepare(name, &zeros)?.tensor;
            let newest = self.g.slice(&empty, 0, 0, 1)?;
            let history = self.g.concat(&[&newest, tensor], 0)?;
            self.g.output(&output, &history)?;
            return self.convolve_newest(convolution, x, residual);
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
            let kernel = self.packed(convolution)?;
            return Ok(self.g.convolve_quantized_frames(frames, &kernel, residual)?);
        }
        let history = self.g.concat(&[&cache, tensor], 0)?; // [t+2,h,w,C]
        let [oldest, middle, newest] = [0, 1, 2].map(|tap| self.g.slice(&history, 0, tap, tap + frames));
        let stacked = self.g.concat(&[&oldest?, &middle?, &newest?], 3)?;
        let weight = self.weight(convolution)?;
        self.convolve_floats(convolution, &stacked, &weight, residual)
    }

    /// A convolution without history: of three taps only the newest is used.
    fn convolve_newest(
        &mut self,
        convolution: Convolution<'_>,
        x: &Input,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        if let Some(range) = x.range {
            let kernel = self.packed(convolution)?;
            let frames = QuantizedFrames::new(&x.tensor, range);
            return Ok(self.g.convolve_quantized_frames(frames, &kernel, residual)?);
        }
        let mut weight = self.weight(convolution)?;
        if convolution.taps == 3 {
            weight = self.g.slice(&weight, 1, 2 * convolution.channels, 3 * convolution.channels)?;
        }
        self.convolve_floats(convolution, &x.tensor, &weight, residual)
    }

    fn packed(&mut self, convolution: Convolution<'_>) -> Result<PackedKernel, Error> {
        let Convolution { name, out, channels, taps, side, .. } = convolution;
        let products = taps * side * side * channels;
        let mut load = |suffix: &str, shape: &[usize]| {
            self.weights.load_stored(self.g, &format!("{name}.{suffix}"), shape, shape)
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
    fn weight(&mut self, convolution: Convolution<'_>) -> Result<Tensor, Error> {
        let Convolution { name, out, channels, taps, side, .. } = convolution;
        self.weights.load(self.g, &format!("{name}.weight"), &[out, taps * channels, side, side])
    }

    fn convolve_floats(
        &mut self,
        Convolution { name, out, .. }: Convolution<'_>,
        x: &Tensor,
        weight: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
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
