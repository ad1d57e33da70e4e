//! The state of a clip that is being denoised. It knows no session, file, clock or thread.

use super::policy::{Passes, StepPolicy};
use super::step_cache::{StepCache, Velocities, steps_before_reuse};
use crate::sampler::{NoiseStream, RandomPosition, Sampler, SamplerError, Schedule, guide};
use bundle::routing::{ExpertIndex, Routing};
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Seed, Sigma, Timestep};
use ndarray::Array4;
use std::ops::Range;
use std::sync::Arc;

/// Settings of a [`Denoising`].
#[derive(Debug, Clone, PartialEq)]
pub struct DenoiseSettings {
    /// The experts.
    pub routing: Routing,
    /// The guidance scale of each expert, starting with the one for the highest noise.
    pub guidance: Vec<GuidanceScale>,
    /// Steps of a lower noise level than this are not guided, whatever their expert.
    pub guidance_until: Sigma,
    /// The noise levels.
    pub schedule: Schedule,
    /// The solver.
    pub solver: SolverKind,
    /// What each step computes.
    pub policy: StepPolicy,
}

/// What the next step needs from an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRequest {
    /// Number of the step, from 0.
    pub step: usize,
    /// Number of steps.
    pub steps: usize,
    /// The expert that the timestep is routed to.
    pub expert: ExpertIndex,
    /// The noise level as the expert receives it.
    pub timestep: Timestep,
    /// The noise level of the latent.
    pub sigma: Sigma,
    /// True if the expert's guidance scale is not 1 and guidance has not ended.
    pub is_guided: bool,
    /// The guidance passes.
    pub passes: Passes,
}

/// The velocities of a step, each `[C,T,h,w]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutputs {
    /// The velocity with the prompt.
    pub conditional: Array4<f32>,
    /// The velocity with the negative prompt, if it was requested.
    pub unconditional: Option<Array4<f32>>,
}

/// A step that cannot be made. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The sampler refuses the step.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The unconditional velocity was requested and not given.
    #[error("the unconditional velocity of step {step} is missing")]
    Missing {
        /// The step, from 0.
        step: usize,
    },
    /// An unconditional velocity was given and not requested.
    #[error("step {step} has no unconditional pass")]
    Unrequested {
        /// The step, from 0.
        step: usize,
    },
    /// Velocities were given for a step that reuses those of an earlier one.
    #[error("step {step} reuses velocities")]
    Reused {
        /// The step, from 0.
        step: usize,
    },
    /// A step that must be computed cannot reuse velocities.
    #[error("step {step} must be computed")]
    Computed {
        /// The step, from 0.
        step: usize,
    },
    /// The policy does not fit the steps.
    #[error("{why}")]
    Policy {
        /// The reason.
        why: String,
    },
    /// The latent would no longer be finite.
    #[error("the latent is not finite after step {step}")]
    NotFinite {
        /// The step, from 0.
        step: usize,
        /// The expert that ran.
        expert: ExpertIndex,
    },
    /// The number of guidance scales is not the number of experts.
    #[error("{given} guidance scales for {experts} experts")]
    Guidance {
        /// The number of scales.
        given: usize,
        /// The number of experts.
        experts: usize,
    },
}

/// Moves a latent from noise to clean, one step at a time.
///
/// The caller runs the expert that [`Self::next`] names and passes its velocities to [`Self::advance`]. If the passes of
/// the step are reused, the caller runs nothing and calls [`Self::reuse`]. A copy is a snapshot: latents are shared and
/// never changed in place.
///
/// # Examples
/// An expert whose velocity points to the clean latent 0.5:
///
/// ```
/// use bundle::routing::Routing;
/// use bundle::settings::{ScheduleKind, SolverKind};
/// use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
/// use ndarray::Array4;
/// use runtime::denoise::{DenoiseSettings, Denoising, StepOutputs, StepPolicy};
/// use runtime::sampler::Schedule;
///
/// let settings = DenoiseSettings {
///     routing: Routing::single(),
///     guidance: vec![GuidanceScale(1.0)],
///     guidance_until: Sigma(0.0),
///     schedule: Schedule::new(SolverKind::UniPc, ScheduleKind::Official, 20, Shift(5.0)),
///     solver: SolverKind::UniPc,
///     policy: StepPolicy::ComputeAll,
/// };
/// let mut denoising = Denoising::new(settings, Array4::from_elem((16, 1, 2, 2), 0.1), Seed(7))?;
/// while let Some(request) = denoising.next() {
///     let conditional = (&**denoising.latent() - 0.5) / request.sigma.0;
///     denoising.advance(StepOutputs { conditional, unconditional: None })?;
/// }
/// assert!(denoising.latent().iter().all(|value| (value - 0.5).abs() < 1e-3));
/// # Ok::<(), runtime::denoise::StepError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Denoising {
    pub(super) routing: Routing,
    pub(super) guidance: Vec<GuidanceScale>,
    pub(super) guidance_until: Sigma,
    pub(super) policy: StepPolicy,
    pub(super) sampler: Sampler,
    pub(super) latent: Arc<Array4<f32>>,
    /// The clean latent that the last step predicted.
    pub(super) clean: Option<Arc<Array4<f32>>>,
    pub(super) noise: NoiseStream,
    /// The velocities of the last computed step, if the policy may reuse them and they belong to the next step's expert.
    pub(super) cache: Option<StepCache>,
    /// True if the next step reuses them.
    pub(super) is_reused: bool,
    /// The steps that reused velocities, from 0.
    pub(super) reused: Vec<usize>,
}

