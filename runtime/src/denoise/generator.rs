//! Runs the denoising steps of a clip, each on the expert that its timestep is routed to.

use super::rope::RotaryTables;
use super::text_input::TextInput;
use crate::Error;
use crate::model::{Model, step_contract, take_array};
use crate::sampler::{Sampler, guide};
use crate::text_encoder::TextStates;
use bundle::geometry::{LatentShape, Patch};
use bundle::manifest::{Component, Part};
use bundle::routing::{ExpertIndex, ExpertName};
use bundle::signature::ROWS_INPUT;
use bundle::spec::DenoiserSpec;
use bundle::units::{ByteCount, GuidanceScale, Sigma, Timestep};
use bundle::variant::KernelLibrary;
use engines::{Cancel, Engine, Value, residency};
use ndarray::{Array1, Array4, Array5, ArrayView4, Axis, stack};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Up to this many tokens, both guidance passes run as one batch of two, which costs less than two calls. Above it a
/// batch needs more memory and saves no time.
pub const BATCHED_TOKENS_MAX: usize = 2048;

/// An expert with at most this many bytes of weights is run on one token when it is opened. A graph's first run
/// allocates memory from the system, which costs half a step of a small expert and is negligible for a large one.
const WARM_UP_WEIGHTS_MAX: ByteCount = ByteCount(256 << 20);

/// The text conditioning of a clip, with the guidance scale of each expert.
#[derive(Debug, Clone, Copy)]
pub struct Conditioning<'a> {
    /// Text states of the prompt.
    pub prompt: &'a TextStates,
    /// Text states of the negative prompt. `None` turns guidance off, whatever the scales.
    pub negative: Option<&'a TextStates>,
    /// Guidance scale of each expert, starting with the one for the highest noise.
    pub scales: &'a [GuidanceScale],
}

/// The result of a step.
#[derive(Debug)]
pub struct StepDone<'a> {
    /// Number of the step, from 0.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// The expert that ran.
    pub expert: &'a ExpertName,
    /// The noise level before the step.
    pub sigma: Sigma,
    /// The timestep that the expert received.
    pub timestep: Timestep,
    /// The latent before the step, `[C,T,h,w]`, model scale.
    pub before: &'a Array4<f32>,
    /// The latent after the step, `[C,T,h,w]`, model scale.
    pub latent: &'a Array4<f32>,
    /// The guided velocity, `[C,T,h,w]`.
    pub velocity: &'a Array4<f32>,
    /// Duration of the step, without the time to open its expert.
    pub ran: Duration,
}

/// Runs the experts of a model. Each is opened when a step first needs it.
///
/// # Examples
/// ```no_run
/// # use runtime::{model::Model, plan::GenerationPlan, text_encoder::TextStates};
/// # fn denoise(model: &Model, plan: &GenerationPlan, prompt: &TextStates) -> Result<(), runtime::Error> {
/// use engines::{Cancel, residency::Mode};
/// use runtime::denoise::{Conditioning, Generator};
/// use runtime::pipeline::seeded_noise;
/// use runtime::sampler::Sampler;
///
/// let mut generator = Generator::new(model, Mode::OneAtATime);
/// let text = Conditioning { prompt, negative: None, scales: &plan.guidance };
/// let sampler = Sampler::new(plan.schedule.clone(), plan.solver);
/// let latent = generator.denoise(seeded_noise(plan), text, sampler, &Cancel::new(), &mut |done| {
///     println!("step {} of {} on {}", done.step + 1, done.steps, done.expert);
///     Ok(())
/// })?;
/// # drop(latent);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Generator {
    model: Model,
    mode: residency::Mode,
    open: BTreeMap<ExpertIndex, OpenExpert>,
}

/// An open expert.
#[derive(Debug)]
struct OpenExpert {
    engine: Engine,
    /// The kernels of its graph, which decide the text inputs.
    kernels: KernelLibrary,
}

impl Generator {
    /// Creates a generator. Opens no graph. With [`residency::Mode::OneAtATime`] an expert is closed before the next
    /// one is opened.
    pub fn new(model: &Model, mode: residency::Mode) -> Self {
        Self { model: model.clone(), mode, open: BTreeMap::new() }
    }

    /// Denoises `noise [C,T,h,w]` to a clean latent of the same shape, model scale. `on_step` is called after every
    /// step.
    ///
    /// # Errors
    /// An expert cannot be opened or fails, the run is cancelled, the latent is no longer finite, or `on_step` returns
    /// an error.
    pub fn denoise(
        &mut self,
        noise: Array4<f32>,
        text: Conditioning<'_>,
        mut sampler: Sampler,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepDone<'_>) -> Result<(), Error>,
    ) -> Result<Array4<f32>, Error> {
        let step_inputs = StepInputs::new(&self.model, noise.view(), text)?;
        let schedule = sampler.schedule().clone();
        let steps = schedule.steps();
        let mut latent = noise;
        for (step, (timestep, sigma)) in schedule.timesteps().iter().zip(schedule.sigmas()).enumerate() {
            let expert = self.model.manifest().routing.expert_at(*timestep);
            let scale = text.scales.get(expert.0).copied().unwrap_or(GuidanceScale(1.0));
            let open = self.resident(expert, &step_inputs, cancel)?;
            let began = Instant::now();
            let velocity = step_inputs.velocity(open, latent.view(), *timestep, scale, cancel)?;
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

    /// Closes all experts and returns their memory to the system.
    pub fn close(&mut self) {
        self.open.clear();
        engines::memory::return_freed_memory();
    }

    /// Returns an expert, opening it if necessary. Other experts are closed first if only one may be resident.
    fn resident(
        &mut self,
        expert: ExpertIndex,
        step_inputs: &StepInputs,
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
                if manifest.component(&component)?.weight_bytes() <= WARM_UP_WEIGHTS_MAX {
                    self.model.measure_opening(|| step_inputs.warm_up(expert, &manifest.denoiser, cancel))?;
                }
                Ok(expert)
            }
        }
    }
}

