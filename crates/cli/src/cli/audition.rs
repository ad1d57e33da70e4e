//! `rushes audition`: makes the first steps of several seeds, and shows them on a contact sheet.

use super::args::AuditionArgs;
use super::generate::{model_options, with_settings};
use super::global::GlobalArgs;
use super::lora;
use super::memory::{plan_memory, sessions};
use super::mini_form::mini_form;
use super::progress::Progress;
use super::render;
use super::seed::SeedChoice;
use crate::Error;
use ::jobs::audition::{MAX_TAKES, consecutive, steps_of};
use bundle::preview::PreviewKind;
use bundle::units::Seed;
use bundle::{Diagnose, Field};
use engines::Cancel;
use media::ContactSheet;
use ndarray::Array4;
use runtime::denoise::TextConditioning;
use runtime::engine_builds::check_engines;
use runtime::job::{Job, JobEvent, JobFolder, JobStart};
use runtime::model::Model;
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The contact sheet in the folder of the takes.
const SHEET: &str = "sheet.png";

/// One take.
struct Take {
    folder: PathBuf,
    seed: Seed,
}

/// Runs the command.
pub(super) fn run(args: &AuditionArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    if !(1..=MAX_TAKES).contains(&args.seeds) {
        let rule = format!("an audition has 1 to {MAX_TAKES} takes");
        return Err(bundle::Error::value(Field::Seeds, args.seeds, rule, "use 9").into());
    }
    let cancel = global.interrupts.cancel();
    let Seed(first) = args.seed.unwrap_or(SeedChoice::Any).seed();
    let takes: Vec<Take> = (1..)
        .zip(consecutive(Seed(first), args.seeds))
        .map(|(number, seed)| Take { folder: args.out.join(format!("take-{number}")), seed })
        .collect();
    for take in &takes {
        JobFolder::check_new(&take.folder).map_err(|error| {
            let rule = error.report().why;
            let fix = "choose another `folder`, or finish a take with `rushes generate` and `resume`";
            bundle::Error::value(
                Field::Folder,
                args.out.display(),
                format!("{}: {rule}", take.folder.display()),
                fix,
            )
        })?;
    }
    let mut options = model_options(&args.run.compute, None);
    let form = || mini_form(&args.run.compute.devices, global, options.precision);
    let folder = global.bundle_or_mini(args.bundle.as_deref(), form, cancel.stop())?;
    let bundle = lora::open(&folder, &args.lora, (global, cancel.stop()))?;
    let plan_of = |seed| {
        let request = with_settings(GenerateRequest::new(args.prompt.clone(), seed), &args.settings)?;
        Ok::<_, Error>(GenerationPlan::new(&bundle.manifest, &request)?)
    };
    let plan = plan_of(Seed(first))?;
    let steps = steps_of(args.steps_of, &plan)?;
    let off = PreviewKind::Off;
    let memory = plan_memory(&args.run.compute, global, &bundle.manifest, &plan, &mut options, off)?;
    let plans = takes.iter().map(|take| plan_of(take.seed)).collect::<Result<Vec<_>, _>>()?;
    // Loading may set an environment variable, so it comes before GStreamer starts threads.
    if let Some(note) = args.run.compute.devices.note(&bundle.manifest, global).filter(|_| !global.json) {
        render::note(&note);
    }
    let devices = args.run.compute.devices.placement(&bundle.manifest, global)?.devices();
    let onnx = global.onnx_runtime_for(devices)?;
    let labels: Vec<String> = takes
        .iter()
        .enumerate()
        .map(|(index, take)| format!("take {} · seed {}", index + 1, take.seed.0))
        .collect();
    let sheet = ContactSheet::new(&labels, plan.size, NonZeroUsize::MAX)?;
    let sessions = sessions(onnx, &memory, args.run.compute.memory.residency);
    let model = Model::with_sessions(bundle, &sessions, options)?;
    let model = model.placed(&args.run.compute.devices.request()?)?;
    let mut pipeline = Pipeline::new(&model).tiled(memory.tile);
    pipeline.check(plan.latent)?;
    check_engines(pipeline.model(), &plan)?;
    if !global.json {
        render::note(&format!("{plan}; {} takes of {steps} steps", takes.len()));
    }

    let mut progress = Progress::new(args.run.progress);
    let estimates = make_takes(&mut pipeline, &takes, plans, steps, &cancel, &mut progress)?;
    progress.begin("pictures", takes.len());
    let mut pictures = Vec::new();
    for estimate in &estimates {
        pictures.push(pipeline.first_frame(estimate.view(), &cancel)?);
        progress.advance(pictures.len(), "");
    }
    progress.clear();
    let path = args.out.join(SHEET);
    let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
    sheet.write(&path, &views, &[])?;
    report(args, global, &takes, &path, steps)
}

