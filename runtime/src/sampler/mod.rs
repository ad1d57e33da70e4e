//! The sampler: pure arithmetic on latents, without a clock, a thread, a session or a file.
//!
//! A latent is `x = (1-σ)·x0 + σ·noise`; the denoiser answers with a velocity `v = noise - x0`. A [`Schedule`] says at
//! which σ the denoiser is asked, a [`Solver`] how its answers move the latent on; a [`Sampler`] is both, and the little
//! that has to be remembered between two steps.
//!
//! In reading order: [`schedule`] (the sigma grids), [`solver`] (what a solver is, and how its weights are applied),
//! [`euler`], [`dpmpp`] and [`unipc`] (one update rule each), [`guidance`] (two velocities into one), [`noise`] (the
//! latent at σ = 1).

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
use ndarray::{Array4, Zip};

pub use guidance::guide;
pub use noise::torch_normal;
pub use schedule::Schedule;
pub use solver::Solver;

/// Takes a latent from noise to clean, one velocity at a time.
///
/// All latents and velocities of one sampler have the same shape, `[C,T,h,w]`.
#[derive(Debug, Clone)]
pub struct Sampler {
    schedule: Schedule,
    solver: &'static dyn Solver,
    step_index: usize,
    /// Predicted clean latents, newest first, at most [`solver::HISTORY`].
    predictions: Vec<Array4<f32>>,
    /// The latent that the last step started from, after its correction.
    start: Option<Array4<f32>>,
}

impl Sampler {
    /// A sampler before its first step.
    pub fn new(schedule: Schedule, solver: SolverKind) -> Self {
        Self {
            schedule,
            solver: solver::of_kind(solver),
            step_index: 0,
            predictions: Vec::new(),
            start: None,
        }
    }

    /// The schedule that is followed.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The step that is next, from 0; the number of steps once all are done.
    pub fn step_index(&self) -> usize {
        self.step_index
    }

    /// The next latent, from the one that this sampler gave before (the noise at first) and its velocity.
    ///
    /// After the last step the latent is clean, and is given back as it is.
    pub fn step(&mut self, latent: &Array4<f32>, velocity: &Array4<f32>) -> Array4<f32> {
        debug_assert_eq!(latent.dim(), velocity.dim(), "a velocity has the shape of its latent");
        debug_assert!(self.step_index < self.schedule.steps(), "all steps are done");
        if self.step_index >= self.schedule.steps() {
            return latent.clone();
        }
        let sigmas = self.schedule.sigmas();
        self.predictions.insert(0, predicted_clean(latent, velocity, sigmas[self.step_index]));
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

/// The clean latent that a velocity points to: `x0 = x - σ·v`.
pub fn predicted_clean(latent: &Array4<f32>, velocity: &Array4<f32>, sigma: Sigma) -> Array4<f32> {
    Zip::from(latent).and(velocity).map_collect(|x, v| x - sigma.0 * v)
}
