//! Workloads: one run of a graph with prepared inputs.

use crate::Error;
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, Part};
use bundle::signature::{ROWS_INPUT, Signature};
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use engines::residency::MemoryNeed;
use engines::{Cancel, Engine, NodePlacement, Value};
use export::synthetic::uniform;
use ndarray::{Array, Array1, Array2, ArrayD, IxDyn};
use runtime::decode::caches_of;
use runtime::denoise::{RotaryTables, TextInput};
use runtime::footprint::{SessionSettings, StepShape, decoder_need, step_need, text_encoder_need};
use runtime::model::{Model, engine_shape, step_contract};
use runtime::text_encoder::TextStates;
use std::time::{Duration, Instant};

/// A repeatable run.
pub trait Workload {
    /// Runs once. `first` is called when the first part of the result is available, if there are parts.
    ///
    /// # Errors
    /// The graph fails, or the run is cancelled.
    fn run(&mut self, cancel: &Cancel, first: &mut dyn FnMut()) -> Result<(), Error>;

    /// Floating-point operations of one run, a multiply-add counted as two.
    fn flops(&self) -> f64;

    /// The predicted memory of its sessions, all together; `None` if it is not known.
    fn predicted(&self) -> Option<MemoryNeed> {
        None
    }

    /// On which providers the nodes of its graphs run, all together. Empty for graphs on the CPU.
    fn nodes(&self) -> NodePlacement {
        NodePlacement::default()
    }
}

/// Where the nodes of several graphs run.
fn nodes_of<'a>(engines: impl IntoIterator<Item = &'a Engine>) -> NodePlacement {
    let mut all = NodePlacement::default();
    for nodes in engines.into_iter().filter_map(Engine::nodes) {
        all.add(nodes);
    }
    all
}

/// The settings of the sessions of a component.
fn settings_of(model: &Model, component: &Component) -> Result<SessionSettings, Error> {
    Ok(model.session_settings_on(model.placement().device_of(component))?)
}

/// Pseudo-random values with mean 0 and variance 1, always the same.
fn values(shape: &[usize]) -> Value {
    Value::from_f32(numbers(shape))
}

fn numbers(shape: &[usize]) -> ArrayD<f32> {
    let mut state = 88_172_645_463_325_252_u64;
    Array::from_shape_simple_fn(IxDyn(shape), || uniform(&mut state) * 12.0_f32.sqrt())
}

/// Tokens of the prompt of a timed step; the other text rows are zeros.
const TOKENS: usize = 60;

fn text_states(width: usize) -> TextStates {
    let values = numbers(&[TOKENS, width]);
    let rows = Array2::from_shape_fn((TEXT_ROWS, width), |(row, column)| {
        values.get([row, column]).copied().unwrap_or(0.0)
    });
    TextStates::try_new(rows, TOKENS, None)
        .unwrap_or_else(|_| unreachable!("the rows after the tokens are zeros"))
}

/// The latent of a token grid `[frames, rows, columns]`.
pub(super) fn latent_of_grid(spec: &DenoiserSpec, grid: [usize; 3]) -> LatentShape {
    LatentShape {
        channels: spec.in_channels,
        frames: grid[0] * spec.patch.time,
        height: grid[1] * spec.patch.height,
        width: grid[2] * spec.patch.width,
    }
}

/// One denoising step of a model's first expert.
#[derive(Debug)]
pub struct Step {
    engine: Engine,
    inputs: Vec<(&'static str, Value)>,
    text: TextInput,
    flops: f64,
    need: MemoryNeed,
}

impl Step {
    /// Opens a step over a token grid `[frames, rows, columns]`.
    ///
    /// # Errors
    /// The graph is missing or cannot be opened.
    pub fn open(model: &Model, grid: [usize; 3]) -> Result<Self, Error> {
        let spec = &model.manifest().denoiser;
        let expert = Component::Expert(model.manifest().routing.routes()[0].expert.clone());
        let kernels = model.graph(&expert, Part::Whole)?.variant.kernels;
        let latent = latent_of_grid(spec, grid);
        let contract = step_contract(model.manifest(), kernels);
        let shape = Some(engine_shape(latent, 1));
        let engine = model.open_alone_for(&expert, Part::Whole, &contract, shape)?;
        let tables = RotaryTables::new(spec, latent);
        let mut inputs = vec![
            ("latent", values(&[1, latent.channels, latent.frames, latent.height, latent.width])),
            ("timestep", Value::from_f32(Array1::from_elem(1, 500.0_f32))),
            ("cos", Value::from_f32(tables.cos)),
            ("sin", Value::from_f32(tables.sin)),
        ];
        if engine.signature().takes_rows() {
            inputs.push((ROWS_INPUT, Value::from_i64(Array1::zeros(1))));
        }
        let text = TextInput::new(kernels, &[&text_states(spec.text_width)]);
        let tokens = latent.tokens(spec.patch);
        let text_rows = if kernels.is_onnx_runtime() { TEXT_ROWS } else { TOKENS + 1 };
        let shape = StepShape { tokens, batch: 1, text_rows, timestep_rows: 1 };
        let need = step_need(model.manifest(), &expert, settings_of(model, &expert)?, shape);
        Ok(Self { engine, inputs, text, flops: spec.step_flops(tokens), need })
    }
}

impl Workload for Step {
    fn run(&mut self, cancel: &Cancel, _: &mut dyn FnMut()) -> Result<(), Error> {
        let mut inputs: Vec<_> = self.inputs.iter().map(|(name, value)| (*name, value)).collect();
        inputs.extend(self.text.named());
        self.engine.run(&inputs, cancel)?.take("velocity")?;
        Ok(())
    }