impl Denoising {
    /// Begins with `noise [C,T,h,w]`, the first values of the stream of `seed`.
    ///
    /// # Errors
    /// The number of guidance scales is not the number of experts, or the policy does not fit the steps.
    pub fn new(settings: DenoiseSettings, noise: Array4<f32>, seed: Seed) -> Result<Self, StepError> {
        let DenoiseSettings { routing, guidance, guidance_until, schedule, solver, policy } = settings;
        check_guidance(&guidance, &routing)?;
        check_policy(policy, &schedule, solver)?;
        let random = RandomPosition { seed, drawn: noise.len() as u64 };
        let (sampler, latent) = (Sampler::new(schedule, solver), Arc::new(noise));
        Ok(Self {
            routing,
            guidance,
            guidance_until,
            policy,
            sampler,
            latent,
            clean: None,
            noise: NoiseStream::at(random),
            cache: None,
            is_reused: false,
            reused: Vec::new(),
        })
    }

    /// What the next step needs; `None` once all steps are done.
    pub fn next(&self) -> Option<StepRequest> {
        let step = self.sampler.step_index();
        let timestep = *self.sampler.schedule().timesteps().get(step)?;
        let expert = self.routing.expert_at(timestep);
        let is_guided = self.is_guided(step);
        let (steps, sigma) = (self.steps(), self.sampler.sigma());
        let passes = Passes::new(is_guided, self.is_reused);
        Some(StepRequest { step, steps, expert, timestep, sigma, is_guided, passes })
    }

    /// Makes the step that [`Self::next`] described, from the velocities that its passes compute.
    ///
    /// # Errors
    /// All steps are done, the step reuses velocities, the velocities are not those that were requested or do not have the
    /// shape of the latent, or the next latent is not finite. The state is unchanged.
    pub fn advance(&mut self, outputs: StepOutputs) -> Result<(), StepError> {
        let StepOutputs { conditional, unconditional } = outputs;
        let request = self.next().ok_or(SamplerError::Finished { steps: self.steps() })?;
        let StepRequest { step, is_guided, passes, .. } = request;
        match &unconditional {
            _ if passes.is_reused() => return Err(StepError::Reused { step }),
            None if is_guided => return Err(StepError::Missing { step }),
            Some(_) if !is_guided => return Err(StepError::Unrequested { step }),
            _ => {}
        }
        let velocities = (Arc::new(conditional), unconditional.map(Arc::new));
        let input = Arc::clone(&self.latent);
        self.make(&request, &velocities)?;
        if !self.policy.is_compute_all() {
            self.cache = Some(StepCache::after(self.cache.as_ref(), &input, &velocities));
        }
        self.decide();
        Ok(())
    }

    /// Makes the step that [`Self::next`] described, from the velocities of an earlier step.
    ///
    /// # Errors
    /// All steps are done, the step must be computed, or the next latent is not finite. The state is unchanged.
    pub fn reuse(&mut self) -> Result<(), StepError> {
        let request = self.next().ok_or(SamplerError::Finished { steps: self.steps() })?;
        let StepRequest { step, is_guided, passes, .. } = request;
        let cache = self.cache.as_ref().filter(|_| passes.is_reused());
        let velocities = cache.ok_or(StepError::Computed { step })?.velocities(&self.latent, is_guided);
        self.make(&request, &velocities)?;
        self.reused.push(step);
        self.decide();
        Ok(())
    }

