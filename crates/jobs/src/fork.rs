//! A job that goes on from a snapshot of another one with changes: its settings and its steps.

use runtime::Error;
use runtime::denoise::{Denoising, ForkChanges};
use runtime::job::{ForkSpec, JobFolder, JobSpec, ResumeFrom};
use runtime::plan::GenerateRequest;
use std::path::Path;

/// What a fork makes.
#[derive(Debug, Clone, PartialEq)]
pub struct Forked {
    /// The change.
    pub fork: ForkSpec,
    /// The settings that apply from it on.
    pub clip: GenerateRequest,
    /// The steps of the whole clip.
    pub steps: usize,
}

/// The changes to a job, from its spec and the number of its forks that the snapshot contains.
pub type Change<'a> = dyn Fn(&JobSpec, usize) -> Result<ForkSpec, Error> + 'a;

/// Applies changes to the job in the folder that a fork goes on from, whose newest snapshot was taken after `step`
/// steps.
///
/// # Errors
/// The folder has no whole snapshot, no step is left, or a value is out of range.
pub fn changed(origin: &Path, step: usize, change: &Change<'_>) -> Result<Forked, Error> {
    let folder = JobFolder::open(origin)?;
    let found = folder.snapshot(ResumeFrom::Newest)?.snapshot;
    let fork = change(folder.spec(), found.forks_applied)?;
    let changes = ForkChanges { variation: None, ..fork.changes(1.0) };
    let steps = Denoising::fork(found.snapshot, changes)?.steps();
    let fork = ForkSpec { after: step, ..fork };
    Ok(Forked { clip: settings(folder.spec(), found.forks_applied, fork.clone()), fork, steps })
}

/// The settings of a job that apply after a fork.
fn settings(spec: &JobSpec, forks_applied: usize, fork: ForkSpec) -> GenerateRequest {
    let mut spec = spec.clone();
    spec.forks.truncate(forks_applied);
    spec.forks.push(fork);
    // What applies from then on is what the clip would have begun with.
    if let Some(grid) = spec.forks.iter().rev().find_map(|fork| fork.grid.clone()) {
        (spec.sampler, spec.schedule, spec.steps, spec.shift) =
            (grid.sampler, grid.schedule, grid.steps, grid.shift);
        spec.timesteps = grid.timesteps;
    }
    let guidance = spec.forks.iter().rev().find_map(|fork| fork.guidance.clone());
    spec.guidance = guidance.unwrap_or(spec.guidance);
    let until = spec.forks.iter().rev().find_map(|fork| fork.guidance_until);
    spec.guidance_until = until.unwrap_or(spec.guidance_until);
    let policy = spec.forks.iter().rev().find_map(|fork| fork.step_cache);
    spec.step_cache = policy.unwrap_or(spec.step_cache);
    let (prompt, negative) = spec.prompts_after(usize::MAX);
    let (prompt, negative) = (prompt.to_owned(), negative.to_owned());
    GenerateRequest { prompt, negative: Some(negative), ..spec.request() }
}
