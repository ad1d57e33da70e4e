//! Runs the denoising steps of a clip, each on the expert that its timestep is routed to.

use super::conditioning::Conditioning;
use super::denoising::{Denoising, StepError, StepOutputs, StepRequest};
use super::step_graph::{OpenExpert, StepInputs};
use crate::Error;
use crate::model::{Model, step_contract};
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, Part};
use bundle::routing::{ExpertIndex, ExpertName};
use bundle::units::{ByteCount, Sigma, Timestep};
use engines::{Cancel, residency};
use ndarray::Array4;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An expert with at most this many bytes of weights is run on one token when it is opened. A graph's first run
/// allocates memory from the system, which costs half a step of a small expert and is negligible for a large one.
const WARM_UP_WEIGHTS_MAX: ByteCount = ByteCount(256 << 20);

/// The result of a step. Latents are `[C,T,h,w]`, model scale.
#[derive(Debug, Clone)]
pub struct StepDone {
    /// Number of the step, from 0.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// The expert that ran.
    pub expert: ExpertName,
    /// The noise level before the step.
    pub sigma: Sigma,
    /// The timestep that the expert received.
    pub timestep: Timestep,
    /// The latent after the step.
    pub latent: Arc<Array4<f32>>,
    /// The clean latent that the step predicted.
    pub clean: Arc<Array4<f32>>,
    /// Duration of the step, without the time to open its expert.
    pub ran: Duration,
}

/// Runs the experts of a model. Each is opened when a step first needs it.
///
/// # Examples
/// ```no_run
/// # use runtime::{model::Model, plan::GenerationPlan, text_encoder::TextStates};
/// # fn denoise(model: &Model, plan: &GenerationPlan, prompt: TextStates) -> Result<(), runtime::Error> {
/// use engines::{Cancel, residency::Mode};
/// use runtime::denoise::{Conditioning, Generator};
/// use runtime::pipeline::seeded_noise;
///
/// let mut generator = Generator::new(model, Mode::OneAtATime);
/// let denoising = plan.denoising(model.manifest(), seeded_noise(plan))?;
/// let conditioning = Conditioning::text(prompt.into(), None);
/// let latent = generator.denoise(denoising, &conditioning, &Cancel::new(), &mut |done| {
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

impl Generator {
    /// Creates a generator. Opens no graph. With [`residency::Mode::OneAtATime`] an expert is closed before the next
    /// one is opened.
    pub fn new(model: &Model, mode: residency::Mode) -> Self {
        Self { model: model.clone(), mode, open: BTreeMap::new() }
    }

    /// Makes all steps that are left and returns the clean latent. `on_step` is called after every step.
    ///
    /// # Errors
    /// The conditioning does not fit the model, an expert cannot be opened or fails, the run is cancelled, the latent is
    /// no longer finite, or `on_step` returns an error.
    pub fn denoise(
        &mut self,
        mut denoising: Denoising,
        conditioning: &Conditioning,
        cancel: &Cancel,
        on_step: &mut dyn FnMut(StepDone) -> Result<(), Error>,
    ) -> Result<Arc<Array4<f32>>, Error> {
        let inputs = self.inputs(&denoising, conditioning)?;
        while let Some(done) = self.step(&mut denoising, &inputs, cancel)? {
            on_step(done)?;
        }
        Ok(Arc::clone(denoising.latent()))
    }

    /// Prepares the inputs that all steps of a clip share.
    ///
    /// # Errors
    /// The bundle lacks an expert, or the conditioning does not fit the model.
    pub fn inputs(&self, denoising: &Denoising, conditioning: &Conditioning) -> Result<StepInputs, Error> {
        let (channels, frames, height, width) = denoising.latent().dim();
        StepInputs::new(&self.model, LatentShape { channels, frames, height, width }, conditioning)
    }

    /// Makes the next step; `None` if all are done.
    ///
    /// # Errors
    /// The expert cannot be opened or fails, the run is cancelled, or the latent is no longer finite. The state is that
    /// before the step.
    pub fn step(
        &mut self,
        denoising: &mut Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<Option<StepDone>, Error> {
        let Some(request) = denoising.next() else { return Ok(None) };
        let StepRequest { step, steps, expert: index, timestep, sigma, .. } = request;
        let expert = denoising.routing().name(index)?.clone();
        self.open(index, &expert, inputs, cancel)?;
        let began = Instant::now();
        let outputs = self.run(&request, denoising, inputs, cancel)?;
        denoising.advance(outputs).map_err(|error| match error {
            StepError::NotFinite { .. } => Error::NotFinite { step: step + 1, steps, expert: expert.clone() },
            other => other.into(),
        })?;
        let ran = began.elapsed();
        let latent = Arc::clone(denoising.latent());
        let clean = denoising.clean_estimate().map_or_else(|| Arc::clone(&latent), Arc::clone);
        Ok(Some(StepDone { step, steps, expert, sigma, timestep, latent, clean, ran }))
    }

    /// Closes all experts and returns their memory to the system.
    pub fn close(&mut self) {
        if !self.open.is_empty() {
            self.open.clear();
            engines::memory::return_freed_memory();
        }
    }

    /// Computes the velocities of a step on its expert, which is open.
    fn run(
        &mut self,
        request: &StepRequest,
        denoising: &Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<StepOutputs, Error> {
        let expert = self
            .open
            .get_mut(&request.expert)
            .unwrap_or_else(|| unreachable!("the expert of a step is opened before it runs"));
        let spec = &self.model.manifest().denoiser;
        inputs.velocities(expert, spec, denoising.latent().view(), request, cancel)
    }

    /// Opens an expert if it is not open. Other experts are closed first if only one may be resident.
    fn open(
        &mut self,
        index: ExpertIndex,
        name: &ExpertName,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        if self.mode == residency::Mode::OneAtATime && self.open.keys().any(|open| *open != index) {
            self.open.retain(|open, _| *open == index);
            engines::memory::return_freed_memory();
        }
        if self.open.contains_key(&index) {
            return Ok(());
        }
        let manifest = self.model.manifest();
        let component = Component::Expert(name.clone());
        let kernels = self.model.graph(&component, Part::Whole)?.variant.kernels;
        let contract = step_contract(manifest, kernels);
        let engine = self.model.engine(&component, Part::Whole, &contract)?;
        let mut expert = OpenExpert { engine, kernels };
        if manifest.component(&component)?.weight_bytes() <= WARM_UP_WEIGHTS_MAX {
            self.model.measure_opening(|| inputs.warm_up(&mut expert, &manifest.denoiser, cancel))?;
        }
        self.open.insert(index, expert);
        Ok(())
    }
}
