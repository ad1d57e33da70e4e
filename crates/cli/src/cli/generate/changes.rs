//! What changes when a run goes on, or when a clip is repeated with other arguments.

use crate::cli::args::{ClipArgs, GenerateArgs};
use crate::cli::seed::SeedChoice;
use bundle::Field;
use bundle::manifest::Manifest;
use bundle::settings::{ScheduleKind, SolverKind, per_expert};
use bundle::units::{GuidanceScale, Shift};
use runtime::job::{ForkSpec, GridSpec, JobSpec, VariationSpec};

/// What a run that goes on may change. `None` keeps a setting.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Changes<'a> {
    pub(in crate::cli) prompt: Option<&'a str>,
    pub(in crate::cli) negative: Option<&'a str>,
    pub(in crate::cli) guidance: Option<&'a str>,
    pub(in crate::cli) steps: Option<usize>,
    pub(in crate::cli) shift: Option<f64>,
    pub(in crate::cli) sampler: Option<SolverKind>,
    pub(in crate::cli) schedule: Option<ScheduleKind>,
    pub(in crate::cli) variation: Option<f64>,
    /// The seed of the fresh noise of `variation`.
    pub(in crate::cli) seed: Option<SeedChoice>,
}

impl<'a> Changes<'a> {
    /// The changes that `rushes generate` asks for.
    pub(super) fn of(args: &'a GenerateArgs) -> Self {
        let settings = &args.settings;
        Self {
            prompt: args.prompt.as_deref(),
            negative: settings.negative.as_deref(),
            guidance: settings.guidance.as_deref(),
            steps: settings.steps,
            shift: settings.shift,
            sampler: settings.sampler,
            schedule: settings.schedule,
            variation: args.job.variation,
            seed: args.noise.seed,
        }
    }
}

/// The fork that changes ask for, from a snapshot that contains some of the job's forks; an empty one if they change
/// nothing.
///
/// # Errors
/// Returns an error if a value is out of range.
pub(in crate::cli) fn fork(
    changes: &Changes<'_>,
    spec: &JobSpec,
    forks_applied: usize,
    manifest: &Manifest,
) -> Result<ForkSpec, runtime::Error> {
    // Changes after the snapshot are dropped by a new one.
    let mut spec = spec.clone();
    spec.forks.truncate(forks_applied);
    let (prompt, negative) = spec.prompts_after(usize::MAX);
    let other = |given: Option<&str>, known: &str| given.filter(|given| *given != known).map(str::to_owned);
    let experts = manifest.routing.routes().len();
    let guidance = match changes.guidance {
        Some(text) => Some(per_expert(&GuidanceScale::parse_list(text)?, experts)?),
        None => None,
    };
    let changes_grid = changes.steps.is_some()
        || changes.shift.is_some()
        || changes.sampler.is_some()
        || changes.schedule.is_some();
    let base =
        GridSpec { sampler: spec.sampler, schedule: spec.schedule, steps: spec.steps, shift: spec.shift };
    let base = spec.forks.iter().rev().find_map(|fork| fork.grid).unwrap_or(base);
    let grid = GridSpec {
        sampler: changes.sampler.unwrap_or(base.sampler),
        schedule: changes.schedule.unwrap_or(base.schedule),
        steps: bundle::settings::check_steps(changes.steps.unwrap_or(base.steps))?,
        shift: changes.shift.map_or(Ok(base.shift), Shift::try_new)?,
    };
    if let Some(strength) = changes.variation.filter(|strength| !(0.0..=1.0).contains(strength)) {
        let rule = "the share of fresh noise is a number from 0 to 1";
        return Err(
            bundle::Error::value(Field::Variation, strength, rule, "use 0.1 for a similar clip").into()
        );
    }
    if let Some(prompt) = changes.prompt {
        prompt::check(prompt)?;
    }
    if let Some(negative) = changes.negative {
        prompt::check_negative(negative)?;
    }
    let seed = || changes.seed.unwrap_or(SeedChoice::Any).seed();
    Ok(ForkSpec {
        after: 0,
        prompt: other(changes.prompt, prompt),
        negative: other(changes.negative, negative),
        guidance,
        grid: changes_grid.then_some(grid),
        variation: changes.variation.map(|strength| VariationSpec { strength, seed: seed() }),
    })
}

/// The changes on the way of a clip that the arguments do not override.
pub(in crate::cli) fn forks_left(
    forks: &[ForkSpec],
    has_prompt: bool,
    settings: &ClipArgs,
    notes: &mut Vec<String>,
) -> Vec<ForkSpec> {
    let has_grid = settings.steps.is_some()
        || settings.shift.is_some()
        || settings.sampler.is_some()
        || settings.schedule.is_some();
    let mut left = Vec::new();
    for fork in forks {
        let kept = ForkSpec {
            prompt: fork.prompt.clone().filter(|_| !has_prompt),
            negative: fork.negative.clone().filter(|_| settings.negative.is_none()),
            guidance: fork.guidance.clone().filter(|_| settings.guidance.is_none()),
            grid: fork.grid.filter(|_| !has_grid),
            ..fork.clone()
        };
        if kept != *fork {
            notes.push(format!("the arguments replace what the clip changed {fork}"));
        }
        if !kept.is_empty() {
            left.push(kept);
        }
    }
    left
}
