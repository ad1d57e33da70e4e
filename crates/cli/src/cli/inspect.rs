//! `rushes inspect`: prints the contents of a bundle.

use super::args::InspectArgs;
use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::dtype::ElementType;
use bundle::layout::{self, component_folder};
use bundle::lora::AppliedLora;
use bundle::manifest::{Bundle, ComponentEntry, Manifest, QuantizedVariant};
use bundle::settings::Defaults;
use bundle::timesteps::ListedSteps;
use bundle::units::ByteCount;
use bundle::variant::{Precision, Target};
use calibration::observe::table::{self, Table};
use export::digests::{self, Verified};
use quality::quantize::report::{self, Quality};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

/// Files of this size or more are announced before they are read.
const ANNOUNCED: ByteCount = ByteCount(100_000_000);

/// Runs the command.
pub(super) fn run(args: &InspectArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    if args.verify {
        return verify(&args.bundle, global);
    }
    let bundle = Bundle::open(&args.bundle)?;
    let quality = report::read(&bundle.folder);
    let scores: serde_json::Map<String, serde_json::Value> = quality
        .iter()
        .map(|(scheme, quality)| {
            (scheme.clone(), json!({"psnr": quality.psnr, "ssim": quality.ssim, "judge": quality.judge}))
        })
        .collect();
    let value = json!({"event": "bundle", "bundle": bundle.manifest, "quality": scores});
    let text = format!("{}{}", describe(&bundle.manifest), variants(&bundle.manifest, &quality));
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads every byte, and reports each file that changed since it was written.
fn verify(folder: &Path, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let bundle = Bundle::read(folder)?;
    let mut found = digests::verify(&bundle, &mut |file, bytes| {
        if bytes >= ANNOUNCED && !global.json {
            render::note(&format!("{file}: reading {bytes}"));
        }
    });
    // These files contain their own digests.
    let mut check = |file: &str, check: &dyn Fn() -> Result<(), Error>| {
        if !bundle.path(file).exists() {
            return;
        }
        match check() {
            Ok(()) => found.whole.push(file.to_owned()),
            Err(error) => found.damaged.push((file.to_owned(), render::report(&error).why)),
        }
    };
    check(layout::PREVIEW_MAP, &|| Ok(bundle.preview_map().map(drop)?));
    check(table::FILE, &|| Ok(Table::read(&bundle.path(table::FILE), &bundle.manifest).map(drop)?));
    let Verified { whole, unknown, damaged, bytes } = found;
    let total = whole.len() + unknown.len() + damaged.len();
    let damaged_as_json = damaged.iter().map(|(file, why)| json!({"file": file, "why": why}));
    let value = json!({
        "event": "verified",
        "files": total,
        "bytes": bytes,
        "whole": whole.len(),
        "unknown": unknown,
        "damaged": damaged_as_json.collect::<Vec<_>>(),
    });
    let mut text = format!("{} of {total} files are unchanged ({bytes} read)", whole.len());
    if !unknown.is_empty() {
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "\n{} have no digest over every byte (`rushes export --no-verify`, or an older version wrote them): {}",
            unknown.len(),
            unknown.join(", ")
        );
    }
    render::result(global.json, &value, &text)?;
    if damaged.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(runtime::Error::DamagedBundle { path: folder.to_owned(), files: total, damaged }.into())
    }
}

/// The quantised variants for the text output: sizes, and scores if they were measured. Those for plain graphs alone have
/// numbers, weights and a report of their own.
fn variants(manifest: &Manifest, quality: &BTreeMap<String, Quality>) -> String {
    let mut text = String::new();
    for (precision, is_plain) in Precision::ALL.into_iter().flat_map(|one| [(one, false), (one, true)]) {
        let details = |entry: &ComponentEntry| {
            let is_of = |variant: &&QuantizedVariant| {
                variant.precision == precision && (variant.targets == [Target::Plain]) == is_plain
            };
            let variant = entry.variants.iter().find(is_of)?;
            let bytes =
                if variant.weights.is_empty() { entry.weight_bytes() } else { variant.weight_bytes() };
            Some((bytes, entry.weight_bytes(), variant.quantized, variant.note.clone()))
        };
        let parts: Vec<_> = manifest
            .components
            .iter()
            .filter_map(|entry| Some((&entry.component, details(entry)?)))
            .collect();
        if parts.is_empty() {
            continue;
        }
        let name = if is_plain { format!("{precision}-{}", Target::Plain) } else { precision.to_string() };
        let scores = quality.get(&name).map_or("not measured".into(), |quality| {
            format!("worst clip {:.1} dB, SSIM {:.4} to the exported model", quality.psnr, quality.ssim)
        });
        // Writing into a String cannot fail.
        let _ = writeln!(text, "\nvariant {name}: {scores}");
        for (component, (bytes, exported, quantized, note)) in parts {
            let note = note.map_or(String::new(), |note| format!(" ({note})"));
            let _ = writeln!(text, "  {component}: {bytes} of {exported}, {quantized} layers{note}");
        }
    }
    text
}

