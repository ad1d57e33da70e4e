//! Runs the steps of one clip, each on the expert that its noise level is routed to.

use super::rope::RotaryTables;
use super::text_input::TextInput;
use crate::Error;
use crate::model::{Model, step_contract, take_array};
use crate::sampler::{Sampler, guide};
use crate::text_encoder::TextStates;
use bundle::geometry::{LatentShape, Patch};
use bundle::manifest::{Component, Part};
use bundle::routing::{ExpertIndex, ExpertName};
use bundle::spec::DenoiserSpec;
use bundle::units::{ByteCount, GuidanceScale, Sigma, Timestep};
use bundle::variant::KernelLibrary;
use engines::{Cancel, Engine, Value, residency};
use ndarray::{Array1, Array4, Array5, ArrayView4, Axis, stack};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Up to this many tokens both passes of guidance run as one batch of two: one call costs less than two. Above, a
/// batch only needs more memory.
pub const BATCHED_TOKENS_MAX: usize = 2048;

/// An expert with at most so many bytes of weights is run on one token when it is opened. A graph's first run takes memory
/// from the system, which costs half a step of a small expert and is lost in one of a large expert.
const WARMED_UP: ByteCount = ByteCount(256 << 20);

/// What a clip is made of: text states, and how strongly each expert follows them.
#[derive(Debug, Clone, Copy)]
pub struct Guided<'a> {
    /// The prompt.
    pub prompt: &'a TextStates,
    /// The negative prompt; without one there is no guidance, whatever the scales say.
    pub negative: Option<&'a TextStates>,
    /// Guidance scale of each expert, from the noisiest down.
    pub scales: &'a [GuidanceScale],
}

/// A finished step.
#[derive(Debug)]
pub struct StepDone<'a> {
    /// Number of the step, from 0.
    pub step: usize,
    /// How many steps there are.
    pub steps: usize,
    /// The expert that ran.
    pub expert: &'a ExpertName,
    /// The noise level that the step began at.
    pub sigma: Sigma,
    /// What the expert was told of it.
    pub timestep: Timestep,
    /// The latent that the step began with, `[C,T,h,w]`, model scale.
    pub before: &'a Array4<f32>,
    /// The latent after the step, `[C,T,h,w]`, model scale.
    pub latent: &'a Array4<f32>,
    /// The velocity that the step followed, `[C,T,h,w]`.
    pub velocity: &'a Array4<f32>,
    /// How long the step took, without the opening of its expert.
    pub ran: Duration,
}

/// The experts of a model. Each is opened when a step first needs it.
#[derive(Debug)]
pub struct Generator {
    model: Model,
    mode: residency::Mode,
    open: BTreeMap<ExpertIndex, OpenExpert>,
}

/// An expert that can run.
#[derive(Debug)]
struct OpenExpert {
    engine: Engine,
    /// Which kernels its graph is made of, which decides how it takes the text.
    kernels: KernelLibrary,
}

impl Generator {
    /// Opens nothing yet. With [`residency::Mode::OneAtATime`] an expert leaves before the next one is opened.
    pub fn new(model: &Model, mode: residency::Mode) -> Self {
        Self { model: model.clone(), mode, open: BTreeMap::new() }
    }

    /// Denoises `noise [C,T,h,w]` to a clean latent of the same shape, model scale. `on_step` hears of every step.
    ///
    /// # Errors
    /// An expert that cannot be opened or fails, a cancelled run, or a latent that is no longer finite.
    pub fn denoise(
        &mut self,
        noise: Array4<f32>,
        text: Guided<'_>,
        mut sampler: Sampler,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepDone<'_>) -> Result<(), Error>,
    ) -> Result<Array4<f32>, Error> {
        let conditions = Conditions::new(&self.model, noise.view(), text)?;
        let schedule = sampler.schedule().clone();
        let steps = schedule.steps();
        let mut latent = noise;
        for (step, (timestep, sigma)) in schedule.timesteps().iter().zip(schedule.sigmas()).enumerate() {
            let expert = self.model.manifest().routing.expert_at(*timestep);
            let scale = text.scales.get(expert.0).copied().unwrap_or(GuidanceScale(1.0));
            let open = self.resident(expert, &conditions, cancel)?;
            let began = Instant::now();
            let velocity = conditions.velocity(open, latent.view(), *timestep, scale, cancel)?;
            let next = sampler.step(&latent, &velocity);
            let ran = began.elapsed();
            let before = std::mem::replace(&mut latent, next);
            let name = self.model.manifest().routing.name(expert);
            if !latent.iter().all(|value| value.is_finite()) {
                return Err(Error::NotFinite { step: step + 1, steps, expert: name.clone() });
            }
            let done = StepDone {
                step,
                steps,
                expert: name,
                sigma: *sigma,
                timestep: *timestep,
                before: &before,
                latent: &latent,
                velocity: &velocity,
                ran,
            };
            on_step(done)?;
        }
        Ok(latent)
    }

    /// Closes every expert and gives its memory back.
    pub fn close(&mut self) {
        self.open.clear();
        engines::memory::return_freed_memory();
    }

    /// The engine of an expert, opened if it is not; others leave first where only one may stay.
    fn resident(
        &mut self,
        expert: ExpertIndex,
        conditions: &Conditions,
        cancel: &Cancel,
    ) -> Result<&mut OpenExpert, Error> {
        if self.mode == residency::Mode::OneAtATime && self.open.keys().any(|open| *open != expert) {
            self.open.retain(|open, _| *open == expert);
            engines::memory::return_freed_memory();
        }
        match self.open.entry(expert) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let manifest = self.model.manifest();
                let component = Component::Expert(manifest.routing.name(expert).clone());
                let kernels = self.model.graph(&component, Part::Whole)?.variant.kernels;
                let contract = step_contract(manifest, kernels);
                let engine = self.model.engine(&component, Part::Whole, &contract)?;
                let expert = entry.insert(OpenExpert { engine, kernels });
                if manifest.component(&component)?.weight_bytes() <= WARMED_UP {
                    self.model.loading(|| conditions.warm_up(expert, &manifest.denoiser, cancel))?;
                }
                Ok(expert)
            }
        }
    }
}

