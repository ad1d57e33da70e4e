//! The share of a graph's work that runs in integers, computed from the graph as optimised by ONNX Runtime. In a plain
//! graph, products of operands that are dequantised directly before them count: providers compute them in 8 bits.

use crate::Error;
use bundle::manifest::{Component, Manifest};
use bundle::spec::VaeSpec;
use graph::Model;
use graph::proto::{NodeProto, TensorProto};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Operators that multiply in integers, with the index of their weight input.
const INTEGER: [(&str, usize); 10] = [
    ("MatMulIntegerToFloat", 1),
    ("DynamicQuantizeMatMul", 1),
    ("MatMulInteger", 1),
    ("QLinearConv", 3),
    ("ConvInteger", 1),
    ("QLinearMatMul", 3),
    ("QGemm", 3),
    ("LinearQ", 2),
    ("LinearQResidual", 2),
    ("CausalConvolution", 1),
];
/// Operators that multiply in floating point.
const FLOAT: [&str; 10] = [
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "Conv",
    "FusedConv",
    "MatMulNBits",
    "TransposeMatMul",
    "LinearBf16",
    "LinearBf16Residual",
];

/// Multiply-adds of linear layers and convolutions in one run of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Multiply-adds in integers.
    pub integer: f64,
    /// All multiply-adds.
    pub all: f64,
    /// Layers that run in floating point, with their share of all.
    pub float: BTreeMap<String, f64>,
}

impl Share {
    /// The share that runs in integers, 0..=1.
    pub fn ratio(&self) -> f64 {
        if self.all > 0.0 { self.integer / self.all } else { 0.0 }
    }
}

/// Computes the share from the file of an optimised graph; see [`integer_share`].
///
/// # Errors
/// The file cannot be read or is not a graph.
pub fn read(optimized: &Path, positions: &BTreeMap<String, f64>) -> Result<Share, Error> {
    Ok(integer_share(&Model::read(optimized)?, positions))
}

/// Computes the share from an optimised graph. `positions` is the number of uses of each layer's weight in a run. A
/// product with a weight of an unknown layer counts as floating point, with the largest number of uses of any layer.
pub fn integer_share(optimized: &Model, positions: &BTreeMap<String, f64>) -> Share {
    let graph = optimized.proto.graph.as_ref();
    let weights: HashMap<&str, &TensorProto> = graph
        .into_iter()
        .flat_map(|graph| &graph.initializer)
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    // Weights that are dequantised directly before their product, by the name of the dequantised value.
    let dequantized: HashMap<&str, &str> = graph
        .into_iter()
        .flat_map(|graph| &graph.node)
        .filter(|node| node.op_type == "DequantizeLinear")
        .filter_map(|node| Some((node.output.first()?.as_str(), node.input.first()?.as_str())))
        .collect();
    let most_positions = positions.values().copied().fold(1.0, f64::max);
    let mut share = Share { integer: 0.0, all: 0.0, float: BTreeMap::new() };
    for node in graph.into_iter().flat_map(|graph| &graph.node) {
        let Some((is_integer, index)) = product_of(node) else { continue };
        let Some(operand) = node.input.get(index) else { continue };
        let stored = dequantized.get(operand.as_str());
        let Some(weight) = weights.get(stored.copied().unwrap_or(operand)) else { continue };
        let is_integer = is_integer || stored.is_some();
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let size = weight.dims.iter().product::<i64>() as f64;
        let layer = layer_of(&weight.name, positions);
        let work = size * layer.map_or(most_positions, |layer| positions[layer]);
        share.all += work;
        if is_integer {
            share.integer += work;
        } else {
            let name = layer.map_or_else(|| weight.name.clone(), str::to_owned);
            *share.float.entry(name).or_default() += work;
        }
    }
    let all = share.all;
    share.float.values_mut().for_each(|work| *work /= all.max(1.0));
    share
}

fn product_of(node: &NodeProto) -> Option<(bool, usize)> {
    let operator = node.op_type.as_str();
    let integer = INTEGER.iter().find(|(name, _)| *name == operator).map(|(_, index)| (true, *index));
    integer.or_else(|| FLOAT.contains(&operator).then_some((false, 1)))
}

