//! `rushes quantize`: adds a quantised variant to a calibrated bundle, and writes a report of its quality.

mod job;
mod limits;

use super::args::QuantizeArgs;
use super::global::GlobalArgs;
use super::lora;
use super::memory::plan_measured;
use super::render;
use super::threads::Threads;
use crate::Error;
use bundle::manifest::{Bundle, Manifest};
use bundle::quantization::{AttentionFormat, Scheme};
use bundle::units::Seed;
use bundle::variant::Target;
use calibration::observe::table;
use engines::{Cancel, MemoryBudgets, OnnxRuntime};
use job::Job;
use quality::quantize::assess::Assessor;
use quality::quantize::clips::ClipDistance;
use quality::quantize::report::{self, Quality};
use quality::quantize::{QuantizeOptions, Quantizer};
use runtime::model::{ModelOptions, choose_variant};
use runtime::plan::{GenerateRequest, GenerationPlan};
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

/// The seed of the first clip of the report, far from the usual seeds of a calibration.
const FIRST_SEED: u64 = 1000;
/// The prompts of the report if there is no calibration.
const PROMPTS: [&str; 2] =
    ["a red ball bounces on the beach by day", "a white cat walks through a snowy field at night"];

/// Runs the command.
pub(super) fn run(args: &QuantizeArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let path = args.calibration.clone().unwrap_or_else(|| args.bundle.join(table::FILE));
    if args.attention.is_some() && args.scheme != Scheme::Fp8 {
        let (rule, fix) =
            ("only fp8 quantises the products of attention", "add --scheme fp8, or leave it out");
        return Err(Error::argument("--attention", args.scheme, rule, fix));
    }
    let manifest = Bundle::read(&args.bundle)?.manifest;
    let passes: Vec<QuantizeOptions> =
        passes(args, &manifest).into_iter().map(|targets| options(args, targets)).collect();
    // What the second pass refuses is refused before the first.
    passes.iter().try_for_each(|options| options.check(&manifest))?;
    let cancel = global.interrupts.cancel();
    let onnx = global.onnx_runtime()?;
    let budgets = args.budget.budgets_of_cpu()?;
    // The model that variants are compared with: as exported, with the LoRAs beside its weights.
    let exported = lora::open(&args.bundle, &args.lora, (global, cancel.stop()))?;
    let loras = lora::against(&Bundle::open(&args.bundle)?, &args.lora.lora, args.lora.lora_lenient)?;
    let mut reference = None;
    for options in passes {
        let started = Instant::now();
        let quantizer = Quantizer::open(&args.bundle, &path, options)?.stopped_by(cancel.stop());
        let quantizer = quantizer.with_loras(&loras)?;
        // Both passes are compared with the same clips.
        let assessor = match &mut reference {
            Some(assessor) => assessor,
            None => reference.insert(assessor(args, (&quantizer, &exported), (&onnx, &budgets), &cancel)?),
        };
        let quality = quantize(Job::new(quantizer, &exported, (&onnx, &budgets), args, &cancel), assessor)?;
        let seconds = started.elapsed().as_secs_f64();
        let value = json!({
            "event": "quantized",
            "scheme": args.scheme,
            "targets": quality.targets,
            "psnr": quality.psnr,
            "ssim": quality.ssim,
            "clips": quality.clips,
            "judge": quality.judge,
            "report": render::path(&args.bundle.join(quality.page())),
            "seconds": seconds,
        });
        render::result(global.json, &value, &describe(&quality, args, seconds))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the targets of each pass: the numbers of int8 are not the same for all.
fn passes(args: &QuantizeArgs, manifest: &Manifest) -> Vec<Vec<Target>> {
    let mut asked = args.target.clone();
    if asked.is_empty() {
        let mut graphs = manifest.components.iter().flat_map(|entry| &entry.graphs);
        let has_plain = graphs.any(|graph| graph.variant.target == Target::Plain);
        asked.push(Target::Cpu);
        asked.extend((args.scheme == Scheme::Fp8 && has_plain).then_some(Target::Plain));
    }
    asked.sort_unstable();
    asked.dedup();
    match args.scheme {
        Scheme::Int8 => asked.into_iter().map(|target| vec![target]).collect(),
        Scheme::Fp8 | Scheme::Int8Weights | Scheme::Bf16 => vec![asked],
    }
}

fn options(args: &QuantizeArgs, targets: Vec<Target>) -> QuantizeOptions {
    let components =
        if args.components.is_empty() { args.scheme.components().to_vec() } else { args.components.clone() };
    QuantizeOptions {
        scheme: args.scheme,
        targets,
        components,
        kernels: args.kernels.clone(),
        attention: args.attention == Some(AttentionFormat::Fp8),
        ranges: args.ranges,
    }
}

/// Generates the clips of the exported model.
fn assessor<'a>(
    args: &QuantizeArgs,
    (quantizer, exported): (&Quantizer, &Bundle),
    (onnx, budgets): (&'a OnnxRuntime, &'a MemoryBudgets),
    cancel: &Cancel,
) -> Result<Assessor<'a>, Error> {
    let manifest = &exported.manifest;
    let mut prompts = quantizer.prompts();
    if prompts.is_empty() {
        prompts.extend(PROMPTS.map(str::to_owned));
    }
    let plan = |(index, prompt): (usize, &String)| {
        let request = GenerateRequest::new(prompt.clone(), Seed(FIRST_SEED + index as u64));
        GenerationPlan::new(manifest, &request)
    };
    let plans = prompts.iter().cycle().take(args.clips.max(1)).enumerate().map(plan);
    let plans = plans.collect::<Result<Vec<_>, _>>()?;
    // All clips have the same size. The exported variant needs the most memory.
    if let Some(plan) = plans.first() {
        let options = ModelOptions::of_variant(None);
        let variant = choose_variant(manifest, Target::Cpu, onnx.kernels().path(), &options)?;
        plan_measured(&args.budget, manifest, plan, variant)?;
    }
    let threads = args.threads.map(Threads::used);
    Ok(Assessor::new(exported, onnx, budgets, threads, plans, cancel)?)
}

