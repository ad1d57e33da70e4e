//! Where the settings of a clip come from: the arguments, another clip, or a job that goes on.

use crate::Error;
use crate::cli::args::{ClipArgs, GenerateArgs};
use crate::cli::seed::SeedChoice;
use crate::cli::threads::Threads;
use bundle::Field;
use bundle::digest::Digest;
use bundle::manifest::Manifest;
use bundle::settings::per_expert;
use bundle::units::{GuidanceScale, Seed, Shift};
use engines::WeightMemory;
use media::clip_record;
use runtime::job::{
    ClipRecord, ForkSpec, GridSpec, InputFile, JobFolder, JobSpec, ModelIdentity, VariationSpec,
};
use runtime::model::ModelOptions;
use runtime::plan::{GenerateRequest, Length};
use std::path::Path;

/// Where the settings of a clip come from.
pub(super) enum Source {
    /// The arguments, and the bundle's defaults.
    Arguments,
    /// Another clip, and arguments that override its settings.
    Like(Box<ClipRecord>),
    /// A job that goes on, and arguments that fork it.
    Resume(Box<JobFolder>),
}

impl Source {
    /// Reads the clip or the job folder that the arguments name.
    ///
    /// # Errors
    /// Returns an error if the clip has no record, if the job folder cannot be used, or if arguments do not go together.
    pub(super) fn open(args: &GenerateArgs) -> Result<Self, Error> {
        if let Some(folder) = &args.job.resume {
            check_resume(args)?;
            return Ok(Self::Resume(Box::new(JobFolder::open(folder)?)));
        }
        if args.job.variation.is_some() {
            let fix = "give the folder of a job with `resume`, or use another `seed`";
            let rule = "fresh noise is mixed into a run that goes on";
            return Err(bundle::Error::value(Field::Variation, "used", rule, fix).into());
        }
        match &args.job.like {
            Some(clip) => Ok(Self::Like(Box::new(record_of(clip)?))),
            None => Ok(Self::Arguments),
        }
    }

    /// The spec of the clip or job that the arguments build on.
    pub(super) fn spec(&self) -> Option<&JobSpec> {
        match self {
            Self::Arguments => None,
            Self::Like(record) => Some(&record.spec),
            Self::Resume(folder) => Some(folder.spec()),
        }
    }

    /// The request for the clip.
    ///
    /// # Errors
    /// Returns an error if a guidance scale is not a number.
    pub(super) fn request(&self, args: &GenerateArgs) -> Result<GenerateRequest, Error> {
        if let Self::Resume(folder) = self {
            return Ok(folder.spec().request());
        }
        let seed = args.seed.map(SeedChoice::seed);
        let base = match self.spec() {
            Some(spec) => {
                let base = spec.request();
                let prompt = args.prompt.clone().unwrap_or(base.prompt);
                GenerateRequest { prompt, seed: seed.unwrap_or(base.seed), ..base }
            }
            None => {
                let seed = seed.unwrap_or_else(|| SeedChoice::Any.seed());
                GenerateRequest::new(args.prompt.clone().unwrap_or_default(), seed)
            }
        };
        with_settings(base, &args.settings)
    }

    /// The run options, with weights in memory.
    pub(super) fn model_options(&self, args: &GenerateArgs) -> ModelOptions {
        let variant = self.spec().map(|spec| spec.variant);
        // Another precision may not have the same kernels.
        let kernels = variant.filter(|_| args.run.precision.is_none()).map(|variant| variant.kernels);
        ModelOptions {
            precision: args.run.precision.or(variant.map(|variant| variant.precision)),
            kernels: args.run.kernels.or(kernels),
            provider: args.run.ep,
            threads: args.run.threads.map(Threads::used),
            weights: WeightMemory::Prepacked,
        }
    }

    /// The number of steps after which the clip ends, if not after all.
    pub(super) fn stop_after(&self, args: &GenerateArgs) -> Option<usize> {
        match self {
            Self::Like(record) => args.job.stop_after.or(record.spec.stop_after),
            Self::Arguments | Self::Resume(_) => args.job.stop_after,
        }
    }

