//! `rushes bench step|decode|text`: times single graphs at real sizes, with random weights or those of a bundle.

use super::report::{Machine, table};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::progress::{Progress, ProgressKind};
use crate::cli::render;
use crate::cli::threads::Threads;
use bundle::Field;
use bundle::dtype::WeightType;
use bundle::manifest::Bundle;
use bundle::staging::Scratch;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use clap::Args;
use engines::{Cancel, Device, DeviceChoice, OnnxRuntime, Provider, WeightMemory};
use export::synthetic::Form;
use quality::bench::accelerated::OnAccelerator;
use quality::bench::shape::{
    LatentSize, Shape, Subject, TokenGrid, random_bundle, random_bundle_in, text_encoder,
};
use quality::bench::timing::{BenchCase, TimedCase, alternate, measured};
use quality::bench::variants;
use quality::bench::workload::{Decode, Step, Text, Workload};
use runtime::model::{Model, ModelOptions};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// The options of every graph.
#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    /// Time the graphs of this bundle [default: graphs with random weights]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Precisions, such as f32,int8 [default: all that are available]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Also time the graphs on these devices, such as openvino or cuda:0,tensorrt:0. Without --precision in f32 and
    /// bf16 on openvino, in f32 on webgpu, and in bf16 on the others. Graphs with random weights are timed there in f32,
    /// f16 and bf16 only
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    ep: Vec<Device>,
    /// Time no graphs on the CPU
    #[arg(long, requires = "ep")]
    without_cpu: bool,
    /// Number of timed runs per precision, after one warm-up run
    #[arg(long, value_name = "N", default_value = "3")]
    runs: NonZeroUsize,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Use weights directly from their files, without copies in the layout of the kernels
    #[arg(long)]
    mapped: bool,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    progress: ProgressKind,
}

/// The arguments of `rushes bench step`.
#[derive(Debug, Args)]
pub(super) struct StepArgs {
    /// Size of the denoiser: 1.3b, 5b or a14b
    #[arg(long, value_name = "NAME", default_value = "1.3b", conflicts_with = "bundle")]
    shape: Shape,
    /// Number of layers; every layer costs the same [default: the shape's]
    #[arg(long, value_name = "N", conflicts_with = "bundle")]
    layers: Option<NonZeroUsize>,
    /// Number of tokens, or their grid as frames, rows and columns
    #[arg(long, value_name = "N|F,H,W", default_value = "5,15,26")]
    tokens: TokenGrid,
    #[command(flatten)]
    pub(super) graph: GraphArgs,
}

/// The arguments of `rushes bench decode`.
#[derive(Debug, Args)]
pub(super) struct DecodeArgs {
    /// Size of the latent as frames, height and width
    #[arg(long, value_name = "T,H,W", default_value = "3,30,52")]
    latent: LatentSize,
    #[command(flatten)]
    pub(super) graph: GraphArgs,
}

/// The arguments of `rushes bench text`.
#[derive(Debug, Args)]
pub(super) struct TextArgs {
    /// Number of layers of umT5-XXL; every layer costs the same
    #[arg(long, value_name = "N", default_value = "2", conflicts_with = "bundle")]
    layers: NonZeroUsize,
    /// Number of tokens of the prompt, at most 512
    #[arg(long, value_name = "N", default_value = "512")]
    tokens: NonZeroUsize,
    #[command(flatten)]
    pub(super) graph: GraphArgs,
}

/// Runs `rushes bench step`.
pub(super) fn step(args: &StepArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let layers = args.layers.map(NonZeroUsize::get);
    let denoiser = args.shape.denoiser(layers);
    let shape = match &args.graph.bundle {
        Some(_) => String::new(),
        None => format!("{} shape, {} layers, ", args.shape, denoiser.layers),
    };
    let bench = Bench {
        what: "step",
        shape: format!("{shape}{} tokens", args.tokens.tokens()),
        subject: Subject::Step(denoiser),
        args: &args.graph,
    };
    bench.run(global, &|model| Ok(Box::new(Step::open(model, args.tokens.0)?)))
}

/// Runs `rushes bench decode`.
pub(super) fn decode(args: &DecodeArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let [frames, height, width] = args.latent.0;
    let bench = Bench {
        what: "decode",
        shape: format!("{frames} latent frames of {height}x{width}"),
        subject: Subject::Decode,
        args: &args.graph,
    };
    bench.run(global, &|model| Ok(Box::new(Decode::open(model, args.latent.0)?)))
}

