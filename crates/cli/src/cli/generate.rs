//! `rushes generate`: generates a clip from a prompt and writes it to all outputs.

use super::args::GenerateArgs;
use super::global::GlobalArgs;
use super::preview;
use super::progress::Progress;
use super::render::{self, Stream};
use super::seed::SeedChoice;
use super::threads::Threads;
use super::timing::Timing;
use crate::Error;
use bundle::manifest::{Bundle, Component, GraphEntry, Part};
use bundle::units::{ByteCount, FrameRate, GuidanceScale};
use bundle::variant::{KernelLibrary, Precision};
use engines::{WeightMemory, residency};
use media::live::LivePublisher;
use media::post_process::PostProcess;
use media::{self, ClipFormat, Outcome, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder, Tags};
use ndarray::{Array4, ArrayView4, Axis, Slice};
use prompt::Cut;
use runtime::decode::{TileSide, Tiles, Tiling};
use runtime::footprint::{MemorySettings, footprints};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Event, Pipeline, scaled_noise, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::preview::{PreviewReport, Previewer};
use runtime::trace::{Trace, read_noise};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the command. Bad input is refused before a graph is opened.
pub(super) fn run(args: &GenerateArgs, global: &GlobalArgs, stream: Stream) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let request = request(args)?;
    let cancel = global.interrupts.cancel();
    let folder = global.bundle_or_mini(args.bundle.as_deref(), cancel.stop())?;
    let bundle = Bundle::open(&folder)?;
    let plan = GenerationPlan::new(&bundle.manifest, &request)?;
    let MemoryPlan { mode, weights, tile } = plan_memory(args, &bundle, &plan)?;
    let noise = match &args.noise {
        Some(path) => scaled_noise(read_noise(path, plan.latent)?, &plan),
        None => seeded_noise(&plan),
    };
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    // Loading may set an environment variable, so it comes before GStreamer starts threads.
    let onnx = global.onnx_runtime()?;
    let token = args.whip_token.as_ref();
    let outputs: Vec<_> = args.output.iter().map(|output| output.clone().with_token(token)).collect();
    let targets = OutputTarget::claim_all(&outputs)?;
    if let Some(keys) = args.post_process.signing_key() {
        media::check_signing(&targets, keys)?;
    }
    let live = args.preview.claim_live(&outputs, token)?;
    let pictures = args.preview.claim_pictures(&bundle, plan.size)?;
    // Keeps the claim until the clip is complete; the last preview is written before that.
    let _claimed = pictures.clone();
    let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
    let post_process = args.post_process.spec()?.open(made)?;
    if post_process.sound().is_some() {
        media::check_sound(&targets)?;
    }
    for note in media::notes(&targets, post_process.format()).iter().chain(post_process.notes()) {
        render::note(note);
    }
    let options = ModelOptions {
        precision: args.precision,
        kernels: args.kernels,
        provider: args.ep,
        threads: args.threads.map(Threads::used),
        weights,
    };
    let model = Model::new(bundle, onnx, options)?;
    let is_tiled = |side| Tiling::new(plan.latent.height, plan.latent.width, side).count() > 1;
    model.check_parts(tile.is_some_and(is_tiled))?;

    if !global.json {
        announce(&plan, &model, weights, tile);
    }
    let options = OutputOptions {
        format: post_process.format(),
        tags: Tags {
            note: post_process.note().map(str::to_owned),
            mark: args.post_process.mark(),
            ..Tags::new(plan.prompt.clone(), &model.manifest().model, plan.seed)
        },
        sign: args.post_process.signing_key().cloned(),
        sound: post_process.sound().cloned(),
        output_timeout: args.output_timeout.0,
        cancel: cancel.clone(),
    };
    let start = |target| {
        if let Some(address) = OutputTarget::address(&target).filter(|_| !global.json) {
            render::note(&format!("live at {} ({address})", target.spec()));
        }
        start_live(target, &options, (made.rate, noise.view()), model.manifest().vae.stride().time)
    };
    let live = live.map(start).transpose()?;
    let previews = args.preview.prepare(&model, pictures, live.as_ref().map(LivePublisher::sink))?;
    let preparing = Instant::now();
    let previewer = previews.map(|previews| previews.start(plan.latent, &cancel));
    let mut clip = Clip {
        plan: &plan,
        targets: &targets,
        options,
        post_process,
        progress: Progress::new(args.progress),
        outputs: None,
        failures_reported: 0,
        timing: Timing::start(&model, preparing.elapsed()),
        trace,
        previewer,
        live,
        decoded: 0,
        seconds: BTreeMap::new(),
    };
    let mut pipeline = Pipeline::new(&model, mode).tiled(tile);
    let outcome = pipeline
        .run(&plan, noise, &cancel, &mut |event| clip.on_event(event).map_err(runtime::Error::callback));
    match outcome {
        Ok(()) => clip.finish(&model, (stream, global.json), started),
        Err(error) => Err(clip.stop(error.into())),
    }
}