/// Returns the layer whose name is a prefix of a weight's name, up to a `.` or `_`; the longest one if there are
/// several.
fn layer_of<'a>(weight: &str, positions: &'a BTreeMap<String, f64>) -> Option<&'a str> {
    let begins = |layer: &&String| {
        weight
            .strip_prefix(layer.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
    };
    positions.keys().filter(begins).max_by_key(|layer| layer.len()).map(String::as_str)
}

/// The numbers of rows that the layers of a step read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRows {
    /// Tokens of the clip.
    pub tokens: usize,
    /// Rows of the text: 512, or fewer if equal rows are merged.
    pub text: usize,
}

/// Returns the number of uses of each layer's weight in one run: for a step over these rows, for the decoder per latent
/// position.
pub fn positions(manifest: &Manifest, component: &Component, rows: StepRows) -> BTreeMap<String, f64> {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (tokens, text) = (rows.tokens as f64, rows.text as f64);
    match component {
        Component::TextEncoder => {
            let groups = bundle::quantization::layers::text_encoder(&manifest.text_encoder);
            groups.into_iter().flat_map(|group| group.layers).map(|layer| (layer, 1.0)).collect()
        }
        Component::Expert(_) => {
            let groups = bundle::quantization::layers::denoiser(&manifest.denoiser);
            let reads_text = |layer: &str| {
                layer.contains("text_embedder")
                    || layer.ends_with("attn2.to_k")
                    || layer.ends_with("attn2.to_v")
                    || layer.ends_with("attn2.to_kv")
            };
            let fused = bundle::quantization::layers::fused(&manifest.denoiser);
            let fused = fused.into_iter().map(|layer| layer.name);
            let many = groups.into_iter().flat_map(|group| group.layers).chain(fused);
            let many = many.map(|layer| if reads_text(&layer) { (layer, text) } else { (layer, tokens) });
            let time = ["time_embedder.linear_1", "time_embedder.linear_2", "time_proj"];
            let one = time.into_iter().map(|part| (format!("condition_embedder.{part}"), 1.0));
            let ends = ["patch_embedding", "proj_out"].map(|name| (name.to_owned(), tokens));
            many.chain(one).chain(ends).collect()
        }
        Component::Decoder => decoder_positions(&manifest.vae),
        Component::ImageEncoder | Component::Preview => BTreeMap::new(),
    }
}

/// Frames times area at every convolution, for one later latent frame with one position.
fn decoder_positions(spec: &VaeSpec) -> BTreeMap<String, f64> {
    let doubles_time: Vec<bool> = spec.temporal_downsample.iter().rev().copied().collect();
    let (mut frames, mut area, mut level) = (1.0, 1.0, 0);
    let mut positions = BTreeMap::new();
    for layer in bundle::quantization::layers::decoder(spec) {
        if layer.ends_with("resample.1") {
            frames *= if doubles_time.get(level).copied().unwrap_or(false) { 2.0 } else { 1.0 };
            area *= 4.0;
            level += 1;
        }
        positions.insert(layer, frames * area);
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan21_vae;

    #[test]
    fn a_weight_belongs_to_the_layer_with_its_full_name() {
        let positions = BTreeMap::from([("blocks.1.a".into(), 1.0), ("blocks.10.a".into(), 2.0)]);
        assert_eq!(layer_of("blocks.10.a.weight", &positions), Some("blocks.10.a"));
        assert_eq!(layer_of("blocks.1.a.weight_transposed", &positions), Some("blocks.1.a"));
        assert_eq!(layer_of("blocks.1.ab.weight", &positions), None);
    }

    #[test]
    fn the_last_convolution_of_a_wan_decoder_has_four_frames_at_full_size() {
        let positions = decoder_positions(&wan21_vae());
        assert_eq!(positions["decoder.conv_out"], 4.0 * 64.0);
        assert_eq!(positions["decoder.up_blocks.0.upsamplers.0.time_conv"], 1.0);
        assert_eq!(positions["decoder.up_blocks.0.upsamplers.0.resample.1"], 8.0);
        assert_eq!(positions["decoder.up_blocks.3.resnets.2.conv2"], 256.0);
    }
}
