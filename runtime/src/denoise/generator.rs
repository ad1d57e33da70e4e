//! Runs the denoising steps of a clip, each on the expert that its timestep is routed to.

use super::conditioning::Conditioning;
use super::denoising::{Denoising, StepError, StepOutputs, StepRequest};
use super::pass_pair::run_both;
use super::step_graph::{OpenExpert, Pass, StepInputs};
use crate::Error;
use crate::footprint::step_need;
use crate::model::{GraphUse, Model, engine_shape, step_contract};
use crate::text_encoder::TextStates;
use bundle::geometry::LatentShape;
use bundle::manifest::{Component, Part};
use bundle::routing::ExpertName;
use bundle::spec::TEXT_ROWS;
use bundle::units::{ByteCount, Sigma, Timestep};
use engines::{Cancel, Device, Provider};
use ndarray::{Array2, Array4, ArrayView4};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An expert with at most this many bytes of weights is run on one token when it is opened. A graph's first run
/// allocates memory from the system, which costs half a step of a small expert and is negligible for a large one. Other
/// providers than the CPU's and CUDA's prepare a graph for each shape of its inputs, so one token prepares nothing.
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
    /// True if the step reused velocities and its expert did not run.
    pub is_reused: bool,
}

/// Runs the experts of a model. Each step borrows the session of its expert, which is opened when a step first needs it.
/// A guided step of an expert on a pair of devices borrows one on each.
///
/// # Examples
/// ```no_run
/// # use runtime::{model::Model, plan::GenerationPlan, text_encoder::TextStates};
/// # fn denoise(model: &Model, plan: &GenerationPlan, prompt: TextStates) -> Result<(), runtime::Error> {
/// use engines::Cancel;
/// use runtime::denoise::{Conditioning, Generator};
/// use runtime::pipeline::seeded_noise;
///
/// let generator = Generator::new(model);
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
}

impl Generator {
    /// Creates a generator. Opens no graph.
    pub fn new(model: &Model) -> Self {
        Self { model: model.clone() }
    }

