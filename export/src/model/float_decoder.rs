//! The decoder with ONNX Runtime kernels in floating point, and with quantised convolutions in plain graphs and in E4M3.
//!
//! Frames are the batch: `[t,C,h,w]`. Only causal convolutions mix them, through caches of two frames.

use super::causal_convolution::{Caches, Chunk, Kernel, causal_convolution};
use super::decoder::{self, Convolution, Norm, Operators};
use super::graph_weights::GraphWeights;
use super::quantized_kernel::LoadedKernel;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::spec::VaeSpec;
use graph::{Attention, Dim, GraphBuilder, Model, Tensor};

/// Builds the graph for the first latent frame of a clip, or for every later one.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn decoder_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "decoder_first",
        Chunk::Next => "decoder_next",
    });
    decoder::build(&mut FloatOperators { g: &mut graph, weights, caches: Caches::new(chunk) }, spec)?;
    Ok(graph.finish()?)
}

/// Builds the part of [`decoder_graph`] at latent resolution, up to the features.
///
/// Its attention connects all positions. The layers after it only connect positions that are close.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn decoder_trunk_graph(spec: &VaeSpec, chunk: Chunk, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder(match chunk {
        Chunk::First => "decoder_stem_first",
        Chunk::Next => "decoder_stem_next",
    });
    let mut operators = FloatOperators { g: &mut graph, weights, caches: Caches::new(chunk) };
    let features = decoder::trunk(&mut operators, spec)?;
    let features = graph.cast(&features, ElementType::F32);
    graph.output("features", &features)?;
    Ok(graph.finish()?)
}

/// Builds the part of [`decoder_graph`] from the features to frames.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
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
    let features = graph.cast(&features, weights.lowering().compute);
    let mut operators = FloatOperators { g: &mut graph, weights, caches: Caches::new(chunk) };
    decoder::upsampler(&mut operators, spec, &features)?;
    Ok(graph.finish()?)
}

struct FloatOperators<'a> {
    g: &'a mut GraphBuilder,
    weights: GraphWeights<'a>,
    caches: Caches,
}

impl FloatOperators<'_> {
    /// Latent at model scale to latent at VAE scale, channel by channel.
    fn denormalize(&mut self, spec: &VaeSpec, x: &Tensor) -> Result<Tensor, Error> {
        let shape = [spec.latent_channels, 1, 1];
        let mean = self.g.constant("latents_mean", &shape, &spec.latents_mean)?;
        let std = self.g.constant("latents_std", &shape, &spec.latents_std)?;
        let scaled = self.g.multiply(x, &std)?;
        Ok(self.g.add(&scaled, &mean)?)
    }

    /// A convolution of single frames.
    fn convolve_frames(&mut self, convolution: Convolution<'_>, x: &Tensor) -> Result<Tensor, Error> {
        let Convolution { name, out, channels, side, has_time_axis, .. } = convolution;
        let view = [out, channels, side, side];
        let with_time = [out, channels, 1, side, side];
        let shape: &[usize] = if has_time_axis { &with_time } else { &view };
        let weight = format!("{name}.weight");
        let kernel = if let Some(numbers) = self.weights.layer(name) {
            let weight = self.weights.load_stored(self.g, &weight, shape, &view)?;
            LoadedKernel::Quantized { name, numbers, weight }
        } else {
            let weight = self.weights.load_view(self.g, &weight, shape, &view)?;
            let bias = self.weights.load(self.g, &format!("{name}.bias"), &[out])?;
            LoadedKernel::Float { weight, bias }
        };
        kernel.convolve(self.g, self.weights, x)
    }
}

