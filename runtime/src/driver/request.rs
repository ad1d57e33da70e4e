//! What the scheduler is told about a job: its work and its memory, from its plan.

use super::queued::QueuedJob;
use crate::Error;
use crate::decode::TileSide;
use crate::footprint::decoder_caches;
use crate::job::{ForkSpec, experts_left};
use crate::memory_plan::MemoryPlan;
use crate::model::Model;
use crate::plan::GenerationPlan;
use crate::sampler::HISTORY;
use crate::scheduler::{
    DeviceName, Devices, ExpertSteps, JobMemory, JobRequest, ModelNumber, Session, SessionNeed, Stage, Work,
};
use bundle::manifest::{Component, Manifest};
use bundle::routing::Routing;
use bundle::spec::TEXT_ROWS;
use bundle::units::ByteCount;
use engines::residency::{MemoryNeed, Role};

/// Where a job begins and where it ends.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobSpan<'a> {
    /// Steps that are done.
    pub steps_done: usize,
    /// The number of steps after which the clip ends early, counted from the first one of all.
    pub stop_after: Option<usize>,
    /// True if the prompts must be encoded: their text states are not stored, or a fork changes them at the start.
    pub encode: bool,
    /// The forks of the clip, those that are done among them.
    pub forks: &'a [ForkSpec],
}

/// The work of a job from the steps that are done to the last chunk of frames.
pub fn work_of(plan: &GenerationPlan, routing: &Routing, span: &JobSpan<'_>) -> Work {
    let JobSpan { steps_done, stop_after, encode, forks } = *span;
    let mut steps: Vec<ExpertSteps> = Vec::new();
    for expert in experts_left(&plan.schedule, routing, forks, steps_done, stop_after) {
        match steps.last_mut() {
            Some(part) if part.expert == expert => part.steps += 1,
            _ => steps.push(ExpertSteps { expert, steps: 1 }),
        }
    }
    Work { encode, steps, chunks: u32::try_from(plan.latent.frames).unwrap_or(u32::MAX) }
}

/// Latents that a job holds at most: that of the last step and of the one before, the solver's history, all of them again
/// in a snapshot that is written, the two velocities of a step, and sums in f64.
const LATENTS_HELD: u64 = 2 * (2 + HISTORY as u64) + 4;
/// Those that a step cache adds: the latent and the two velocities of the last computed step, and the two velocities that a
/// step is made with. A snapshot shares them, and its file has a copy.
const LATENTS_CACHED: u64 = 2 * 3 + 2;
/// Text states that a job holds at most: those of the prompt and the negative prompt, and the same as inputs of a step.
const TEXTS_HELD: u64 = 4;
const F32: u64 = 4;

/// The memory of a job besides its sessions: latents, the history of its solver, and text states.
pub fn latents_of(plan: &GenerationPlan, manifest: &Manifest) -> ByteCount {
    let wide = |extent: usize| u64::try_from(extent).unwrap_or(u64::MAX);
    let product = |extents: [usize; 4], held: u64| {
        extents.into_iter().map(wide).fold(held.saturating_mul(F32), u64::saturating_mul)
    };
    let (channels, frames, height, width) = plan.latent.dims();
    let cached = if plan.step_cache.is_compute_all() { 0 } else { LATENTS_CACHED };
    let latents = product([channels, frames, height, width], LATENTS_HELD + cached);
    let texts = product([1, 1, TEXT_ROWS, manifest.denoiser.text_width], TEXTS_HELD);
    ByteCount(latents.saturating_add(texts))
}

/// The request of a job of a model with this number.
///
/// # Errors
/// Its work has an expert that the model lacks.
pub(super) fn request_of(job: &QueuedJob, model: ModelNumber) -> Result<JobRequest, Error> {
    let manifest = job.model.manifest();
    let placement = job.model.placement();
    let caches = caches_of(&job.model, &job.plan, job.memory.tile)?;
    let sessions = job.work.stages().map(|stage| {
        let component = component_of(stage, manifest)?;
        let mut devices = placement.devices_of(&component).map(DeviceName);
        let first = devices.next().unwrap_or(DeviceName(placement.device_of(&component)));
        let devices = match devices.next() {
            Some(second) => Devices::pair(first, second)?,
            None => Devices::one(first),
        };
        let bytes = devices.iter().map(|device| session_bytes(&job.memory, &component, device));
        let bytes = without(bytes.max().unwrap_or_default(), stage, caches);
        Ok(SessionNeed { session: Session { model, stage }, devices, bytes })
    });
    let memory = JobMemory {
        sessions: sessions.collect::<Result<_, Error>>()?,
        latents: latents_of(&job.plan, manifest),
        caches,
    };
    Ok(JobRequest {
        id: job.id,
        priority: job.priority,
        work: job.work.clone(),
        memory,
        deadline: job.deadline,
    })
}

/// The memory of the decoder's caches of a clip. A job has them for itself, so that they are not part of the session.
///
/// # Errors
/// No graphs can run on the device of the decoder.
pub(super) fn caches_of(
    model: &Model,
    plan: &GenerationPlan,
    tile: Option<TileSide>,
) -> Result<ByteCount, Error> {
    let settings = model.session_settings(&Component::Decoder)?;
    Ok(decoder_caches(model.manifest(), settings, plan.latent, tile))
}

/// The memory of a session of a stage without the caches of a clip.
pub(super) fn without(bytes: ByteCount, stage: Stage, caches: ByteCount) -> ByteCount {
    match stage {
        Stage::Decoder => ByteCount(bytes.0.saturating_sub(caches.0)),
        Stage::TextEncoder | Stage::Expert(_) => bytes,
    }
}

/// The memory of a component's sessions on a device, with the decoder of previews that is open beside it.
fn session_bytes(memory: &MemoryPlan, component: &Component, device: DeviceName) -> ByteCount {
    let on_device = memory.devices.iter().filter(|plan| plan.device == device.0);
    let has_previews_beside = matches!(component, Component::TextEncoder | Component::Expert(_));
    let counts = |role: &Role| match role {
        Role::Clip(other) => other == component,
        Role::Previews => has_previews_beside,
    };
    let needs = on_device.flat_map(|plan| &plan.needs).filter(|(role, _)| counts(role));
    needs.map(|(_, need)| *need).sum::<MemoryNeed>().total()
}

/// The component of a stage.
///
/// # Errors
/// The model has no such expert.
pub(super) fn component_of(stage: Stage, manifest: &Manifest) -> Result<Component, Error> {
    Ok(match stage {
        Stage::TextEncoder => Component::TextEncoder,
        Stage::Expert(expert) => Component::Expert(manifest.routing.name(expert)?.clone()),
        Stage::Decoder => Component::Decoder,
    })
}