    /// Makes all steps that are left and returns the clean latent. `on_step` is called after every step.
    ///
    /// # Errors
    /// The conditioning does not fit the model, an expert cannot be opened or fails, the run is cancelled, the latent is
    /// no longer finite, or `on_step` returns an error.
    pub fn denoise(
        &self,
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

    /// Opens the session of an expert on a device, unless it is open, for the steps of clips of a shape.
    ///
    /// # Errors
    /// The expert cannot be opened, or `cancel` is requested.
    pub fn prepare(
        &self,
        expert: &Component,
        device: Device,
        latent: LatentShape,
        is_guided: bool,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let width = self.model.manifest().denoiser.text_width;
        let blank = Arc::new(TextStates::try_new(Array2::zeros((TEXT_ROWS, width)), 1, None)?);
        let conditioning = Conditioning::text(Arc::clone(&blank), is_guided.then_some(blank));
        let inputs = StepInputs::new(&self.model, latent, &conditioning)?;
        let (session, opening) = self.lend(expert, &inputs, device, cancel)?;
        drop(session);
        self.model.add_opening(opening);
        Ok(())
    }

    /// Makes the next step; `None` if all are done.
    ///
    /// # Errors
    /// The expert cannot be opened or fails, the run is cancelled, or the latent is no longer finite. The state is that
    /// before the step.
    pub fn step(
        &self,
        denoising: &mut Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<Option<StepDone>, Error> {
        let Some(request) = denoising.next() else { return Ok(None) };
        let StepRequest { step, steps, expert: index, timestep, sigma, .. } = request;
        let expert = denoising.routing().name(index)?.clone();
        let is_reused = request.passes.is_reused();
        let (made, ran) = if is_reused {
            let began = Instant::now();
            (denoising.reuse(), began.elapsed())
        } else {
            let PassesDone { outputs, ran } = self.passes(denoising, &request, &expert, inputs, cancel)?;
            let began = Instant::now();
            (denoising.advance(outputs), ran + began.elapsed())
        };
        made.map_err(|error| match error {
            StepError::NotFinite { .. } => not_finite(&request, &expert),
            other => other.into(),
        })?;
        let latent = Arc::clone(denoising.latent());
        let clean = denoising.clean_estimate().map_or_else(|| Arc::clone(&latent), Arc::clone);
        Ok(Some(StepDone { step, steps, expert, sigma, timestep, latent, clean, ran, is_reused }))
    }

    /// Computes the velocities of the next step, for [`Denoising::advance`]; `None` if all are done. Reuses none.
    ///
    /// # Errors
    /// The expert cannot be opened or fails, or the run is cancelled.
    pub fn velocities(
        &self,
        denoising: &Denoising,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<Option<StepOutputs>, Error> {
        let Some(request) = denoising.next() else { return Ok(None) };
        let expert = denoising.routing().name(request.expert)?.clone();
        Ok(Some(self.passes(denoising, &request, &expert, inputs, cancel)?.outputs))
    }

    /// Makes all passes of a step.
    fn passes(
        &self,
        denoising: &Denoising,
        request: &StepRequest,
        expert: &ExpertName,
        inputs: &StepInputs,
        cancel: &Cancel,
    ) -> Result<PassesDone, Error> {
        let component = Component::Expert(expert.clone());
        let placement = self.model.placement();
        let (first, second) = (placement.device_of(&component), placement.pair_of(&component));
        inputs.check_negative(request)?;
        let latent = denoising.latent().view();
        let work = StepWork { expert, component: &component, inputs, request, latent };
        match second.filter(|_| request.is_guided) {
            None => self.on_one_device(&work, first, cancel),
            Some(second) => self.on_pair(&work, [first, second], cancel),
        }
    }

    /// Makes all passes of a step on one device.
    fn on_one_device(
        &self,
        work: &StepWork<'_>,
        device: Device,
        cancel: &Cancel,
    ) -> Result<PassesDone, Error> {
        let (mut expert, opening) = self.lend(work.component, work.inputs, device, cancel)?;
        self.model.add_opening(opening);
        let began = Instant::now();
        let spec = &self.model.manifest().denoiser;
        let outputs = work.inputs.velocities(&mut expert, spec, work.latent, work.request, cancel)?;
        drop(expert);
        Ok(PassesDone { outputs, ran: began.elapsed() })
    }

    /// Makes the conditional pass on the first device and the unconditional one on the second, at the same time.
    fn on_pair(
        &self,
        work: &StepWork<'_>,
        devices: [Device; 2],
        cancel: &Cancel,
    ) -> Result<PassesDone, Error> {
        let StepWork { inputs, request, latent, .. } = *work;
        let began = Instant::now();
        let values = inputs.values(&self.model.manifest().denoiser, latent, request, 1)?;
        let prepared = began.elapsed();
        let pass = |device: Device, pass: Pass, cancel: &Cancel| {
            let (mut expert, opening) = self.lend(work.component, work.inputs, device, cancel)?;
            let began = Instant::now();
            let velocity = inputs.velocity(&mut expert, &values, pass, cancel)?;
            drop(expert);
            if velocity.iter().all(|value| value.is_finite()) {
                Ok((velocity, opening, began.elapsed()))
            } else {
                Err(not_finite(request, work.expert))
            }
        };
        let [first, second] = devices;
        let conditional = |cancel: &Cancel| pass(first, Pass::Conditional, cancel);
        let unconditional = |cancel: &Cancel| pass(second, Pass::Unconditional, cancel);
        let [conditional, unconditional] = run_both(devices, cancel, conditional, unconditional)?;
        // They were opened at the same time.
        self.model.add_opening(conditional.1.max(unconditional.1));
        Ok(PassesDone {
            ran: prepared + conditional.2.max(unconditional.2),
            outputs: StepOutputs { conditional: conditional.0, unconditional: Some(unconditional.0) },
        })
    }

    /// Borrows the session of an expert on a device. Returns how long it took to open it.
    fn lend(
        &self,
        component: &Component,
        inputs: &StepInputs,
        device: Device,
        cancel: &Cancel,
    ) -> Result<(OpenExpert, Duration), Error> {
        let manifest = self.model.manifest();
        let kernels = self.model.graph_on(device, component, Part::Whole)?.variant.kernels;
        let contract = step_contract(manifest, kernels);
        let shape = inputs.shape(kernels, &manifest.denoiser);
        let need = step_need(manifest, component, self.model.session_settings_on(device)?, shape);
        let graph = GraphUse {
            component,
            part: Part::Whole,
            contract: &contract,
            need,
            shape: Some(engine_shape(inputs.latent(), shape.batch)),
        };
        let session = self.model.lend_on(device, &graph, cancel)?;
        let opening = session.opening();
        let mut expert = OpenExpert { session, kernels };
        let Some(opening) = opening else { return Ok((expert, Duration::ZERO)) };
        let began = Instant::now();
        let is_small = manifest.component(component)?.weight_bytes() <= WARM_UP_WEIGHTS_MAX;
        if is_small && matches!(device.provider(), Provider::Cpu | Provider::Cuda) {
            inputs.warm_up(&mut expert, &manifest.denoiser, cancel)?;
        }
        Ok((expert, opening + began.elapsed()))
    }
}

/// The passes of a step that are to be made.
#[derive(Clone, Copy)]
struct StepWork<'a> {
    expert: &'a ExpertName,
    /// Its component.
    component: &'a Component,
    inputs: &'a StepInputs,
    request: &'a StepRequest,
    /// `[C,T,h,w]`.
    latent: ArrayView4<'a, f32>,
}

/// The passes of a step that are made.
struct PassesDone {
    outputs: StepOutputs,
    /// How long they ran, without the time to open the expert.
    ran: Duration,
}

fn not_finite(request: &StepRequest, expert: &ExpertName) -> Error {
    Error::NotFinite { step: request.step + 1, steps: request.steps, expert: expert.clone() }
}

#[cfg(test)]
#[path = "generator_tests.rs"]
mod tests;