impl Operators for FloatOperators<'_> {
    type Input = Tensor;

    fn graph(&mut self) -> &mut GraphBuilder {
        self.g
    }

    fn chunk(&self) -> Chunk {
        self.caches.chunk()
    }

    fn latent(&mut self, spec: &VaeSpec) -> Result<Tensor, Error> {
        let (height, width) = (Dim::symbol("h"), Dim::symbol("w"));
        let z = spec.latent_channels;
        let shape = [1.into(), z.into(), 1.into(), height.clone(), width.clone()];
        let latent = self.g.input("latent", ElementType::F32, &shape);
        let x = self.g.reshape(&latent, &[1.into(), z.into(), height, width])?;
        let x = self.denormalize(spec, &x)?;
        Ok(self.g.cast(&x, self.weights.lowering().compute))
    }

    fn prepare(&mut self, _next: &str, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.clone())
    }

    fn norm(&mut self, norm: &Norm<'_>, x: &Tensor, _next: &str) -> Result<Tensor, Error> {
        let channels = norm.shape[0];
        let gamma = format!("{}.gamma", norm.name);
        let gain = self.weights.load_view(self.g, &gamma, norm.shape, &[channels, 1, 1])?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let root = (channels as f32).sqrt();
        let root = self.g.constant(&format!("root of {channels}"), &[], &[root])?;
        let root = self.g.cast(&root, gain.element());
        let gain = self.g.multiply(&gain, &root)?;
        let normed = if self.weights.lowering().is_for_accelerators {
            self.g.channel_norm_by_sum(x, &gain)?
        } else {
            self.g.channel_norm(x, &gain)?
        };
        if norm.activates { Ok(self.g.silu(&normed)?) } else { Ok(normed) }
    }

    fn convolve(
        &mut self,
        convolution: Convolution<'_>,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Result<Tensor, Error> {
        let y = if convolution.taps == 1 {
            self.convolve_frames(convolution, x)?
        } else {
            let Convolution { name, out, channels, side, .. } = convolution;
            let (weights, caches) = (self.weights, &mut self.caches);
            let kernel = Kernel { out, channels, side };
            self.g.scoped(name, |g| causal_convolution(g, weights, caches, name, x, kernel))?
        };
        match residual {
            Some(residual) => Ok(self.g.add(&y, residual)?),
            None => Ok(y),
        }
    }

    fn attend(&mut self, qkv: &Tensor, channels: usize) -> Result<Tensor, Error> {
        let mut shape = qkv.shape().to_vec();
        let positions = shape[2].times(shape[3].clone());
        let h = self.g.reshape(qkv, &[shape[0].clone(), shape[1].clone(), positions])?;
        let h = self.g.transpose(&h, &[0, 2, 1])?; // [t,hw,3C]
        let q = self.g.slice(&h, 2, 0, channels)?;
        let k = self.g.slice(&h, 2, channels, 2 * channels)?;
        let v = self.g.slice(&h, 2, 2 * channels, 3 * channels)?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let scale = 1.0 / (channels as f32).sqrt();
        let h = self.g.attention(Attention { heads: 1, scale }, &q, &k, &v, None)?;
        let h = self.g.transpose(&h, &[0, 2, 1])?;
        shape[1] = channels.into();
        Ok(self.g.reshape(&h, &shape)?)
    }

    fn leave_empty(&mut self, _name: &str, x: &Tensor) -> Result<(), Error> {
        self.caches.leave_empty(self.g, x)
    }

    fn upsample(
        &mut self,
        convolution: Convolution<'_>,
        x: &Tensor,
        splits_frames: bool,
    ) -> Result<Tensor, Error> {
        let mut x = x.clone();
        if splits_frames {
            // [t,2C,h,w] to [2t,C,h,w].
            let mut shape = x.shape().to_vec();
            shape[0] = shape[0].times(2);
            shape[1] = convolution.channels.into();
            x = self.g.reshape(&x, &shape)?;
        }
        let doubled = if self.weights.lowering().is_for_accelerators {
            self.g.double_pixels_by_expanding(&x)?
        } else {
            self.g.double_pixels(&x)?
        };
        self.convolve_frames(convolution, &doubled)
    }

    fn frames(&mut self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(self.g.cast(x, ElementType::F32))
    }
}
