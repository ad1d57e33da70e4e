//! The parts of a [`Denoising`], for storing it.

use super::denoising::{Denoising, check_guidance, check_policy};
use super::policy::StepPolicy;
use super::step_cache::StepCache;
use crate::sampler::{NoiseStream, RandomPosition, Sampler, Schedule, SolverHistory};
use bundle::routing::Routing;
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Sigma};
use ndarray::Array4;
use std::sync::Arc;

/// The parts of a [`Denoising`], for storing it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredDenoising {
    pub(crate) routing: Routing,
    pub(crate) guidance: Vec<GuidanceScale>,
    pub(crate) guidance_until: Sigma,
    pub(crate) policy: StepPolicy,
    pub(crate) schedule: Schedule,
    pub(crate) solver: SolverKind,
    pub(crate) steps_done: usize,
    pub(crate) history: SolverHistory,
    pub(crate) latent: Arc<Array4<f32>>,
    pub(crate) clean: Option<Arc<Array4<f32>>>,
    pub(crate) random: RandomPosition,
    pub(crate) cache: Option<StepCache>,
    pub(crate) reused: Vec<usize>,
}

impl Denoising {
    /// The parts.
    pub(crate) fn stored(&self) -> StoredDenoising {
        StoredDenoising {
            routing: self.routing.clone(),
            guidance: self.guidance.clone(),
            guidance_until: self.guidance_until,
            policy: self.policy,
            schedule: self.schedule().clone(),
            solver: self.sampler.solver(),
            steps_done: self.steps_done(),
            history: self.sampler.history().clone(),
            latent: Arc::clone(&self.latent),
            clean: self.clean.clone(),
            random: self.random(),
            cache: self.cache.clone(),
            reused: self.reused.clone(),
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
            guidance_until,
            policy,
            schedule,
            solver,
            steps_done,
            history,
            latent,
            clean,
            random,
            cache,
            reused,
        } = stored;
        check_guidance(&guidance, &routing)
            .map_err(|_given| "there is not one guidance scale for each expert")?;
        if !(0.0..=1.0).contains(&guidance_until.0) {
            return Err("the end of guidance is not in 0 to 1");
        }
        check_policy(policy, &schedule, solver).map_err(|_error| "its policy does not fit its steps")?;
        let cached = cache.iter().flat_map(StepCache::arrays);
        let others: Vec<_> =
            history.predictions.iter().chain(&history.start).chain(&clean).chain(cached).collect();
        if others.iter().any(|other| other.dim() != latent.dim()) {
            return Err("its latents have different shapes");
        }
        if std::iter::once(&latent).chain(others).any(|latent| !latent.iter().all(|value| value.is_finite()))
        {
            return Err("a latent is not finite");
        }
        if clean.is_some() != (steps_done > 0) {
            return Err("the predicted clean latent does not belong to the number of steps");
        }
        if cache.is_some() && (policy.is_compute_all() || steps_done == 0) {
            return Err("it has velocities of a computed step, and its policy or number of steps has none");
        }
        if cache.iter().flat_map(StepCache::rates).any(|rate| !(rate.is_finite() && rate >= 0.0)) {
            return Err("the rate of change of a velocity is not a number from 0 up");
        }
        let is_ascending = reused.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_ascending || reused.last().is_some_and(|last| *last >= steps_done) {
            return Err("the steps that reused velocities are not among those that are done");
        }
        // The stream is drawn again up to its position, so it must not be further than the steps can have drawn.
        let (size, draws) = (latent.len() as u64, steps_done as u64 + 1);
        if size == 0 || random.drawn % size != 0 || random.drawn / size > draws {
            return Err("the position of its random numbers does not belong to the number of steps");
        }
        let sampler = Sampler::from_parts(schedule, solver, steps_done, history)?;
        let mut state = Self {
            routing,
            guidance,
            guidance_until,
            policy,
            sampler,
            latent,
            clean,
            noise: NoiseStream::at(random),
            cache,
            is_reused: false,
            reused,
        };
        state.decide();
        Ok(state)
    }
}