/// Runs `rushes bench text`.
pub(super) fn text(args: &TextArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let tokens = args.tokens.get();
    if tokens > bundle::spec::TEXT_ROWS {
        let rule = format!("a prompt has at most {} tokens", bundle::spec::TEXT_ROWS);
        return Err(bundle::Error::value(Field::Tokens, tokens, rule, "use 512 or fewer").into());
    }
    let shape = match &args.graph.bundle {
        Some(_) => String::new(),
        None => format!("{} layers of umT5-XXL, ", args.layers),
    };
    let bench = Bench {
        what: "text",
        shape: format!("{shape}{tokens} tokens"),
        subject: Subject::Text(text_encoder(args.layers.get())),
        args: &args.graph,
    };
    bench.run(global, &|model| Ok(Box::new(Text::open(model, tokens)?)))
}

/// The form of a random bundle for a device.
fn form_on(device: Device, precision: Precision) -> Result<Form, Error> {
    if device == Device::CPU {
        let fix = "name an accelerator, and leave out `without_cpu`";
        return Err(bundle::Error::value(Field::Provider, device, "the CPU is timed in any case", fix).into());
    }
    let weights = match precision {
        Precision::F32 => WeightType::F32,
        Precision::F16 => WeightType::F16,
        Precision::Bf16 | Precision::Int8 | Precision::Fp8 | Precision::Int8Weights => WeightType::Bf16,
    };
    Ok(Form { target: device.target(), weights })
}

type Open<'a> = &'a dyn Fn(&Model) -> Result<Box<dyn Workload>, Error>;

/// One graph and how it is timed.
struct Bench<'a> {
    what: &'static str,
    /// Its sizes, for the text output.
    shape: String,
    subject: Subject,
    args: &'a GraphArgs,
}

