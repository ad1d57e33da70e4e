//! `rushes bench record`: writes the measurements of this machine to one file.

use super::report::Machine;
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::progress::{Progress, ProgressKind};
use crate::cli::render;
use crate::cli::threads::Threads;
use bundle::atomic;
use bundle::manifest::{Bundle, Component};
use bundle::staging::Scratch;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use clap::Args;
use engines::{Cancel, Device, DeviceChoice, OnnxRuntime, WeightMemory};
use quality::bench::record::{
    ClipLength, DECODED, DecoderRecord, FORMAT, LAYERS, LayersRecord, Record, StepRecord, TEXT_LAYERS, clips,
};
use quality::bench::shape::{Shape, Subject, random_bundle, text_encoder};
use quality::bench::timing::{BenchCase, alternate, peak_of};
use quality::bench::variants;
use quality::bench::workload::{Decode, Run, Step, Text, Workload};
use runtime::model::{Model, ModelOptions};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The lowest expected share of the peak, which decides whether a step is started.
const SHARE_AT_LEAST: f64 = 0.3;

/// `rushes bench record`.
#[derive(Debug, Args)]
pub(super) struct RecordArgs {
    /// Write the record to this JSON file, which must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Denoiser sizes: 1.3b, 5b or a14b, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "1.3b,5b")]
    shapes: Vec<Shape>,
    /// Precisions, such as f32,int8
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "f32,bf16,int8")]
    precision: Vec<Precision>,
    /// Number of timed runs of each graph, after one warm-up run
    #[arg(long, value_name = "N", default_value = "3")]
    runs: NonZeroUsize,
    /// Skip steps of which one run would take longer than this, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    longest: NonZeroUsize,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    progress: ProgressKind,
}

/// Runs the command.
pub(super) fn run(args: &RecordArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    if args.out.symlink_metadata().is_ok() {
        let fix = "name another file, or remove that one";
        return Err(Error::argument("--out", args.out.display(), "it already exists", fix));
    }
    // A path that cannot be written is refused before the measurements.
    let mut part = atomic::create_part(&args.out).map_err(bundle::Error::file("write", &args.out))?;
    let onnx = global.onnx_runtime()?;
    let machine = Machine::measure(global.kernels()?, args.threads.map(Threads::used));
    let mut bench = Bench {
        args,
        machine,
        onnx,
        cancel: global.interrupts.cancel(),
        progress: Progress::new(args.progress),
        not_measured: Vec::new(),
    };
    let mut steps = Vec::new();
    for shape in &args.shapes {
        steps.extend(bench.steps(*shape)?);
    }
    let decoder = bench.decoder()?;
    let text = bench.text()?;
    global.interrupts.end_immediately()?;
    let record = Record {
        format: FORMAT,
        rushes: env!("CARGO_PKG_VERSION").into(),
        machine: bench.machine.as_json(),
        clips: clips(&steps, &decoder, &text),
        steps,
        decoder,
        text,
        not_measured: bench.not_measured,
    };
    let mut value = json!(record);
    let written = writeln!(part, "{value:#}").and_then(|()| atomic::publish(part, &args.out));
    written.map_err(bundle::Error::file("write", &args.out))?;
    let text = format!("{}\n\n{}\nwritten: {}", bench.machine.describe(), table(&record), args.out.display());
    value["event"] = json!("bench");
    value["what"] = json!("record");
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

struct Bench<'a> {
    args: &'a RecordArgs,
    machine: Machine,
    onnx: OnnxRuntime,
    cancel: Cancel,
    progress: Progress,
    not_measured: Vec<String>,
}

/// The runs of one variant for each bundle.
type RunsOfBundles = Vec<Vec<Run>>;
type Open<'a> = &'a dyn Fn(&Model) -> Result<Box<dyn Workload>, Error>;

