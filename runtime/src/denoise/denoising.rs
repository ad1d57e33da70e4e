//! The state of a clip that is being denoised. It knows no session, file, clock or thread.

use super::policy::{PassAction, Passes, StepPolicy};
use crate::sampler::{Sampler, SamplerError, Schedule, SolverHistory, guide};
use bundle::routing::{ExpertIndex, Routing};
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Seed, Sigma, Timestep};
use ndarray::Array4;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Settings of a [`Denoising`].
#[derive(Debug, Clone, PartialEq)]
pub struct DenoiseSettings {
    /// The experts.
    pub routing: Routing,
    /// The guidance scale of each expert, starting with the one for the highest noise.
    pub guidance: Vec<GuidanceScale>,
    /// The noise levels.
    pub schedule: Schedule,
    /// The solver.
    pub solver: SolverKind,
    /// What each step computes.
    pub policy: StepPolicy,
}

/// The position in a stream of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomPosition {
    /// The seed of the stream.
    pub seed: Seed,
    /// How many values were drawn. The noise of a clip is the first `C·T·h·w` values; no solver draws any.
    pub drawn: u64,
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
    /// True if the expert's guidance scale is not 1.
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
/// The caller runs the expert that [`Self::next`] names and passes its velocities to [`Self::advance`]. A copy is a
/// snapshot: latents are shared and never changed in place.
///
/// # Examples
/// An expert whose velocity points to the clean latent 0.5:
///
/// ```
/// use bundle::routing::Routing;
/// use bundle::settings::{ScheduleKind, SolverKind};
/// use bundle::units::{GuidanceScale, Seed, Shift};
/// use ndarray::Array4;
/// use runtime::denoise::{DenoiseSettings, Denoising, StepOutputs, StepPolicy};
/// use runtime::sampler::Schedule;
///
/// let settings = DenoiseSettings {
///     routing: Routing::single(),
///     guidance: vec![GuidanceScale(1.0)],
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
    pub(super) policy: StepPolicy,
    pub(super) sampler: Sampler,
    pub(super) latent: Arc<Array4<f32>>,
    /// The clean latent that the last step predicted.
    pub(super) clean: Option<Arc<Array4<f32>>>,
    pub(super) random: RandomPosition,
}

impl Denoising {
    /// Begins with `noise [C,T,h,w]`, the first values of the stream of `seed`.
    ///
    /// # Errors
    /// The number of guidance scales is not the number of experts.
    pub fn new(settings: DenoiseSettings, noise: Array4<f32>, seed: Seed) -> Result<Self, StepError> {
        let DenoiseSettings { routing, guidance, schedule, solver, policy } = settings;
        check_guidance(&guidance, &routing)?;
        let random = RandomPosition { seed, drawn: noise.len() as u64 };
        let (sampler, latent) = (Sampler::new(schedule, solver), Arc::new(noise));
        Ok(Self { routing, guidance, policy, sampler, latent, clean: None, random })
    }

    /// What the next step needs; `None` once all steps are done.
    pub fn next(&self) -> Option<StepRequest> {
        let step = self.sampler.step_index();
        let timestep = *self.sampler.schedule().timesteps().get(step)?;
        let expert = self.routing.expert_at(timestep);
        let is_guided = self.guidance[expert.0].applies();
        let (steps, sigma) = (self.steps(), self.sampler.sigma());
        let passes = self.policy.passes(is_guided);
        Some(StepRequest { step, steps, expert, timestep, sigma, is_guided, passes })
    }