    /// The noise file that was given.
    ///
    /// # Errors
    /// Returns an error if the clip needs a file that was not given, or it cannot be read.
    pub(super) fn noise(&self, given: Option<&Path>) -> Result<Option<InputFile>, Error> {
        match self {
            Self::Like(record) if given.is_none() => check_noise(&record.spec, None),
            _ => given.map(input_file).transpose(),
        }
    }

    /// The note on a bundle that is not the one that the clip was made with.
    pub(super) fn note_on_bundle(&self, own: &ModelIdentity) -> Option<String> {
        let Self::Like(record) = self else { return None };
        let made_with = &record.spec.model;
        (made_with.digest != own.digest).then(|| {
            let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
            format!(
                "warning: the clip was made with another bundle or variant: {} {}, and this one is {} {}; it will differ",
                made_with.name,
                short(&made_with.digest),
                own.name,
                short(&own.digest)
            )
        })
    }
}

/// The request with the settings that were given.
///
/// # Errors
/// Returns an error if a guidance scale is not a number.
pub(in crate::cli) fn with_settings(
    base: GenerateRequest,
    args: &ClipArgs,
) -> Result<GenerateRequest, Error> {
    let length = match (args.frames, args.seconds) {
        (Some(frames), _) => Some(Length::Frames(frames)),
        (None, seconds) => seconds.map(Length::Seconds),
    };
    let guidance = args.guidance.as_deref().map(GuidanceScale::parse_list).transpose()?;
    Ok(GenerateRequest {
        negative: args.negative.clone().or(base.negative),
        size: args.size.or(base.size),
        length: length.or(base.length),
        fps: args.fps.or(base.fps),
        steps: args.steps.or(base.steps),
        guidance: guidance.or(base.guidance),
        shift: args.shift.or(base.shift),
        sampler: args.sampler.or(base.sampler),
        schedule: args.schedule.or(base.schedule),
        noise_scale: args.noise_scale.unwrap_or(base.noise_scale),
        ..base
    })
}

/// Reads the record of a clip.
///
/// # Errors
/// Returns an error if the clip cannot be read, or has no record.
pub(in crate::cli) fn record_of(clip: &Path) -> Result<ClipRecord, Error> {
    let json = clip_record::read(clip)?;
    Ok(ClipRecord::from_json(&json)?)
}

/// The noise file of a clip that is made again: it must be the one that the clip was made from.
///
/// # Errors
/// Returns an error if the file is missing, cannot be read, or is another one.
pub(in crate::cli) fn check_noise(spec: &JobSpec, given: Option<&Path>) -> Result<Option<InputFile>, Error> {
    let given = given.map(input_file).transpose()?;
    if given.as_ref().map(|file| &file.digest) == spec.noise.as_ref().map(|file| &file.digest) {
        return Ok(given);
    }
    let (rule, fix) = match &spec.noise {
        Some(InputFile { name, digest }) => (
            format!(
                "the noise was read from the file {name} (BLAKE3 {}…)",
                digest.get(..12).unwrap_or(digest)
            ),
            "give that file as `noise`",
        ),
        None => ("the noise of the clip was made from its seed".to_owned(), "leave `noise` out"),
    };
    Err(bundle::Error::value(Field::Noise, "other than that of the clip", rule, fix).into())
}

/// A file by name and digest.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub(in crate::cli) fn input_file(path: &Path) -> Result<InputFile, Error> {
    let digest = Digest::of_file(path).map_err(bundle::Error::file("read", path))?.blake3;
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(InputFile { name, digest })
}

