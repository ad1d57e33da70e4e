//! `rushes bench generate`: times whole clips, without encoding the video.

use super::report::{Machine, table};
use crate::Error;
use crate::cli::devices::BudgetArgs;
use crate::cli::global::GlobalArgs;
use crate::cli::memory::plan_measured;
use crate::cli::progress::{Progress, ProgressKind};
use crate::cli::render;
use crate::cli::threads::Threads;
use crate::mini::MiniForm;
use bundle::geometry::PixelSize;
use bundle::manifest::Bundle;
use bundle::units::{ByteCount, Seed};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use clap::Args;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, Device, DeviceChoice, WeightMemory};
use quality::bench::timing::{BenchCase, TimedCase, alternate, measured};
use quality::bench::workload::Workload;
use runtime::job::{self, JobEvent};
use runtime::memory_plan::MemoryPlan;
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Prompt and seed of every timed clip.
const PROMPT: &str = "A red ball bounces on the beach";
const SEED: Seed = Seed(42);

/// The arguments of `rushes bench generate`.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Precisions, such as f32,int8 [default: all that the bundle has]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Kernels on the CPU: rushes or onnxruntime [default: rushes where the variant has them]
    #[arg(long, value_name = "NAME")]
    kernels: Option<KernelLibrary>,
    /// Width and height of the clip in pixels [default: the model's]
    #[arg(long, value_name = "WxH")]
    size: Option<PixelSize>,
    /// Number of frames [default: the model's]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Number of timed clips per precision, after one that opens the graphs
    #[arg(long, value_name = "N", default_value = "3")]
    runs: NonZeroUsize,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    progress: ProgressKind,
}

/// A clip, from the prompt to its frames.
struct Clip {
    model: Model,
    plan: GenerationPlan,
    flops: f64,
}

impl Clip {
    fn new(model: &Model, plan: &GenerationPlan) -> Self {
        let manifest = model.manifest();
        let passes: usize = plan
            .guidance
            .iter()
            .zip(&plan.expert_steps)
            .map(|(scale, (_, steps))| if scale.applies() { 2 * steps } else { *steps })
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let (passes, later) = (passes as f64, (plan.latent.frames - 1) as f64);
        let (height, width) = (plan.latent.height, plan.latent.width);
        let flops = passes * manifest.denoiser.step_flops(plan.tokens)
            + manifest.vae.first_frame_flops(height, width)
            + later * manifest.vae.next_frames_flops(height, width);
        Self { model: model.clone(), plan: plan.clone(), flops }
    }
}

impl Workload for Clip {
    fn run(&mut self, cancel: &Cancel, first: &mut dyn FnMut()) -> Result<(), quality::Error> {
        let mut is_first = true;
        // A new one, because a pipeline keeps the text states.
        let mut pipeline = Pipeline::new(&self.model);
        job::generate(&mut pipeline, &self.plan, cancel, &mut |event| {
            if matches!(event, JobEvent::Frames(_)) && std::mem::take(&mut is_first) {
                first();
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Steps and decoding; the text encoder is negligible.
    fn flops(&self) -> f64 {
        self.flops
    }
}

/// Returns true if the sessions of all clips can be open at the same time.
fn fit_together(plans: &[MemoryPlan]) -> bool {
    let devices = || plans.iter().flat_map(|plan| &plan.devices);
    let sum: ByteCount = devices().map(|device| device.peak).sum();
    devices().all(|device| device.all_stay_open && device.budget.is_none_or(|budget| sum <= budget))
}

/// Runs the command.
pub(super) fn run(args: &GenerateArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let cancel = global.interrupts.cancel();
    let folder = global.bundle_or_mini(args.bundle.as_deref(), || Ok(MiniForm::cpu()), cancel.stop())?;
    let bundle = Bundle::open(&folder)?;
    let request = GenerateRequest {
        size: args.size,
        length: args.frames.map(Length::Frames),
        steps: args.steps,
        ..GenerateRequest::new(PROMPT, SEED)
    };
    let plan = GenerationPlan::new(&bundle.manifest, &request)?;
    let onnx = global.onnx_runtime()?;
    // One owner of all sessions, so that the variants together stay within the budget.
    let sessions = Sessions::new(Arc::new(onnx), args.budget.budgets_of_cpu()?, Residency::Auto);
    let precisions = match &args.precision[..] {
        [] => bundle.manifest.precisions(Target::Cpu, KernelLibrary::Rushes),
        asked => asked.to_vec(),
    };
    let case = |precision: Precision| {
        let options = ModelOptions {
            precision: Some(precision),
            kernels: args.kernels,
            device: DeviceChoice::On(Device::CPU),
            threads: args.threads.map(Threads::used),
            weights: WeightMemory::Prepacked,
            ..ModelOptions::default()
        };
        let model = Model::with_sessions(bundle.clone(), &sessions, options)?;
        let memory = plan_measured(&args.budget, &bundle.manifest, &plan, model.variant())?;
        let kernels = if bundle.manifest.has_rushes_kernels(precision) {
            model.variant().kernels
        } else {
            KernelLibrary::OnnxRuntime
        };
        let case = BenchCase {
            variant: Variant::cpu(precision, kernels),
            device: Device::CPU,
            workload: Box::new(Clip::new(&model, &plan)),
        };
        Ok((case, memory))
    };
    let planned = precisions.into_iter().map(case).collect::<Result<Vec<_>, Error>>()?;
    let (mut cases, memory): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
    if !fit_together(&memory) && !global.json {
        render::note("the variants do not fit in memory together: times include opening graphs again");
    }
    let flops = cases.first().map(|case| case.workload.flops());

    let mut progress = Progress::new(args.progress);
    progress.begin("clips", (args.runs.get() + 1) * cases.len());
    let mut done = 0;
    let runs = alternate(&mut cases, args.runs.get(), &cancel, &mut || {
        done += 1;
        progress.advance(done, "");
    });
    progress.clear();
    let timed =
        |(case, runs): (&BenchCase, _)| TimedCase { variant: case.variant, device: case.device, runs };
    let runs: Vec<TimedCase> = cases.iter().zip(runs?).map(timed).collect();
    drop(cases);
    global.interrupts.end_immediately()?;
    let machine = Machine::measure(global.kernels()?, args.threads.map(Threads::used));
    let results = measured(&runs, flops, &machine.peaks);
    let shape = format!(
        "{} {}, {} frames, {} steps, {} tokens",
        bundle.manifest.model,
        plan.size,
        plan.frames_made,
        plan.schedule.steps(),
        plan.tokens
    );
    let mut value = machine.as_json();
    value["event"] = json!("bench");
    value["what"] = json!("generate");
    value["shape"] = json!(shape);
    value["gflop"] = json!(flops.map(|flops| flops / 1e9));
    value["results"] = json!(results);
    let text = format!("{}\n\ngenerate: {shape}\n\n{}", machine.describe(), table(&results));
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