/// The bundle for the text output.
pub(super) fn describe(manifest: &Manifest) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    let Manifest { text_encoder, denoiser, vae, routing, defaults, .. } = manifest;
    line(format!(
        "{} (bundle format {}, made by rushes {})",
        manifest.model, manifest.format, manifest.rushes
    ));
    line(format!(
        "text encoder  {} layers, width {}, {} heads, vocabulary {}",
        text_encoder.layers, text_encoder.width, text_encoder.heads, text_encoder.vocabulary
    ));
    line(format!(
        "denoiser      {} layers, width {}, {} heads of {}, feed-forward {}",
        denoiser.layers,
        denoiser.width(),
        denoiser.heads,
        denoiser.head_width,
        denoiser.feed_forward
    ));
    let stride = vae.stride();
    line(format!(
        "decoder       base {}, {} latent channels, {} frames and {}x{} pixels per latent position",
        vae.base, vae.latent_channels, stride.time, stride.space, stride.space
    ));
    if let Some(tiny) = &manifest.tiny_decoder {
        line(format!("tiny decoder  widths {:?}, for previews", tiny.widths));
    }
    for route in routing.routes() {
        line(format!("expert        {} from timestep {}", route.expert, route.from_timestep));
    }
    if let Some(formats) = different_formats(manifest) {
        line(format!("exported      {formats}"));
    }
    line(String::new());
    line(describe_defaults(defaults));
    for entry in &manifest.components {
        line(String::new());
        line(format!(
            "{}: {} of {} weights, digest {}",
            entry.component,
            entry.weight_bytes(),
            entry.weight_type.element(),
            entry.digest
        ));
        for lora in &entry.loras {
            let AppliedLora { name, digest, strength, pairs, deltas, change, .. } = lora;
            let digest = digest.get(..12).unwrap_or(digest);
            line(format!(
                "  LoRA    {name}@{strength} ({digest}): {pairs} pairs, {deltas} deltas, Σ|ΔW| {change:.4}"
            ));
        }
        for graph in &entry.graphs {
            line(format!("  graph   {}", graph.file));
            if let Some(found) = &graph.batch_invariant {
                let bits = if found.equal { "the same bits" } else { "other bits" };
                line(format!("          {bits} in a batch of two ({})", found.on));
            }
        }
        for weights in &entry.weights {
            line(format!("  weights {} ({})", weights.file, weights.bytes));
        }
    }
    text
}

/// The precision of the exported variant, and the components that were exported in another; none if there are none.
fn different_formats(manifest: &Manifest) -> Option<String> {
    let exported = manifest.exported_precision();
    let others = manifest.components.iter().filter(|entry| entry.exported_precision() != exported);
    let others: Vec<String> =
        others.map(|entry| format!("{} in {}", entry.component, entry.exported_precision())).collect();
    (!others.is_empty()).then(|| format!("{exported}, {}", others.join(", ")))
}

/// The number format of each component's exported weights, by its folder.
pub(super) fn weight_formats(manifest: &Manifest) -> BTreeMap<String, ElementType> {
    let format = |entry: &ComponentEntry| (component_folder(&entry.component), entry.weight_type.element());
    manifest.components.iter().map(format).collect()
}

/// Every default with its origin, one per line, and the notes about them.
pub(super) fn describe_defaults(defaults: &Defaults) -> String {
    let mut lines = vec!["defaults".to_owned()];
    let mut default = |name: &str, value: String, from: bundle::settings::Origin| {
        lines.push(format!("  {name:<10} {value} ({from})"));
    };
    default("size", defaults.size.value.to_string(), defaults.size.from);
    default("frames", defaults.frames.value.to_string(), defaults.frames.from);
    default("fps", defaults.fps.value.to_string(), defaults.fps.from);
    default("steps", defaults.steps.value.to_string(), defaults.steps.from);
    let scales: Vec<String> = defaults.guidance.value.iter().map(|scale| scale.0.to_string()).collect();
    default("guidance", scales.join(","), defaults.guidance.from);
    default("shift", defaults.shift.value.0.to_string(), defaults.shift.from);
    default("sampler", defaults.sampler.value.to_string(), defaults.sampler.from);
    default("schedule", defaults.schedule.value.to_string(), defaults.schedule.from);
    default("negative", format!("\"{}\"", defaults.negative.value), defaults.negative.from);
    if let Some(listed) = &defaults.timesteps {
        let ListedSteps { list, sampler, start } = &listed.value;
        let start = if start.is_noise() { String::new() } else { format!(", from {start}") };
        lines.push(format!("  {:<10} {list} with {sampler}{start} ({})", "timesteps", listed.from));
    }
    if let Some(until) = &defaults.guidance_until {
        lines.push(format!("  {:<10} until sigma {} ({})", "guidance", until.value, until.from));
    }
    lines.extend(defaults.notes.iter().map(|note| format!("  note       {note}")));
    lines.join("\n")
}
