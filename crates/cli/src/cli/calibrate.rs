//! `rushes calibrate`: records clips and writes the ranges of the layers' inputs, or fits the linear map of previews.

use super::args::CalibrateArgs;
use super::global::GlobalArgs;
use super::memory::plan_measured;
use super::progress::Progress;
use super::threads::Threads;
use super::{preview, render, step_ratios};
use crate::Error;
use bundle::Field;
use bundle::manifest::Bundle;
use bundle::routing::{ExpertIndex, Routing};
use bundle::settings::MAX_STEPS;
use bundle::staging::WriteLock;
use bundle::units::Seed;
use bundle::variant::Target;
use calibration::observe::replay::Replay;
use calibration::observe::set::{CalibrationSet, SetInfo, weight_digests};
use calibration::observe::table;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{OpenOptions, WeightMemory};
use quality::record::record;
use runtime::model::{Model, ModelOptions, choose_variant};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::sampler::Schedule;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Runs the command.
pub(super) fn run(args: &CalibrateArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let Some(prompts) = &args.prompts else {
        return preview::fit(&args.bundle, &args.preview, args.size, &args.budget, global);
    };
    let started = Instant::now();
    let bundle = Bundle::open(&args.bundle)?;
    let cancel = global.interrupts.cancel();
    let prompts = read_prompts(prompts)?;
    let samples = args.samples.unwrap_or(prompts.len());
    let plans = plans(args, &bundle, &prompts, samples)?;
    if args.step_cache {
        return step_ratios::run(args, global, bundle, &plans);
    }
    check_coverage(&plans, &bundle.manifest.routing)?;
    let _lock = WriteLock::acquire(&bundle.folder)?;
    let options = ModelOptions { threads: args.threads.map(Threads::used), ..ModelOptions::of_variant(None) };
    let path = global.kernels()?.path();
    let variant = choose_variant(&bundle.manifest, Target::Cpu, path, &options)?;
    // All clips have the same size.
    if let Some(plan) = plans.first() {
        plan_measured(&args.budget, &bundle.manifest, plan, variant)?;
    }
    let info = set_info(&bundle, &plans);
    let onnx = global.onnx_runtime()?;
    let sessions = Sessions::new(Arc::new(onnx.clone()), args.budget.budgets_of_cpu()?, Residency::One);
    let model = Model::with_sessions(bundle.clone(), &sessions, options)?;
    let set = CalibrationSet::begin(&bundle.folder, info)?;

    let mut progress = Progress::new(args.progress);
    let steps = plans.first().map_or(1, |plan| plan.schedule.steps());
    progress.begin("record", steps * plans.len());
    record(&model, &plans, &set, &cancel, &mut |sample, step| {
        progress.advance(sample * steps + step, "");
        Ok(())
    })?;
    sessions.close_idle();
    progress.begin("observe", plans.len() * bundle.manifest.components.len());
    let engine_options = OpenOptions::cpu(args.threads.map(Threads::used), WeightMemory::Prepacked);
    let replay = Replay { bundle: &bundle, set: &set, onnx: &onnx, options: engine_options };
    let table = replay.run(&cancel, &mut |unit| {
        progress.advance(unit.done, "");
        Ok(())
    })?;
    progress.clear();
    table.write(&bundle.folder, &set.info)?;
    if !args.keep {
        std::fs::remove_dir_all(set.folder()).map_err(bundle::Error::file("remove", set.folder()))?;
    }
    let path = bundle.folder.join(table::FILE);
    let seconds = started.elapsed().as_secs_f64();
    let value = json!({
        "event": "calibrated",
        "calibration": render::path(&path),
        "samples": plans.len(),
        "seconds": seconds,
    });
    let text = format!("{}: {} clips, {seconds:.1} s", path.display(), plans.len());
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Reads one prompt per line; empty lines and lines that begin with `#` are ignored.
fn read_prompts(path: &Path) -> Result<Vec<String>, Error> {
    let text = bundle::text_file::read(path)?;
    let prompts: Vec<String> = bundle::text_file::items(&text).map(str::to_owned).collect();
    if prompts.is_empty() {
        let rule = "it contains no prompt";
        return Err(
            bundle::Error::value(Field::Prompts, path.display(), rule, "write one prompt per line").into()
        );
    }
    Ok(prompts)
}

/// The clips to record: the prompts in order, repeated, each clip with its own seed.
fn plans(
    args: &CalibrateArgs,
    bundle: &Bundle,
    prompts: &[String],
    samples: usize,
) -> Result<Vec<GenerationPlan>, Error> {
    if samples == 0 {
        return Err(Error::argument("--samples", 0, "at least one clip is needed", "use 8 or more"));
    }
    let plan = |(index, prompt): (usize, &String)| {
        let request = GenerateRequest {
            size: args.size,
            length: args.frames.map(Length::Frames),
            steps: args.steps,
            ..GenerateRequest::new(prompt.clone(), Seed(args.seed.wrapping_add(index as u64)))
        };
        Ok(GenerationPlan::new(&bundle.manifest, &request)?)
    };
    prompts.iter().cycle().take(samples).enumerate().map(plan).collect()
}

/// Refuses clips that never run an expert, or never decode later latent frames: `rushes quantize` needs both, and would
/// fail after everything was recorded.
fn check_coverage(plans: &[GenerationPlan], routing: &Routing) -> Result<(), Error> {
    // All clips have the same steps and length.
    let Some(plan) = plans.first() else { return Ok(()) };
    let steps = plan.schedule.steps();
    if let Some((expert, _)) = plan.expert_steps.iter().find(|(_, steps)| *steps == 0) {
        return Err(bundle::Error::value(
            Field::Steps,
            steps,
            format!("no step is routed to the expert {expert}, so the calibration would not cover it"),
            match enough_steps(plan, routing) {
                Some(steps) => format!("use {steps} steps or more, best as many as clips are generated with"),
                None => format!("export a checkpoint that routes steps to the expert {expert}"),
            },
        )
        .into());
    }
    let (_, latent_frames, _, _) = plan.latent.dims();
    if latent_frames < 2 {
        return Err(bundle::Error::value(
            Field::Frames,
            plan.frames.get(),
            "such a clip is one latent frame, and the decoder has another graph for all later ones",
            format!("record clips of {} frames or more", plan.frames_made + 1),
        )
        .into());
    }
    Ok(())
}

/// The smallest number of steps, from that of `plan` on, with which every expert has a step.
fn enough_steps(plan: &GenerationPlan, routing: &Routing) -> Option<usize> {
    (plan.schedule.steps()..=MAX_STEPS).find(|steps| {
        let schedule = Schedule::new(plan.solver, plan.schedule_kind, *steps, plan.shift);
        let experts: BTreeSet<ExpertIndex> =
            schedule.timesteps().iter().map(|timestep| routing.expert_at(*timestep)).collect();
        experts.len() == routing.routes().len()
    })
}

/// Everything that the recorded set depends on.
fn set_info(bundle: &Bundle, plans: &[GenerationPlan]) -> SetInfo {
    let mut settings = Vec::new();
    if let Some(plan) = plans.first() {
        let scales: Vec<String> = plan.guidance.iter().map(|scale| scale.0.to_string()).collect();
        for (name, value) in [
            ("size", plan.size.to_string()),
            ("frames", plan.frames_made.to_string()),
            ("steps", plan.schedule.steps().to_string()),
            ("guidance", scales.join(",")),
            ("shift", plan.shift.0.to_string()),
            ("sampler", plan.solver.to_string()),
            ("schedule", plan.schedule_kind.to_string()),
            ("negative", plan.negative.clone()),
        ] {
            settings.push((name.to_owned(), value));
        }
        settings.extend(plan.timesteps.iter().map(|list| ("timesteps".to_owned(), list.to_string())));
    }
    SetInfo {
        rushes: env!("CARGO_PKG_VERSION").into(),
        model: bundle.manifest.model.clone(),
        weights: weight_digests(&bundle.manifest),
        settings,
        samples: plans.iter().map(|plan| (plan.prompt.clone(), plan.seed.0)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_read_without_comments() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# two\n\na boat\n  a red ball \n").unwrap();
        assert_eq!(read_prompts(file.path()).unwrap(), ["a boat", "a red ball"]);
        std::fs::write(file.path(), "# none\n").unwrap();
        assert!(read_prompts(file.path()).unwrap_err().to_string().contains("prompts cannot be"));
    }
}
