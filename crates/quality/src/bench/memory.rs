//! The memory of one session, measured: how much the process grows when it is opened and when it runs.

use super::workload::latent_of_grid;
use crate::Error;
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, Part};
use bundle::signature::{ROWS_INPUT, Signature};
use bundle::spec::TEXT_ROWS;
use bundle::units::ByteCount;
use bundle::variant::KernelLibrary;
use engines::memory::{resident_anonymous, resident_mapped, return_freed_memory, settled_anonymous};
use engines::residency::MemoryNeed;
use engines::{Cancel, Engine, Outputs, Value};
use ndarray::{Array1, Array2, Array3, ArrayD, IxDyn};
use runtime::decode::{TileSide, Tiling, caches_of};
use runtime::denoise::RotaryTables;
use runtime::footprint::{SessionSettings, StepShape, decoder_need, step_need, text_encoder_need};
use runtime::model::{Model, step_contract};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Runs of a session: its caches are its own from the second run on.
const RUNS: usize = 3;
/// Time between two samples of the process's memory.
const SAMPLING: Duration = Duration::from_millis(2);

/// What one session computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Encodes a prompt of this many tokens.
    Text(usize),
    /// Makes a step.
    Step(StepWork),
    /// Runs a part of a decoder on a latent frame.
    Decode(DecodeWork),
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepWork {
    /// Tokens along time, height and width.
    pub grid: [usize; 3],
    /// Prompts in one call.
    pub batch: usize,
    /// Tokens of the prompt.
    pub words: usize,
    /// True if the first latent frame has a timestep of its own.
    pub has_clean_start: bool,
}

/// A call of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeWork {
    /// The graph.
    pub part: Part,
    /// Height of the latent.
    pub height: usize,
    /// Width of the latent.
    pub width: usize,
    /// The tiles of an upsampler.
    pub tile: Option<TileSide>,
}

/// Predicted and measured memory of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// The prediction.
    pub predicted: MemoryNeed,
    /// Growth of the process from before the session was opened until it was open: its weights.
    pub opened: ByteCount,
    /// Largest growth while it was being opened.
    pub opening: ByteCount,
    /// Largest growth from then on until its runs were done: its activations.
    pub ran: ByteCount,
    /// Growth that is left when the session is closed and its outputs are dropped.
    pub closed: ByteCount,
    /// Largest growth of the pages of files that are mapped into the process, which are not its memory: the system may
    /// drop them.
    pub mapped: ByteCount,
    /// The time that opening took.
    pub opening_time: Duration,
    /// The time of the first run, which reads mapped weights from their files.
    pub first_run: Duration,
    /// The time of the last run.
    pub last_run: Duration,
}

impl Measurement {
    /// The largest growth.
    pub fn total(&self) -> ByteCount {
        self.opened + self.ran
    }
}

/// Opens the session of a component, runs it, closes it, and measures the process. Nothing else may run in it.
///
/// # Errors
/// A graph is missing, cannot be opened or fails.
pub fn measure(model: &Model, component: &Component, work: Work) -> Result<Measurement, Error> {
    let predicted = predict(model, component, work)?;
    let prepared = Prepared::new(model, component, work)?;
    let (before, mapped_before) = (settled(), mapped());
    let mut opened = None;
    let start = Instant::now();
    let opening = peak_while(|| {
        opened = Some(prepared.open(model, component));
        Ok(())
    })?;
    let opening_time = start.elapsed();
    let mut engine = opened.unwrap_or_else(|| unreachable!("it was just set"))?;
    let open = trimmed();
    let mut times = Vec::new();
    let ran = peak_while(|| {
        engine.reserve(predicted.activations);
        times = prepared.run(&mut engine)?;
        Ok(())
    })?;
    let ran = ran.max(trimmed());
    let mapped = mapped().saturating_sub(mapped_before);
    drop(engine);
    let closed = settled();
    Ok(Measurement {
        predicted,
        opened: difference(open, before),
        opening: difference(opening, before),
        ran: difference(ran, open),
        closed: difference(closed, before),
        mapped: ByteCount(mapped),
        opening_time,
        first_run: times.first().copied().unwrap_or_default(),
        last_run: times.last().copied().unwrap_or_default(),
    })
}

