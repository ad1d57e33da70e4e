//! The sampler: pure arithmetic on latents.
//!
//! A latent is `x = (1-σ)·x0 + σ·noise`; the denoiser predicts the velocity `v = noise - x0`. A [`Schedule`] is the
//! list of sigmas, a [`Solver`] is an update rule from one sigma to the next. A [`Sampler`] combines both with the
//! state between steps.
//!
//! In reading order: [`schedule`] (the sigma grids), [`solver`] (the trait and its weights), [`euler`], [`dpmpp`],
//! [`unipc`] and [`renoise`] (one update rule each), [`guidance`] (classifier-free guidance), [`noise`] (the latent at
//! σ = 1), [`noise_stream`] (the noise of later steps).

pub mod schedule;
pub mod solver;

pub mod dpmpp;
pub mod euler;
pub mod renoise;
pub mod unipc;

pub mod guidance;
pub mod noise;
pub mod noise_stream;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;

use bundle::settings::SolverKind;
use bundle::units::Sigma;
use ndarray::{Array4, ArrayView4, Zip};
use std::sync::Arc;

pub use guidance::guide;
pub use noise::torch_normal;
pub use noise_stream::{NoiseStream, RandomPosition};
pub use schedule::Schedule;
pub use solver::{FreshNoise, HISTORY, Solver};

/// Moves a latent from noise to clean, one velocity at a time.
///
/// All latents and velocities of a sampler have the same shape, `[C,T,h,w]`.
///
/// # Examples
/// A model whose velocity always points to the clean latent 0.5 ends there, with any solver:
///
/// ```
/// use bundle::settings::{ScheduleKind, SolverKind};
/// use bundle::units::{Seed, Shift};
/// use ndarray::Array4;
/// use runtime::sampler::{NoiseStream, Sampler, Schedule};
/// use std::sync::Arc;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut noise = NoiseStream::new(Seed(7));
/// let mut latent = Arc::new(Array4::from_shape_vec((16, 2, 4, 4), noise.draw(16 * 2 * 4 * 4))?);
/// let schedule = Schedule::new(SolverKind::UniPc, ScheduleKind::Official, 20, Shift(5.0));
/// let mut sampler = Sampler::new(schedule.clone(), SolverKind::UniPc);
/// for sigma in &schedule.sigmas()[..schedule.steps()] {
///     let velocity = (&*latent - 0.5) / sigma.0;
///     latent = sampler.step(&latent, &velocity, &mut noise)?;
/// }
/// assert!(latent.iter().all(|value| (value - 0.5).abs() < 1e-3));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    schedule: Schedule,
    solver: SolverKind,
    step_index: usize,
    history: SolverHistory,
}

/// What a solver remembers between two steps. All latents are `[C,T,h,w]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SolverHistory {
    /// The step that the history begins at. The solver knows no step before it.
    pub since: usize,
    /// Predicted clean latents, newest first; at most [`solver::HISTORY`].
    pub predictions: Vec<Arc<Array4<f32>>>,
    /// The latent at the start of the last step, after its correction.
    pub start: Option<Arc<Array4<f32>>>,
}

/// A step that a sampler cannot make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    /// All steps are done.
    #[error("all {steps} steps are done")]
    Finished {
        /// The number of steps.
        steps: usize,
    },
    /// The velocity does not have the shape of the latent.
    #[error("the latent has shape {latent:?} and the velocity {velocity:?}")]
    Shape {
        /// Shape of the latent.
        latent: Vec<usize>,
        /// Shape of the velocity.
        velocity: Vec<usize>,
    },
}

impl Sampler {
    /// Creates a sampler before its first step.
    pub fn new(schedule: Schedule, solver: SolverKind) -> Self {
        Self { schedule, solver, step_index: 0, history: SolverHistory::default() }
    }

    /// Creates a sampler before step `step_index`, with the history of the steps before it.
    ///
    /// # Errors
    /// Returns the reason if the parts cannot belong to one run.
    pub(crate) fn from_parts(
        schedule: Schedule,
        solver: SolverKind,
        step_index: usize,
        history: SolverHistory,
    ) -> Result<Self, &'static str> {
        if step_index > schedule.steps() {
            return Err("more steps are done than the schedule has");
        }
        let known = step_index.checked_sub(history.since).ok_or("the history begins after the last step")?;
        if history.predictions.len() != known.min(HISTORY) || history.start.is_some() != (known > 0) {
            return Err("the history has not the length that the number of steps requires");
        }
        Ok(Self { schedule, solver, step_index, history })
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The solver.
    pub fn solver(&self) -> SolverKind {
        self.solver
    }