/// Refuses arguments that a run that goes on cannot change.
fn check_resume(args: &GenerateArgs) -> Result<(), Error> {
    let text = |given: Option<&dyn ToString>| given.map(ToString::to_string);
    let fixed = [
        (Field::Size, text(args.settings.size.as_ref().map(|given| given as _))),
        (Field::Frames, text(args.settings.frames.as_ref().map(|given| given as _))),
        (Field::Seconds, text(args.settings.seconds.as_ref().map(|given| given as _))),
        (Field::FrameRate, text(args.settings.fps.as_ref().map(|given| given as _))),
        (Field::NoiseScale, text(args.settings.noise_scale.as_ref().map(|given| given as _))),
        (Field::Precision, text(args.run.precision.as_ref().map(|given| given as _))),
        (Field::Kernels, text(args.run.kernels.as_ref().map(|given| given as _))),
        (Field::Noise, args.noise.as_ref().map(|path| path.display().to_string())),
    ];
    for (field, given) in fixed {
        if let Some(given) = given {
            let rule = "it is fixed when a run goes on";
            let fix = "leave it out, or start a new run; prompts, `guidance`, `steps`, `shift`, `sampler` and `schedule` can change";
            return Err(bundle::Error::value(field, given, rule, fix).into());
        }
    }
    if args.seed.is_some() && args.job.variation.is_none() {
        let rule = "a run goes on from the noise that it has";
        let fix = "mix fresh noise in with `variation`, from 0 to 1";
        return Err(bundle::Error::value(Field::Seed, "changed", rule, fix).into());
    }
    Ok(())
}

/// The fork that the arguments ask for, from a snapshot that contains some of the job's forks; an empty one if they
/// change nothing.
///
/// # Errors
/// Returns an error if a value is out of range.
pub(super) fn fork(
    args: &GenerateArgs,
    spec: &JobSpec,
    forks_applied: usize,
    manifest: &Manifest,
) -> Result<ForkSpec, Error> {
    // Changes after the snapshot are dropped by a new one.
    let mut spec = spec.clone();
    spec.forks.truncate(forks_applied);
    let (prompt, negative) = spec.prompts_after(usize::MAX);
    let other = |given: &Option<String>, known: &str| given.clone().filter(|given| given != known);
    let experts = manifest.routing.routes().len();
    let guidance = match &args.settings.guidance {
        Some(text) => Some(per_expert(&GuidanceScale::parse_list(text)?, experts)?),
        None => None,
    };
    let changes_grid = args.settings.steps.is_some()
        || args.settings.shift.is_some()
        || args.settings.sampler.is_some()
        || args.settings.schedule.is_some();
    let base =
        GridSpec { sampler: spec.sampler, schedule: spec.schedule, steps: spec.steps, shift: spec.shift };
    let base = spec.forks.iter().rev().find_map(|fork| fork.grid).unwrap_or(base);
    let grid = GridSpec {
        sampler: args.settings.sampler.unwrap_or(base.sampler),
        schedule: args.settings.schedule.unwrap_or(base.schedule),
        steps: bundle::settings::check_steps(args.settings.steps.unwrap_or(base.steps))?,
        shift: args.settings.shift.map_or(Ok(base.shift), Shift::try_new)?,
    };
    let strength = args.job.variation;
    if let Some(strength) = strength.filter(|strength| !(0.0..=1.0).contains(strength)) {
        let rule = "the share of fresh noise is a number from 0 to 1";
        return Err(
            bundle::Error::value(Field::Variation, strength, rule, "use 0.1 for a similar clip").into()
        );
    }
    if let Some(prompt) = &args.prompt {
        prompt::check(prompt).map_err(runtime::Error::from)?;
    }
    if let Some(negative) = &args.settings.negative {
        prompt::check_negative(negative).map_err(runtime::Error::from)?;
    }
    Ok(ForkSpec {
        after: 0,
        prompt: other(&args.prompt, prompt),
        negative: other(&args.settings.negative, negative),
        guidance,
        grid: changes_grid.then_some(grid),
        variation: strength.map(|strength| VariationSpec { strength, seed: variation_seed(args) }),
    })
}

/// The changes on the way of a clip that the arguments do not override.
pub(super) fn forks_left(forks: &[ForkSpec], args: &GenerateArgs, notes: &mut Vec<String>) -> Vec<ForkSpec> {
    let settings = &args.settings;
    let has_grid = settings.steps.is_some()
        || settings.shift.is_some()
        || settings.sampler.is_some()
        || settings.schedule.is_some();
    let mut left = Vec::new();
    for fork in forks {
        let kept = ForkSpec {
            prompt: fork.prompt.clone().filter(|_| args.prompt.is_none()),
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

/// The seed of fresh noise.
fn variation_seed(args: &GenerateArgs) -> Seed {
    args.seed.unwrap_or(SeedChoice::Any).seed()
}
