//! Validation of `bundle.json`.
//!
//! Its numbers are used as divisors, sizes and indices, and its paths are opened, so each is checked when the bundle is
//! opened. Errors name the field.

use crate::digest::Digest;
use crate::geometry::FrameCount;
use crate::layout;
use crate::manifest::{Component, ComponentEntry, Manifest};
use crate::routing::Routing;
use crate::settings::{Defaults, check_steps};
use crate::spec::{DenoiserSpec, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
use crate::units::Shift;
use std::path::{Component as PathPart, Path};

/// The largest extent of a weight.
pub const MAX_EXTENT: usize = 1 << 24;
/// The largest number of layers, levels and other counts.
pub const MAX_COUNT: usize = 1000;
/// The largest number of decoder levels. Each doubles the resolution.
const MAX_LEVELS: usize = 8;

/// Checks every number, name and path.
///
/// # Errors
/// Describes the first invalid field: its value and the valid range.
pub fn check(manifest: &Manifest) -> Result<(), String> {
    text_encoder(&manifest.text_encoder)?;
    denoiser(&manifest.denoiser)?;
    vae(&manifest.vae)?;
    if let Some(spec) = &manifest.tiny_decoder {
        tiny_decoder(spec, &manifest.vae)?;
    }
    routing(&manifest.routing)?;
    defaults(&manifest.defaults, manifest.routing.routes().len())?;
    components(manifest)?;
    for (file, digest) in &manifest.digests {
        path("digests", file)?;
        let mut stated = std::iter::once(&digest.sampled).chain(&digest.whole);
        stated.try_for_each(|hex| hexadecimal("digests", hex))?;
    }
    Ok(())
}

fn within(field: &str, value: usize, most: usize) -> Result<(), String> {
    if (1..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("`{field}` is {value} and must be 1 to {most}"))
    }
}

fn extents(model: &str, fields: &[(&str, usize)]) -> Result<(), String> {
    fields.iter().try_for_each(|(field, value)| within(&format!("{model}.{field}"), *value, MAX_EXTENT))
}

/// Checks that a product of extents is itself a valid extent.
fn product(model: &str, what: &str, factors: [usize; 2]) -> Result<(), String> {
    match factors[0].checked_mul(factors[1]) {
        Some(product) if product <= MAX_EXTENT => Ok(()),
        _ => Err(format!(
            "`{model}` has {what} of {} x {}; the maximum product is {MAX_EXTENT}",
            factors[0], factors[1]
        )),
    }
}

fn even(field: &str, value: usize) -> Result<(), String> {
    if value.is_multiple_of(2) { Ok(()) } else { Err(format!("`{field}` is {value} and must be even")) }
}

fn epsilon(field: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value > 0.0 {
        Ok(())
    } else {
        Err(format!("`{field}` is {value} and must be a finite number above 0"))
    }
}

fn text_encoder(spec: &TextEncoderSpec) -> Result<(), String> {
    const NAME: &str = "text_encoder";
    let TextEncoderSpec {
        vocabulary,
        width,
        heads,
        head_width,
        feed_forward,
        layers,
        buckets,
        max_distance,
        epsilon: guard,
    } = spec;
    extents(
        NAME,
        &[
            ("vocabulary", *vocabulary),
            ("width", *width),
            ("heads", *heads),
            ("head_width", *head_width),
            ("feed_forward", *feed_forward),
            ("buckets", *buckets),
            ("max_distance", *max_distance),
        ],
    )?;
    within("text_encoder.layers", *layers, MAX_COUNT)?;
    product(NAME, "heads", [*heads, *head_width])?;
    // A quarter of the buckets holds exact distances, the next quarter logarithmic ranges up to the largest distance.
    if !buckets.is_multiple_of(4) || *max_distance <= buckets / 4 {
        return Err(format!(
            "`text_encoder.buckets` is {buckets}, which does not fit distances up to {max_distance}"
        ));
    }
    epsilon("text_encoder.epsilon", *guard)
}

fn denoiser(spec: &DenoiserSpec) -> Result<(), String> {
    const NAME: &str = "denoiser";
    let DenoiserSpec {
        heads,
        head_width,
        layers,
        feed_forward,
        in_channels,
        out_channels,
        patch,
        text_width,
        frequency_width,
        epsilon: guard,
    } = spec;
    extents(
        NAME,
        &[
            ("heads", *heads),
            ("head_width", *head_width),
            ("feed_forward", *feed_forward),
            ("in_channels", *in_channels),
            ("out_channels", *out_channels),
            ("text_width", *text_width),
            ("frequency_width", *frequency_width),
        ],
    )?;
    within("denoiser.layers", *layers, MAX_COUNT)?;
    within("denoiser.patch.time", patch.time, 1)?;
    within("denoiser.patch.height", patch.height, MAX_COUNT)?;
    within("denoiser.patch.width", patch.width, MAX_COUNT)?;
    product(NAME, "heads", [*heads, *head_width])?;
    even("denoiser.head_width", *head_width)?;
    even("denoiser.frequency_width", *frequency_width)?;
    if in_channels != out_channels {
        return Err(format!(
            "`denoiser.in_channels` is {in_channels} and `denoiser.out_channels` is {out_channels}; they must be equal"
        ));
    }
    epsilon("denoiser.epsilon", *guard)
}