/// What stays the same through all steps of a clip.
struct Conditions {
    /// The text, as the graphs of each kind of kernels take it.
    texts: BTreeMap<KernelLibrary, Texts>,
    rotary: Rotary,
}

/// Rotary tables as a graph takes them.
struct Rotary {
    cos: Value,
    sin: Value,
}

impl Rotary {
    fn new(spec: &DenoiserSpec, shape: LatentShape) -> Self {
        let RotaryTables { cos, sin } = RotaryTables::new(spec, shape);
        Self { cos: Value::from_f32(cos), sin: Value::from_f32(sin) }
    }
}

/// What the passes of guidance are told.
struct Texts {
    prompt: TextInput,
    negative: Option<Negative>,
}

/// How the second pass of guidance runs.
enum Negative {
    /// In one batch with the first: text states of prompt and negative prompt.
    Batched(TextInput),
    /// After the first: text states of the negative prompt.
    Apart(TextInput),
}

impl Conditions {
    fn new(model: &Model, noise: ArrayView4<'_, f32>, text: Guided<'_>) -> Result<Self, Error> {
        let manifest = model.manifest();
        let (channels, frames, height, width) = noise.dim();
        let shape = LatentShape { channels, frames, height, width };
        let is_large = shape.tokens(manifest.denoiser.patch) > BATCHED_TOKENS_MAX;
        let mut texts = BTreeMap::new();
        for route in manifest.routing.routes() {
            let kernels = model.graph(&Component::Expert(route.expert.clone()), Part::Whole)?.variant.kernels;
            let negative = text.negative.map(|negative| {
                if is_large {
                    Negative::Apart(TextInput::new(kernels, &[negative]))
                } else {
                    Negative::Batched(TextInput::new(kernels, &[text.prompt, negative]))
                }
            });
            texts.insert(kernels, Texts { prompt: TextInput::new(kernels, &[text.prompt]), negative });
        }
        Ok(Self { texts, rotary: Rotary::new(&manifest.denoiser, shape) })
    }

    /// The text as an expert takes it.
    fn texts(&self, expert: &OpenExpert) -> &Texts {
        self.texts
            .get(&expert.kernels)
            .unwrap_or_else(|| unreachable!("every expert is a route, and its kernels were asked for there"))
    }

    /// Runs an expert on one token, with the text that it will be given.
    fn warm_up(&self, expert: &mut OpenExpert, spec: &DenoiserSpec, cancel: &Cancel) -> Result<(), Error> {
        let Patch { time, height, width } = spec.patch;
        let shape = LatentShape { channels: spec.in_channels, frames: time, height, width };
        let texts = self.texts(expert);
        let (text, batch) = match &texts.negative {
            Some(Negative::Batched(both)) => (both, 2),
            _ => (&texts.prompt, 1),
        };
        let latent = Value::from_f32(Array5::zeros((batch, shape.channels, time, height, width)));
        run(&mut expert.engine, &latent, text, Timestep(0.0), &Rotary::new(spec, shape), cancel).map(drop)
    }

    /// The guided velocity `[C,T,h,w]` at a latent.
    fn velocity(
        &self,
        expert: &mut OpenExpert,
        latent: ArrayView4<'_, f32>,
        timestep: Timestep,
        scale: GuidanceScale,
        cancel: &Cancel,
    ) -> Result<Array4<f32>, Error> {
        let Texts { prompt, negative } = self.texts(expert);
        let mut run = |latent: &Value, text: &TextInput| {
            run(&mut expert.engine, latent, text, timestep, &self.rotary, cancel)
        };
        let single = || Value::from_f32(latent.insert_axis(Axis(0)).to_owned());
        let pick = |batch: &Array5<f32>, index: usize| batch.index_axis(Axis(0), index).to_owned();
        let (conditional, unconditional) = match negative {
            Some(Negative::Batched(both)) if scale.applies() => {
                let pair = stack(Axis(0), &[latent, latent])
                    .unwrap_or_else(|_| unreachable!("a latent has the shape of itself"));
                let velocities = run(&Value::from_f32(pair), both)?;
                (pick(&velocities, 0), pick(&velocities, 1))
            }
            Some(Negative::Apart(negative)) if scale.applies() => {
                let latent = single();
                (pick(&run(&latent, prompt)?, 0), pick(&run(&latent, negative)?, 0))
            }
            _ => return Ok(pick(&run(&single(), prompt)?, 0)),
        };
        Ok(guide(&unconditional, &conditional, scale))
    }
}

/// The velocities `[B,C,T,h,w]` at a batch of latents.
fn run(
    engine: &mut Engine,
    latent: &Value,
    text: &TextInput,
    timestep: Timestep,
    rotary: &Rotary,
    cancel: &Cancel,
) -> Result<Array5<f32>, Error> {
    let timestep = Value::from_f32(Array1::from_elem(1, timestep.0));
    let mut inputs =
        vec![("latent", latent), ("timestep", &timestep), ("cos", &rotary.cos), ("sin", &rotary.sin)];
    inputs.extend(text.named());
    take_array(&mut engine.run(&inputs, cancel)?, "velocity")
}
