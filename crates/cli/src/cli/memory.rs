//! The use of memory, from the arguments for how a clip is computed.

use super::args::ComputeArgs;
use super::devices::BudgetArgs;
use super::global::GlobalArgs;
use crate::Error;
use bundle::manifest::Manifest;
use bundle::preview::PreviewKind;
use bundle::units::ByteCount;
use bundle::variant::Variant;
use engines::providers;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Device, MemoryBudgets, OnnxRuntime, Placement, Provider};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::ModelOptions;
use runtime::plan::GenerationPlan;
use std::sync::Arc;

/// What the memory of a clip is planned with.
///
/// # Errors
/// Returns an error if the bundle has no graphs for the options, or lacks a component that is placed.
pub(super) fn memory_request(
    args: &ComputeArgs,
    global: &GlobalArgs,
    manifest: &Manifest,
    options: &ModelOptions,
    preview: PreviewKind,
) -> Result<MemoryRequest, Error> {
    let placement = args.devices.placement(manifest, global)?;
    let budgets = args.memory.budget.budgets(&placement)?;
    let budgets = with_memory_of_gpus(budgets, &placement, global)?;
    Ok(MemoryRequest {
        preview,
        tiles: args.tile,
        residency: args.memory.residency,
        budgets,
        ..MemoryRequest::placed(manifest, placement, global.kernels()?.path(), options)?
    })
}

/// What the driver and the context of CUDA take of a GPU.
const CONTEXT: ByteCount = ByteCount(1 << 30);

/// Adds the memory of this machine's NVIDIA devices for those that have no budget.
fn with_memory_of_gpus(
    mut budgets: MemoryBudgets,
    placement: &Placement,
    global: &GlobalArgs,
) -> Result<MemoryBudgets, Error> {
    let is_nvidia = |device: &Device| match device.provider() {
        Provider::Cuda | Provider::TensorRt | Provider::TensorRtRtx => true,
        Provider::Cpu | Provider::OpenVino | Provider::WebGpu => false,
    };
    let unknown = |device: &Device| is_nvidia(device) && budgets.of(*device).is_none();
    let unknown: Vec<Device> = placement.devices().into_iter().filter(unknown).collect();
    if unknown.is_empty() {
        return Ok(budgets);
    }
    let Ok(driver) = global.machine().cuda else { return Ok(budgets) };
    for device in unknown {
        let found = usize::try_from(device.index()).ok().and_then(|index| driver.devices.get(index));
        if let Some(found) = found {
            budgets.set(Some(device), ByteCount(found.memory.0.saturating_sub(CONTEXT.0)))?;
        }
    }
    Ok(budgets)
}

/// Plans the memory of a clip that is about to run, and sets the location of the weights in `options`.
///
/// # Errors
/// Returns an error if a device cannot be used, if the bundle has no graphs for the options, or if the clip does not fit.
pub(super) fn plan_memory(
    args: &ComputeArgs,
    global: &GlobalArgs,
    manifest: &Manifest,
    plan: &GenerationPlan,
    options: &mut ModelOptions,
    preview: PreviewKind,
) -> Result<MemoryPlan, Error> {
    let machine = global.machine();
    for device in args.devices.placement(manifest, global)?.devices() {
        providers::check(device, &machine)?;
    }
    let request = memory_request(args, global, manifest, options, preview)?;
    let memory = MemoryPlan::new(manifest, plan, &request)?;
    options.weights = memory.weights;
    Ok(memory)
}

/// Plans the memory of a clip on the CPU for a command that measures a variant.
///
/// # Errors
/// Returns an error if the clip does not fit.
pub(super) fn plan_measured(
    budget: &BudgetArgs,
    manifest: &Manifest,
    plan: &GenerationPlan,
    variant: Variant,
) -> Result<MemoryPlan, Error> {
    let request = MemoryRequest { budgets: budget.budgets_of_cpu()?, ..MemoryRequest::new(variant) };
    Ok(MemoryPlan::new(manifest, plan, &request.measured())?)
}

/// The owner of the sessions of a run, with the budgets that its memory was planned with.
pub(super) fn sessions(onnx: OnnxRuntime, memory: &MemoryPlan, residency: Residency) -> Sessions {
    Sessions::new(Arc::new(onnx), memory.budgets(), residency)
}
