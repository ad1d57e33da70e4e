//! Causal convolutions over the current and the two previous frames, on frames `[t,C,h,w]`.
//!
//! The bytes of a 3×3×3 kernel `[out,in,3,kh,kw]` are also a 2-D kernel `[out,3·in,kh,kw]` over three frames stacked
//! behind each channel. The weight is thus used without a copy.

use super::graph_weights::GraphWeights;
use super::quantized_kernel::LoadedKernel;
use crate::Error;
use crate::weights::NEWEST_TAP;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT};
use graph::{Dim, GraphBuilder, Tensor};

/// The latent frames that a decoder graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// The first latent frame of a clip, without history.
    First,
    /// Any later one; the previous frames are inputs, as caches.
    Next,
}

/// The caches of a decoder graph, numbered in order of use.
#[derive(Debug)]
pub(super) struct Caches {
    chunk: Chunk,
    count: usize,
}

impl Caches {
    pub(super) fn new(chunk: Chunk) -> Self {
        Self { chunk, count: 0 }
    }

    pub(super) fn chunk(&self) -> Chunk {
        self.chunk
    }

    /// Returns the number of the next cache.
    pub(super) fn next_number(&mut self) -> String {
        self.count += 1;
        format!("{:02}", self.count - 1)
    }

    /// Declares a cache that the first chunk leaves empty: two frames of zeros in the shape of `frame [1,C,h,w]`.
    pub(super) fn leave_empty(&mut self, g: &mut GraphBuilder, frame: &Tensor) -> Result<(), Error> {
        let number = self.next_number();
        let zeros = g.zeros(&history_shape(frame))?;
        let zeros = g.cast(&zeros, frame.element());
        Ok(g.output(&format!("{CACHE_OUTPUT}{number}"), &zeros)?)
    }
}

fn history_shape(frames: &Tensor) -> Vec<Dim> {
    let mut shape = frames.shape().to_vec();
    shape[0] = 2.into();
    shape
}

/// The kernel of a causal convolution: channels out and in, and its side in space (1 or 3). Its depth in time is 3.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) out: usize,
    pub(super) channels: usize,
    pub(super) side: usize,
}

/// Convolves `x [t,C,h,w]` with `name.weight [out,C,3,side,side]`; reads and writes its cache of two frames.
pub(super) fn causal_convolution(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    caches: &mut Caches,
    name: &str,
    x: &Tensor,
    kernel: Kernel,
) -> Result<Tensor, Error> {
    let Kernel { out, channels, side } = kernel;
    let number = caches.next_number();
    let shape = [out, channels, 3, side, side];
    let output = format!("{CACHE_OUTPUT}{number}");
    match caches.chunk {
        Chunk::First => {
            let kernel = newest_tap(g, weights, name, kernel)?;
            let zeros = g.zeros(x.shape())?;
            let zeros = g.cast(&zeros, x.element());
            let history = g.concat(&[&zeros, x], 0)?;
            g.output(&output, &history)?;
            kernel.convolve(g, weights, x)
        }
        Chunk::Next => {
            let view = [out, 3 * channels, side, side];
            let kernel = LoadedKernel::new(g, weights, name, &shape, view)?;
            let cache = g.input(&format!("{CACHE_INPUT}{number}"), x.element(), &history_shape(x));
            let history = g.concat(&[&cache, x], 0)?; // [t+2,C,h,w]
            let frames = x.shape()[0].fixed().unwrap_or(1);
            let stacked = stack_taps(g, &history, frames)?;
            let newest = g.slice(&history, 0, frames, frames + 2)?;
            g.output(&output, &newest)?;
            kernel.convolve(g, weights, &stacked)
        }
    }
}

/// Loads the newest of the three taps. The others would read zeros for the first latent frame.
fn newest_tap<'a>(
    g: &mut GraphBuilder,
    weights: GraphWeights<'a>,
    name: &'a str,
    Kernel { out, channels, side }: Kernel,
) -> Result<LoadedKernel<'a>, Error> {
    let view = [out, channels, side, side];
    if let Some(numbers) = weights.layer(name) {
        let weight = weights.load_stored(g, &format!("{name}.{NEWEST_TAP}"), &view, &view)?;
        return Ok(LoadedKernel::Quantized { name, numbers, weight });
    }
    let bias = weights.load(g, &format!("{name}.bias"), &[out])?;
    // ONNX Runtime folds the slice when it opens the graph.
    let weight = weights.load(g, &format!("{name}.weight"), &[out, channels, 3, side, side])?;
    let newest = g.slice(&weight, 2, 2, 3)?;
    let weight = g.reshape(&newest, &view.map(Dim::from))?;
    Ok(LoadedKernel::Float { weight, bias })
}

/// `history [t+2,C,h,w]` to `[t,3C,h,w]`: for each channel, its values two frames back, one frame back and now.
fn stack_taps(g: &mut GraphBuilder, history: &Tensor, frames: usize) -> Result<Tensor, Error> {
    let [_, channels, height, width] = history.shape() else {
        return Ok(history.clone());
    };
    let (channels, height, width) = (channels.clone(), height.clone(), width.clone());
    let tap_shape = [frames.into(), channels.clone(), 1.into(), height.clone(), width.clone()];
    let mut taps = Vec::with_capacity(3);
    for tap in 0..3 {
        let window = g.slice(history, 0, tap, tap + frames)?;
        taps.push(g.reshape(&window, &tap_shape)?);
    }
    let stacked = g.concat(&[&taps[0], &taps[1], &taps[2]], 2)?;
    Ok(g.reshape(&stacked, &[frames.into(), channels.times(3), height, width])?)
}
