//! The modules of a denoiser, by the names that LoRA files give them.

use crate::checkpoint::inventory::{Required, denoiser};
use bundle::spec::DenoiserSpec;
use std::collections::BTreeMap;

/// The weights of a module that a LoRA may change.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Module {
    /// The name in the checkpoint of diffusers, without `.weight`.
    pub(super) name: String,
    pub(super) weight: Option<Required>,
    pub(super) bias: Option<Required>,
    /// The modulation table of the block.
    pub(super) table: Option<Required>,
}

/// What a name of a module means for a model.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'a> {
    Module(&'a Module),
    /// Models of another kind have it.
    Absent(&'static str),
    /// The block has a number that the model does not have. Counted from 1.
    Deeper(usize),
    Unknown,
}

/// All modules of a denoiser. Names have `_` for every `.`.
#[derive(Debug)]
pub(super) struct Modules {
    official: BTreeMap<String, Module>,
    diffusers: BTreeMap<String, Module>,
    layers: usize,
}

/// Parts of names of the official code, and those of diffusers.
const PARTS: [(&str, &str); 17] = [
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
    ("", ""),
];

/// Names outside the blocks.
const ENDS: [(&str, &str); 9] = [
    ("patch_embedding", "patch_embedding"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("head", ""),
];

impl Modules {
    pub(super) fn new(spec: &DenoiserSpec) -> Self {
        let weights: BTreeMap<String, Required> =
            denoiser(spec).into_iter().map(|required| (required.name.clone(), required)).collect();
        let get = |name: String| weights.get(&name).cloned();
        let module = |name: &str| Module {
            // A table is a parameter of its own, without `.weight`.
            weight: get(format!("{name}.weight")).or_else(|| get(name.to_owned())),
            bias: get(format!("{name}.bias")),
            table: get(if name.is_empty() {
                "scale_shift_table".into()
            } else {
                format!("{name}.scale_shift_table")
            }),
            name: name.to_owned(),
        };
        let blocks = (0..spec.layers).flat_map(|index| {
            PARTS.iter().map(move |(official, diffusers)| {
                let of_block = |part: &str| {
                    let dot = if part.is_empty() { "" } else { "." };
                    format!("blocks.{index}{dot}{part}")
                };
                (of_block(official), of_block(diffusers))
            })
        });
        let ends = ENDS.iter().map(|(official, diffusers)| ((*official).to_owned(), (*diffusers).to_owned()));
        let (mut of_official, mut of_diffusers) = (BTreeMap::new(), BTreeMap::new());
        for (official, diffusers) in blocks.chain(ends) {
            let found = module(&diffusers);
            of_official.insert(official.replace('.', "_"), found.clone());
            of_diffusers.insert(diffusers.replace('.', "_"), found);
        }
        Self { official: of_official, diffusers: of_diffusers, layers: spec.layers }
    }

    /// The number of blocks.
    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    /// Returns true if more of these names are those of the official code than those of diffusers.
    pub(super) fn are_official<'a>(&self, names: impl Iterator<Item = &'a str>) -> bool {
        let (mut official, mut diffusers) = (0_usize, 0_usize);
        for name in names {
            official += usize::from(self.official.contains_key(name));
            diffusers += usize::from(self.diffusers.contains_key(name));
        }
        official >= diffusers
    }

    /// Finds a module. `norm2` and `norm3` mean different norms in the two naming schemes, so the scheme of the file
    /// decides about every name that it has.
    pub(super) fn find(&self, name: &str, is_official: bool) -> Found<'_> {
        let (own, other) =
            if is_official { (&self.official, &self.diffusers) } else { (&self.diffusers, &self.official) };
        let is_ambiguous = name.ends_with("_norm2") || name.ends_with("_norm3");
        let elsewhere = || other.get(name).filter(|_| !is_ambiguous);
        if let Some(module) = own.get(name).or_else(elsewhere) {
            return Found::Module(module);
        }
        if let Some(reason) = absent(name) {
            return Found::Absent(reason);
        }
        let block =
            name.strip_prefix("blocks_").and_then(|rest| rest.split('_').next()?.parse::<usize>().ok());
        match block {
            Some(index) if index >= self.layers => Found::Deeper(index.saturating_add(1)),
            _ => Found::Unknown,
        }
    }
}