/// Starts the live address of a clip at `rate` from `noise`, whose latent frames are `stride` frames each.
fn start_live(
    target: OutputTarget,
    options: &OutputOptions,
    (rate, noise): (FrameRate, ArrayView4<'_, f32>),
    stride: usize,
) -> Result<LivePublisher, Error> {
    // The frames of one latent frame, at the rate of the output.
    let ((from, from_seconds), (to, to_seconds)) = (rate.fraction(), options.format.rate.fraction());
    let frames = stride * to as usize * from_seconds as usize;
    let stride = frames.div_ceil(from as usize * to_seconds as usize);
    Ok(LivePublisher::start(target, options, options.format, noise, stride)?)
}

/// Prints the plan, and what will make it slow.
fn announce(plan: &GenerationPlan, model: &Model, weights: WeightMemory, tile: Option<TileSide>) {
    render::note(&plan.to_string());
    if let Some(side) = tile {
        let pixels = side.get() * model.manifest().vae.stride().space;
        render::note(&format!("frames are decoded in tiles of {pixels} pixels, which is slower"));
    }
    if weights == WeightMemory::Mapped {
        render::note("memory is short: weights are used directly from their files, which is slower");
    }
}

fn request(args: &GenerateArgs) -> Result<GenerateRequest, Error> {
    let length = match (args.frames, args.seconds) {
        (Some(frames), _) => Some(Length::Frames(frames)),
        (None, seconds) => seconds.map(Length::Seconds),
    };
    Ok(GenerateRequest {
        prompt: args.prompt.clone(),
        negative: args.negative.clone(),
        size: args.size,
        length,
        fps: args.fps,
        steps: args.steps,
        guidance: args.guidance.as_deref().map(GuidanceScale::parse_list).transpose()?,
        shift: args.shift,
        sampler: args.sampler,
        schedule: args.schedule,
        seed: args.seed.unwrap_or(SeedChoice::Any).seed(),
        noise_scale: args.noise_scale,
    })
}

/// The use of memory.
struct MemoryPlan {
    mode: residency::Mode,
    weights: WeightMemory,
    tile: Option<TileSide>,
}

/// Refuses a clip that does not fit, and plans the residency. If whole frames do not fit, they are decoded in tiles. If
/// copies of the weights do not fit, the weights are used directly from their files. Both are slower.
fn plan_memory(args: &GenerateArgs, bundle: &Bundle, plan: &GenerationPlan) -> Result<MemoryPlan, Error> {
    let free = engines::memory::memory().map(|memory| memory.available);
    let budget = args.memory_budget.or(free).unwrap_or(ByteCount(u64::MAX));
    let stride = bundle.manifest.vae.stride();
    let tiles: Vec<Option<TileSide>> = match args.tile {
        Tiles::Off => vec![None],
        Tiles::Pixels(pixels) => vec![Some(TileSide::try_new(pixels / stride.space, stride)?)],
        // Tiles are smaller than the frame.
        Tiles::Auto => {
            let longest = plan.latent.height.max(plan.latent.width);
            let has_tiles = has_tiles(bundle, args.precision);
            let smaller = TileSide::TRIED.into_iter().filter(|side| has_tiles && side.get() < longest);
            std::iter::once(None).chain(smaller.map(Some)).collect()
        }
    };
    let preview = args.preview.kind(bundle)?;
    let kernels = args.kernels.unwrap_or(KernelLibrary::Rushes);
    let mut refusal = None;
    for weights in [WeightMemory::Prepacked, WeightMemory::Mapped] {
        for tile in &tiles {
            let footprints = footprints(
                &bundle.manifest,
                plan,
                MemorySettings { weights, precision: args.precision, kernels, preview, tile: *tile },
            );
            match residency::plan(args.residency, &footprints, budget) {
                Ok(plan) => return Ok(MemoryPlan { mode: plan.mode, weights, tile: *tile }),
                Err(error) => refusal = Some(error),
            }
        }
    }
    // Each attempt needs about as much memory as the one before, or less.
    Err(refusal.unwrap_or_else(|| unreachable!("there is at least one attempt")).into())
}

/// Returns true if the decoder can run in tiles in this precision.
fn has_tiles(bundle: &Bundle, precision: Option<Precision>) -> bool {
    let mut decoder = bundle.manifest.components.iter().filter(|entry| entry.component == Component::Decoder);
    let fits = |graph: &GraphEntry| {
        graph.part == Part::TrunkFirst
            && precision.is_none_or(|requested| requested == graph.variant.precision)
    };
    decoder.any(|entry| entry.graphs.iter().any(fits))
}

/// A clip that is being generated and written.
struct Clip<'a> {
    plan: &'a GenerationPlan,
    targets: &'a [OutputTarget],
    post_process: PostProcess,
    options: OutputOptions,
    progress: Progress,
    outputs: Option<Outputs>,
    /// The number of failed outputs that were reported.
    failures_reported: usize,
    timing: Timing,
    trace: Option<Trace>,
    previewer: Option<Previewer>,
    live: Option<LivePublisher>,
    /// The number of decoded frames.
    decoded: usize,
    /// The duration of each finished phase in seconds.
    seconds: BTreeMap<&'static str, f64>,
}