/// Makes the first `steps` steps of every take, and returns the clean latents that they predict. The text is encoded
/// once.
fn make_takes(
    pipeline: &mut Pipeline,
    takes: &[Take],
    plans: Vec<GenerationPlan>,
    steps: usize,
    cancel: &Cancel,
    progress: &mut Progress,
) -> Result<Vec<Arc<Array4<f32>>>, Error> {
    let mut text: Option<TextConditioning> = None;
    let mut estimates = Vec::new();
    for (index, (take, plan)) in takes.iter().zip(plans).enumerate() {
        let noise = seeded_noise(&plan);
        let mut start = JobStart::new(pipeline, plan, noise)?;
        start.text.clone_from(&text);
        let folder = JobFolder::create(&take.folder, &start.spec)?;
        let (job, events) = Job::new(pipeline, start);
        let mut job = job.with_cancel(cancel).with_folder(folder);
        let mut ended = Ok(());
        while ended.is_ok() && job.denoising().steps_done() < steps {
            ended = job.advance(pipeline).map(drop);
            if ended.is_err() || job.denoising().steps_done() == steps {
                // Waits for the snapshots, and may warn of them.
                job.abandon();
            }
            for event in events.try_iter() {
                match event {
                    JobEvent::Encoding => progress.begin("text", 1),
                    JobEvent::Encoded(encoded) => text = Some(encoded),
                    JobEvent::Denoising { .. } if index == 0 => progress.begin("takes", takes.len() * steps),
                    JobEvent::Step { done, .. } => {
                        progress.advance(index * steps + done.step + 1, &done.expert.0);
                    }
                    JobEvent::Warning(report) => {
                        progress.clear();
                        render::note(&format!("warning: {}", render::named(report)));
                    }
                    _ => {}
                }
            }
        }
        if let Err(error) = ended {
            progress.clear();
            return Err(stopped(error.into(), index, &take.folder));
        }
        estimates.extend(job.denoising().clean_estimate().cloned());
    }
    Ok(estimates)
}

/// The error of an audition that ended during a take, with what was kept.
fn stopped(error: Error, whole: usize, take: &Path) -> Error {
    if !error.is_cancelled() {
        return error;
    }
    let go_on = format!("rushes generate --resume {}", take.display());
    let kept = format!("{whole} takes are whole, and {} can go on", take.display());
    Error::Interrupted { phase: "making takes", kept, go_on: Some(go_on) }
}

fn report(
    args: &AuditionArgs,
    global: &GlobalArgs,
    takes: &[Take],
    sheet: &Path,
    steps: usize,
) -> Result<ExitCode, Error> {
    let of_take = |take: &Take| json!({"folder": render::path(&take.folder), "seed": take.seed});
    let value = json!({
        "event": "auditioned",
        "sheet": render::path(sheet),
        "steps": steps,
        "takes": takes.iter().map(of_take).collect::<Vec<_>>(),
    });
    let bundle =
        args.bundle.as_ref().map_or(String::new(), |bundle| format!(" --bundle {}", bundle.display()));
    let text = format!(
        "{}: {} takes after {steps} steps; finish one with `rushes generate --resume {}{bundle}`",
        sheet.display(),
        takes.len(),
        args.out.join("take-N").display()
    );
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