    /// Moves the latent by a step.
    fn make(&mut self, request: &StepRequest, velocities: &Velocities) -> Result<(), StepError> {
        let StepRequest { step, expert, .. } = *request;
        let (conditional, unconditional) = velocities;
        let guided = match unconditional {
            None => None,
            Some(unconditional) if unconditional.dim() == conditional.dim() => {
                Some(guide(unconditional, conditional, self.guidance[expert.0]))
            }
            Some(unconditional) => {
                let [latent, velocity] = [self.latent.shape().to_vec(), unconditional.shape().to_vec()];
                return Err(SamplerError::Shape { latent, velocity }.into());
            }
        };
        let (mut sampler, mut noise) = (self.sampler.clone(), self.noise.clone());
        let latent = sampler.step(&self.latent, guided.as_ref().unwrap_or(conditional), &mut noise)?;
        if !latent.iter().all(|value| value.is_finite()) {
            return Err(StepError::NotFinite { step, expert });
        }
        self.clean = sampler.history().predictions.first().cloned();
        (self.sampler, self.latent, self.noise) = (sampler, latent, noise);
        Ok(())
    }

    /// Decides whether the next step reuses velocities, and drops them at the boundary between two experts.
    pub(super) fn decide(&mut self) {
        self.is_reused = false;
        let StepPolicy::EasyCache { threshold } = self.policy else {
            self.cache = None;
            return;
        };
        if self.is_at_boundary() {
            self.cache = None;
        }
        let (step, phase) = (self.steps_done(), self.phase(self.steps_done()));
        let is_always_computed =
            step + 1 >= self.steps() || step < phase.start + steps_before_reuse(phase.len());
        if let Some(cache) = self.cache.as_ref().filter(|_| !is_always_computed) {
            self.is_reused = cache.fits(&self.latent, self.is_guided(step), threshold);
        }
    }

    /// The steps around `step` that run on the same expert.
    fn phase(&self, step: usize) -> Range<usize> {
        let timesteps = self.schedule().timesteps();
        let is_same = |other: &usize| {
            let expert = |step: usize| timesteps.get(step).map(|timestep| self.routing.expert_at(*timestep));
            expert(*other) == expert(step)
        };
        let start = (0..step).rev().take_while(is_same).last().unwrap_or(step);
        start..(step..timesteps.len()).take_while(is_same).last().map_or(step, |last| last + 1)
    }

    /// Returns true if guidance needs the unconditional pass of a step of the schedule.
    fn is_guided(&self, step: usize) -> bool {
        let schedule = self.schedule();
        let Some(timestep) = schedule.timesteps().get(step) else { return false };
        let scale = self.guidance[self.routing.expert_at(*timestep).0];
        scale.applies() && schedule.sigmas()[step] >= self.guidance_until
    }

    /// The latent, `[C,T,h,w]`, model scale.
    pub fn latent(&self) -> &Arc<Array4<f32>> {
        &self.latent
    }

    /// The clean latent that the last step predicted, `[C,T,h,w]`; `None` before the first step.
    pub fn clean_estimate(&self) -> Option<&Arc<Array4<f32>>> {
        self.clean.as_ref()
    }

    /// The number of steps that are done.
    pub fn steps_done(&self) -> usize {
        self.sampler.step_index()
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.sampler.schedule().steps()
    }

    /// The noise levels.
    pub fn schedule(&self) -> &Schedule {
        self.sampler.schedule()
    }

    /// The experts.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The guidance scale of each expert.
    pub fn guidance(&self) -> &[GuidanceScale] {
        &self.guidance
    }

    /// The lowest noise level that is guided.
    pub fn guidance_until(&self) -> Sigma {
        self.guidance_until
    }

    /// The position in the stream of random numbers.
    pub fn random(&self) -> RandomPosition {
        self.noise.position()
    }

    /// The steps that reused velocities, from 0.
    pub fn reused_steps(&self) -> &[usize] {
        &self.reused
    }

    /// Returns true if a step that is left needs the unconditional pass.
    pub fn needs_unconditional(&self) -> bool {
        (self.steps_done()..self.steps()).any(|step| self.is_guided(step))
    }

    /// Returns true if the next step runs on another expert than the one before it.
    pub fn is_at_boundary(&self) -> bool {
        let timesteps = self.schedule().timesteps();
        let expert = |step: usize| timesteps.get(step).map(|timestep| self.routing.expert_at(*timestep));
        let done = self.steps_done();
        done.checked_sub(1).and_then(expert).zip(expert(done)).is_some_and(|(last, next)| last != next)
    }

    /// Returns a copy that later steps do not change. Latents are shared.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.clone())
    }

    /// Continues from a snapshot, with the bits of a run that was never stopped.
    pub fn resume(snapshot: Snapshot) -> Self {
        snapshot.0
    }
}