fn vae(spec: &VaeSpec) -> Result<(), String> {
    let VaeSpec {
        base,
        latent_channels,
        multipliers,
        residual_blocks,
        temporal_downsample,
        latents_mean,
        latents_std,
    } = spec;
    extents("vae", &[("base", *base), ("latent_channels", *latent_channels)])?;
    within("vae.residual_blocks", *residual_blocks, MAX_COUNT)?;
    let (levels, halvings) = (multipliers.len(), temporal_downsample.len());
    if levels != halvings + 1 || levels > MAX_LEVELS {
        return Err(format!(
            "`vae.multipliers` has {levels} levels and `vae.temporal_downsample` {halvings} steps; there must be one step \
             fewer than levels, and at most {MAX_LEVELS} levels"
        ));
    }
    for multiplier in multipliers {
        within("vae.multipliers", *multiplier, MAX_COUNT)?;
        product("vae", "channels", [*base, *multiplier])?;
    }
    for (field, values) in [("vae.latents_mean", latents_mean), ("vae.latents_std", latents_std)] {
        if values.len() != *latent_channels || values.iter().any(|value| !value.is_finite()) {
            return Err(format!(
                "`{field}` must have {latent_channels} finite numbers and has {}",
                values.len()
            ));
        }
    }
    if latents_std.iter().any(|deviation| *deviation <= 0.0) {
        return Err("`vae.latents_std` must be above 0".into());
    }
    Ok(())
}

fn tiny_decoder(spec: &TinyDecoderSpec, vae: &VaeSpec) -> Result<(), String> {
    let TinyDecoderSpec { latent_channels, widths, patch, stored_growth } = spec;
    for width in widths {
        within("tiny_decoder.widths", *width, MAX_EXTENT)?;
    }
    within("tiny_decoder.patch", *patch, 2)?;
    for (stored, needed) in stored_growth.iter().zip(TinyDecoderSpec::GROWTH) {
        if !(needed..=MAX_COUNT).contains(stored) {
            return Err(format!(
                "`tiny_decoder.stored_growth` has {stored} and must have {needed} to {MAX_COUNT}"
            ));
        }
    }
    if (*latent_channels, spec.stride()) != (vae.latent_channels, vae.stride()) {
        return Err(format!(
            "`tiny_decoder` takes latents of {latent_channels} channels and {:?}, but those of `vae` have {} and {:?}",
            spec.stride(),
            vae.latent_channels,
            vae.stride()
        ));
    }
    Ok(())
}

fn routing(routing: &Routing) -> Result<(), String> {
    let mut names: Vec<&str> = routing.routes().iter().map(|route| route.expert.0.as_str()).collect();
    for name in &names {
        if matches!(*name, "" | "." | "..") || name.contains(['/', '\\', '\0']) {
            return Err(format!(
                "`routing` has an expert `{}`, which is not a valid folder name",
                name.escape_debug()
            ));
        }
    }
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("`routing` has the expert `{}` twice", pair[0])),
        None => Ok(()),
    }
}

fn defaults(defaults: &Defaults, experts: usize) -> Result<(), String> {
    let field =
        |name: &'static str| move |error: crate::Error| format!("`defaults.{name}`: {}", rule(&error));
    FrameCount::try_new(defaults.frames.value).map_err(field("frames"))?;
    check_steps(defaults.steps.value).map_err(field("steps"))?;
    Shift::try_new(defaults.shift.value.0).map_err(field("shift"))?;
    if let Some(listed) = &defaults.timesteps {
        let (steps, sampler) = (listed.value.list.steps(), listed.value.sampler);
        if defaults.steps.value != steps || defaults.sampler.value != sampler {
            return Err(format!(
                "`defaults.timesteps` is a list of {steps} for {sampler}, and `defaults` has {} steps of {}",
                defaults.steps.value, defaults.sampler.value
            ));
        }
    }
    let scales = &defaults.guidance.value;
    if scales.len() != experts || scales.iter().any(|scale| !scale.0.is_finite()) {
        return Err(format!(
            "`defaults.guidance` must have a finite number for each of {experts} experts and has {}",
            scales.len()
        ));
    }
    Ok(())
}