fn predict(model: &Model, component: &Component, work: Work) -> Result<MemoryNeed, Error> {
    let manifest = model.manifest();
    let settings = SessionSettings {
        provider: model.engine_options().device.provider(),
        variant: Some(model.variant()),
        weights: model.engine_options().weights,
        threads: model.engine_options().threads,
    };
    Ok(match work {
        Work::Text(tokens) => text_encoder_need(manifest, settings, tokens),
        Work::Step(work) => {
            let kernels = model.graph(component, Part::Whole)?.variant.kernels;
            let tokens = work.grid.iter().product();
            let shape = StepShape {
                tokens,
                batch: work.batch,
                text_rows: text_rows(kernels, work.words),
                timestep_rows: if work.has_clean_start { tokens } else { 1 },
            };
            step_need(manifest, component, settings, shape)
        }
        Work::Decode(DecodeWork { part, height, width, tile }) => {
            let channels = manifest.vae.latent_channels;
            let latent = LatentShape { channels, frames: 1, height, width };
            decoder_need(manifest, component, part, settings, latent, tile)
        }
    })
}

/// Rows of text states that a graph takes: Rushes kernels take those of the prompt and one more.
fn text_rows(kernels: KernelLibrary, words: usize) -> usize {
    match kernels {
        KernelLibrary::OnnxRuntime => TEXT_ROWS,
        KernelLibrary::Rushes => (words + 1).min(TEXT_ROWS),
    }
}

/// The inputs of a session, in memory of the caller.
enum Prepared {
    Inputs(&'static str, Signature, Vec<(&'static str, Value)>),
    Decoder {
        part: Part,
        input: &'static str,
        contract: Signature,
        frame: Value,
        before: Caches,
        calls: usize,
    },
}

type Caches = Vec<(String, Value)>;

impl Prepared {
    fn new(model: &Model, component: &Component, work: Work) -> Result<Self, Error> {
        let manifest = model.manifest();
        Ok(match work {
            Work::Text(tokens) => {
                let ids = Value::from_i64(Array2::zeros((1, tokens)));
                Self::Inputs("states", Signature::of_text_encoder(&manifest.text_encoder), vec![("ids", ids)])
            }
            Work::Step(work) => {
                let spec = &manifest.denoiser;
                let kernels = model.graph(component, Part::Whole)?.variant.kernels;
                let StepWork { grid, batch, words, has_clean_start } = work;
                let latent = latent_of_grid(spec, grid);
                let tables = RotaryTables::new(spec, latent);
                let rows = text_rows(kernels, words);
                let (timesteps, map) = if has_clean_start {
                    let of_frame = grid[1] * grid[2];
                    let map = (0..grid[0] * of_frame).map(|token| i64::from(token >= of_frame)).collect();
                    (vec![0.0, 500.0], map)
                } else {
                    (vec![500.0], vec![0])
                };
                let LatentShape { channels, frames, height, width } = latent;
                let mut inputs = vec![
                    ("latent", ones(&[batch, channels, frames, height, width])),
                    ("timestep", Value::from_f32(Array1::from_vec(timesteps))),
                    (ROWS_INPUT, Value::from_i64(Array1::from_vec(map))),
                    ("text", Value::from_f32(Array3::ones((batch, rows, spec.text_width)))),
                    ("cos", Value::from_f32(tables.cos)),
                    ("sin", Value::from_f32(tables.sin)),
                ];
                if kernels == KernelLibrary::Rushes {
                    inputs.push(("key_bias", Value::from_f32(Array2::zeros((batch, rows)))));
                }
                Self::Inputs("velocity", step_contract(manifest, kernels), inputs)
            }
            Work::Decode(work) => Self::decoder(model, component, work)?,
        })
    }

