//! The graph of the tiny decoder for previews: one latent frame to one frame (the first) or four (each later one).
//!
//! Source: the published `taew2_1` and `taew2_2`. All convolutions are two-dimensional. Only the memory blocks use the
//! past: each reads its own input of the previous frame, which is its cache.

use super::causal_convolution::Chunk;
use super::graph_weights::GraphWeights;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use bundle::spec::TinyDecoderSpec;
use graph::{Dim, GraphBuilder, Model, Tensor};

/// Latents are limited to ± this by a hyperbolic tangent.
const SOFT_LIMIT: f32 = 3.0;

/// Builds the graph for the first latent frame of a clip, or for every later one.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn tiny_decoder_graph(
    spec: &TinyDecoderSpec,
    chunk: Chunk,
    weights: GraphWeights<'_>,
) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "preview_first",
        Chunk::Next => "preview_next",
    });
    let (height, width) = (Dim::symbol("h"), Dim::symbol("w"));
    let z = spec.latent_channels;
    let latent = graph.input(
        "latent",
        ElementType::F32,
        &[1.into(), z.into(), 1.into(), height.clone(), width.clone()],
    );
    let mut decoder = TinyDecoder { g: &mut graph, weights, chunk, caches: 0 };
    let x = decoder.g.reshape(&latent, &[1.into(), z.into(), height, width])?;
    let frames = decoder.decode(spec, &x)?;
    graph.output("frames", &frames)?;
    Ok(graph.finish()?)
}

struct TinyDecoder<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    chunk: Chunk,
    caches: usize,
}

impl TinyDecoder<'_> {
    fn decode(&mut self, spec: &TinyDecoderSpec, x: &Tensor) -> Result<Tensor, Error> {
        let [a, b, c, d] = spec.widths;
        let mut x = self.soft_limit(x)?;
        x = self.convolution("1", &x, [a, spec.latent_channels], Bias::Stored)?;
        x = self.g.relu(&x);
        for (stage, (blocks, width)) in
            [([3, 4, 5], a), ([9, 10, 11], b), ([15, 16, 17], c)].into_iter().enumerate()
        {
            for block in blocks {
                x = self.memory_block(block, &x, width)?;
            }
            let mut growth = TinyDecoderSpec::GROWTH[stage];
            if stage == 2 && self.chunk == Chunk::First {
                // Of the four frames of the first latent frame only the last is part of the clip.
                x = last(self.g, &x)?;
                growth = 1;
            }
            x = self.g.double_pixels(&x)?;
            x = self.grow(blocks[2] + 2, &x, (width, growth), spec.stored_growth[stage])?;
            let out = [b, c, d][stage];
            x = self.convolution(&(blocks[2] + 3).to_string(), &x, [out, width], Bias::Zero)?;
        }
        x = self.g.relu(&x);
        x = self.convolution("22", &x, [3 * spec.patch * spec.patch, d], Bias::Stored)?;
        if spec.patch > 1 {
            x = self.g.pixel_shuffle(&x, spec.patch)?;
        }
        // From 0..1 to the range of the VAE decoder.
        let x = self.g.clamp(&x, 0.0, 1.0)?;
        let two = self.g.constant("two", &[], &[2.0])?;
        let one = self.g.constant("one", &[], &[1.0])?;
        let x = self.g.multiply(&x, &two)?;
        Ok(self.g.subtract(&x, &one)?)
    }

    /// `3·tanh(x/3)`.
    fn soft_limit(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        let limit = self.g.constant("soft limit", &[], &[SOFT_LIMIT])?;
        let x = self.g.divide(x, &limit)?;
        let x = self.g.tanh(&x);
        Ok(self.g.multiply(&x, &limit)?)
    }

    /// A 3x3 convolution `[out,in]`.
    fn convolution(
        &mut self,
        layer: &str,
        x: &Tensor,
        [out, channels]: [usize; 2],
        bias: Bias,
    ) -> Result<Tensor, Error> {
        let name = format!("decoder.{layer}");
        let weight = self.weights.load(self.g, &format!("{name}.weight"), &[out, channels, 3, 3])?;
        let bias = match bias {
            Bias::Stored => self.weights.load(self.g, &format!("{name}.bias"), &[out])?,
            Bias::Zero => self.no_bias(out)?,
        };
        Ok(self.g.scoped(&name, |g| g.convolve(x, &weight, &bias))?)
    }

    fn no_bias(&mut self, out: usize) -> Result<Tensor, Error> {
        Ok(self.g.constant(&format!("no bias over {out}"), &[out], &vec![0.0; out])?)
    }

    /// `relu(f(x, previous frame) + x)` with three convolutions in `f`.
    fn memory_block(&mut self, index: usize, x: &Tensor, width: usize) -> Result<Tensor, Error> {
        let frames = x.shape()[0].fixed().unwrap_or(1);
        let number = format!("{:02}", self.caches);
        self.caches += 1;
        let mut one_frame = x.shape().to_vec();
        one_frame[0] = 1.into();
        let previous = match self.chunk {
            Chunk::First => self.g.zeros(&one_frame)?,
            Chunk::Next => self.g.input(&format!("{CACHE_INPUT}{number}"), ElementType::F32, &one_frame),
        };
        let history = self.g.concat(&[&previous, x], 0)?; // [t+1,C,h,w]
        let past = self.g.slice(&history, 0, 0, frames)?;
        let newest = self.g.slice(&history, 0, frames, frames + 1)?;
        self.g.output(&format!("{CACHE_OUTPUT}{number}"), &newest)?;
        let both = self.g.concat(&[x, &past], 1)?;
        let h = self.convolution(&format!("{index}.conv.0"), &both, [width, 2 * width], Bias::Stored)?;
        let h = self.g.relu(&h);
        let h = self.convolution(&format!("{index}.conv.2"), &h, [width, width], Bias::Stored)?;
        let h = self.g.relu(&h);
        let h = self.convolution(&format!("{index}.conv.4"), &h, [width, width], Bias::Stored)?;
        let h = self.g.add(&h, x)?;
        Ok(self.g.relu(&h))
    }

    /// `[t,C,h,w]` to `[growth·t,C,h,w]`. If the weights are stored for a larger growth, the last frames are used.
    fn grow(
        &mut self,
        index: usize,
        x: &Tensor,
        (width, growth): (usize, usize),
        stored: usize,
    ) -> Result<Tensor, Error> {
        let name = format!("decoder.{index}.conv");
        let shape = [stored * width, width, 1, 1];
        let weight = self.weights.load(self.g, &format!("{name}.weight"), &shape)?;
        let weight = self.g.slice(&weight, 0, (stored - growth) * width, stored * width)?;
        let bias = self.no_bias(growth * width)?;
        let grown = self.g.scoped(&name, |g| g.convolve(x, &weight, &bias))?;
        let mut shape = x.shape().to_vec();
        shape[0] = shape[0].times(growth);
        Ok(self.g.reshape(&grown, &shape)?)
    }
}

/// The bias of a convolution.
#[derive(Debug, Clone, Copy)]
enum Bias {
    Stored,
    Zero,
}

/// Returns the last frame of `x [t,C,h,w]`.
fn last(g: &mut GraphBuilder, x: &Tensor) -> Result<Tensor, Error> {
    let frames = x.shape()[0].fixed().unwrap_or(1);
    Ok(g.slice(x, 0, frames - 1, frames)?)
}