impl Bench<'_> {
    fn run(&self, global: &GlobalArgs, open: Open<'_>) -> Result<ExitCode, Error> {
        let onnx = global.onnx_runtime_for(self.args.ep.iter().copied())?;
        let cancel = global.interrupts.cancel();
        // Removed with all its weights when the command ends.
        let scratch = Scratch::create(&std::env::temp_dir(), "rushes-bench")?;
        let bundle = match &self.args.bundle {
            Some(bundle) => Bundle::open(bundle)?,
            None => {
                let mut random = random_bundle(scratch.folder(), &self.subject, cancel.stop())?;
                variants::add(&mut random, &self.args.precision, onnx.kernels(), cancel.stop())?;
                random
            }
        };
        let mut cases = Vec::new();
        if !self.args.without_cpu {
            cases.extend(self.cases(&bundle, &onnx, open)?);
        }
        let mut accelerated = Vec::new();
        for &device in &self.args.ep {
            for precision in self.precisions_on(device)? {
                let form = form_on(device, precision)?;
                let of_device = match &self.args.bundle {
                    Some(_) => bundle.clone(),
                    None => {
                        let folder = scratch.folder().join(format!("{}-{precision}", form.target));
                        random_bundle_in(&folder, &self.subject, form, cancel.stop())?
                    }
                };
                let (case, facts) =
                    self.accelerated(&of_device, &onnx, (device, precision), open, &cancel)?;
                cases.push(case);
                accelerated.push(facts);
            }
        }
        let flops = cases.first().map(|case| case.workload.flops());
        let mut progress = Progress::new(self.args.progress);
        let rounds = self.args.runs.get();
        progress.begin(self.what, (rounds + 1) * cases.len());
        let mut done = 0;
        let runs = alternate(&mut cases, rounds, &cancel, &mut || {
            done += 1;
            progress.advance(done, "");
        });
        progress.clear();
        let runs = runs?;
        let timed =
            |(case, runs): (&BenchCase, _)| TimedCase { variant: case.variant, device: case.device, runs };
        let timed: Vec<TimedCase> = cases.iter().zip(runs).map(timed).collect();
        // The peaks are measured when nothing else is running.
        drop(cases);
        drop(scratch);
        global.interrupts.end_immediately()?;
        let machine = Machine::measure(global.kernels()?, self.args.threads.map(Threads::used));
        let results = measured(&timed, flops, &machine.peaks);
        let gflop = flops.map(|flops| flops / 1e9);
        let mut value = machine.as_json();
        value["event"] = json!("bench");
        value["what"] = json!(self.what);
        value["shape"] = json!(self.shape);
        value["gflop"] = json!(gflop);
        value["results"] = json!(results);
        value["accelerators"] = json!(accelerated);
        let work = gflop.map_or(String::new(), |gflop| format!(", {gflop:.1} GFLOP"));
        let facts: String = accelerated.iter().map(|facts| format!("\n{facts}")).collect();
        let text = format!(
            "{}\n\n{}: {}{work}\n\n{}{facts}",
            machine.describe(),
            self.what,
            self.shape,
            table(&results)
        );
        render::result(global.json, &value, &text)?;
        Ok(ExitCode::SUCCESS)
    }

    fn cases(&self, bundle: &Bundle, onnx: &OnnxRuntime, open: Open<'_>) -> Result<Vec<BenchCase>, Error> {
        let precisions = match &self.args.precision[..] {
            [] => bundle.manifest.precisions(Target::Cpu, KernelLibrary::Rushes),
            asked => asked.to_vec(),
        };
        let weights = if self.args.mapped { WeightMemory::Mapped } else { WeightMemory::Prepacked };
        let case = |variant: Variant| {
            let options = ModelOptions {
                precision: Some(variant.precision),
                kernels: self.is_step().then_some(variant.kernels),
                device: DeviceChoice::On(Device::CPU),
                threads: self.args.threads.map(Threads::used),
                weights,
                ..ModelOptions::default()
            };
            let model = Model::new(bundle.clone(), onnx.clone(), options)?;
            Ok(BenchCase { variant, device: Device::CPU, workload: open(&model)? })
        };
        precisions.into_iter().flat_map(|precision| self.variants(bundle, precision)).map(case).collect()
    }

    /// The precisions that are timed on an accelerator.
    ///
    /// # Errors
    /// None of the precisions that were asked for can be.
    fn precisions_on(&self, device: Device) -> Result<Vec<Precision>, Error> {
        let by_default: &[Precision] = match device.provider() {
            Provider::OpenVino => &[Precision::F32, Precision::Bf16],
            Provider::WebGpu => &[Precision::F32],
            Provider::Cpu | Provider::Cuda | Provider::TensorRt | Provider::TensorRtRtx => &[Precision::Bf16],
        };
        let found: Vec<Precision> = match &self.args.precision[..] {
            [] => by_default.to_vec(),
            asked if self.args.bundle.is_some() => asked.to_vec(),
            asked => {
                let is_float = |precision: &Precision| {
                    matches!(precision, Precision::F32 | Precision::Bf16 | Precision::F16)
                };
                asked.iter().copied().filter(is_float).collect()
            }
        };
        if found.is_empty() {
            let given: Vec<String> = self.args.precision.iter().map(ToString::to_string).collect();
            let rule = format!("on {device}, graphs with random weights are timed in f32, f16 and bf16 only");
            let fix = "add one of these, or time a quantised `bundle`";
            return Err(bundle::Error::value(Field::Precision, given.join(","), rule, fix).into());
        }
        Ok(found)
    }

    /// Opens the graphs on an accelerator, and runs them once.
    fn accelerated(
        &self,
        bundle: &Bundle,
        onnx: &OnnxRuntime,
        (device, precision): (Device, Precision),
        open: Open<'_>,
        cancel: &Cancel,
    ) -> Result<(BenchCase, OnAccelerator), Error> {
        let options = ModelOptions {
            precision: Some(precision),
            device: DeviceChoice::On(device),
            threads: self.args.threads.map(Threads::used),
            ..ModelOptions::default()
        };
        let model = Model::new(bundle.clone(), onnx.clone(), options)?;
        let (workload, facts) = OnAccelerator::measure(&model, device, precision, cancel, || open(&model))?;
        let variant = Variant { target: device.target(), precision, kernels: KernelLibrary::OnnxRuntime };
        Ok((BenchCase { variant, device, workload }, facts))
    }

    fn is_step(&self) -> bool {
        matches!(self.subject, Subject::Step(_))
    }

    /// The variants of a precision: steps may have one for each library of kernels. At least one, so that a missing
    /// precision is refused by its name.
    fn variants(&self, bundle: &Bundle, precision: Precision) -> Vec<Variant> {
        let manifest = &bundle.manifest;
        let is_available = |kernels: &KernelLibrary| match kernels {
            KernelLibrary::OnnxRuntime => manifest.precisions(Target::Cpu, *kernels).contains(&precision),
            KernelLibrary::Rushes => manifest.has_rushes_kernels(precision),
        };
        let mut found: Vec<KernelLibrary> = Vec::new();
        if self.is_step() {
            found.extend(
                [KernelLibrary::OnnxRuntime, KernelLibrary::Rushes]
                    .iter()
                    .filter(|kernels| is_available(kernels)),
            );
        }
        if found.is_empty() {
            found.push(KernelLibrary::OnnxRuntime);
        }
        found.into_iter().map(|kernels| Variant::cpu(precision, kernels)).collect()
    }
}
