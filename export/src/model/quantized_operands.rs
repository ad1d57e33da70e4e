//! Operands of a product that are quantised and dequantised directly before it. Providers that know this form compute the
//! product in 8 bits.

use super::graph_weights::GraphWeights;
use crate::Error;
use crate::weights::SCALES;
use bundle::quantization::{LayerNumerics, WeightScales};
use graph::{GraphBuilder, QuantizedRange, Tensor};

fn wrong(name: &str) -> Error {
    Error::Numerics { layer: name.to_owned() }
}

/// The range of the input of the layer `name`, in the number format of `x`: E4M3, or s8 around 0.
fn input_range(
    g: &mut GraphBuilder,
    name: &str,
    numbers: &LayerNumerics,
    x: &Tensor,
) -> Result<QuantizedRange, Error> {
    let input = numbers.input.ok_or_else(|| wrong(name))?;
    Ok(match numbers.weights {
        WeightScales::Tensor(_) => g.range_e4m3(input.scale, x.element())?,
        WeightScales::Rows(_) => {
            let scale = input.signed_scale().ok_or_else(|| wrong(name))?;
            g.range_i8(scale, x.element())?
        }
        WeightScales::Blocks { .. } => return Err(wrong(name)),
    })
}

/// Quantises the input `x` of the layer `name` and dequantises it.
pub(super) fn quantized_input(
    g: &mut GraphBuilder,
    name: &str,
    numbers: &LayerNumerics,
    x: &Tensor,
) -> Result<Tensor, Error> {
    let range = input_range(g, name, numbers, x)?;
    let quantized = g.quantize(x, &range)?;
    Ok(g.dequantize(&quantized, &range)?)
}

/// Dequantises `weight`, stored values of the layer `name`, whose outputs are along `axis`.
pub(super) fn dequantized_weight(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    name: &str,
    numbers: &LayerNumerics,
    weight: &Tensor,
    axis: usize,
) -> Result<Tensor, Error> {
    match &numbers.weights {
        WeightScales::Tensor(scale) => {
            let range = g.range_e4m3(*scale, weights.lowering().compute)?;
            Ok(g.dequantize(weight, &range)?)
        }
        WeightScales::Rows(scales) => {
            let scales = weights.load(g, &format!("{name}.{SCALES}"), &[scales.len()])?;
            Ok(g.dequantize_along(weight, &scales, axis)?)
        }
        WeightScales::Blocks { .. } => Err(wrong(name)),
    }
}