    fn decoder(model: &Model, component: &Component, work: DecodeWork) -> Result<Self, Error> {
        let vae = &model.manifest().vae;
        let DecodeWork { part, height, width, tile } = work;
        let (first, contract, input, channels) = match part {
            Part::TrunkFirst | Part::TrunkNext => {
                (Part::TrunkFirst, Signature::of_decoder_trunk(vae), "latent", vae.latent_channels)
            }
            Part::UpsamplerFirst | Part::UpsamplerNext => {
                (Part::UpsamplerFirst, Signature::of_decoder_upsampler(vae), "features", vae.deepest_width())
            }
            Part::Whole | Part::First | Part::Next => {
                (Part::First, Signature::of_decoder(vae), "latent", vae.latent_channels)
            }
        };
        let tiling = tile.map(|side| Tiling::new(height, width, side)).filter(|tiling| tiling.count() > 1);
        let (calls, [height, width]) = match (&tiling, input) {
            (Some(tiling), "features") => (tiling.count(), tiling.tile_size()),
            _ => (1, [height, width]),
        };
        let frame = match input {
            "features" => ones(&[1, channels, height, width]),
            _ => ones(&[1, channels, 1, height, width]),
        };
        let before = if part == first {
            Caches::new()
        } else {
            let mut engine = model.open_alone(component, first, &contract)?;
            caches_of(engine.run(&[(input, &frame)], &Cancel::new())?)
        };
        Ok(Self::Decoder { part, input, contract, frame, before, calls })
    }

    fn open(&self, model: &Model, component: &Component) -> Result<Engine, Error> {
        Ok(match self {
            Self::Inputs(_, contract, _) => model.open_alone(component, Part::Whole, contract)?,
            Self::Decoder { part, contract, .. } => model.open_alone(component, *part, contract)?,
        })
    }

    /// Runs an open session several times, and returns the time of each.
    fn run(&self, engine: &mut Engine) -> Result<Vec<Duration>, Error> {
        let cancel = Cancel::new();
        let mut times = Vec::with_capacity(RUNS);
        match self {
            Self::Inputs(output, _, inputs) => {
                let takes_rows = engine.signature().takes_rows();
                let inputs: Vec<_> = inputs
                    .iter()
                    .filter(|(name, _)| takes_rows || *name != ROWS_INPUT)
                    .map(|(name, value)| (*name, value))
                    .collect();
                for _ in 0..RUNS {
                    let start = Instant::now();
                    engine.run(&inputs, &cancel)?.take(output)?;
                    times.push(start.elapsed());
                }
            }
            Self::Decoder { input, frame, before, calls, .. } => {
                let call = |engine: &mut Engine, caches: &Caches| {
                    let mut inputs = vec![(*input, frame)];
                    inputs.extend(caches.iter().map(|(name, value)| (name.as_str(), value)));
                    Ok::<Outputs, Error>(engine.run(&inputs, &cancel)?)
                };
                let mut of_tiles: Vec<Option<Caches>> = (0..*calls).map(|_| None).collect();
                for _ in 0..RUNS {
                    let start = Instant::now();
                    for caches in &mut of_tiles {
                        let keeps = !before.is_empty();
                        let made =
                            caches_of(call(engine, caches.as_ref().filter(|_| keeps).unwrap_or(before))?);
                        *caches = Some(made);
                    }
                    times.push(start.elapsed());
                }
            }
        }
        Ok(times)
    }
}

fn ones(shape: &[usize]) -> Value {
    Value::from_f32(ArrayD::from_elem(IxDyn(shape), 1.0_f32))
}

/// Anonymous memory of the process, without what the allocator could return at once.
fn trimmed() -> u64 {
    return_freed_memory();
    anonymous()
}

/// Anonymous memory of the process at rest.
fn settled() -> u64 {
    settled_anonymous().map_or(0, |bytes| bytes.0)
}

fn anonymous() -> u64 {
    resident_anonymous().map_or(0, |bytes| bytes.0)
}

/// Pages of files that are mapped into the process.
fn mapped() -> u64 {
    resident_mapped().map_or(0, |bytes| bytes.0)
}

fn difference(after: u64, before: u64) -> ByteCount {
    ByteCount(after.saturating_sub(before))
}

/// The largest anonymous memory while `work` runs, by samples.
fn peak_while(work: impl FnOnce() -> Result<(), Error>) -> Result<u64, Error> {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(SAMPLING);
            }
        });
        let result = work();
        peak.fetch_max(anonymous(), Ordering::Relaxed);
        done.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(peak.into_inner())
}