/// Returns the given value and the rule that it breaks, without the name of the setting.
fn rule(error: &crate::Error) -> String {
    match error {
        crate::Error::Value { given, rule, .. } => format!("{given} is invalid, {rule}"),
        other => other.to_string(),
    }
}

fn components(manifest: &Manifest) -> Result<(), String> {
    let all = &manifest.components;
    let has = |component: &Component| all.iter().any(|entry| entry.component == *component);
    let experts: Vec<Component> =
        manifest.routing.routes().iter().map(|route| Component::Expert(route.expert.clone())).collect();
    for (index, entry) in all.iter().enumerate() {
        let component = &entry.component;
        if all[..index].iter().any(|other| other.component == *component) {
            return Err(format!("`components` has {component} twice"));
        }
        if matches!(component, Component::Expert(_)) && !experts.contains(component) {
            return Err(format!("`components` has {component}, which is not in `routing`"));
        }
        if *component == Component::Preview && manifest.tiny_decoder.is_none() {
            return Err(format!("`components` has {component} but `tiny_decoder` is absent"));
        }
        files(entry)?;
        for lora in &entry.loras {
            hexadecimal("loras", &lora.digest)?;
            if !lora.strength.is_finite() || !lora.change.is_finite() {
                return Err(format!("`loras` of {component} has a number that is not finite"));
            }
        }
    }
    let has_expert = experts.iter().any(has);
    let (text, denoiser, vae) = (&manifest.text_encoder, &manifest.denoiser, &manifest.vae);
    if has_expert && has(&Component::TextEncoder) && denoiser.text_width != text.width {
        return Err(format!(
            "`denoiser.text_width` is {} and `text_encoder.width` is {}",
            denoiser.text_width, text.width
        ));
    }
    if has_expert && has(&Component::Decoder) && denoiser.in_channels != vae.latent_channels {
        return Err(format!(
            "`denoiser.in_channels` is {} and `vae.latent_channels` is {}",
            denoiser.in_channels, vae.latent_channels
        ));
    }
    Ok(())
}

/// Checks that graphs and weights of a component are in its folder.
fn files(entry: &ComponentEntry) -> Result<(), String> {
    digest("components.digest", &entry.digest)?;
    let folder = layout::component_folder(&entry.component);
    let weights = entry.weight_files().map(|weights| ("weights.file", &weights.file));
    for graph in &entry.graphs {
        if let Some(found) = &graph.batch_invariant {
            within("graphs.batch_invariant.on.threads", found.on.threads, MAX_EXTENT)?;
            if !matches!(entry.component, Component::Expert(_)) {
                return Err(format!(
                    "`graphs.batch_invariant` is set for {}, which is no expert",
                    entry.component
                ));
            }
        }
    }
    for (field, file) in entry.graphs.iter().map(|graph| ("graphs.file", &graph.file)).chain(weights) {
        path(field, file)?;
        if !Path::new(file).starts_with(&folder) {
            return Err(format!(
                "`{field}` is `{file}`, which is not in the folder of {}, {folder}",
                entry.component
            ));
        }
    }
    Ok(())
}

/// Checks that a path is inside the bundle.
fn path(field: &str, file: &str) -> Result<(), String> {
    let parts = || Path::new(file).components();
    let is_inside = parts().next().is_some() && parts().all(|part| matches!(part, PathPart::Normal(_)));
    if is_inside && !file.contains('\0') && !file.ends_with('/') {
        Ok(())
    } else {
        Err(format!(
            "`{field}` is `{}`, which is not the path of a file inside the bundle",
            file.escape_debug()
        ))
    }
}

fn digest(field: &str, digest: &Digest) -> Result<(), String> {
    hexadecimal(field, &digest.blake3)
}

pub(crate) fn hexadecimal(field: &str, digits: &str) -> Result<(), String> {
    if digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        Ok(())
    } else {
        Err(format!("`{field}` is `{}`, which is not 64 hexadecimal digits", digits.escape_debug()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_outside_the_bundle_are_refused() {
        for good in ["a", "decoder/weights/m.safetensors", "a/..b", "a b/ü"] {
            assert_eq!(path("file", good), Ok(()), "{good}");
        }
        for wrong in ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./..", "a\0b", "a/", "."] {
            assert!(path("file", wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let good = Digest::of_parts([b"x".as_slice()]).blake3;
        assert!(hexadecimal("digest", &good).is_ok());
        for wrong in ["", "abc", &good[1..], &format!("{}g", &good[1..]), &format!("{}é", &good[2..])] {
            assert!(hexadecimal("digest", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn products_of_extents_do_not_overflow() {
        assert!(product("x", "heads", [40, 128]).is_ok());
        assert!(product("x", "heads", [MAX_EXTENT, 2]).is_err());
        assert!(product("x", "heads", [usize::MAX, usize::MAX]).is_err());
    }
}