    /// What the solver remembers of the steps before.
    pub fn history(&self) -> &SolverHistory {
        &self.history
    }

    /// Index of the next step, from 0; equal to the number of steps once all are done.
    pub fn step_index(&self) -> usize {
        self.step_index
    }

    /// The noise level of the current latent; 0 once all steps are done.
    pub fn sigma(&self) -> Sigma {
        self.schedule.sigmas()[self.step_index]
    }

    /// Returns the next latent, from the previous one (initially the noise) and its velocity. A solver that adds noise
    /// draws a latent from `noise`; others draw none.
    ///
    /// # Errors
    /// All steps are done, or the shapes differ. Sampler and noise are unchanged.
    pub fn step(
        &mut self,
        latent: &Arc<Array4<f32>>,
        velocity: &Array4<f32>,
        noise: &mut NoiseStream,
    ) -> Result<Arc<Array4<f32>>, SamplerError> {
        if latent.dim() != velocity.dim() {
            let [latent, velocity] = [latent.shape().to_vec(), velocity.shape().to_vec()];
            return Err(SamplerError::Shape { latent, velocity });
        }
        if self.step_index >= self.schedule.steps() {
            return Err(SamplerError::Finished { steps: self.schedule.steps() });
        }
        let SolverHistory { since, predictions, start } = &mut self.history;
        let sigmas = self.schedule.sigmas();
        let clean = predicted_clean(latent.view(), velocity.view(), sigmas[self.step_index]);
        predictions.insert(0, Arc::new(clean));
        predictions.truncate(HISTORY);

        let update = update_rule(self.solver).update(&sigmas[*since..], self.step_index - *since);
        let from = match (&update.correction, start.take()) {
            (Some(weights), Some(previous)) => {
                Arc::new(solver::combine(weights, &previous, predictions, None))
            }
            _ => Arc::clone(latent),
        };
        let fresh = (update.noise != 0.0).then(|| noise.draw(latent.len()));
        let fresh = fresh.as_deref().map(|values| FreshNoise { weight: update.noise, values });
        let next = solver::combine(&update.advance, &from, predictions, fresh);
        *start = Some(from);
        self.step_index += 1;
        Ok(Arc::new(next))
    }

    /// Replaces the steps that are left by those of `schedule`, and forgets the history.
    pub(crate) fn restart(&mut self, schedule: Schedule, solver: SolverKind) {
        (self.schedule, self.solver) = (schedule, solver);
        self.history = SolverHistory { since: self.step_index, ..SolverHistory::default() };
    }
}

/// The update rule of a solver kind.
fn update_rule(kind: SolverKind) -> &'static dyn Solver {
    match kind {
        SolverKind::UniPc => &unipc::UniPc,
        SolverKind::DpmPp => &dpmpp::DpmPp,
        SolverKind::Euler => &euler::Euler,
        SolverKind::Renoise => &renoise::Renoise,
    }
}

/// The clean latent that a velocity at noise level σ points to: `x0 = x - σ·v`. All are `[C,T,h,w]`.
///
/// Source: flow matching, `x = (1-σ)·x0 + σ·noise` and `v = noise - x0`.
pub fn predicted_clean(
    latent: ArrayView4<'_, f32>,
    velocity: ArrayView4<'_, f32>,
    sigma: Sigma,
) -> Array4<f32> {
    Zip::from(latent).and(velocity).map_collect(|x, v| x - sigma.0 * v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
    #[test]
    fn the_velocity_of_a_straight_path_points_to_its_end(
    end in -3.0_f32..3.0, noise in -3.0_f32..3.0, sigma in 0.0_f32..1.0,
    ) {
    let filled = |value| Array4::from_elem((1, 1, 1, 1), value);
    let x = filled((1.0 - sigma) * end + sigma * noise);
    let clean = predicted_clean(x.view(), filled(noise - end).view(), Sigma(sigma));
    prop_assert!((clean[[0, 0, 0, 0]] - end).abs() < 1e-5);
    }
    }
}
