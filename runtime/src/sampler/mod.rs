//! The sampler: pure arithmetic on latents.
//!
//! A latent is `x = (1-σ)·x0 + σ·noise`; the denoiser predicts the velocity `v = noise - x0`. A [`Schedule`] is the
//! list of sigmas, a [`Solver`] is an update rule from one sigma to the next. A [`Sampler`] combines both with the
//! state between steps.
//!
//! In reading order: [`schedule`] (the sigma grids), [`solver`] (the trait and its weights), [`euler`], [`dpmpp`] and
//! [`unipc`] (one update rule each), [`guidance`] (classifier-free guidance), [`noise`] (the latent at σ = 1).

pub mod schedule;
pub mod solver;

pub mod dpmpp;
pub mod euler;
pub mod unipc;

pub mod guidance;
pub mod noise;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod reference;

use bundle::settings::SolverKind;
use bundle::units::Sigma;
use ndarray::{Array4, ArrayView4, Zip};

pub use guidance::guide;
pub use noise::torch_normal;
pub use schedule::Schedule;
pub use solver::Solver;

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
/// use runtime::sampler::{Sampler, Schedule, torch_normal};
///
/// let noise = torch_normal(Seed(7), 16 * 2 * 4 * 4);
/// let mut latent = Array4::from_shape_vec((16, 2, 4, 4), noise)?;
/// let schedule = Schedule::new(SolverKind::UniPc, ScheduleKind::Official, 20, Shift(5.0));
/// let mut sampler = Sampler::new(schedule.clone(), SolverKind::UniPc);
/// for sigma in &schedule.sigmas()[..schedule.steps()] {
///     let velocity = (&latent - 0.5) / sigma.0;
///     latent = sampler.step(&latent, &velocity);
/// }
/// assert!(latent.iter().all(|value| (value - 0.5).abs() < 1e-3));
/// # Ok::<(), ndarray::ShapeError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    schedule: Schedule,
    solver: &'static dyn Solver,
    step_index: usize,
    /// Predicted clean latents, newest first; at most [`solver::HISTORY`].
    predictions: Vec<Array4<f32>>,
    /// The latent at the start of the last step, after its correction.
    start: Option<Array4<f32>>,
}

impl Sampler {
    /// Creates a sampler before its first step.
    pub fn new(schedule: Schedule, solver: SolverKind) -> Self {
        Self { schedule, solver: update_rule(solver), step_index: 0, predictions: Vec::new(), start: None }
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Index of the next step, from 0; equal to the number of steps once all are done.
    pub fn step_index(&self) -> usize {
        self.step_index
    }

    /// Returns the next latent, from the previous one (initially the noise) and its velocity.
    ///
    /// After the last step the latent is clean and is returned unchanged.
    pub fn step(&mut self, latent: &Array4<f32>, velocity: &Array4<f32>) -> Array4<f32> {
        debug_assert_eq!(latent.dim(), velocity.dim(), "a velocity has the shape of its latent");
        debug_assert!(self.step_index < self.schedule.steps(), "all steps are done");
        if self.step_index >= self.schedule.steps() {
            return latent.clone();
        }
        let sigmas = self.schedule.sigmas();
        self.predictions.insert(0, predicted_clean(latent.view(), velocity.view(), sigmas[self.step_index]));
        self.predictions.truncate(solver::HISTORY);

        let update = self.solver.update(sigmas, self.step_index);
        let start = match (&update.correction, &self.start) {
            (Some(weights), Some(previous)) => solver::combine(weights, previous, &self.predictions),
            _ => latent.clone(),
        };
        let next = solver::combine(&update.advance, &start, &self.predictions);
        self.start = Some(start);
        self.step_index += 1;
        next
    }
}

/// The update rule of a solver kind.
fn update_rule(kind: SolverKind) -> &'static dyn Solver {
    match kind {
        SolverKind::UniPc => &unipc::UniPc,
        SolverKind::DpmPp => &dpmpp::DpmPp,
        SolverKind::Euler => &euler::Euler,
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