impl Clip<'_> {
    fn on_event(&mut self, event: Event<'_>) -> Result<(), Error> {
        self.timing.record(&event);
        match event {
            Event::Encoding => self.begin("text", 1),
            Event::Encoded { prompt, negative } => {
                self.progress.advance(1, "");
                if let Some(cut) = &prompt.cut {
                    self.progress.clear();
                    render::note(&cut_warning(cut));
                }
                if let Some(trace) = &mut self.trace {
                    trace.text(prompt, negative);
                }
            }
            Event::Denoising => self.begin("denoise", self.plan.schedule.steps()),
            Event::Step(step) => {
                self.progress.advance(step.step + 1, &step.expert.0);
                if let Some(previewer) = &mut self.previewer {
                    previewer.step(&step);
                }
                if let Some(trace) = &mut self.trace {
                    trace.latent(step.latent);
                }
            }
            Event::Decoding => {
                if let Some(previewer) = &mut self.previewer {
                    previewer.close();
                }
                self.begin("decode", self.plan.frames.get());
            }
            Event::Frames(frames) => self.write(frames)?,
        }
        Ok(())
    }

    fn begin(&mut self, phase: &'static str, parts: usize) {
        self.end_phase();
        self.progress.begin(phase, parts);
    }

    fn end_phase(&mut self) {
        self.seconds.insert(self.progress.phase(), self.progress.elapsed().as_secs_f64());
    }

    /// Encodes the requested frames; the trace keeps all.
    fn write(&mut self, frames: &Array4<f32>) -> Result<(), Error> {
        if let Some(trace) = &mut self.trace {
            trace.frames(frames);
        }
        let outputs = match &mut self.outputs {
            Some(outputs) => outputs,
            None => self.outputs.insert(Outputs::start(self.targets, &self.options)?),
        };
        let wanted = frames.len_of(Axis(0)).min(self.plan.frames.get() - self.decoded);
        self.timing.record_frames();
        let mut written = Ok(());
        for frame in frames.slice_axis(Axis(0), Slice::from(..wanted)).outer_iter() {
            let processed = self.post_process.push(frame.to_owned())?;
            if let Some(live) = &self.live {
                live.add_frames(&processed)?;
            }
            written = written.and_then(|()| outputs.write_all(processed));
        }
        for failed in &outputs.failed()[self.failures_reported..] {
            self.progress.clear();
            render::note(&format!(
                "warning: {}; {}; the other outputs continue",
                failed.error, failed.remainder
            ));
        }
        self.failures_reported = outputs.failed().len();
        written?;
        self.decoded += wanted;
        self.progress.advance(self.decoded, "");
        Ok(())
    }

    fn finish(
        mut self,
        model: &Model,
        (stream, as_json): (Stream, bool),
        started: Instant,
    ) -> Result<ExitCode, Error> {
        self.end_phase();
        self.progress.clear();
        let Some(mut outputs) = self.outputs.take() else {
            unreachable!("a clip has at least one frame, and its first started the outputs");
        };
        let last = self.post_process.finish();
        if let Some(live) = &self.live {
            live.add_frames(&last)?;
        }
        outputs.write_all(last)?;
        let first_encoded = outputs.first_encoded();
        let outcome = outputs.finish();
        let previews = self.finish_previews();
        let first_preview = previews.as_ref().and_then(|report| report.first);
        let timing = self.timing.value(first_preview, first_encoded, self.plan.schedule.steps());
        let trace = self.trace.take().map(Trace::write).transpose()?;
        let total = started.elapsed().as_secs_f64();
        let phases: serde_json::Map<String, serde_json::Value> =
            self.seconds.iter().map(|(phase, seconds)| ((*phase).to_owned(), json!(seconds))).collect();
        let first = outcome.written.first();
        let value = json!({
            "event": "done",
            "output": first.map(|clip| output_name(&clip.output)),
            "outputs": outputs_as_json(&outcome),
            "trace": trace.as_deref().map(render::path),
            "frames": self.options.format.frames,
            "bytes": first.and_then(|clip| clip.bytes),
            "size": self.plan.size,
            "fps": fps(self.options.format.rate),
            "frame_rate": self.options.format.rate.to_string(),
            "seed": self.plan.seed,
            "steps": self.plan.schedule.steps(),
            "model": model.manifest().model,
            "precision": model.variant().precision,
            "kernels": model.variant().kernels,
            "preview": previews.as_ref().map(preview::value),
            "seconds": phases,
            "live": self.live.as_ref().map(LivePublisher::sent),
            "first_frame_encoded_seconds": first_encoded.map(|at| (at - started).as_secs_f64()),
            "timing": timing,
            "total_seconds": total,
        });
        let names: Vec<String> = outcome.written.iter().map(|clip| clip.output.to_string()).collect();
        let text = format!(
            "{}: {} frames, {total:.1} s in all (seed {})",
            names.join(", "),
            self.options.format.frames.unwrap_or_default(),
            self.plan.seed.0
        );
        if !outcome.written.is_empty() {
            render::result_on(stream, as_json, &value, &text)?;
        }
        if let Some(live) = self.live.take() {
            let sent = live.repeat_until(&self.options.cancel)?;
            let value = json!({"event": "live_ended", "live": sent});
            let text = format!(
                "live: {} pictures were published, the clip from number {} on",
                sent.pictures, sent.before_clip
            );
            render::result_on(stream, as_json, &value, &text)?;
        }
        match outcome.failed.into_iter().next() {
            None => Ok(ExitCode::SUCCESS),
            Some(first) => {
                let whole = if names.is_empty() { None } else { Some(names.join(", ")) };
                Err(media::Error::OutputsFailed {
                    first: first.error,
                    remainder: first.remainder,
                    complete: whole,
                }
                .into())
            }
        }
    }

    fn finish_previews(&mut self) -> Option<PreviewReport> {
        let report = self.previewer.take().map(Previewer::finish)?;
        if let Some(note) = preview::note(&report) {
            render::note(&note);
        }
        Some(report)
    }

    /// Closes the outputs of a run that was interrupted or failed. Returns the error, with the files that were kept.
    fn stop(mut self, error: Error) -> Error {
        self.progress.clear();
        self.finish_previews();
        // Only the first error is reported.
        let _ = self.live.take().map(LivePublisher::stop);
        let kept = self.outputs.take().map_or(vec![], Outputs::interrupt);
        if !error.is_cancelled() {
            return error;
        }
        let phase = match self.progress.phase() {
            "denoise" => "denoising",
            "decode" => "decoding",
            _ => "encoding the text",
        };
        let kept: Vec<String> = kept
            .iter()
            .filter(|(_, kept)| *kept != Remainder::Nothing)
            .map(|(_, kept)| kept.to_string())
            .collect();
        let kept = if kept.is_empty() { Remainder::Nothing.to_string() } else { kept.join("; ") };
        Error::Interrupted { phase, kept }
    }
}

/// A frame rate as JSON: a whole number, or the nearest floating-point number.
fn fps(rate: FrameRate) -> serde_json::Value {
    if rate.fraction().1 == 1 { json!(rate) } else { json!(rate.per_second()) }
}

/// An output as JSON text: the path of a file or folder, or the address.
fn output_name(output: &OutputSpec) -> String {
    match output {
        OutputSpec::Stdout => "-".into(),
        other => other.to_string(),
    }
}

fn outputs_as_json(outcome: &Outcome) -> serde_json::Value {
    let written = outcome
        .written
        .iter()
        .map(|clip| json!({"output": output_name(&clip.output), "frames": clip.frames, "bytes": clip.bytes}));
    let failed = outcome.failed.iter().map(|failed| {
        json!({"output": output_name(&failed.output), "error": failed.error.to_string(), "kept": failed.remainder.to_string()})
    });
    written.chain(failed).collect()
}

fn cut_warning(cut: &Cut) -> String {
    format!(
        "warning: the prompt is longer than {} tokens; {} tokens are cut off at the bar: …{} | {}…",
        bundle::spec::TEXT_ROWS,
        cut.dropped,
        cut.before,
        cut.after
    )
}
