//! The layers that can be quantised, grouped by their input.
//!
//! Layers of a group read the same tensor, so they share smoothing and input range.

use crate::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};

/// The producer of a group's input. It determines where a division of the input channels can be folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerInput {
    /// A norm, whose scale and shift can be divided.
    Norm,
    /// Attention over the values of this linear layer, whose rows can be divided.
    Values(String),
    /// Text states that every block reads: the division needs its own product, on 512 rows.
    Text,
    /// An activation function: nothing can be folded into it.
    Activation,
}

/// Layers that read the same tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerGroup {
    /// Canonical names, without `.weight`.
    pub layers: Vec<String>,
    /// The producer of their input.
    pub input: LayerInput,
    /// The block they belong to; none outside blocks.
    pub block: Option<usize>,
}

/// Returns the linear layers of a denoiser that have many input rows. The others are not quantised: the layers on a
/// single row (time and modulation) cost little and affect everything, and the patch embedding and the head are narrow.
pub fn denoiser(spec: &DenoiserSpec) -> Vec<LayerGroup> {
    let outside =
        |name: &str, input: LayerInput| LayerGroup { layers: vec![name.into()], input, block: None };
    let embedder = "condition_embedder.text_embedder";
    let mut groups = vec![
        outside(&format!("{embedder}.linear_1"), LayerInput::Text),
        outside(&format!("{embedder}.linear_2"), LayerInput::Activation),
    ];
    for block in 0..spec.layers {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let mut group = |parts: &[&str], input: LayerInput| {
            let layers = parts.iter().map(|part| name(part)).collect();
            groups.push(LayerGroup { layers, input, block: Some(block) });
        };
        group(&["attn1.to_q", "attn1.to_k", "attn1.to_v"], LayerInput::Norm);
        group(&["attn1.to_out.0"], LayerInput::Values(name("attn1.to_v")));
        group(&["attn2.to_q"], LayerInput::Norm);
        group(&["attn2.to_k", "attn2.to_v"], LayerInput::Text);
        group(&["attn2.to_out.0"], LayerInput::Values(name("attn2.to_v")));
        group(&["ffn.net.0.proj"], LayerInput::Norm);
        group(&["ffn.net.2"], LayerInput::Activation);
    }
    groups
}

/// Linear layers that read the same rows, concatenated into one weight for Rushes kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FusedLayer {
    /// Its name in files.
    pub name: String,
    /// The layers whose outputs are concatenated: `PART.weight [out,in]`, `PART.bias [out]`.
    pub parts: Vec<String>,
    /// Outputs of each part, and inputs: `[out,in]`.
    pub shape: [usize; 2],
}

/// Returns the fused linear layers of a denoiser's blocks: seven per block, in execution order.
pub fn fused(spec: &DenoiserSpec) -> Vec<FusedLayer> {
    let (d, hidden) = (spec.width(), spec.feed_forward);
    let layer = |block: usize, name: &str, parts: &[&str], shape: [usize; 2]| {
        let full = |part: &str| format!("blocks.{block}.{part}");
        FusedLayer { name: full(name), parts: parts.iter().map(|part| full(part)).collect(), shape }
    };
    let of_block = |block: usize| {
        [
            layer(block, "attn1.to_qkv", &["attn1.to_q", "attn1.to_k", "attn1.to_v"], [d, d]),
            layer(block, "attn1.to_out", &["attn1.to_out.0"], [d, d]),
            layer(block, "attn2.to_query", &["attn2.to_q"], [d, d]),
            layer(block, "attn2.to_kv", &["attn2.to_k", "attn2.to_v"], [d, d]),
            layer(block, "attn2.to_out", &["attn2.to_out.0"], [d, d]),
            layer(block, "ffn.up", &["ffn.net.0.proj"], [hidden, d]),
            layer(block, "ffn.down", &["ffn.net.2"], [d, hidden]),
        ]
    };
    (0..spec.layers).flat_map(of_block).collect()
}

/// Returns the linear layers of a text encoder.
pub fn text_encoder(spec: &TextEncoderSpec) -> Vec<LayerGroup> {
    let mut groups = Vec::new();
    for layer in 0..spec.layers {
        let attention = |part: &str| format!("encoder.block.{layer}.layer.0.SelfAttention.{part}");
        let mlp = |part: &str| format!("encoder.block.{layer}.layer.1.DenseReluDense.{part}");
        let mut group = |layers: Vec<String>, input: LayerInput| {
            groups.push(LayerGroup { layers, input, block: Some(layer) });
        };
        group(["q", "k", "v"].map(attention).into(), LayerInput::Norm);
        group(vec![attention("o")], LayerInput::Values(attention("v")));
        group(["wi_0", "wi_1"].map(mlp).into(), LayerInput::Norm);
        group(vec![mlp("wo")], LayerInput::Activation);
    }
    groups
}

/// Returns the convolutions of a decoder, in execution order.
pub fn decoder(spec: &VaeSpec) -> Vec<String> {
    let mut names: Vec<String> = vec!["post_quant_conv".into(), "decoder.conv_in".into()];
    let residual = |names: &mut Vec<String>, name: String, shortcut: bool| {
        if shortcut {
            names.push(format!("{name}.conv_shortcut"));
        }
        names.extend(["conv1", "conv2"].map(|part| format!("{name}.{part}")));
    };
    residual(&mut names, "decoder.mid_block.resnets.0".into(), false);
    names.extend(["to_qkv", "proj"].map(|part| format!("decoder.mid_block.attentions.0.{part}")));
    residual(&mut names, "decoder.mid_block.resnets.1".into(), false);
    let mut channels = spec.base * spec.multipliers.last().copied().unwrap_or(1);
    let doubles_time: Vec<bool> = spec.temporal_downsample.iter().rev().copied().collect();
    for (level, times) in spec.multipliers.iter().rev().copied().enumerate() {
        let width = times * spec.base;
        for index in 0..=spec.residual_blocks {
            let name = format!("decoder.up_blocks.{level}.resnets.{index}");
            residual(&mut names, name, channels != width);
            channels = width;
        }
        if let Some(doubles_time) = doubles_time.get(level) {
            if *doubles_time {
                names.push(format!("decoder.up_blocks.{level}.upsamplers.0.time_conv"));
            }
            names.push(format!("decoder.up_blocks.{level}.upsamplers.0.resample.1"));
            channels /= 2;
        }
    }
    names.push("decoder.conv_out".into());
    names
}
