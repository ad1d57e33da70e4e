//! What is known about a job before it runs: its model, its plan and its use of memory.

use super::Options;
use crate::Error;
use crate::request::Request;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use engines::sessions::Sessions;
use engines::{MemoryBudgets, Placement, WeightMemory};
use runtime::driver::latents_of;
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, ModelOptions};
use runtime::plan::GenerationPlan;

/// What is left of the budgets beside the latents of a clip, which the scheduler counts on every device.
fn without(
    budgets: &MemoryBudgets,
    latents: ByteCount,
    placement: &Placement,
) -> Result<MemoryBudgets, bundle::Error> {
    let mut left = MemoryBudgets::default();
    for device in placement.devices() {
        // Devices that share their memory have one budget.
        if left.of(device).is_some() {
            continue;
        }
        if let Some(budget) = budgets.of(device) {
            left.set(Some(device), ByteCount(budget.0.saturating_sub(latents.0)))?;
        }
    }
    Ok(left)
}

/// A job that can run.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) model: Model,
    pub(super) plan: GenerationPlan,
    pub(super) memory: MemoryPlan,
}

/// Opens the bundle of a job, and plans its clip and its memory. Opens no graph.
///
/// # Errors
/// The bundle is missing or has not what the job needs, or the clip does not fit.
pub(super) fn prepare(
    request: &Request,
    options: &Options,
    budgets: &MemoryBudgets,
    sessions: &Sessions,
) -> Result<Prepared, Error> {
    let bundle = Bundle::open(&request.bundle)?;
    let manifest = &bundle.manifest;
    let plan = GenerationPlan::new(manifest, &request.clip)?;
    let placement = Placement::new(manifest, options.device_for(manifest), &options.placement)?;
    let mut model_options = ModelOptions {
        precision: request.precision,
        kernels: request.kernels,
        device: options.device,
        threads: options.threads,
        weights: WeightMemory::Prepacked,
        cpu_nodes: options.cpu_nodes,
    };
    let path = options.backend.info().cpu_path;
    let memory = MemoryRequest {
        tiles: options.tiles,
        residency: options.residency,
        budgets: without(budgets, latents_of(&plan, manifest), &placement)?,
        ..MemoryRequest::placed(manifest, placement, path, &model_options)?
    };
    let memory = MemoryPlan::new(manifest, &plan, &memory)?;
    model_options.weights = memory.weights;
    let model = Model::with_sessions(bundle, sessions, model_options)?.placed(&options.placement)?;
    let model = model.with_text_store(options.texts.clone());
    Ok(Prepared { model, plan, memory })
}
