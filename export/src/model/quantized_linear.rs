//! Linear layers over quantised weights, with ONNX Runtime kernels or in plain graphs.

use super::graph_weights::GraphWeights;
use super::quantized_operands::{dequantized_weight, quantized_input};
use crate::Error;
use crate::weights::{INPUT_FACTORS, SCALES};
use bundle::quantization::{Fold, LayerNumerics, WeightScales};
use graph::{Dim, GraphBuilder, Tensor};

/// Builds the quantised layer `name` over the last axis of `x`.
pub(super) fn quantized_linear(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    name: &str,
    numbers: &LayerNumerics,
    x: &Tensor,
    [out, width]: [usize; 2],
) -> Result<Tensor, Error> {
    let part = |suffix: &str| format!("{name}.{suffix}");
    let bias = weights.has(&part("bias")).then(|| weights.load(g, &part("bias"), &[out])).transpose()?;
    let mut x = x.clone();
    if numbers.smoothing.as_ref().is_some_and(|smoothing| smoothing.fold == Fold::Product) {
        let factors = weights.load(g, &part(INPUT_FACTORS), &[width])?;
        x = g.multiply(&x, &factors)?;
    }
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = out.into();
    let rows = Dim::product(&x.shape()[..x.rank() - 1]);
    let flat = g.reshape(&x, &[rows, width.into()])?;
    let stored = part("weight");
    let product = match (&numbers.weights, numbers.input) {
        (WeightScales::Rows(_), Some(input)) if !g.is_plain() => {
            let weight = weights.load_stored(g, &stored, &[width, out], &[width, out])?;
            let scales = weights.load(g, &part(SCALES), &[out])?;
            let range = g.range_u8(input)?;
            let quantized = g.quantize(&flat, &range)?;
            g.integer_linear(&quantized, &range, &weight, &scales, bias.as_ref())?
        }
        (WeightScales::Rows(_) | WeightScales::Tensor(_), Some(_)) => {
            let values = quantized_input(g, name, numbers, &flat)?;
            let weight = weights.load_stored(g, &stored, &[width, out], &[width, out])?;
            let weight = dequantized_weight(g, weights, name, numbers, &weight, 1)?;
            let product = g.product(&values, &weight)?;
            match &bias {
                Some(bias) => g.add(&product, bias)?,
                None => product,
            }
        }
        (WeightScales::Blocks { size, scales }, _) => {
            let blocks = [out, width.div_ceil(*size), *size];
            let weight = weights.load_stored(g, &stored, &blocks, &blocks)?;
            let scales = weights.load(g, &part(SCALES), &[scales.len()])?;
            g.weight_only_linear(&flat, *size, &weight, &scales, bias.as_ref())?
        }
        _ => return Err(Error::Numerics { layer: name.to_owned() }),
    };
    Ok(g.reshape(&product, &shape)?)
}
