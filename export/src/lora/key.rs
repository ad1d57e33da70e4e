//! Keys of LoRA files: the model, the module and the part that a key names.

use bundle::lora::LoraExpert;

/// How the modules of a file are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Naming {
    /// `diffusion_model.blocks.0.self_attn.q`, also with `model.` or `unet.`.
    Native,
    /// `blocks.0.self_attn.q`.
    Bare,
    /// `lora_unet_blocks_0_self_attn_q`.
    Kohya,
    /// `lora_unet_blocks_0.self_attn.q`.
    KohyaWithDots,
    /// `lora_unet__blocks_0_self_attn_q`.
    WanFun,
    /// `lycoris_blocks_0_self_attn_q`.
    Lycoris,
    /// `transformer.blocks.0.attn1.to_q`, also with `transformer_2.`.
    Diffusers,
    /// `base_model.model.blocks.0.attn1.to_q`.
    Peft,
}

bundle::named!(
    Naming,
    "native" => Native, "bare" => Bare, "kohya" => Kohya, "kohya with dots" => KohyaWithDots, "Wan-Fun" => WanFun,
    "LyCORIS" => Lycoris, "diffusers" => Diffusers, "PEFT" => Peft,
);

/// What a tensor is of the change of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Up,
    Down,
    Mid,
    Alpha,
    /// A bias that the product of the factors is trained with; it has the scale of the pair.
    UpBias,
    /// The magnitudes of `DoRA`.
    Magnitudes,
    Diff,
    BiasDiff,
    /// The difference of a modulation table.
    TableDiff,
    Hada1Up,
    Hada1Down,
    Hada2Up,
    Hada2Down,
    Hada1Core,
    Hada2Core,
    Lokr1,
    Lokr1Up,
    Lokr1Down,
    Lokr2,
    Lokr2Up,
    Lokr2Down,
    Lokr2Core,
    /// A value that replaces a weight.
    SetWeight,
    /// A shape that a weight is padded to.
    ReshapeWeight,
}

/// Ends of keys, the longer before those that they end with.
const ENDS: [(&str, Part); 42] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_B.bias", Part::UpBias),
    (".lora_down", Part::Down),
    (".lora_up", Part::Up),
    (".lora_mid", Part::Mid),
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora.alpha", Part::Alpha),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Magnitudes),
    (".lora_magnitude_vector.weight", Part::Magnitudes),
    (".lora_magnitude_vector", Part::Magnitudes),
    (".diff", Part::Diff),
    (".w_norm", Part::Diff),
    (".diff_b", Part::BiasDiff),
    (".b_norm", Part::BiasDiff),
    (".diff_m", Part::TableDiff),
    (".hada_w1_a", Part::Hada1Up),
    (".hada_w1_b", Part::Hada1Down),
    (".hada_w2_a", Part::Hada2Up),
    (".hada_w2_b", Part::Hada2Down),
    (".hada_t1", Part::Hada1Core),
    (".hada_t2", Part::Hada2Core),
    (".lokr_w1", Part::Lokr1),
    (".lokr_w1_a", Part::Lokr1Up),
    (".lokr_w1_b", Part::Lokr1Down),
    (".lokr_w2", Part::Lokr2),
    (".lokr_w2_a", Part::Lokr2Up),
    (".lokr_w2_b", Part::Lokr2Down),
    (".lokr_t2", Part::Lokr2Core),
    (".set_weight", Part::SetWeight),
    (".reshape_weight", Part::ReshapeWeight),
];

/// Beginnings of names with dots, and what they say about the naming.
const MODELS: [(&str, Naming); 7] = [
    ("base_model.model.", Naming::Peft),
    ("diffusion_model.", Naming::Native),
    ("transformer_2.", Naming::Diffusers),
    ("transformer.", Naming::Diffusers),
    ("model.", Naming::Native),
    ("unet.", Naming::Native),
    ("module.", Naming::Native),
];

/// Beginnings of names without dots.
const PREFIXES: [(&str, Naming); 4] = [
    ("lora_unet__", Naming::WanFun),
    ("lora_unet_", Naming::Kohya),
    ("lora_transformer_", Naming::Kohya),
    ("lycoris_", Naming::Lycoris),
];

/// A key of a LoRA file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The module, without its model, with `_` for every `.`.
    pub(super) module: String,
    /// True if it is a module of `transformer_2`.
    pub(super) is_second: bool,
    pub(super) part: Part,
    pub(super) naming: Naming,
}

impl Key {
    /// Parses a key. Returns none if its end is not one of those that LoRA files have.
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (module, part) = split(key)?;
        let mut naming = Naming::Bare;
        let mut is_second = false;
        let mut rest = module;
        while let Some((model, named)) = MODELS.iter().find(|(model, _)| rest.starts_with(model)) {
            rest = &rest[model.len()..];
            is_second |= *model == "transformer_2.";
            // The outermost model decides: `base_model.model.` is PEFT whatever is inside.
            if naming == Naming::Bare {
                naming = *named;
            }
        }
        if let Some((prefix, named)) = PREFIXES.iter().find(|(prefix, _)| rest.starts_with(prefix)) {
            rest = &rest[prefix.len()..];
            naming = *named;
            if naming == Naming::Kohya && rest.contains('.') {
                naming = Naming::KohyaWithDots;
            }
        }
        Some(Self { module: rest.replace('.', "_"), is_second, part, naming })
    }
}

