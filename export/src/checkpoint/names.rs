//! Tensor names: stored names are mapped to canonical names, those of diffusers.
//!
//! Pure functions. A set of names is official if it has a name that only the official code uses. The set is then mapped
//! as a whole, because single names are ambiguous: the official `norm3` is the `norm2` of diffusers.

/// A kind of model with its own names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// umT5 encoder.
    TextEncoder,
    /// Wan denoiser.
    Denoiser,
    /// Tiny decoder of previews.
    TinyDecoder,
    /// Wan2.1 VAE.
    Vae {
        /// Residual blocks per level of the encoder; the official names are numbered across levels.
        residual_blocks: usize,
    },
}

/// The naming scheme of a set of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// diffusers and transformers: the canonical names.
    Diffusers,
    /// The official Wan2.2 code.
    Official,
}

/// Residual blocks per level of the published VAEs.
const PUBLISHED_RESIDUAL_BLOCKS: usize = 2;

/// Prefixes of every name of a model that was saved as part of another, by tools for single files and by training
/// wrappers.
const OUTER_MODELS: [&str; 3] = ["model.", "diffusion_model.", "module."];

/// Parts of names added by PyTorch wrappers: `torch.compile`, FSDP, and activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];

impl Family {
    /// Returns the naming scheme of a set of tensors.
    pub fn naming<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Naming {
        let marker = match self {
            Self::TextEncoder => "token_embedding.weight",
            Self::Denoiser => "head.modulation",
            Self::Vae { .. } => "decoder.head.0.gamma",
            Self::TinyDecoder => return Naming::Diffusers,
        };
        if names.into_iter().any(|name| unwrapped(name) == marker) {
            Naming::Official
        } else {
            Naming::Diffusers
        }
    }

    /// Returns the residual blocks per level of the encoder of a VAE, from its stored names: the official names count
    /// blocks across levels, so that the first upsampler is behind those of the first level of the decoder.
    pub fn residual_blocks<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
        let blocks = |name: &str| {
            let rest = unwrapped(name).strip_prefix("decoder.upsamples.").map(str::to_owned)?;
            let (index, part) = rest.split_once('.')?;
            part.starts_with("resample.").then(|| index.parse::<usize>().ok())?
        };
        let first = names.into_iter().filter_map(blocks).min();
        first.map_or(PUBLISHED_RESIDUAL_BLOCKS, |first| first.saturating_sub(1))
    }

    /// Returns the canonical name of a stored tensor. A name without a counterpart is unchanged.
    pub fn canonical(self, naming: Naming, stored: &str) -> String {
        let stored = unwrapped(stored);
        let stored = stored.as_str();
        let mapped = match (naming, self) {
            (Naming::Diffusers, _) | (_, Self::TinyDecoder) => None,
            (Naming::Official, Self::TextEncoder) => text_encoder(stored),
            (Naming::Official, Self::Denoiser) => denoiser(stored),
            (Naming::Official, Self::Vae { residual_blocks }) => vae(stored, residual_blocks),
        };
        mapped.unwrap_or_else(|| stored.to_owned())
    }
}

/// Removes outer models and wrappers from a name, at any depth. No supported model has a name that begins with one of
/// [`OUTER_MODELS`] or contains one of [`WRAPPERS`].
fn unwrapped(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());

    for part in name.split_inclusive('.') {
        let is_outer = plain.is_empty() && OUTER_MODELS.contains(&part);
        if !is_outer && !WRAPPERS.contains(&part) {
            plain.push_str(part);
        }
    }
    plain
}

/// Replaces the beginning of a name by the first matching row of `table`.
fn replace_start(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
}

