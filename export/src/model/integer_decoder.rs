//! The decoder with ONNX Runtime kernels and quantised convolutions.
//!
//! Frames are channels last, `[t,h,w,C]`: integer products run along channels without a change of layout, the norm over
//! channels is one node, and the three taps in time are adjacent, so a weight is stored as `[out,3·in,k,k]`. Caches and
//! repeated pixels are quantised values, a quarter of the bytes.

use super::causal_convolution::{Caches, Chunk};
use super::channels_last::{
    EPSILON, attend, double_pixels, history_shape, incomplete, latent_frame, split_frames,
};
use super::decoder::{self, Convolution, Norm, Operators};
use super::graph_weights::GraphWeights;
use crate::Error;
use crate::weights::SCALES;
use bundle::quantization::LayerNumerics;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::VaeSpec;
use graph::{GraphBuilder, Model, QuantizedRange, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one. Convolutions without numbers run in
/// f32.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn integer_decoder_graph(
    spec: &VaeSpec,
    chunk: Chunk,
    weights: GraphWeights<'_>,
) -> Result<Model, Error> {
    let mut graph = GraphBuilder::new(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    decoder::build(&mut IntegerOperators { g: &mut graph, weights, caches: Caches::new(chunk) }, spec)?;
    Ok(graph.finish()?)
}

/// The input of a convolution: quantised values and their range, or f32 without a range.
struct Input {
    tensor: Tensor,
    range: Option<QuantizedRange>,
}

struct IntegerOperators<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    caches: Caches,
}

impl Operators for IntegerOperators<'_> {
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
        let Some(numbers) = self.weights.layer(next) else {
            return Ok(Input { tensor: x.clone(), range: None });
        };
        let range = self.g.range_u8(numbers.input.ok_or_else(|| incomplete(next))?)?;
        Ok(Input { tensor: self.g.quantize(x, &range)?, range: Some(range) })
    }

    /// A root-mean-square norm.
    fn norm(&mut self, norm: &Norm<'_>, x: &Tensor, next: &str) -> Result<Input, Error> {
        let gamma = format!("{}.gamma", norm.name);
        let gain = self.weights.load_view(self.g, &gamma, norm.shape, &norm.shape[..1])?;
        let mut normed = self.g.rms_norm(x, &gain, EPSILON)?;
        if norm.activates {
            normed = self.g.silu(&normed)?;
        }
        self.prepare(next, &normed)
    }

    fn convolve(
        &mut self,
        convolution: Convolution<'_>,
        x: &Input,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let y = if convolution.taps == 1 {
            let weight = self.weight(convolution, x.range.as_ref())?;
            self.convolve_with(convolution, &x.tensor, &weight, x.range.as_ref())?
        } else {
            self.convolve_causal(convolution, x)?
        };
        match residual {
            Some(residual) => Ok(self.g.add(&y, residual)?),
            None => Ok(y),
        }
    }

    fn attend(&mut self, qkv: &Tensor, channels: usize) -> Result<Tensor, Error> {
        attend(self.g, qkv, channels)
    }

    fn leave_empty(&mut self, name: &str, x: &Tensor) -> Result<(), Error> {
        let number = self.caches.next_number();
        let zeros = self.empty_history(name, x)?;
        Ok(self.g.output(&format!("{CACHE_OUTPUT}{number}"), &zeros)?)
    }

    fn upsample(
        &mut self,
        convolution: Convolution<'_>,
        x: &Tensor,
        splits_frames: bool,
    ) -> Result<Tensor, Error> {
        let x = if splits_frames { split_frames(self.g, x, convolution.channels)? } else { x.clone() };
        let Input { tensor, range } = self.prepare(convolution.name, &x)?;
        let doubled = double_pixels(self.g, &tensor)?;
        self.convolve(convolution, &Input { tensor: doubled, range }, None)
    }

    fn frames(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.g.transpose(x, &[0, 3, 1, 2])?)
    }
}

impl IntegerOperators<'_> {
    /// Two frames of zeros in the shape of `x`, as input of the convolution `name`.
    fn empty_history(&mut self, name: &str, x: &Tensor) -> Result<Tensor, Error> {
        let zeros = self.g.zeros(&history_shape(x))?;
        Ok(self.prepare(name, &zeros)?.tensor)
    }

    /// A causal convolution; reads and writes its cache of two frames.
    fn convolve_causal(&mut self, convolution: Convolution<'_>, x: &Input) -> Result<Tensor, Error> {
        let Convolution { name, channels, .. } = convolution;
        let Input { tensor, range } = x;
        let number = self.caches.next_number();
        let output = format!("{CACHE_OUTPUT}{number}");
        let frames = tensor.shape()[0].fixed().unwrap_or(1);
        match self.caches.chunk() {
            Chunk::First => {
                let empty = self.empty_history(name, tensor)?;
                let newest = self.g.slice(&empty, 0, 0, 1)?;
                let history = self.g.concat(&[&newest, tensor], 0)?;
                self.g.output(&output, &history)?;
                // Only the newest of the three taps is used: the others would read zeros.
                let weight = self.weight(convolution, range.as_ref())?;
                let newest = self.g.slice(&weight, 1, 2 * channels, 3 * channels)?;
                self.convolve_with(convolution, tensor, &newest, range.as_ref())
            }
            Chunk::Next => {
                let input = format!("{CACHE_INPUT}{number}");
                let cache = self.g.input(&input, tensor.element(), &history_shape(tensor));
                let history = self.g.concat(&[&cache, tensor], 0)?; // [t+2,h,w,C]
                let newest = self.g.slice(&history, 0, frames, frames + 2)?;
                self.g.output(&output, &newest)?;
                let taps = [0, 1, 2].map(|tap| self.g.slice(&history, 0, tap, tap + frames));
                let [oldest, middle, newest] = taps;
                let stacked = self.g.concat(&[&oldest?, &middle?, &newest?], 3)?;
                let weight = self.weight(convolution, range.as_ref())?;
                self.convolve_with(convolution, &stacked, &weight, range.as_ref())
            }
        }
    }

    /// The weight of a convolution, its taps before its channels: quantised if its input is, else f32.
    fn weight(
        &mut self,
        convolution: Convolution<'_>,
        range: Option<&QuantizedRange>,
    ) -> Result<Tensor, Error> {
        let Convolution { name, out, channels, taps, side, .. } = convolution;
        let (name, shape) = (format!("{name}.weight"), [out, taps * channels, side, side]);
        match range {
            Some(_) => self.weights.load_stored(self.g, &name, &shape, &shape),
            None => self.weights.load(self.g, &name, &shape),
        }
    }

    fn convolve_with(
        &mut self,
        Convolution { name, out, .. }: Convolution<'_>,
        x: &Tensor,
        weight: &Tensor,
        range: Option<&QuantizedRange>,
    ) -> Result<Tensor, Error> {
        let bias = format!("{name}.bias");
        match (range, self.weights.layer(name)) {
            (Some(range), Some(LayerNumerics { output: Some(output), .. })) => {
                let scales = self.weights.load(self.g, &format!("{name}.{SCALES}"), &[out])?;
                let bias = self.weights.load_stored(self.g, &bias, &[out], &[out])?;
                let output = self.g.range_u8(*output)?;
                let quantized = self.g.integer_convolve(x, range, [weight, &scales, &bias], &output)?;
                Ok(self.g.dequantize(&quantized, &output)?)
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
