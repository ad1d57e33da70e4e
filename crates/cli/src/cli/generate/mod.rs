//! `rushes generate`: generates a clip and writes it to all outputs.
//!
//! [`source`] says where the settings come from, [`changes`] what changes on the way, [`extras`] which arguments are
//! stored in the clip, [`shown`] how a running job is shown and written.

mod changes;
mod extras;
mod shown;
mod source;

pub(super) use changes::{Changes, fork, forks_left};
pub(super) use extras::{Given, missing as missing_extras, of_arguments as extras_of};
pub(super) use source::{
    check_noise, input_file, model_options, record_of, request_like, variant_like, with_settings,
};

use super::args::GenerateArgs;
use super::clip_time::ClipTime;
use super::global::GlobalArgs;
use super::lora;
use super::memory::{memory_request, plan_memory, sessions};
use super::mini_form::mini_form;
use super::render::{self, Stream};
use crate::Error;
use bundle::Field;
use bundle::manifest::{Bundle, Manifest};
use bundle::preview::PreviewKind;
use engines::{Cancel, Device, Placement, WeightMemory};
use media::{ClipFormat, ClipSettings, ClipWriter, OutputSpec, OutputTarget, Tags};
use runtime::denoise::Denoising;
use runtime::engine_builds::check_engines;
use runtime::job::{
    FoundSnapshot, Job, JobEvent, JobFolder, JobSpec, JobStart, JobState, KeepSteps, ResumeFrom, Resumed,
};
use runtime::memory_plan::MemoryPlan;
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, scaled_noise, seeded_noise};
use runtime::plan::GenerationPlan;
use runtime::trace::{Trace, read_noise};
use shown::{KeptJob, Shown};
use source::Source;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Runs the command. Bad input is refused before a graph is opened.
pub(super) fn run(args: &GenerateArgs, global: &GlobalArgs, stream: Stream) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let cancel = global.interrupts.cancel();
    let source = Source::open(args)?;
    let request = source.request(args)?;
    if let Some(folder) = &args.job.job_dir {
        check_job_dir(folder, args)?;
    }
    let mut options = source.model_options(args);
    let form = || mini_form(&args.run.compute.devices, global, options.precision);
    let folder = global.bundle_or_mini(args.bundle.as_deref(), form, cancel.stop())?;
    let bundle = lora::open(&folder, &args.lora, (global, cancel.stop()))?;
    if let Some(spec) = source.spec() {
        lora::check(spec, &bundle, matches!(source, Source::Like(_)))?;
    }
    let plan = GenerationPlan::new(&bundle.manifest, &request)?;
    let kind = args.preview.kind(&bundle)?;
    let memory = plan_memory(&args.run.compute, global, &bundle.manifest, &plan, &mut options, kind)?;
    let noise_file = source.noise(args.noise.file.as_deref())?;
    let noise = match &args.noise.file {
        Some(path) => scaled_noise(read_noise(path, plan.latent)?, &plan),
        None => seeded_noise(&plan),
    };
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    // Loading may set an environment variable, so it comes before GStreamer starts threads.
    if let Some(note) = args.run.compute.devices.note(&bundle.manifest, global).filter(|_| !global.json) {
        render::note(&note);
    }
    let devices = args.run.compute.devices.placement(&bundle.manifest, global)?.devices();
    let onnx = global.onnx_runtime_for(devices)?;
    let (mut writer, live) = claim(args, &bundle, &plan, &cancel)?;
    let pictures = args.preview.claim_pictures(&bundle, plan.size)?;
    // Keeps the claim until the clip is complete; the last preview is written before that.
    let _claimed = pictures.clone();
    let note_of_live = live.as_ref().and_then(|live| writer.note_of_live(live.spec()));
    for note in writer.notes().into_iter().chain(note_of_live) {
        render::note(&note);
    }
    let sessions = sessions(onnx, &memory, args.run.compute.memory.residency);
    let model = Model::with_sessions(bundle, &sessions, options)?;
    let model = model.placed(&args.run.compute.devices.request()?)?;
    let mut pipeline = Pipeline::new(&model).tiled(memory.tile);
    pipeline.check(plan.latent)?;
    check_engines(&model, &plan)?;

    let Begun { mut start, goes_on_in_place } = begin(&source, args, &pipeline, plan, noise)?;
    start.spec.noise = noise_file.or(start.spec.noise);
    let stop_after = source.stop_after(args);
    check_stop(stop_after, args, &start)?;
    let keep_steps = keep_steps(args, &start, args.job.job_dir.is_some() || goes_on_in_place)?;
    let folder = match (source, &args.job.job_dir) {
        (_, Some(path)) => {
            Some(JobFolder::create(path, &JobSpec { stop_after: None, ..start.spec.clone() })?)
        }
        (Source::Resume(folder), None) if goes_on_in_place => Some(*folder),
        _ => None,
    };
    if !global.json {
        announce(&start, &model, &memory);
        announce_time(args, global, (&start.plan, &memory), (&options, kind), model.manifest())?;
    }
    let again = again(args, folder.as_ref());
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
    let (job, events) = Job::new(&pipeline, start);
    let mut job = job.with_cancel(&cancel).stop_after(stop_after);
    if let Some(previewer) = previewer {
        job = job.with_previewer(&pipeline, previewer, prepared);
    }
    if let Some(folder) = folder {
        job = job.with_folder(folder).keep_steps(keep_steps);
    }
    let mut shown = Shown::new(args, writer, trace, again);
    match advance_to_end(&mut job, &mut pipeline, &events, &mut shown) {
        Ok(()) => shown.finish(&job, (stream, global.json), started),
        Err(error) => {
            job.abandon();
            shown.warnings(events.try_iter());
            Err(shown.stop(&job, error))
        }
    }
}