    fn flops(&self) -> f64 {
        self.flops
    }

    fn predicted(&self) -> Option<MemoryNeed> {
        Some(self.need)
    }

    fn nodes(&self) -> NodePlacement {
        nodes_of([&self.engine])
    }
}

/// The decoder, over a whole latent.
#[derive(Debug)]
pub struct Decode {
    first: Engine,
    next: Engine,
    frames: usize,
    latent: Value,
    flops: f64,
    need: MemoryNeed,
}

/// Caches that one decoder call passes to the next.
pub type Caches = Vec<(String, Value)>;

impl Decode {
    /// Opens a decoder for a latent of `[frames, height, width]`.
    ///
    /// # Errors
    /// A graph is missing or cannot be opened.
    pub fn open(model: &Model, [frames, height, width]: [usize; 3]) -> Result<Self, Error> {
        let spec = &model.manifest().vae;
        let contract = Signature::of_decoder(spec);
        let shape = LatentShape { channels: spec.latent_channels, frames: 1, height, width };
        let open =
            |part| model.open_alone_for(&Component::Decoder, part, &contract, Some(engine_shape(shape, 1)));
        let (first, next) = (open(Part::First)?, open(Part::Next)?);
        let latent = values(&[1, spec.latent_channels, 1, height, width]);
        #[expect(clippy::cast_precision_loss, reason = "a few frames")]
        let later = (frames - 1) as f64;
        let flops = spec.first_frame_flops(height, width) + later * spec.next_frames_flops(height, width);
        let settings = settings_of(model, &Component::Decoder)?;
        let need = |part| decoder_need(model.manifest(), &Component::Decoder, part, settings, shape, None);
        let need = need(Part::First) + need(Part::Next);
        Ok(Self { first, next, frames, latent, flops, need })
    }

    /// Decodes the first latent frame.
    ///
    /// # Errors
    /// The run fails.
    pub fn run_first(&mut self, cancel: &Cancel) -> Result<Caches, Error> {
        Ok(caches_of(self.first.run(&[("latent", &self.latent)], cancel)?))
    }

    /// Decodes a later latent frame.
    ///
    /// # Errors
    /// The run fails.
    pub fn run_next(&mut self, before: &Caches, cancel: &Cancel) -> Result<Caches, Error> {
        let mut inputs = vec![("latent", &self.latent)];
        inputs.extend(before.iter().map(|(name, value)| (name.as_str(), value)));
        Ok(caches_of(self.next.run(&inputs, cancel)?))
    }
}

impl Workload for Decode {
    fn run(&mut self, cancel: &Cancel, first: &mut dyn FnMut()) -> Result<(), Error> {
        let mut caches = self.run_first(cancel)?;
        first();
        for _ in 1..self.frames {
            caches = self.run_next(&caches, cancel)?;
        }
        Ok(())
    }

    fn flops(&self) -> f64 {
        self.flops
    }

    fn predicted(&self) -> Option<MemoryNeed> {
        Some(self.need)
    }

    fn nodes(&self) -> NodePlacement {
        nodes_of([&self.first, &self.next])
    }
}

/// The text encoder.
#[derive(Debug)]
pub struct Text {
    engine: Engine,
    ids: Value,
    flops: f64,
    need: MemoryNeed,
}

impl Text {
    /// Opens an encoder for a prompt of `tokens` tokens.
    ///
    /// # Errors
    /// The graph is missing or cannot be opened.
    pub fn open(model: &Model, tokens: usize) -> Result<Self, Error> {
        let spec = &model.manifest().text_encoder;
        let engine =
            model.open_alone(&Component::TextEncoder, Part::Whole, &Signature::of_text_encoder(spec))?;
        let id = |position: usize| i64::try_from(position % spec.vocabulary).unwrap_or(0);
        let ids = Array2::from_shape_fn((1, tokens), |(_, position)| id(position));
        let settings = settings_of(model, &Component::TextEncoder)?;
        let need = text_encoder_need(model.manifest(), settings, tokens);
        Ok(Self { engine, ids: Value::from_i64(ids), flops: spec.flops(tokens), need })
    }
}

impl Workload for Text {
    fn run(&mut self, cancel: &Cancel, _: &mut dyn FnMut()) -> Result<(), Error> {
        self.engine.run(&[("ids", &self.ids)], cancel)?.take("states")?;
        Ok(())
    }

    fn flops(&self) -> f64 {
        self.flops
    }

    fn predicted(&self) -> Option<MemoryNeed> {
        Some(self.need)
    }

    fn nodes(&self) -> NodePlacement {
        nodes_of([&self.engine])
    }
}

/// The duration of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Total duration.
    pub whole: Duration,
    /// Time until the first part of the result, if there are parts.
    pub first: Option<Duration>,
}

/// Runs once and measures the duration.
///
/// # Errors
/// The workload fails.
pub fn timed(workload: &mut dyn Workload, cancel: &Cancel) -> Result<Run, Error> {
    let began = Instant::now();
    let mut first = None;
    workload.run(cancel, &mut || first = Some(began.elapsed()))?;
    Ok(Run { whole: began.elapsed(), first })
}