fn text_encoder(name: &str) -> Option<String> {
    match name {
        "token_embedding.weight" => return Some("shared.weight".into()),
        "norm.weight" => return Some("encoder.final_layer_norm.weight".into()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blocks.")?.split_once('.')?;
    let part = replace_start(
        part,
        &[
            ("norm1.", "layer.0.layer_norm."),
            ("attn.", "layer.0.SelfAttention."),
            ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
            ("norm2.", "layer.1.layer_norm."),
            ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
            ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
            ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
        ],
    )?;
    Some(format!("encoder.block.{layer}.{part}"))
}

fn denoiser(name: &str) -> Option<String> {
    let Some((block, part)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else {
        return replace_start(
            name,
            &[
                ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
                ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
                ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
                ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
                ("time_projection.1.", "condition_embedder.time_proj."),
                ("head.modulation", "scale_shift_table"),
                ("head.head.", "proj_out."),
            ],
        );
    };
    let part = if let Some(part) = part.strip_prefix("self_attn.") {
        format!("attn1.{}", attention_part(part))
    } else if let Some(part) = part.strip_prefix("cross_attn.") {
        format!("attn2.{}", attention_part(part))
    } else {
        replace_start(
            part,
            &[
                ("modulation", "scale_shift_table"),
                ("norm3.", "norm2."),
                ("ffn.0.", "ffn.net.0.proj."),
                ("ffn.2.", "ffn.net.2."),
            ],
        )?
    };
    Some(format!("blocks.{block}.{part}"))
}

fn attention_part(part: &str) -> String {
    let projections = [("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("o.", "to_out.0.")];
    replace_start(part, &projections).unwrap_or_else(|| part.to_owned())
}

fn vae(name: &str, residual_blocks: usize) -> Option<String> {
    let Some((half, part)) = name.split_once('.').filter(|(half, _)| matches!(*half, "encoder" | "decoder"))
    else {
        return replace_start(name, &[("conv1.", "quant_conv."), ("conv2.", "post_quant_conv.")]);
    };
    let ends = [
        ("conv1.", "conv_in."),
        ("head.0.", "norm_out."),
        ("head.2.", "conv_out."),
        ("middle.1.", "mid_block.attentions.0."),
    ];
    if let Some(part) = replace_start(part, &ends) {
        return Some(format!("{half}.{part}"));
    }
    let (list, rest) = part.split_once('.')?;
    let (index, part) = rest.split_once('.')?;
    let block = match (list, index) {
        ("middle", "0") => "mid_block.resnets.0".into(),
        ("middle", "2") => "mid_block.resnets.1".into(),
        ("downsamples", index) => format!("down_blocks.{index}"),
        ("upsamples", index) => up_block(index.parse().ok()?, residual_blocks),
        _ => return None,
    };
    let residual = [
        ("residual.0.", "norm1."),
        ("residual.2.", "conv1."),
        ("residual.3.", "norm2."),
        ("residual.6.", "conv2."),
        ("shortcut.", "conv_shortcut."),
    ];
    let part = replace_start(part, &residual).unwrap_or_else(|| part.to_owned());
    Some(format!("{half}.{block}.{part}"))
}

/// Official up blocks are a flat list: for each level the residual blocks of the decoder, then an upsampler.
fn up_block(index: usize, residual_blocks: usize) -> String {
    let per_level = residual_blocks.saturating_add(2);
    let (level, block) = (index / per_level, index % per_level);
    if block + 1 == per_level {
        format!("up_blocks.{level}.upsamplers.0")
    } else {
        format!("up_blocks.{level}.resnets.{block}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Official name, diffusers name and shape of every tensor of the Wan2.1 VAE.
    const VAE_TABLE: &str = include_str!("wan21-vae-tensors.txt");

    #[test]
    fn every_official_vae_name_is_mapped() {
        let family = Family::Vae { residual_blocks: 2 };
        let rows: Vec<Vec<&str>> = VAE_TABLE.lines().map(|line| line.split(' ').collect()).collect();
        assert_eq!(rows.len(), 194);
        assert_eq!(family.naming(rows.iter().map(|row| row[0])), Naming::Official);
        assert_eq!(family.naming(rows.iter().map(|row| row[1])), Naming::Diffusers);
        for row in rows {
            assert_eq!(family.canonical(Naming::Official, row[0]), row[1]);
            assert_eq!(family.canonical(Naming::Diffusers, row[1]), row[1]);
        }
    }

    #[test]
    fn levels_of_a_shallow_vae_have_fewer_blocks() {
        let family = Family::Vae { residual_blocks: 1 };
        for (official, diffusers) in [
            ("decoder.upsamples.1.residual.6.bias", "decoder.up_blocks.0.resnets.1.conv2.bias"),
            ("decoder.upsamples.2.time_conv.weight", "decoder.up_blocks.0.upsamplers.0.time_conv.weight"),
            ("decoder.upsamples.3.shortcut.weight", "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"),
            ("decoder.upsamples.10.residual.0.gamma", "decoder.up_blocks.3.resnets.1.norm1.gamma"),
        ] {
            assert_eq!(family.canonical(Naming::Official, official), diffusers);
        }
    }

    const DENOISER: [(&str, &str); 23] = [
        ("patch_embedding.weight", "patch_embedding.weight"),
        ("text_embedding.0.weight", "condition_embedder.text_embedder.linear_1.weight"),
        ("text_embedding.2.bias", "condition_embedder.text_embedder.linear_2.bias"),
        ("time_embedding.0.weight", "condition_embedder.time_embedder.linear_1.weight"),
        ("time_embedding.2.bias", "condition_embedder.time_embedder.linear_2.bias"),
        ("time_projection.1.weight", "condition_embedder.time_proj.weight"),
        ("blocks.39.modulation", "blocks.39.scale_shift_table"),
        ("blocks.0.self_attn.q.weight", "blocks.0.attn1.to_q.weight"),
        ("blocks.0.self_attn.k.bias", "blocks.0.attn1.to_k.bias"),
        ("blocks.0.self_attn.v.weight", "blocks.0.attn1.to_v.weight"),
        ("blocks.0.self_attn.o.weight", "blocks.0.attn1.to_out.0.weight"),
        ("blocks.0.self_attn.norm_q.weight", "blocks.0.attn1.norm_q.weight"),
        ("blocks.0.self_attn.norm_k.weight", "blocks.0.attn1.norm_k.weight"),
        ("blocks.10.cross_attn.q.bias", "blocks.10.attn2.to_q.bias"),
        ("blocks.10.cross_attn.k.weight", "blocks.10.attn2.to_k.weight"),
        ("blocks.10.cross_attn.v.bias", "blocks.10.attn2.to_v.bias"),
        ("blocks.10.cross_attn.o.bias", "blocks.10.attn2.to_out.0.bias"),
        ("blocks.10.cross_attn.norm_k.weight", "blocks.10.attn2.norm_k.weight"),
        ("blocks.3.norm3.weight", "blocks.3.norm2.weight"),
        ("blocks.3.ffn.0.weight", "blocks.3.ffn.net.0.proj.weight"),
        ("blocks.3.ffn.2.bias", "blocks.3.ffn.net.2.bias"),
        ("head.modulation", "scale_shift_table"),
        ("head.head.weight", "proj_out.weight"),
    ];

    #[test]
    fn official_denoiser_names_are_mapped_with_and_without_prefix() {
        let family = Family::Denoiser;
        assert_eq!(family.naming(["model.diffusion_model.head.modulation"]), Naming::Official);
        for (official, diffusers) in DENOISER {
            assert_eq!(family.canonical(Naming::Official, official), diffusers);
            let repacked = format!("model.diffusion_model.{official}");
            assert_eq!(family.canonical(Naming::Official, &repacked), diffusers);
            assert_eq!(family.canonical(Naming::Diffusers, diffusers), diffusers);
        }
    }

    #[test]
    fn outer_models_and_wrappers_are_removed_from_names() {
        let vae = Family::Vae { residual_blocks: 2 };
        for (stored, family, plain) in [
            ("model.proj_out.bias", Family::Denoiser, "proj_out.bias"),
            ("module._orig_mod.diffusion_model.proj_out.bias", Family::Denoiser, "proj_out.bias"),
            ("_orig_mod.blocks.0._orig_mod.attn1.to_q.bias", Family::Denoiser, "blocks.0.attn1.to_q.bias"),
            (
                "_fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.norm2.bias",
                Family::Denoiser,
                "blocks.0.norm2.bias",
            ),
            ("model.model.shared.weight", Family::TextEncoder, "shared.weight"),
            ("module.decoder.conv_in.bias", vae, "decoder.conv_in.bias"),
            ("_orig_mod.decoder.1.weight", Family::TinyDecoder, "decoder.1.weight"),
            // Within a name, only parts of wrappers are removed.
            ("decoder.module.model.bias", vae, "decoder.module.model.bias"),
            ("modules.bias", vae, "modules.bias"),
        ] {
            assert_eq!(family.canonical(Naming::Diffusers, stored), plain);
        }
        assert_eq!(Family::TextEncoder.naming(["module.token_embedding.weight"]), Naming::Official);
        assert_eq!(vae.naming(["model._orig_mod.decoder.head.0.gamma"]), Naming::Official);
        assert_eq!(
            Family::TextEncoder.canonical(Naming::Official, "_orig_mod.blocks.0.norm1.weight"),
            "encoder.block.0.layer.0.layer_norm.weight"
        );
    }

    #[test]
    fn the_norm_of_cross_attention_keeps_its_name_in_diffusers_checkpoints() {
        assert_eq!(
            Family::Denoiser.canonical(Naming::Diffusers, "blocks.3.norm2.weight"),
            "blocks.3.norm2.weight"
        );
        assert_eq!(
            Family::Denoiser.canonical(Naming::Official, "blocks.3.norm3.bias"),
            "blocks.3.norm2.bias"
        );
    }

    #[test]
    fn official_text_encoder_names_are_mapped() {
        let family = Family::TextEncoder;
        assert_eq!(family.naming(["token_embedding.weight"]), Naming::Official);
        assert_eq!(family.naming(["shared.weight"]), Naming::Diffusers);
        let attention = "encoder.block.7.layer.0.SelfAttention";
        let feed_forward = "encoder.block.7.layer.1.DenseReluDense";
        for (official, canonical) in [
            ("token_embedding.weight", "shared.weight".to_owned()),
            ("blocks.7.norm1.weight", "encoder.block.7.layer.0.layer_norm.weight".into()),
            ("blocks.7.attn.q.weight", format!("{attention}.q.weight")),
            ("blocks.7.attn.k.weight", format!("{attention}.k.weight")),
            ("blocks.7.attn.v.weight", format!("{attention}.v.weight")),
            ("blocks.7.attn.o.weight", format!("{attention}.o.weight")),
            (
                "blocks.7.pos_embedding.embedding.weight",
                format!("{attention}.relative_attention_bias.weight"),
            ),
            ("blocks.7.norm2.weight", "encoder.block.7.layer.1.layer_norm.weight".into()),
            ("blocks.7.ffn.gate.0.weight", format!("{feed_forward}.wi_0.weight")),
            ("blocks.7.ffn.fc1.weight", format!("{feed_forward}.wi_1.weight")),
            ("blocks.7.ffn.fc2.weight", format!("{feed_forward}.wo.weight")),
            ("norm.weight", "encoder.final_layer_norm.weight".into()),
        ] {
            assert_eq!(family.canonical(Naming::Official, official), canonical);
        }
    }

    proptest! {
        #[test]
        fn different_up_blocks_have_different_names(residual_blocks in 1_usize..5) {
            let names: HashSet<_> = (0..40).map(|index| up_block(index, residual_blocks)).collect();
            prop_assert_eq!(names.len(), 40);
        }

        #[test]
        fn any_name_has_a_canonical_name(name in "[a-z0-9._]{0,40}", blocks in any::<usize>()) {
            for family in [Family::TextEncoder, Family::Denoiser, Family::Vae { residual_blocks: blocks }] {
                let _ = family.canonical(Naming::Official, &name);
            }
        }
    }
}
