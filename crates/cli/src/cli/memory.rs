//! The use of memory, from the arguments for how a clip is computed.

use super::args::RunArgs;
use super::global::GlobalArgs;
use crate::Error;
use bundle::manifest::Manifest;
use bundle::preview::PreviewKind;
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{ModelOptions, choose_variant};
use runtime::plan::GenerationPlan;

/// Plans the memory of a clip, and sets the location of the weights in `options`.
///
/// # Errors
/// Returns an error if the bundle has no graphs for the options, or if the clip does not fit.
pub(super) fn plan_memory(
    args: &RunArgs,
    global: &GlobalArgs,
    manifest: &Manifest,
    plan: &GenerationPlan,
    options: &mut ModelOptions,
    preview: PreviewKind,
) -> Result<MemoryPlan, Error> {
    let target = options.provider.target()?;
    let request = MemoryRequest {
        variant: choose_variant(manifest, target, global.kernels()?.path(), options)?,
        preview,
        tiles: args.tile,
        residency: args.residency,
        budget: args.memory_budget,
    };
    let memory = MemoryPlan::new(manifest, plan, &request)?;
    options.weights = memory.weights;
    Ok(memory)
}
