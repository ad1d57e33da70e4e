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
use engines::{Cancel, WeightMemory, residency};
use media::live::LivePublisher;
use media::{ClipFormat, ClipSettings, ClipWriter, OutputReport, OutputTarget, Remainder, Tags};
use ndarray::Array4;
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
    let settings = ClipSettings {
        outputs,
        post_process: args.post_process.spec()?,
        sign: args.post_process.signing_key().cloned(),
        output_timeout: args.output_timeout.0,
    };
    let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
    let tags = Tags {
        mark: args.post_process.mark(),
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
    let start = |target: OutputTarget| {
        if let Some(address) = target.address().filter(|_| !global.json) {
            render::note(&format!("live at {} ({address})", target.spec()));
        }
        writer.start_live(target, noise.view(), model.manifest().vae.stride().time)
    };
    let live = live.map(start).transpose()?;
    let previews = args.preview.prepare(&model, pictures, live)?;
    let preparing = Instant::now();
    let previewer = previews.map(|previews| previews.start(plan.latent, &cancel));
    let mut clip = Clip {
        plan: &plan,
        writer,
        cancel: &cancel,
        progress: Progress::new(args.progress),
        timing: Timing::start(&model, preparing.elapsed()),
        trace,
        previewer,
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
    writer: ClipWriter,
    cancel: &'a Cancel,
    progress: Progress,
    timing: Timing,
    trace: Option<Trace>,
    previewer: Option<Previewer>,
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
        self.timing.record_frames();
        let written = self.writer.push(frames.view());
        for failed in self.writer.newly_failed() {
            self.progress.clear();
            render::note(&format!(
                "warning: {}; {}; the other outputs continue",
                failed.error, failed.remainder
            ));
        }
        written?;
        self.progress.advance(self.writer.pushed(), "");
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
        let rate = self.writer.format().rate;
        let mut outcome = self.writer.finish()?;
        let previews = finish_previews(self.previewer);
        let first_preview = previews.as_ref().and_then(|report| report.first);
        let timing = self.timing.value(first_preview, outcome.first_encoded, self.plan.schedule.steps());
        let trace = self.trace.take().map(Trace::write).transpose()?;
        let total = started.elapsed().as_secs_f64();
        let phases: serde_json::Map<String, serde_json::Value> =
            self.seconds.iter().map(|(phase, seconds)| ((*phase).to_owned(), json!(seconds))).collect();
        let first = outcome.written.first().map(OutputReport::from);
        let value = json!({
            "event": "done",
            "output": first.as_ref().map(|clip| &clip.output),
            "outputs": outcome.results(),
            "trace": trace.as_deref().map(render::path),
            "frames": outcome.frames,
            "bytes": outcome.bytes(),
            "size": self.plan.size,
            "fps": fps(rate),
            "frame_rate": rate.to_string(),
            "seed": self.plan.seed,
            "steps": self.plan.schedule.steps(),
            "model": model.manifest().model,
            "precision": model.variant().precision,
            "kernels": model.variant().kernels,
            "preview": previews.as_ref().map(preview::value),
            "seconds": phases,
            "live": outcome.live.as_ref().map(LivePublisher::sent),
            "first_frame_encoded_seconds": outcome.first_encoded.map(|at| (at - started).as_secs_f64()),
            "timing": timing,
            "total_seconds": total,
        });
        if let Some(names) = outcome.names() {
            let (frames, seed) = (outcome.frames, self.plan.seed.0);
            let text = format!("{names}: {frames} frames, {total:.1} s in all (seed {seed})");
            render::result_on(stream, as_json, &value, &text)?;
        }
        if let Some(live) = outcome.live.take() {
            let sent = live.repeat_until(self.cancel)?;
            let value = json!({"event": "live_ended", "live": sent});
            let text = format!(
                "live: {} pictures were published, the clip from number {} on",
                sent.pictures, sent.before_clip
            );
            render::result_on(stream, as_json, &value, &text)?;
        }
        outcome.error().map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
    }

    /// Closes the outputs of a run that was interrupted or failed. Returns the error, with the files that were kept.
    fn stop(self, error: Error) -> Error {
        self.progress.clear();
        finish_previews(self.previewer);
        let kept = self.writer.interrupt();
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

/// Ends the previews, and notes those that were skipped or failed.
fn finish_previews(previewer: Option<Previewer>) -> Option<PreviewReport> {
    let report = previewer.map(Previewer::finish)?;
    if let Some(note) = preview::note(&report) {
        render::note(&note);
    }
    Some(report)
}

/// A frame rate as JSON: a whole number, or the nearest floating-point number.
fn fps(rate: FrameRate) -> serde_json::Value {
    if rate.fraction().1 == 1 { json!(rate) } else { json!(rate.per_second()) }
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
