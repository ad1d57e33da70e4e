//! `rushes generate`: generates a clip and writes it to all outputs.
//!
//! [`source`] says where the settings come from, [`extras`] which arguments are stored in the clip, [`shown`] how a
//! running job is shown and written.

mod extras;
mod shown;
mod source;

pub(super) use extras::Given;
pub(super) use source::{check_noise, record_of, with_settings};

use super::args::GenerateArgs;
use super::global::GlobalArgs;
use super::render::{self, Stream};
use crate::Error;
use bundle::Field;
use bundle::manifest::Bundle;
use engines::WeightMemory;
use media::{ClipFormat, ClipSettings, ClipWriter, OutputTarget, Tags};
use runtime::job::{FoundSnapshot, Job, JobFolder, JobSpec, JobStart, JobState, ResumeFrom, Resumed};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, choose_variant};
use runtime::pipeline::{Pipeline, scaled_noise, seeded_noise};
use runtime::plan::GenerationPlan;
use runtime::trace::{Trace, read_noise};
use shown::Shown;
use source::Source;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the command. Bad input is refused before a graph is opened.
pub(super) fn run(args: &GenerateArgs, global: &GlobalArgs, stream: Stream) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let cancel = global.interrupts.cancel();
    let source = Source::open(args)?;
    let request = source.request(args)?;
    if let Some(folder) = &args.job.job_dir {
        JobFolder::check_new(folder)?;
    }
    let folder = global.bundle_or_mini(args.bundle.as_deref(), cancel.stop())?;
    let bundle = Bundle::open(&folder)?;
    let plan = GenerationPlan::new(&bundle.manifest, &request)?;
    let mut options = source.model_options(args);
    let target = options.provider.target()?;
    let memory = MemoryRequest {
        variant: choose_variant(&bundle.manifest, target, global.kernels()?.path(), &options)?,
        preview: args.preview.kind(&bundle)?,
        tiles: args.run.tile,
        residency: args.run.residency,
        budget: args.run.memory_budget,
    };
    let memory = MemoryPlan::new(&bundle.manifest, &plan, &memory)?;
    options.weights = memory.weights;
    let noise_file = source.noise(args.noise.as_deref())?;
    let noise = match &args.noise {
        Some(path) => scaled_noise(read_noise(path, plan.latent)?, &plan),
        None => seeded_noise(&plan),
    };
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    // Loading may set an environment variable, so it comes before GStreamer starts threads.
    let onnx = global.onnx_runtime()?;
    let token = args.whip_token.as_ref();
    let outputs: Vec<_> = args.output.iter().map(|output| output.clone().with_token(token)).collect();
    let settings = ClipSettings {
        outputs,
        post_process: args.post_process.spec()?,
        sign: args.post_process.signing_key().cloned(),
        output_timeout: args.output_timeout.0,
    };
    let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
    let tags = Tags {
        mark: args.post_process.mark(),
        metadata: !args.no_metadata,
        ..Tags::new(plan.prompt.clone(), &bundle.manifest.model, plan.seed)
    };
    let mut writer = ClipWriter::claim(&settings, made, tags, &cancel)?;
    let live = args.preview.claim_live(&settings.outputs, token)?;
    let pictures = args.preview.claim_pictures(&bundle, plan.size)?;
    // Keeps the claim until the clip is complete; the last preview is written before that.
    let _claimed = pictures.clone();
    for note in writer.notes() {
        render::note(&note);
    }
    let model = Model::new(bundle, onnx, options)?;
    let mut pipeline = Pipeline::new(&model, memory.mode).tiled(memory.tile);
    pipeline.check(plan.latent)?;

    let Begun { mut start, goes_on_in_place, notes } = begin(&source, args, &pipeline, plan, noise)?;
    if let Some(noise) = noise_file {
        start.spec.noise = Some(noise);
    }
    if !args.no_metadata || source.spec().is_some() {
        start.spec.extras = extras::of_arguments(args)?;
    }
    let notes = notes.into_iter().chain(extras::missing(&start.spec.extras, source.spec()));
    notes.for_each(|note| render::note(&note));
    check_stop(source.stop_after(args), args, &start)?;
    let stop_after = source.stop_after(args);
    let folder = match (source, &args.job.job_dir) {
        (_, Some(path)) => {
            Some(JobFolder::create(path, &JobSpec { stop_after: None, ..start.spec.clone() })?)
        }
        (Source::Resume(folder), None) if goes_on_in_place => Some(*folder),
        _ => None,
    };
    if !global.json {
        announce(&start, &model, &memory);
    }
    let show_live = |target: OutputTarget| {
        if let Some(address) = target.address().filter(|_| !global.json) {
            render::note(&format!("live at {} ({address})", target.spec()));
        }
        writer.start_live(target, start.denoising.latent().view(), model.manifest().vae.stride().time)
    };
    let live = live.map(show_live).transpose()?;
    let previews = args.preview.prepare(&model, pictures, live)?;
    let preparing = Instant::now();
    let previewer = previews.map(|previews| previews.start(start.plan.latent, &cancel));
    let prepared = preparing.elapsed();
    let is_kept = folder.as_ref().map(|folder| folder.path().to_owned());
    let (job, events) = Job::new(&pipeline, start);
    let mut job = job.with_cancel(&cancel).stop_after(stop_after);
    if let Some(previewer) = previewer {
        job = job.with_previewer(&pipeline, previewer, prepared);
    }
    if let Some(folder) = folder {
        job = job.with_folder(folder);
    }
    let mut shown = Shown::new(args, writer, trace, is_kept);
    let outcome = loop {
        let state = job.advance(&mut pipeline);
        let handled = events.try_iter().try_for_each(|event| shown.on_event(event, &job));
        match (state, handled) {
            (Err(error), _) => break Err(error.into()),
            (_, Err(error)) => break Err(error),
            (Ok(JobState::Working), Ok(())) => {}
            (Ok(JobState::Paused | JobState::Ended), Ok(())) => break Ok(()),
        }
    };
    match outcome {
        Ok(()) => shown.finish(&job, (stream, global.json), started),
        Err(error) => {
            job.abandon();
            shown.warnings(events.try_iter());
            Err(shown.stop(&job, error))
        }
    }
}

