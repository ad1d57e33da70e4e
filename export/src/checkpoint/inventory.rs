//! The weights of a model with given hyper-parameters: canonical names and shapes.
//!
//! A config that does not match its weights is thus detected before anything is written, and only the weights that a
//! graph reads are converted.

use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};

/// A weight that a graph reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// Canonical name.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

/// A list of weights.
struct Inventory(Vec<Required>);

impl Inventory {
    fn tensor(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(Required { name: name.into(), shape: shape.to_vec() });
    }

    /// Adds a weight of the given shape and a bias over its first axis.
    fn layer(&mut self, name: &str, shape: &[usize]) {
        self.tensor(format!("{name}.weight"), shape);
        self.tensor(format!("{name}.bias"), &shape[..1]);
    }
}

/// Returns the weights of a umT5 encoder: ten per layer and two more.
pub fn text_encoder(spec: &TextEncoderSpec) -> Vec<Required> {
    let width = spec.width;
    let inner = spec.heads * spec.head_width;
    let mut all = Inventory(Vec::new());
    all.tensor("shared.weight", &[spec.vocabulary, width]);
    for layer in 0..spec.layers {
        let block = format!("encoder.block.{layer}.layer");
        all.tensor(format!("{block}.0.layer_norm.weight"), &[width]);
        for projection in ["q", "k", "v"] {
            all.tensor(format!("{block}.0.SelfAttention.{projection}.weight"), &[inner, width]);
        }
        all.tensor(format!("{block}.0.SelfAttention.o.weight"), &[width, inner]);
        let table = format!("{block}.0.SelfAttention.relative_attention_bias.weight");
        all.tensor(table, &[spec.buckets, spec.heads]);
        all.tensor(format!("{block}.1.layer_norm.weight"), &[width]);
        for projection in ["wi_0", "wi_1"] {
            let name = format!("{block}.1.DenseReluDense.{projection}.weight");
            all.tensor(name, &[spec.feed_forward, width]);
        }
        all.tensor(format!("{block}.1.DenseReluDense.wo.weight"), &[width, spec.feed_forward]);
    }
    all.tensor("encoder.final_layer_norm.weight", &[width]);
    all.0
}

/// Returns the weights of a denoiser: 27 per block and 15 more.
pub fn denoiser(spec: &DenoiserSpec) -> Vec<Required> {
    let width = spec.width();
    let patch = [spec.patch.time, spec.patch.height, spec.patch.width];
    let mut all = Inventory(Vec::new());
    all.layer("patch_embedding", &[width, spec.in_channels, patch[0], patch[1], patch[2]]);
    let embedder = "condition_embedder";
    all.layer(&format!("{embedder}.text_embedder.linear_1"), &[width, spec.text_width]);
    all.layer(&format!("{embedder}.text_embedder.linear_2"), &[width, width]);
    all.layer(&format!("{embedder}.time_embedder.linear_1"), &[width, spec.frequency_width]);
    all.layer(&format!("{embedder}.time_embedder.linear_2"), &[width, width]);
    all.layer(&format!("{embedder}.time_proj"), &[6 * width, width]);
    for index in 0..spec.layers {
        let block = format!("blocks.{index}");
        all.tensor(format!("{block}.scale_shift_table"), &[1, 6, width]);
        for attention in ["attn1", "attn2"] {
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                all.layer(&format!("{block}.{attention}.{projection}"), &[width, width]);
            }
            all.tensor(format!("{block}.{attention}.norm_q.weight"), &[width]);
            all.tensor(format!("{block}.{attention}.norm_k.weight"), &[width]);
        }
        all.layer(&format!("{block}.norm2"), &[width]);
        all.layer(&format!("{block}.ffn.net.0.proj"), &[spec.feed_forward, width]);
        all.layer(&format!("{block}.ffn.net.2"), &[width, spec.feed_forward]);
    }
    all.tensor("scale_shift_table", &[1, 2, width]);
    all.layer("proj_out", &[patch.iter().product::<usize>() * spec.out_channels, width]);
    all.0
}