/// A copy of a [`Denoising`] between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot(pub(super) Denoising);

impl Snapshot {
    /// The state.
    pub fn state(&self) -> &Denoising {
        &self.0
    }
}

/// Checks that there is one guidance scale for each expert.
pub(super) fn check_guidance(guidance: &[GuidanceScale], routing: &Routing) -> Result<(), StepError> {
    let (given, experts) = (guidance.len(), routing.routes().len());
    if given == experts { Ok(()) } else { Err(StepError::Guidance { given, experts }) }
}

/// Checks that a policy fits the steps of a schedule.
pub(super) fn check_policy(
    policy: StepPolicy,
    schedule: &Schedule,
    solver: SolverKind,
) -> Result<(), StepError> {
    policy.check(schedule.steps(), solver).map_err(|error| StepError::Policy { why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{denoising, run, step};
    use super::*;
    use bundle::settings::ScheduleKind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
            solver in 0..SolverKind::ALL.len(), kind in 0_usize..2, steps in 1_usize..12, stop in 0_usize..12,
            guidance in 0_usize..3, boundary in 1_u16..1000, seed in 0_u64..1000,
        ) {
            let start = denoising(SolverKind::ALL[solver], ScheduleKind::ALL[kind], steps, guidance, boundary, seed);
            let whole = run(start.clone());
            let mut first = start;
            for _ in 0..stop.min(steps) {
                step(&mut first);
            }
            let snapshot = first.snapshot();
            // The run that goes on does not change the snapshot.
            let same = run(first);
            prop_assert_eq!(&same, &whole);
            prop_assert_eq!(run(Denoising::resume(snapshot)), whole);
        }
    }

    fn outputs(denoising: &Denoising, unconditional: bool) -> StepOutputs {
        let conditional = denoising.latent().mapv(|x| 0.5 * x);
        StepOutputs { unconditional: unconditional.then(|| conditional.clone()), conditional }
    }

    #[test]
    fn velocities_that_were_not_requested_are_refused_and_change_nothing() {
        let mut guided = denoising(SolverKind::UniPc, ScheduleKind::Official, 3, 1, 500, 1);
        let before = guided.clone();
        assert_eq!(guided.advance(outputs(&before, false)), Err(StepError::Missing { step: 0 }));
        let other = StepOutputs { conditional: Array4::zeros((1, 1, 1, 1)), ..outputs(&before, true) };
        assert!(matches!(guided.advance(other), Err(StepError::Sampler(SamplerError::Shape { .. }))));
        let infinite =
            StepOutputs { conditional: before.latent().mapv(|_| f32::INFINITY), ..outputs(&before, true) };
        assert!(matches!(guided.advance(infinite), Err(StepError::NotFinite { step: 0, .. })));
        assert_eq!(guided, before);
        let mut plain = denoising(SolverKind::UniPc, ScheduleKind::Official, 1, 0, 500, 1);
        assert_eq!(plain.advance(outputs(&plain.clone(), true)), Err(StepError::Unrequested { step: 0 }));
        plain.advance(outputs(&plain.clone(), false)).unwrap();
        assert_eq!(plain.next(), None);
        let finished = SamplerError::Finished { steps: 1 };
        assert_eq!(plain.advance(outputs(&plain.clone(), false)), Err(finished.into()));
    }

    #[test]
    fn a_missing_guidance_scale_is_an_error() {
        let Denoising { routing, sampler, .. } =
            denoising(SolverKind::Euler, ScheduleKind::Official, 2, 1, 500, 1);
        let settings = DenoiseSettings {
            routing,
            guidance: vec![GuidanceScale(3.0)],
            guidance_until: Sigma(0.0),
            schedule: sampler.schedule().clone(),
            solver: SolverKind::Euler,
            policy: StepPolicy::ComputeAll,
        };
        let refused = Denoising::new(settings, Array4::zeros((1, 1, 1, 1)), Seed(1));
        assert_eq!(refused, Err(StepError::Guidance { given: 1, experts: 2 }));
    }

    #[test]
    fn the_expert_boundary_is_between_two_experts() {
        let mut state = denoising(SolverKind::Euler, ScheduleKind::Official, 8, 1, 700, 1);
        let mut boundaries = 0;
        let mut before = state.next().unwrap().expert;
        while let Some(request) = state.next() {
            assert_eq!(state.is_at_boundary(), request.expert != before);
            boundaries += usize::from(state.is_at_boundary());
            before = request.expert;
            step(&mut state);
        }
        assert_eq!((boundaries, state.is_at_boundary()), (1, false));
    }
}