/// Refuses a folder that cannot become that of a new job.
fn check_job_dir(folder: &Path, args: &GenerateArgs) -> Result<(), Error> {
    let refused = |rule: &str| {
        let fix = "give another `job_folder`";
        Err(bundle::Error::value(Field::JobFolder, folder.display(), rule, fix).into())
    };
    let is_same = |other: &Path| {
        let resolved = |path: &Path| std::path::absolute(path).ok();
        resolved(folder).is_some_and(|own| resolved(other) == Some(own))
    };
    if args.job.resume.as_deref().is_some_and(is_same) {
        return refused("it is the folder of the job that the run goes on from");
    }
    let target = OutputSpec::Frames { folder: folder.to_owned() };
    if args.output.iter().any(|output| output.is_same_destination(&target)) {
        return refused("an output of the clip is written there");
    }
    Ok(JobFolder::check_new(folder)?)
}

/// Claims the outputs and the live address of a clip.
fn claim(
    args: &GenerateArgs,
    bundle: &Bundle,
    plan: &GenerationPlan,
    cancel: &Cancel,
) -> Result<(ClipWriter, Option<OutputTarget>), Error> {
    let token = args.whip_token.as_ref();
    let outputs: Vec<_> = args.output.iter().map(|output| output.clone().with_token(token)).collect();
    let settings = ClipSettings {
        outputs,
        post_process: args.writing.post_process.spec()?,
        sign: args.writing.post_process.signing_key().cloned(),
        output_timeout: args.writing.output_timeout.0,
    };
    let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
    let tags = Tags {
        mark: args.writing.post_process.mark(),
        metadata: !args.writing.no_metadata,
        ..Tags::new(plan.prompt.clone(), &bundle.manifest.model, plan.seed)
    };
    let writer = ClipWriter::claim(&settings, made, tags, cancel)?;
    let live = args.preview.claim_live(&settings.outputs, token)?;
    Ok((writer, live))
}

/// Runs the job, and shows and writes what it reports after every unit of work.
fn advance_to_end(
    job: &mut Job,
    pipeline: &mut Pipeline,
    events: &Receiver<JobEvent>,
    shown: &mut Shown,
) -> Result<(), Error> {
    loop {
        let state = job.advance(pipeline);
        let handled = events.try_iter().try_for_each(|event| shown.on_event(event, job));
        let state = state?;
        handled?;
        if state != JobState::Working {
            return Ok(());
        }
    }
}

/// A job that is about to start.
struct Begun {
    start: JobStart,
    /// True if the job goes on in the folder that it was resumed from.
    goes_on_in_place: bool,
}