/// Returns the weights of the decoder of a Wan2.1 VAE.
pub fn decoder(spec: &VaeSpec) -> Vec<Required> {
    let channels = spec.latent_channels;
    let widths: Vec<usize> = spec.multipliers.iter().rev().map(|multiplier| spec.base * multiplier).collect();
    let (top, bottom) = (widths.first().copied().unwrap_or(0), widths.last().copied().unwrap_or(0));
    let mut all = Inventory(Vec::new());
    all.layer("post_quant_conv", &[channels, channels, 1, 1, 1]);
    all.layer("decoder.conv_in", &[top, channels, 3, 3, 3]);
    residual_block(&mut all, "decoder.mid_block.resnets.0", top, top);
    let attention = "decoder.mid_block.attentions.0";
    all.tensor(format!("{attention}.norm.gamma"), &[top, 1, 1]);
    all.layer(&format!("{attention}.to_qkv"), &[3 * top, top, 1, 1]);
    all.layer(&format!("{attention}.proj"), &[top, top, 1, 1]);
    residual_block(&mut all, "decoder.mid_block.resnets.1", top, top);

    let mut input = top;
    let mut temporal = spec.temporal_downsample.iter().rev();
    for (level, width) in widths.into_iter().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        for index in 0..=spec.residual_blocks {
            residual_block(&mut all, &format!("{block}.resnets.{index}"), input, width);
            input = width;
        }
        // An upsampler follows every level except the last, which has full resolution.
        if let Some(temporal) = temporal.next() {
            input = width / 2;
            let upsampler = format!("{block}.upsamplers.0");
            all.layer(&format!("{upsampler}.resample.1"), &[input, width, 3, 3]);
            if *temporal {
                all.layer(&format!("{upsampler}.time_conv"), &[2 * width, width, 3, 1, 1]);
            }
        }
    }
    all.tensor("decoder.norm_out.gamma", &[bottom, 1, 1, 1]);
    all.layer("decoder.conv_out", &[3, bottom, 3, 3, 3]);
    all.0
}

fn residual_block(all: &mut Inventory, block: &str, input: usize, output: usize) {
    all.tensor(format!("{block}.norm1.gamma"), &[input, 1, 1, 1]);
    all.layer(&format!("{block}.conv1"), &[output, input, 3, 3, 3]);
    all.tensor(format!("{block}.norm2.gamma"), &[output, 1, 1, 1]);
    all.layer(&format!("{block}.conv2"), &[output, output, 3, 3, 3]);
    if input != output {
        all.layer(&format!("{block}.conv_shortcut"), &[output, input, 1, 1, 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
    use std::collections::BTreeMap;

    fn parameters(all: &[Required]) -> usize {
        all.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_text_encoder_has_the_published_number_of_parameters() {
        let spec = umt5_xxl();
        let all = text_encoder(&spec);
        assert_eq!((all.len(), parameters(&all)), (242, 5_680_910_336));
    }

    #[test]
    fn the_denoisers_have_the_published_numbers_of_parameters() {
        let all = denoiser(&wan_denoiser(40, 40, 13824));
        assert_eq!((all.len(), parameters(&all)), (1095, 14_288_491_584));
        let all = denoiser(&wan_denoiser(12, 30, 8960));
        assert_eq!((all.len(), parameters(&all)), (825, 1_418_996_800));
    }

    #[test]
    fn the_decoder_has_the_published_tensors() {
        let published: BTreeMap<String, Vec<usize>> = include_str!("wan21-vae-tensors.txt")
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .map(|row| (row[1].to_owned(), row[2].split(',').map(|extent| extent.parse().unwrap()).collect()))
            .filter(|(name, _): &(String, _)| {
                name.starts_with("decoder.") || name.starts_with("post_quant_conv.")
            })
            .collect();
        let found: BTreeMap<_, _> =
            decoder(&wan21_vae()).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        assert_eq!(found, published);
    }
}