/// Splits a key into its module and its part.
fn split(key: &str) -> Option<(&str, Part)> {
    if let Some(found) = ENDS.iter().find_map(|(end, part)| Some((key.strip_suffix(end)?, *part))) {
        return Some(found);
    }
    // PEFT may store the name of the adapter: `.lora_A.NAME.weight`.
    for (factor, part) in
        [(".lora_A.", Part::Down), (".lora_B.", Part::Up), (".lora_magnitude_vector.", Part::Magnitudes)]
    {
        let Some((module, rest)) = key.rsplit_once(factor) else { continue };
        let is_name = |name: &str| !name.is_empty() && !name.contains('.');
        let name = rest.strip_suffix(".weight").or_else(|| (part == Part::Magnitudes).then_some(rest));
        if name.is_some_and(is_name) {
            return Some((module, part));
        }
        if part == Part::Up && rest.strip_suffix(".bias").is_some_and(is_name) {
            return Some((module, Part::UpBias));
        }
    }
    None
}

/// The expert that a key is for, in a file that has keys of both transformers.
pub(super) fn expert_of(is_second: bool) -> LoraExpert {
    if is_second { LoraExpert::LowNoise } else { LoraExpert::HighNoise }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(key: &str) -> (String, bool, Part, Naming) {
        let Key { module, is_second, part, naming } = Key::parse(key).unwrap_or_else(|| panic!("{key}"));
        (module, is_second, part, naming)
    }

    #[test]
    fn keys_of_every_family_name_the_same_module() {
        let native = "blocks_0_self_attn_q";
        for (key, part, naming) in [
            ("diffusion_model.blocks.0.self_attn.q.lora_down.weight", Part::Down, Naming::Native),
            ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", Part::Down, Naming::Native),
            ("model.diffusion_model.blocks.0.self_attn.q.alpha", Part::Alpha, Naming::Native),
            ("unet.blocks.0.self_attn.q.lora_up.weight", Part::Up, Naming::Native),
            ("blocks.0.self_attn.q.lora_B.weight", Part::Up, Naming::Bare),
            ("lora_unet_blocks_0_self_attn_q.lora_up.weight", Part::Up, Naming::Kohya),
            ("lora_unet_blocks_0.self_attn.q.lora_down.weight", Part::Down, Naming::KohyaWithDots),
            ("lora_unet__blocks_0_self_attn_q.alpha", Part::Alpha, Naming::WanFun),
            ("lycoris_blocks_0_self_attn_q.hada_w1_a", Part::Hada1Up, Naming::Lycoris),
            ("blocks.0.self_attn.q_lora.up.weight", Part::Up, Naming::Bare),
            ("blocks.0.self_attn.q.lora.down.weight", Part::Down, Naming::Bare),
            ("blocks.0.self_attn.q.lora_A", Part::Down, Naming::Bare),
            ("blocks.0.self_attn.q.lora_linear_layer.up.weight", Part::Up, Naming::Bare),
            ("blocks.0.self_attn.q.lora_mid.weight", Part::Mid, Naming::Bare),
            ("diffusion_model.blocks.0.self_attn.q.diff_b", Part::BiasDiff, Naming::Native),
            ("blocks.0.self_attn.q.dora_scale", Part::Magnitudes, Naming::Bare),
        ] {
            assert_eq!(parsed(key), (native.into(), false, part, naming), "{key}");
        }
    }

    #[test]
    fn diffusers_keys_name_one_of_two_transformers() {
        let module = || "blocks_0_attn1_to_q".to_owned();
        for (key, is_second, part, naming) in [
            ("transformer.blocks.0.attn1.to_q.lora_A.weight", false, Part::Down, Naming::Diffusers),
            ("transformer_2.blocks.0.attn1.to_q.lora_B.weight", true, Part::Up, Naming::Diffusers),
            ("base_model.model.blocks.0.attn1.to_q.lora_A.default.weight", false, Part::Down, Naming::Peft),
            (
                "base_model.model.transformer_2.blocks.0.attn1.to_q.lora_B.my-name.weight",
                true,
                Part::Up,
                Naming::Peft,
            ),
            (
                "base_model.model.blocks.0.attn1.to_q.lora_magnitude_vector",
                false,
                Part::Magnitudes,
                Naming::Peft,
            ),
            (
                "blocks.0.attn1.to_q.lora_magnitude_vector.default.weight",
                false,
                Part::Magnitudes,
                Naming::Bare,
            ),
            ("transformer.blocks.0.attn1.to_q.lora_B.bias", false, Part::UpBias, Naming::Diffusers),
        ] {
            assert_eq!(parsed(key), (module(), is_second, part, naming), "{key}");
        }
    }

    #[test]
    fn other_ends_of_keys_are_unknown() {
        for key in [
            "blocks.0.self_attn.q.weight",
            "blocks.0.self_attn.q.lora_dwn.weight",
            "blocks.0.self_attn.q.lora_A.a.b.weight",
            "blocks.0.self_attn.q.oft_blocks",
            "",
        ] {
            assert_eq!(Key::parse(key), None, "{key}");
        }
    }

    #[test]
    fn no_end_hides_a_longer_one() {
        for (index, (end, _)) in ENDS.iter().enumerate() {
            let hides = ENDS[index + 1..].iter().find(|(other, _)| other != end && other.ends_with(end));
            assert_eq!(hides, None, "{end}");
        }
    }
}