/// Quantises all components, measures the variant, and makes it part of the bundle.
fn quantize(mut job: Job<'_>, assessor: &Assessor<'_>) -> Result<Quality, Error> {
    job.quantize_all(assessor)?;
    let assessed = job.within_budget(assessor)?;
    let distances: Vec<ClipDistance> = assessed.iter().map(|(distance, _)| distance.clone()).collect();
    let quality = job.quality(assessor, distances)?;
    // The rest is short and is not interrupted.
    job.cancel.stop().check()?;
    job.quantizer.commit()?;
    job.quantizer.write_numerics()?;
    report::write(job.quantizer.bundle(), &quality, &assessor.pairs(assessed))?;
    Ok(quality)
}

fn describe(quality: &Quality, args: &QuantizeArgs, seconds: f64) -> String {
    let mut lines = Vec::new();
    for component in &quality.components {
        let share = component.share.as_ref().map_or(String::new(), |share| {
            let unit = if quality.scheme == Scheme::Fp8 { "E4M3" } else { "integers" };
            format!(", {:.1} % of its work in {unit}", 100.0 * share.ratio())
        });
        let note = component.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        lines.push(format!("{}: {} layers{share}{note}", component.component, component.layers.len()));
    }
    lines.push(format!(
        "worst of {} clips: {:.1} dB, SSIM {:.4}; see {}, {seconds:.1} s",
        quality.clips.len(),
        quality.psnr,
        quality.ssim,
        args.bundle.join(quality.page()).display()
    ));
    if let Some(judge) = &quality.judge {
        lines.push(format!(
            "judge, {} clips: {:.1} % of what was asked for, {:.1} % exported; difference {:+.2} ± {:.2} points",
            judge.clips,
            100.0 * judge.variant,
            100.0 * judge.reference,
            100.0 * judge.difference,
            100.0 * judge.interval
        ));
    }
    if let Some(budget) = args.budget_psnr.filter(|budget| quality.psnr < *budget) {
        lines.push(format!("warning: {budget} dB is not reached, even with every layer in high precision"));
    }
    lines.join("\n")
}