/// The inputs that are the same for all steps of a clip.
struct StepInputs {
    /// The text inputs for each kernel library that an expert uses.
    texts: BTreeMap<KernelLibrary, GuidanceTexts>,
    rotary: Rotary,
}

/// Rotary tables as graph inputs.
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

/// The text inputs of the guidance passes.
struct GuidanceTexts {
    prompt: TextInput,
    negative: Option<NegativePass>,
}

/// The second guidance pass.
enum NegativePass {
    /// In one batch with the first pass: text states of the prompt and the negative prompt.
    Batched(TextInput),
    /// After the first pass: text states of the negative prompt.
    Separate(TextInput),
}

impl StepInputs {
    fn new(model: &Model, noise: ArrayView4<'_, f32>, text: Conditioning<'_>) -> Result<Self, Error> {
        let manifest = model.manifest();
        let (channels, frames, height, width) = noise.dim();
        let shape = LatentShape { channels, frames, height, width };
        let is_separate = shape.tokens(manifest.denoiser.patch) > BATCHED_TOKENS_MAX;
        let mut texts = BTreeMap::new();
        for route in manifest.routing.routes() {
            let kernels = model.graph(&Component::Expert(route.expert.clone()), Part::Whole)?.variant.kernels;
            let negative = text.negative.map(|negative| {
                if is_separate {
                    NegativePass::Separate(TextInput::new(kernels, &[negative]))
                } else {
                    NegativePass::Batched(TextInput::new(kernels, &[text.prompt, negative]))
                }
            });
            texts
                .insert(kernels, GuidanceTexts { prompt: TextInput::new(kernels, &[text.prompt]), negative });
        }
        Ok(Self { texts, rotary: Rotary::new(&manifest.denoiser, shape) })
    }

    /// The text inputs for an expert.
    fn texts(&self, expert: &OpenExpert) -> &GuidanceTexts {
        self.texts
            .get(&expert.kernels)
            .unwrap_or_else(|| unreachable!("every expert is in the routing, and `new` adds its kernels"))
    }

    /// Runs an expert on one token, with the text of the clip.
    fn warm_up(&self, expert: &mut OpenExpert, spec: &DenoiserSpec, cancel: &Cancel) -> Result<(), Error> {
        let Patch { time, height, width } = spec.patch;
        let shape = LatentShape { channels: spec.in_channels, frames: time, height, width };
        let texts = self.texts(expert);
        let (text, batch) = match &texts.negative {
            Some(NegativePass::Batched(both)) => (both, 2),
            _ => (&texts.prompt, 1),
        };
        let latent = Value::from_f32(Array5::zeros((batch, shape.channels, time, height, width)));
        run(&mut expert.engine, &latent, text, Timestep(0.0), &Rotary::new(spec, shape), cancel).map(drop)
    }

    /// Computes the guided velocity `[C,T,h,w]` at a latent.
    fn velocity(
        &self,
        expert: &mut OpenExpert,
        latent: ArrayView4<'_, f32>,
        timestep: Timestep,
        scale: GuidanceScale,
        cancel: &Cancel,
    ) -> Result<Array4<f32>, Error> {
        let GuidanceTexts { prompt, negative } = self.texts(expert);
        let mut run = |latent: &Value, text: &TextInput| {
            run(&mut expert.engine, latent, text, timestep, &self.rotary, cancel)
        };
        let single = || Value::from_f32(latent.insert_axis(Axis(0)).to_owned());
        let pick = |batch: &Array5<f32>, index: usize| batch.index_axis(Axis(0), index).to_owned();
        let (conditional, unconditional) = match negative {
            Some(NegativePass::Batched(both)) if scale.applies() => {
                let pair = stack(Axis(0), &[latent, latent])
                    .unwrap_or_else(|_| unreachable!("both have the shape of the latent"));
                let velocities = run(&Value::from_f32(pair), both)?;
                (pick(&velocities, 0), pick(&velocities, 1))
            }
            Some(NegativePass::Separate(negative)) if scale.applies() => {
                let latent = single();
                (pick(&run(&latent, prompt)?, 0), pick(&run(&latent, negative)?, 0))
            }
            _ => return Ok(pick(&run(&single(), prompt)?, 0)),
        };
        Ok(guide(&unconditional, &conditional, scale))
    }
}

/// Runs an expert: the velocities `[B,C,T,h,w]` at a batch of latents.
fn run(
    engine: &mut Engine,
    latent: &Value,
    text: &TextInput,
    timestep: Timestep,
    rotary: &Rotary,
    cancel: &Cancel,
) -> Result<Array5<f32>, Error> {
    let timestep = Value::from_f32(Array1::from_elem(1, timestep.0));
    let rows = Value::from_i64(Array1::zeros(1));
    let mut inputs =
        vec![("latent", latent), ("timestep", &timestep), ("cos", &rotary.cos), ("sin", &rotary.sin)];
    inputs.extend(engine.signature().takes_rows().then_some((ROWS_INPUT, &rows)));
    inputs.extend(text.named());
    take_array(&mut engine.run(&inputs, cancel)?, "velocity")
}