    /// Makes the step that [`Self::next`] described.
    ///
    /// # Errors
    /// All steps are done, the velocities are not those that were requested or do not have the shape of the latent, or
    /// the next latent is not finite. The state is unchanged.
    pub fn advance(&mut self, outputs: StepOutputs) -> Result<(), StepError> {
        let StepOutputs { conditional, unconditional } = outputs;
        let Some(StepRequest { step, expert, passes, .. }) = self.next() else {
            return Err(SamplerError::Finished { steps: self.steps() }.into());
        };
        let velocity = match (passes.unconditional, unconditional) {
            (PassAction::Skip, None) => conditional,
            (PassAction::Skip, Some(_)) => return Err(StepError::Unrequested { step }),
            (_, None) => return Err(StepError::Missing { step }),
            (_, Some(unconditional)) if unconditional.dim() == conditional.dim() => {
                guide(&unconditional, &conditional, self.guidance[expert.0])
            }
            (_, Some(unconditional)) => {
                let [latent, velocity] = [self.latent.shape().to_vec(), unconditional.shape().to_vec()];
                return Err(SamplerError::Shape { latent, velocity }.into());
            }
        };
        let mut sampler = self.sampler.clone();
        let latent = sampler.step(&self.latent, &velocity)?;
        if !latent.iter().all(|value| value.is_finite()) {
            return Err(StepError::NotFinite { step, expert });
        }
        self.clean = sampler.history().predictions.first().cloned();
        (self.sampler, self.latent) = (sampler, latent);
        Ok(())
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

    /// The position in the stream of random numbers.
    pub fn random(&self) -> RandomPosition {
        self.random
    }

    /// Returns true if a step that is left needs the unconditional pass.
    pub fn needs_unconditional(&self) -> bool {
        let left = &self.schedule().timesteps()[self.steps_done()..];
        left.iter().any(|timestep| self.guidance[self.routing.expert_at(*timestep).0].applies())
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

/// The parts of a [`Denoising`], for storing it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredDenoising {
    pub(crate) routing: Routing,
    pub(crate) guidance: Vec<GuidanceScale>,
    pub(crate) policy: StepPolicy,
    pub(crate) schedule: Schedule,
    pub(crate) solver: SolverKind,
    pub(crate) steps_done: usize,
    pub(crate) history: SolverHistory,
    pub(crate) latent: Arc<Array4<f32>>,
    pub(crate) clean: Option<Arc<Array4<f32>>>,
    pub(crate) random: RandomPosition,
}

impl Denoising {
    /// The parts.
    pub(crate) fn stored(&self) -> StoredDenoising {
        StoredDenoising {
            routing: self.routing.clone(),
            guidance: self.guidance.clone(),
            policy: self.policy,
            schedule: self.schedule().clone(),
            solver: self.sampler.solver(),
            steps_done: self.steps_done(),
            history: self.sampler.history().clone(),
            latent: Arc::clone(&self.latent),
            clean: self.clean.clone(),
            random: self.random,
        }
    }

    /// Puts the parts together again.
    ///
    /// # Errors
    /// Returns the reason if they cannot belong to one run.
    pub(crate) fn from_stored(stored: StoredDenoising) -> Result<Self, &'static str> {
        let StoredDenoising {
            routing,
            guidance,
            policy,
            schedule,
            solver,
            steps_done,
            history,
            latent,
            clean,
            random,
        } = stored;
        check_guidance(&guidance, &routing)
            .map_err(|_given| "there is not one guidance scale for each expert")?;
        let others = history.predictions.iter().chain(&history.start).chain(&clean);
        if others.clone().any(|other| other.dim() != latent.dim()) {
            return Err("its latents have different shapes");
        }
        if std::iter::once(&latent).chain(others).any(|latent| !latent.iter().all(|value| value.is_finite()))
        {
            return Err("a latent is not finite");
        }
        if clean.is_some() != (steps_done > 0) {
            return Err("the predicted clean latent does not belong to the number of steps");
        }
        let sampler = Sampler::from_parts(schedule, solver, steps_done, history)?;
        Ok(Self { routing, guidance, policy, sampler, latent, clean, random })
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

#[cfg(test)]
mod tests {
    use super::super::synthetic::{denoising, run, step};
    use super::*;
    use bundle::settings::ScheduleKind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
            solver in 0_usize..3, kind in 0_usize..2, steps in 1_usize..12, stop in 0_usize..12,
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
