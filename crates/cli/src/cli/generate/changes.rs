//! What changes when a run goes on, or when a clip is repeated with other arguments.

use crate::cli::args::{ClipArgs, GenerateArgs};
use crate::cli::sampling::SamplingArgs;
use crate::cli::seed::SeedChoice;
use bundle::Field;
use bundle::manifest::Manifest;
use bundle::preset::Recipe;
use bundle::settings::{ScheduleKind, SolverKind, per_expert};
use bundle::timesteps::{GuidanceUntil, TimestepChoice};
use bundle::units::{GuidanceScale, Sigma};
use runtime::denoise::StepPolicy;
use runtime::job::{ForkSpec, GridChanges, JobSpec, VariationSpec};

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
    pub(in crate::cli) sampling: &'a SamplingArgs,
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
            sampling: &settings.sampling,
            variation: args.job.variation,
            seed: args.noise.seed,
        }
    }
}

impl Changes<'_> {
    /// The other settings of the grid.
    fn grid(&self, recipe: Option<&Recipe>) -> GridChanges {
        let list = recipe.map(|recipe| TimestepChoice::List(recipe.steps.list.clone()));
        GridChanges {
            sampler: self.sampler.or(recipe.map(|recipe| recipe.steps.sampler)),
            schedule: self.schedule,
            steps: self.steps,
            shift: self.shift,
            timesteps: self.sampling.timesteps.clone().or(list),
        }
    }

    /// The other end of guidance. The first step is that of the whole clip.
    fn guidance_until(&self, recipe: Option<&Recipe>, spec: &JobSpec) -> Option<Sigma> {
        let until = self.sampling.guidance_until.or(recipe.map(|recipe| recipe.guidance_until));
        let first = |until: GuidanceUntil| until.sigma(spec.grid().levels().sigmas()[0]);
        until.map(first).filter(|sigma| {
            let known = spec.forks.iter().rev().find_map(|fork| fork.guidance_until);
            *sigma != known.unwrap_or(spec.guidance_until)
        })
    }

    /// The other policy. A recipe computes every step.
    fn step_cache(&self, recipe: Option<&Recipe>, spec: &JobSpec) -> Option<StepPolicy> {
        let policy = self.sampling.step_cache.or(recipe.map(|_recipe| StepPolicy::ComputeAll));
        let known = spec.forks.iter().rev().find_map(|fork| fork.step_cache).unwrap_or(spec.step_cache);
        policy.filter(|policy| *policy != known)
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
    if let Some(start) = changes.sampling.start {
        let rule = "it is fixed when a run goes on";
        return Err(
            bundle::Error::value(Field::Start, start, rule, "leave it out, or start a new run").into()
        );
    }
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
    let recipe = changes.sampling.recipe();
    let guidance = guidance.or(recipe.as_ref().map(|recipe| vec![recipe.guidance; experts]));
    let wanted = changes.grid(recipe.as_ref());
    let grid = if wanted.is_empty() {
        None
    } else {
        let base = spec.forks.iter().rev().find_map(|fork| fork.grid.clone()).unwrap_or_else(|| spec.grid());
        Some(base.with(&wanted)?)
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
        guidance_until: changes.guidance_until(recipe.as_ref(), &spec),
        grid,
        step_cache: changes.step_cache(recipe.as_ref(), &spec),
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
        || settings.schedule.is_some()
        || settings.sampling.has_grid();
    let has_preset = settings.sampling.preset.is_some();
    let has_until = settings.sampling.guidance_until.is_some() || has_preset;
    let has_cache = settings.sampling.step_cache.is_some() || has_preset;
    let mut left = Vec::new();
    for fork in forks {
        let kept = ForkSpec {
            prompt: fork.prompt.clone().filter(|_| !has_prompt),
            negative: fork.negative.clone().filter(|_| settings.negative.is_none()),
            guidance: fork.guidance.clone().filter(|_| settings.guidance.is_none() && !has_preset),
            guidance_until: fork.guidance_until.filter(|_| !has_until),
            grid: fork.grid.clone().filter(|_| !has_grid),
            step_cache: fork.step_cache.filter(|_| !has_cache),
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