impl Bench<'_> {
    /// Measures the steps of a denoiser for every clip length.
    fn steps(&mut self, shape: Shape) -> Result<Vec<StepRecord>, Error> {
        let whole = shape.denoiser(None);
        let subjects = LAYERS.map(|layers| Subject::Step(shape.denoiser(Some(layers))));
        let (_scratch, bundles) = self.bundles(&subjects)?;
        let mut found = Vec::new();
        for clip in ClipLength::ALL {
            let grid = clip.tokens(shape);
            let name = format!("{shape} {}", clip.name());
            let flops = shape.denoiser(Some(LAYERS[1])).step_flops(grid.tokens());
            let chosen = self.variants_in_time(&bundles[0], &name, flops);
            let open = |model: &Model| -> Result<Box<dyn Workload>, Error> {
                Ok(Box::new(Step::open(model, grid.0)?))
            };
            for (variant, runs) in self.pairs("step", &bundles, &chosen, &open)? {
                let Some(times) = self.layers(&name, variant, whole.layers, &runs) else { continue };
                let flops = whole.step_flops(grid.tokens());
                found.push(StepRecord {
                    shape: shape.to_string(),
                    clip: clip.name().into(),
                    tokens: grid.tokens(),
                    gflop: flops / 1e9,
                    share_of_peak: flops / times.whole_s / peak_of(variant, &self.machine.peaks),
                    times,
                });
            }
        }
        Ok(found)
    }

    fn decoder(&mut self) -> Result<Vec<DecoderRecord>, Error> {
        let (_scratch, bundles) = self.bundles(&[Subject::Decode])?;
        let [height, width] = DECODED;
        let open = |model: &Model| -> Result<Box<dyn Workload>, Error> {
            Ok(Box::new(Decode::open(model, [2, height, width])?))
        };
        let vae = &bundles[0].manifest.vae;
        let scale = [
            vae.first_frame_flops(2 * height, 2 * width) / vae.first_frame_flops(height, width),
            vae.next_frames_flops(2 * height, 2 * width) / vae.next_frames_flops(height, width),
        ];
        let chosen = self.variants(&bundles[0]);
        let mut found = Vec::new();
        for (variant, runs) in self.pairs("decoder", &bundles, &chosen, &open)? {
            let first: Vec<Duration> = runs[0].iter().filter_map(|run| run.first).collect();
            let next: Vec<Duration> =
                runs[0].iter().map(|run| run.whole - run.first.unwrap_or_default()).collect();
            found.extend(DecoderRecord::new(variant, &first, &next, scale));
        }
        Ok(found)
    }

    fn text(&mut self) -> Result<Vec<LayersRecord>, Error> {
        let (_scratch, bundles) = self.bundles(&LAYERS.map(|layers| Subject::Text(text_encoder(layers))))?;
        let chosen = self.variants(&bundles[0]);
        let open = |model: &Model| -> Result<Box<dyn Workload>, Error> {
            Ok(Box::new(Text::open(model, bundle::spec::TEXT_ROWS)?))
        };
        let pairs = self.pairs("text", &bundles, &chosen, &open)?;
        Ok(pairs
            .into_iter()
            .filter_map(|(variant, runs)| self.layers("text", variant, TEXT_LAYERS, &runs))
            .collect())
    }

    /// Writes bundles with random weights in the requested precisions. They are removed with the folder.
    fn bundles(&self, subjects: &[Subject]) -> Result<(Scratch, Vec<Bundle>), Error> {
        let stop = self.cancel.stop();
        let scratch = Scratch::create(&std::env::temp_dir(), "rushes-bench")?;
        let make = |(index, subject): (usize, &Subject)| {
            let folder = scratch.folder().join(index.to_string());
            let mut bundle = random_bundle(&folder, subject, stop)?;
            variants::add(&mut bundle, &self.args.precision, self.onnx.kernels(), stop)?;
            Ok(bundle)
        };
        let bundles = subjects.iter().enumerate().map(make).collect::<Result<_, Error>>()?;
        Ok((scratch, bundles))
    }

    /// Returns the requested variants that exist, with Rushes kernels where the bundle has them.
    fn variants(&self, bundle: &Bundle) -> Vec<Variant> {
        let manifest = &bundle.manifest;
        let exported = manifest.precisions(Target::Cpu, KernelLibrary::OnnxRuntime);
        let variant = |precision: Precision| match manifest.has_rushes_kernels(precision) {
            true => Some(Variant::cpu(precision, KernelLibrary::Rushes)),
            // ONNX Runtime kernels widen bf16 to f32: its speed is that of f32.
            false => (precision != Precision::Bf16 && exported.contains(&precision))
                .then_some(Variant::cpu(precision, KernelLibrary::OnnxRuntime)),
        };
        self.args.precision.iter().filter_map(|precision| variant(*precision)).collect()
    }

    /// Returns the variants of which one run of `flops` operations fits the limit, and lists the others.
    fn variants_in_time(&mut self, bundle: &Bundle, name: &str, flops: f64) -> Vec<Variant> {
        let longest = Duration::from_secs(self.args.longest.get() as u64).as_secs_f64();
        let mut chosen = self.variants(bundle);
        chosen.retain(|variant| {
            let seconds = flops / (SHARE_AT_LEAST * peak_of(*variant, &self.machine.peaks));
            if seconds > longest {
                self.not_measured.push(format!(
                    "step of {name} in {}: a run of {} layers might take {seconds:.0} s, longer than --longest {longest}",
                    variant.precision, LAYERS[1]
                ));
            }
            seconds <= longest
        });
        chosen
    }

    /// Runs all variants alternately on all bundles. Returns the runs of every variant, in the order of the bundles.
    fn pairs(
        &mut self,
        phase: &'static str,
        bundles: &[Bundle],
        chosen: &[Variant],
        open: Open<'_>,
    ) -> Result<Vec<(Variant, RunsOfBundles)>, Error> {
        let mut cases = Vec::new();
        for variant in chosen {
            for bundle in bundles {
                let is_step = bundle
                    .manifest
                    .components
                    .iter()
                    .any(|entry| matches!(entry.component, Component::Expert(_)));
                let options = ModelOptions {
                    precision: Some(variant.precision),
                    kernels: is_step.then_some(variant.kernels),
                    device: DeviceChoice::On(Device::CPU),
                    threads: self.args.threads.map(Threads::used),
                    weights: WeightMemory::Prepacked,
                    ..ModelOptions::default()
                };
                let model = Model::new(bundle.clone(), self.onnx.clone(), options)?;
                cases.push(BenchCase { variant: *variant, device: Device::CPU, workload: open(&model)? });
            }
        }
        let rounds = self.args.runs.get();
        self.progress.begin(phase, (rounds + 1) * cases.len());
        let (mut done, progress) = (0, &mut self.progress);
        let runs = alternate(&mut cases, rounds, &self.cancel, &mut || {
            done += 1;
            progress.advance(done, "");
        });
        self.progress.clear();
        let runs = runs?;
        Ok(chosen.iter().copied().zip(runs.chunks(bundles.len().max(1)).map(<[_]>::to_vec)).collect())
    }

    fn layers(
        &mut self,
        name: &str,
        variant: Variant,
        layers: usize,
        runs: &[Vec<Run>],
    ) -> Option<LayersRecord> {
        let [one, two] = runs else { return None };
        let [one, two] = [one, two].map(|runs| runs.iter().map(|run| run.whole).collect::<Vec<_>>());
        let found = LayersRecord::new(variant, layers, [&one, &two]);
        if found.is_none() {
            self.not_measured.push(format!(
                "{name} in {}: {} layers were not slower than {}; measure again when nothing else runs",
                variant.precision, LAYERS[1], LAYERS[0]
            ));
        }
        found
    }
}

/// The record as text.
fn table(record: &Record) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    for step in &record.steps {
        let (precision, share) = (step.times.precision, 100.0 * step.share_of_peak);
        let whole = step.times.whole_s;
        let _ = writeln!(
            text,
            "step {:<5} {} {precision:<5} {whole:>9.2} s {share:>5.1} %",
            step.shape, step.clip
        );
    }
    for one in &record.decoder {
        let _ = writeln!(
            text,
            "decoder {:<5} first {:.2} s, next {:.2} s",
            one.precision, one.first_s, one.next_s
        );
    }
    for one in &record.text {
        let _ = writeln!(text, "text {:<5} {:.2} s", one.precision, one.whole_s);
    }
    for clip in &record.clips {
        let guided = if clip.guided { ", guided" } else { "" };
        let (precision, steps, seconds) = (clip.precision, clip.steps, clip.seconds);
        let _ = writeln!(
            text,
            "clip {} {} {precision:<5} {steps} steps{guided}: {seconds:.0} s",
            clip.shape, clip.clip
        );
    }
    for missing in &record.not_measured {
        let _ = writeln!(text, "not measured: {missing}");
    }
    text
}