/// The state that the job begins with. Prints what the user should know about it.
fn begin(
    source: &Source,
    args: &GenerateArgs,
    pipeline: &Pipeline,
    plan: GenerationPlan,
    noise: ndarray::Array4<f32>,
) -> Result<Begun, Error> {
    let mut notes = Vec::new();
    let mut begun = match source {
        Source::Arguments => Begun { start: JobStart::new(pipeline, plan, noise)?, goes_on_in_place: false },
        Source::Like(record) => {
            let mut start = JobStart::new(pipeline, plan, noise)?;
            let steps = start.plan.schedule.steps();
            if let Some(fork) = record.spec.forks.iter().find(|fork| fork.after >= steps) {
                let rule = format!("the clip was changed after step {}", fork.after);
                return Err(bundle::Error::value(Field::Steps, steps, rule, "leave it out").into());
            }
            notes.extend(source.note_on_bundle(&start.spec.model));
            start.spec.forks =
                forks_left(&record.spec.forks, args.prompt.is_some(), &args.settings, &mut notes);
            Begun { start, goes_on_in_place: false }
        }
        Source::Resume(folder) if args.job.from == ResumeFrom::Newest && !folder.has_snapshot() => {
            let mut start = JobStart::again(pipeline, folder, noise)?;
            let fork = fork(&Changes::of(args), folder.spec(), 0, pipeline.model().manifest())?;
            let goes_on_in_place = fork.is_empty();
            if !goes_on_in_place {
                Denoising::fork(start.denoising.snapshot(), fork.changes(1.0))
                    .map_err(runtime::Error::from)?;
                start.spec.forks = vec![fork];
            }
            notes.push("the job had not made its first step, and starts again".into());
            Begun { start, goes_on_in_place }
        }
        Source::Resume(folder) => {
            let FoundSnapshot { snapshot, instead_of } = folder.snapshot(args.job.from)?;
            let applied = snapshot.forks_applied;
            let fork = fork(&Changes::of(args), folder.spec(), applied, pipeline.model().manifest())?;
            let dropped = if fork.is_empty() { 0 } else { folder.spec().forks.len().saturating_sub(applied) };
            // Going on from an older snapshot in place would replace the newer one.
            let goes_on_in_place = fork.is_empty() && args.job.from == ResumeFrom::Newest;
            let Resumed { start, differences } = JobStart::resume(pipeline, folder, snapshot, Some(fork))?;
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
                    "the clip may not be bit-equal to one without interruption: {}",
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
            Begun { start, goes_on_in_place }
        }
    };
    let extras = &mut begun.start.spec.extras;
    if !args.writing.no_metadata || source.spec().is_some() {
        *extras = extras::of_arguments(&args.writing.post_process)?;
    }
    notes.extend(extras::missing(extras, source.spec()));
    notes.iter().for_each(|note| render::note(note));
    Ok(begun)
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

/// The steps whose snapshots are kept.
fn keep_steps(args: &GenerateArgs, start: &JobStart, is_stored: bool) -> Result<KeepSteps, Error> {
    let Some(keep) = &args.job.keep_steps else { return Ok(KeepSteps::None) };
    if !is_stored {
        let rule = "this run is not stored in a job folder";
        let fix = "keep the job in a folder with `job_folder`, or leave it out";
        return Err(bundle::Error::value(Field::KeepSteps, "used", rule, fix).into());
    }
    keep.check(start.denoising.steps())?;
    Ok(keep.clone())
}

/// The command that goes on with a job that is kept in a folder.
fn again(args: &GenerateArgs, folder: Option<&JobFolder>) -> Option<KeptJob> {
    let folder = folder?.path().to_owned();
    let quoted = render::quoted;
    let bundle = args.bundle.as_ref().map(|bundle| format!(" --bundle {}", quoted(bundle)));
    let outputs: String =
        args.output.iter().map(|output| format!(" -o {}", quoted(output.to_string().as_ref()))).collect();
    let loras: String =
        args.lora.lora.iter().map(|lora| format!(" --lora {}", quoted(lora.to_string().as_ref()))).collect();
    let command =
        format!("rushes generate --resume {}{}{loras}{outputs}", quoted(&folder), bundle.unwrap_or_default());
    Some(KeptJob { folder, command })
}

/// Prints the predicted time of a step and of the whole clip, and warns of long steps.
fn announce_time(
    args: &GenerateArgs,
    global: &GlobalArgs,
    (plan, memory): (&GenerationPlan, &MemoryPlan),
    (options, preview): (&ModelOptions, PreviewKind),
    manifest: &Manifest,
) -> Result<(), Error> {
    let request = memory_request(&args.run.compute, global, manifest, options, preview)?;
    let time = ClipTime::predict(global, manifest, plan, (&request, memory), &[])?;
    time.line().iter().chain(&time.warning(manifest, &request)).for_each(|line| render::note(line));
    Ok(())
}

/// Prints the plan, its changes on the way, and what will make it slow.
fn announce(start: &JobStart, model: &Model, memory: &MemoryPlan) {
    render::note(&start.plan.to_string());
    start.spec.forks.iter().for_each(|fork| render::note(&fork.to_string()));
    if memory.placement != Placement::on(Device::CPU) {
        render::note(&format!("devices: {}", memory.placement));
    }
    if let Some(side) = memory.tile {
        let pixels = side.get() * model.manifest().vae.stride().space;
        render::note(&format!("frames are decoded in tiles of {pixels} pixels, which is slower"));
    }
    if memory.weights == WeightMemory::Mapped {
        render::note("memory is short: weights are used directly from their files, which is slower");
    }
}
