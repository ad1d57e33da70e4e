//! `rushes verify`: makes a clip again, and compares the latent after every step.

use super::args::VerifyArgs;
use super::generate::{check_noise, record_of};
use super::global::GlobalArgs;
use super::lora;
use super::memory::sessions;
use super::progress::Progress;
use super::render;
use super::threads::Threads;
use crate::Error;
use crate::mini::MiniForm;
use bundle::Field;
use engines::{Device, DeviceChoice, WeightMemory};
use kernels::{CpuPath, Kernels};
use runtime::decode::Tiles;
use runtime::job::{ClipRecord, Job, JobEvent, JobStart, ModelIdentity, RunConditions};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, scaled_noise, seeded_noise};
use runtime::trace::read_noise;
use serde_json::json;
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// The exit code if the latents differ.
const DIFFERENT: u8 = 1;

/// Runs the command.
pub(super) fn run(args: &VerifyArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let record = record_of(&args.clip)?;
    if record.latents.is_empty() {
        let rule = "no digests of its latents are stored in it";
        let fix = "repeat it with `rushes generate --like` and compare by eye";
        return Err(bundle::Error::value(Field::Clip, "verified", rule, fix).into());
    }
    let cancel = global.interrupts.cancel();
    let variant = record.spec.variant;
    let form = || Ok(MiniForm::new([variant.target], variant.precision)?);
    let folder = global.bundle_or_mini(args.bundle.as_deref(), form, cancel.stop())?;
    let bundle = lora::open(&folder, &args.lora, (global, cancel.stop()))?;
    lora::check(&record.spec, &bundle, false)?;
    let plan = record.spec.plan(&bundle.manifest)?;
    check_noise(&record.spec, args.noise.as_deref())?;
    let noise = match &args.noise {
        Some(path) => scaled_noise(read_noise(path, plan.latent)?, &plan),
        None => seeded_noise(&plan),
    };
    let request = MemoryRequest {
        // Nothing is decoded.
        tiles: Tiles::Off,
        weights: record.conditions.mapped_weights.then_some(WeightMemory::Mapped),
        residency: args.memory.residency,
        budgets: args.memory.budget.budgets_of_cpu()?,
        ..MemoryRequest::new(record.spec.variant)
    };
    let memory = MemoryPlan::new(&bundle.manifest, &plan, &request)?;
    let options = ModelOptions {
        precision: Some(record.spec.variant.precision),
        kernels: Some(record.spec.variant.kernels),
        device: DeviceChoice::On(Device::CPU),
        threads: args.threads.map(Threads::used).or_else(|| threads_of(&record.conditions)),
        weights: memory.weights,
        ..ModelOptions::default()
    };
    let onnx = path_of(global, &record.conditions).onnx_runtime()?;
    let sessions = sessions(onnx, &memory, args.memory.residency);
    let model = Model::with_sessions(bundle, &sessions, options)?;
    check_bundle(&record, &model)?;
    let mut pipeline = Pipeline::new(&model);
    let mut start = JobStart::new(&pipeline, plan, noise)?;
    start.spec.forks.clone_from(&record.spec.forks);
    let (job, events) = Job::new(&pipeline, start);
    let mut job = job.with_cancel(&cancel);

    let steps = record.latents.len();
    let mut progress = Progress::new(args.progress);
    let mut different = None;
    while different.is_none() && job.denoising().steps_done() < steps {
        if job.denoising().next().is_none() {
            // The record has more digests than the clip has steps.
            different = Some(job.denoising().steps_done() + 1);
            break;
        }
        job.advance(&mut pipeline)?;
        for event in events.try_iter() {
            match event {
                JobEvent::Encoding => progress.begin("text", 1),
                JobEvent::Denoising { .. } => progress.begin("denoise", steps),
                JobEvent::Step { done, digest } => {
                    progress.advance(done.step + 1, &done.expert.0);
                    if record.latents.get(done.step) != Some(&digest) {
                        different = Some(done.step + 1);
                    }
                }
                _ => {}
            }
        }
    }
    progress.clear();
    let mut made_under = record.earlier.clone();
    made_under.push(record.conditions.clone());
    let differences = job.conditions().all_differences(&made_under, false);
    let value = json!({
        "event": "verified",
        "clip": render::path(&args.clip),
        "same": different.is_none(),
        "steps": steps,
        "differs_from_step": different,
        "differences": differences,
    });
    render::result(global.json, &value, &verdict(different, steps, &differences))?;
    Ok(different.map_or(ExitCode::SUCCESS, |_| ExitCode::from(DIFFERENT)))
}

/// The result as text.
fn verdict(different: Option<usize>, steps: usize, differences: &[String]) -> String {
    let reason = if differences.is_empty() { None } else { Some(differences.join(", ")) };
    match (different, reason) {
        (None, None) => format!("the same bits after each of {steps} steps"),
        (None, Some(reason)) => format!("the same bits after each of {steps} steps, in spite of {reason}"),
        (Some(step), Some(reason)) => format!("differs from step {step} on; the likely reason: {reason}"),
        (Some(step), None) => format!(
            "differs from step {step} on, and nothing that is known to change bits differs; the file may have been changed"
        ),
    }
}

/// The number of threads that made the clip, if this process may use as many.
fn threads_of(conditions: &RunConditions) -> Option<NonZeroUsize> {
    let available = std::thread::available_parallelism().ok()?;
    NonZeroUsize::new(conditions.threads).filter(|threads| *threads <= available)
}

/// The global arguments with the CPU path that made the clip, if no other is given and this processor has it.
fn path_of(global: &GlobalArgs, conditions: &RunConditions) -> GlobalArgs {
    let recorded = || conditions.cpu_path.parse::<CpuPath>().ok().filter(|path| Kernels::of(*path).is_ok());
    GlobalArgs { cpu_path: global.cpu_path.or_else(recorded), ..global.clone() }
}

/// Refuses a bundle that the clip was not made with.
fn check_bundle(record: &ClipRecord, model: &Model) -> Result<(), Error> {
    let (made_with, own) = (&record.spec.model, ModelIdentity::of(model)?);
    if made_with.digest == own.digest {
        return Ok(());
    }
    let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
    let rule = format!(
        "the clip was made with {} {}, and this bundle is {} {}",
        made_with.name,
        short(&made_with.digest),
        own.name,
        short(&own.digest)
    );
    let fix = "give the bundle that the clip was made with";
    Err(bundle::Error::value(Field::Bundle, "used to verify the clip", rule, fix).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_the_likely_reason() {
        let threads = ["threads 1 instead of 2".to_owned()];
        insta::assert_snapshot!(verdict(None, 8, &[]), @"the same bits after each of 8 steps");
        insta::assert_snapshot!(verdict(None, 8, &threads), @"the same bits after each of 8 steps, in spite of threads 1 instead of 2");
        insta::assert_snapshot!(verdict(Some(7), 8, &threads), @"differs from step 7 on; the likely reason: threads 1 instead of 2");
        assert!(verdict(Some(1), 8, &[]).contains("may have been changed"));
    }
}
