//! Where the settings of a clip come from: the arguments, another clip, or a job that goes on.

use crate::Error;
use crate::cli::args::{ClipArgs, ComputeArgs, GenerateArgs, VariantArgs};
use crate::cli::seed::SeedChoice;
use crate::cli::threads::Threads;
use bundle::Field;
use bundle::digest::Digest;
use bundle::units::GuidanceScale;
use engines::WeightMemory;
use media::clip_record;
use runtime::job::{ClipRecord, InputFile, JobFolder, JobSpec, ModelIdentity};
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

/// The run options for a clip, or for one like that of a spec, with weights in memory.
pub(in crate::cli) fn model_options(args: &ComputeArgs, spec: Option<&JobSpec>) -> ModelOptions {
    let VariantArgs { precision, kernels } = variant_like(args.variant, spec);
    ModelOptions {
        precision,
        kernels,
        device: args.devices.ep,
        threads: args.threads.map(Threads::used),
        weights: WeightMemory::Prepacked,
        cpu_nodes: args.devices.cpu_nodes(),
    }
}

/// The graphs that were asked for, else those of a spec.
pub(in crate::cli) fn variant_like(args: VariantArgs, spec: Option<&JobSpec>) -> VariantArgs {
    let variant = spec.map(|spec| spec.variant);
    // Another precision may not have the same kernels.
    let kernels = variant.filter(|_| args.precision.is_none()).map(|variant| variant.kernels);
    VariantArgs {
        precision: args.precision.or(variant.map(|variant| variant.precision)),
        kernels: args.kernels.or(kernels),
    }
}

/// The request for a clip, or for one like that of a spec.
///
/// # Errors
/// Returns an error if a guidance scale is not a number.
pub(in crate::cli) fn request_like(
    spec: Option<&JobSpec>,
    prompt: Option<&str>,
    seed: Option<SeedChoice>,
    settings: &ClipArgs,
) -> Result<GenerateRequest, Error> {
    let seed = seed.map(SeedChoice::seed);
    let base = match spec {
        Some(spec) => {
            let base = spec.request();
            let prompt = prompt.map_or(base.prompt, str::to_owned);
            GenerateRequest { prompt, seed: seed.unwrap_or(base.seed), ..base }
        }
        None => {
            let seed = seed.unwrap_or_else(|| SeedChoice::Any.seed());
            GenerateRequest::new(prompt.unwrap_or_default(), seed)
        }
    };
    with_settings(base, settings)
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
        request_like(self.spec(), args.prompt.as_deref(), args.noise.seed, &args.settings)
    }

    /// The run options, with weights in memory.
    pub(super) fn model_options(&self, args: &GenerateArgs) -> ModelOptions {
        model_options(&args.run.compute, self.spec())
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
    let base = args.sampling.apply(base);
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
        (Field::Start, text(args.settings.sampling.start.as_ref().map(|given| given as _))),
        (Field::NoiseScale, text(args.settings.noise_scale.as_ref().map(|given| given as _))),
        (Field::Precision, text(args.run.compute.variant.precision.as_ref().map(|given| given as _))),
        (Field::Kernels, text(args.run.compute.variant.kernels.as_ref().map(|given| given as _))),
        (Field::Noise, args.noise.file.as_ref().map(|path| path.display().to_string())),
    ];
    for (field, given) in fixed {
        if let Some(given) = given {
            let rule = "it is fixed when a run goes on";
            let fix = "leave it out, or start a new run; prompts, `guidance`, `guidance_until`, `steps`, `shift`, `sampler`, `schedule`, `timesteps`, `preset` and `step_cache` can change";
            return Err(bundle::Error::value(field, given, rule, fix).into());
        }
    }
    if args.noise.seed.is_some() && args.job.variation.is_none() {
        let rule = "a run goes on from the noise that it has";
        let fix = "mix fresh noise in with `variation`, from 0 to 1";
        return Err(bundle::Error::value(Field::Seed, "changed", rule, fix).into());
    }
    Ok(())
}
