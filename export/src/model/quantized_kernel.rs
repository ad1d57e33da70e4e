//! Kernels of convolutions of frames `[t,C,h,w]`: floats, or quantised values.

use super::graph_weights::GraphWeights;
use super::quantized_operands::{dequantized_weight, quantized_input};
use crate::Error;
use bundle::quantization::LayerNumerics;
use graph::{GraphBuilder, Tensor};

/// The kernel of a convolution, `[out,in,k,k]`.
#[derive(Debug)]
pub(super) enum LoadedKernel<'a> {
    /// A weight and a bias in the number format of the arithmetic.
    Float {
        /// `[out,in,k,k]`.
        weight: Tensor,
        /// `[out]`.
        bias: Tensor,
    },
    /// Quantised values. Both operands are dequantised directly before the convolution.
    Quantized {
        /// The layer.
        name: &'a str,
        /// Its quantisation.
        numbers: &'a LayerNumerics,
        /// `[out,in,k,k]`.
        weight: Tensor,
    },
}

impl<'a> LoadedKernel<'a> {
    /// Loads the weight of the layer `name`, which is stored as `shape` and used as `view`.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or has another shape.
    pub(super) fn new(
        g: &mut GraphBuilder,
        weights: GraphWeights<'a>,
        name: &'a str,
        shape: &[usize],
        view: [usize; 4],
    ) -> Result<Self, Error> {
        let stored = format!("{name}.weight");
        if let Some(numbers) = weights.layer(name) {
            let weight = weights.load_stored(g, &stored, shape, &view)?;
            return Ok(Self::Quantized { name, numbers, weight });
        }
        let bias = weights.load(g, &format!("{name}.bias"), &view[..1])?;
        let weight = weights.load_view(g, &stored, shape, &view)?;
        Ok(Self::Float { weight, bias })
    }

    /// Convolves `x [t,in,h,w]`, and adds the bias of the layer.
    ///
    /// # Errors
    /// Returns an error if a weight is missing or the channels do not match.
    pub(super) fn convolve(
        self,
        g: &mut GraphBuilder,
        weights: GraphWeights<'a>,
        x: &Tensor,
    ) -> Result<Tensor, Error> {
        match self {
            Self::Float { weight, bias } => Ok(g.convolve(x, &weight, &bias)?),
            Self::Quantized { name, numbers, weight } => {
                let x = quantized_input(g, name, numbers, x)?;
                let kernel = dequantized_weight(g, weights, name, numbers, &weight, 0)?;
                let out = weight.shape()[0].fixed().unwrap_or_default();
                let bias = weights.load(g, &format!("{name}.bias"), &[out])?;
                Ok(g.convolve(&x, &kernel, &bias)?)
            }
        }
    }
}
