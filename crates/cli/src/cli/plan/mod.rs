//! `rushes plan`: prints how a clip would be made, the memory that it needs on each device, and its predicted time. Opens
//! no graph.

mod json;
mod text;
mod timeline;

use super::args::PlanArgs;
use super::clip_time::ClipTime;
use super::generate::{model_options, record_of, with_settings};
use super::global::GlobalArgs;
use super::lora;
use super::memory::memory_request;
use super::mini_form::planned_mini_form;
use super::render;
use crate::Error;
use bundle::layout;
use bundle::manifest::{Component, Manifest};
use bundle::preview::PreviewKind;
use bundle::units::{ByteCount, Seed};
use bundle::variant::Variant;
use engines::placement::name_of;
use engines::residency::{DevicePlan, MemoryNeed, Role};
use engines::{Compilation, Device};
use runtime::footprint::decoder_caches;
use runtime::memory_plan::{MemoryPlan, MemoryRequest, MemorySettings};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The seed of the planned clip. It does not change the plan.
const SEED: Seed = Seed(0);
/// The prompt of a plan without one. Only the time of the text depends on it.
const PROMPT: &str = "a long shot of a red ball that bounces along a beach in the evening, with waves behind it and the \
                      sun low over the sea, as the camera follows slowly";

/// Everything that is printed.
struct Planned<'a> {
    manifest: &'a Manifest,
    plan: GenerationPlan,
    request: MemoryRequest,
    memory: MemoryPlan,
    time: ClipTime,
    preview: PreviewKind,
}

/// Runs the command. The exit code is 3 if the clip does not fit.
pub(super) fn run(args: &PlanArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let record = args.like.as_deref().map(record_of).transpose()?;
    let spec = record.as_ref().map(|record| &record.spec);
    let mut request = spec.map_or_else(|| GenerateRequest::new(PROMPT, SEED), runtime::job::JobSpec::request);
    let (prompt, folder) = prompt_or_bundle(args);
    if let Some(prompt) = prompt {
        request.prompt = prompt;
    }
    let request = with_settings(request, &args.settings)?;
    let options = model_options(&args.compute, spec);
    let form = || planned_mini_form(&args.compute.devices, global, options.precision);
    let folder = global.bundle_or_mini(folder.as_deref(), form, global.interrupts.cancel().stop())?;
    let stop = global.interrupts.cancel();
    let bundle = lora::open(&folder, &args.lora, (global, stop.stop()))?;
    if let Some(spec) = spec {
        lora::check(spec, &bundle, true)?;
    }
    let manifest = &bundle.manifest;
    let plan = GenerationPlan::new(manifest, &request)?;
    let request = memory_request(&args.compute, global, manifest, &options, args.preview)?;
    let memory = MemoryPlan::new(manifest, &plan, &request)?;
    let time = ClipTime::predict(global, manifest, &plan, (&request, &memory), &args.gpu)?;
    let planned = Planned { manifest, plan, request, memory, time, preview: args.preview };
    render::result(global.json, &planned.as_json(), &planned.as_text())?;
    Ok(ExitCode::SUCCESS)
}

/// The prompt and the folder of the bundle, if they are given. The first argument is either of them.
fn prompt_or_bundle(args: &PlanArgs) -> (Option<String>, Option<PathBuf>) {
    match (&args.prompt, &args.bundle) {
        (Some(first), None) if Path::new(first).join(layout::MANIFEST).is_file() => {
            (None, Some(first.into()))
        }
        (prompt, bundle) => (prompt.clone(), bundle.clone()),
    }
}

impl Planned<'_> {
    /// The side of a decoder tile in pixels.
    fn tile_pixels(&self) -> Option<usize> {
        self.memory.tile.map(|side| side.get() * self.manifest.vae.stride().space)
    }

    /// The variant that runs on a device.
    fn variant_on(&self, device: Device) -> Option<Variant> {
        // OpenVINO computes in the memory of the CPU, and is planned with it.
        let mut placed =
            self.memory.placement.devices().into_iter().filter(|placed| placed.memory() == device);
        let target = placed.next().unwrap_or(device).target();
        self.request.variants.get(&target).copied()
    }

    /// What the caches of the decoder take of the activations on its device.
    fn caches(&self, device: Device, role: &Role) -> Option<ByteCount> {
        (*role == Role::Clip(Component::Decoder)).then(|| {
            let settings = MemorySettings {
                placement: self.memory.placement.clone(),
                variants: self.request.variants.clone(),
                weights: self.memory.weights,
                threads: self.request.threads,
                preview: self.preview,
                tile: self.memory.tile,
            };
            decoder_caches(self.manifest, settings.session(device), self.plan.latent, self.memory.tile)
        })
    }
}

/// The size of a compiled engine on disk: as large as the weights, if the provider compiles at all.
fn engine(device: &DevicePlan, need: &MemoryNeed) -> Option<ByteCount> {
    (device.device.provider().compilation() != Compilation::None).then_some(need.weights)
}

/// The name of a role in placements.
fn role_name(role: &Role) -> &str {
    match role {
        Role::Clip(component) => name_of(component),
        Role::Previews => "previews",
    }
}

#[cfg(test)]
mod tests;