/// A job that is about to start.
struct Begun {
    start: JobStart,
    /// True if the job goes on in the folder that it was resumed from.
    goes_on_in_place: bool,
    notes: Vec<String>,
}

/// The state that the job begins with.
fn begin(
    source: &Source,
    args: &GenerateArgs,
    pipeline: &Pipeline,
    plan: GenerationPlan,
    noise: ndarray::Array4<f32>,
) -> Result<Begun, Error> {
    match source {
        Source::Arguments => {
            let start = JobStart::new(pipeline, plan, noise)?;
            Ok(Begun { start, goes_on_in_place: false, notes: Vec::new() })
        }
        Source::Like(record) => {
            let mut start = JobStart::new(pipeline, plan, noise)?;
            let steps = start.plan.schedule.steps();
            if let Some(fork) = record.spec.forks.iter().find(|fork| fork.after >= steps) {
                let rule = format!("the clip was changed after step {}", fork.after);
                return Err(bundle::Error::value(Field::Steps, steps, rule, "leave it out").into());
            }
            let notes = source.note_on_bundle(&start.spec.model);
            start.spec.forks.clone_from(&record.spec.forks);
            Ok(Begun { start, goes_on_in_place: false, notes: notes.into_iter().collect() })
        }
        Source::Resume(folder) => {
            let FoundSnapshot { snapshot, instead_of } = folder.snapshot(args.job.from)?;
            let applied = snapshot.forks_applied;
            let fork = source::fork(args, folder.spec(), applied, pipeline.model().manifest())?;
            let dropped = if fork.is_empty() { 0 } else { folder.spec().forks.len().saturating_sub(applied) };
            // Going on from an older snapshot in place would replace the newer one.
            let goes_on_in_place = fork.is_empty() && args.job.from == ResumeFrom::Newest;
            let Resumed { start, differences } = JobStart::resume(pipeline, folder, snapshot, Some(fork))?;
            let mut notes = Vec::new();
            if dropped > 0 {
                notes.push(format!(
                    "{dropped} earlier changes of the job are after this snapshot, and are replaced"
                ));
            }
            if let Some(problem) = instead_of {
                notes.push(format!("warning: an older snapshot is used: {problem}"));
            }
            if !differences.is_empty() {
                notes.push(format!(
                    "the clip will not be bit-equal to one without interruption: {}",
                    differences.join(", ")
                ));
            }
            let done = start.steps_done();
            notes.push(format!("the job goes on after step {done} of {}", start.denoising.steps()));
            if !goes_on_in_place && args.job.job_dir.is_none() {
                notes.push(
                    "the job folder stays as it is, and this run is not stored; --job-dir would store it"
                        .into(),
                );
            }
            Ok(Begun { start, goes_on_in_place, notes })
        }
    }
}

/// Checks the number of steps after which the clip ends.
fn check_stop(stop: Option<usize>, args: &GenerateArgs, start: &JobStart) -> Result<(), Error> {
    let Some(stop) = stop else { return Ok(()) };
    let (done, steps) = (start.steps_done().max(1), start.denoising.steps());
    if !(done..=steps).contains(&stop) {
        let rule = format!("this clip can end after {done} to {steps} of its {steps} steps");
        return Err(bundle::Error::value(Field::StopAfter, stop, rule, "give a number in that range").into());
    }
    if args.job.stop_after.is_some() && args.job.job_dir.is_none() && args.job.resume.is_none() {
        let rule = "the rest of the steps could not be made later";
        let fix = "keep the job in a folder with `job_folder`, or use fewer `steps`";
        return Err(bundle::Error::value(Field::StopAfter, "used alone", rule, fix).into());
    }
    Ok(())
}

/// Prints the plan, and what will make it slow.
fn announce(start: &JobStart, model: &Model, memory: &MemoryPlan) {
    render::note(&start.plan.to_string());
    if let Some(side) = memory.tile {
        let pixels = side.get() * model.manifest().vae.stride().space;
        render::note(&format!("frames are decoded in tiles of {pixels} pixels, which is slower"));
    }
    if memory.weights == WeightMemory::Mapped {
        render::note("memory is short: weights are used directly from their files, which is slower");
    }
}