/// Why a text-to-video model does not have a module that other models of the family have.
fn absent(name: &str) -> Option<&'static str> {
    let parts = [
        ("cross_attn_k_img", IMAGE_ATTENTION),
        ("cross_attn_v_img", IMAGE_ATTENTION),
        ("cross_attn_norm_k_img", IMAGE_ATTENTION),
        ("attn2_add_k_proj", IMAGE_ATTENTION),
        ("attn2_add_v_proj", IMAGE_ATTENTION),
        ("attn2_norm_added_k", IMAGE_ATTENTION),
    ];
    let beginnings = [
        ("img_emb_", "image embedding"),
        ("condition_embedder_image_embedder_", "image embedding"),
        ("vace_", "VACE layers"),
    ];
    let of_parts = parts.iter().find(|(part, _)| name.starts_with("blocks_") && name.ends_with(part));
    let found = of_parts.or_else(|| beginnings.iter().find(|(start, _)| name.starts_with(start)));
    found.map(|(_, reason)| *reason)
}

const IMAGE_ATTENTION: &str = "image cross-attention";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::{Family, Naming};
    use bundle::catalog::wan_denoiser;
    use std::collections::BTreeSet;

    #[test]
    fn every_weight_of_a_denoiser_is_reached_by_both_names() {
        let spec = wan_denoiser(2, 3, 64);
        let modules = Modules::new(&spec);
        let expected: BTreeSet<String> = denoiser(&spec).into_iter().map(|required| required.name).collect();
        for table in [&modules.official, &modules.diffusers] {
            let all = table.values().flat_map(|module| [&module.weight, &module.bias, &module.table]);
            let found: BTreeSet<String> = all.flatten().map(|required| required.name.clone()).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn official_names_are_those_of_official_checkpoints() {
        for (official, diffusers) in PARTS.iter().filter(|(official, _)| !official.is_empty()) {
            let suffix = if *official == "modulation" { "" } else { ".weight" };
            let name = |part: &str| format!("blocks.7.{part}{suffix}");
            assert_eq!(Family::Denoiser.canonical(Naming::Official, &name(official)), name(diffusers));
        }
        for (official, diffusers) in ENDS.iter().filter(|(_, diffusers)| !diffusers.is_empty()) {
            let suffix = if official.ends_with("modulation") { "" } else { ".weight" };
            let name = |part: &str| format!("{part}{suffix}");
            assert_eq!(Family::Denoiser.canonical(Naming::Official, &name(official)), name(diffusers));
        }
    }

    #[test]
    fn the_norm_of_cross_attention_has_one_name_in_each_scheme() {
        let modules = Modules::new(&wan_denoiser(2, 3, 64));
        assert!(
            matches!(modules.find("blocks_0_norm3", true), Found::Module(m) if m.name == "blocks.0.norm2")
        );
        assert!(
            matches!(modules.find("blocks_0_norm2", false), Found::Module(m) if m.name == "blocks.0.norm2")
        );
        assert_eq!(modules.find("blocks_0_norm2", true), Found::Unknown);
        assert_eq!(modules.find("blocks_0_norm3", false), Found::Unknown);
        assert!(modules.are_official(["blocks_0_ffn_0", "blocks_0_norm3"].into_iter()));
        assert!(!modules.are_official(["blocks_0_attn1_to_q"].into_iter()));
        // Other names are found whatever the scheme of the file is.
        assert!(matches!(modules.find("blocks_0_attn1_to_q", true), Found::Module(_)));
    }

    #[test]
    fn modules_of_other_models_are_told_from_unknown_ones() {
        let modules = Modules::new(&wan_denoiser(2, 3, 64));
        for name in
            ["blocks_2_cross_attn_k_img", "blocks_39_cross_attn_norm_k_img", "blocks_0_attn2_add_v_proj"]
        {
            assert_eq!(modules.find(name, true), Found::Absent("image cross-attention"), "{name}");
        }
        assert_eq!(modules.find("img_emb_proj_1", true), Found::Absent("image embedding"));
        assert_eq!(modules.find("vace_blocks_0_before_proj", true), Found::Absent("VACE layers"));
        assert_eq!(modules.find("blocks_3_self_attn_q", true), Found::Deeper(4));
        assert_eq!(modules.find("blocks_2_self_attn_qq", true), Found::Unknown);
        assert_eq!(modules.find("blocks_x", true), Found::Unknown);
    }
}
