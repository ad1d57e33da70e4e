//! Renoise: the predicted clean latent with fresh noise of the next level, `x ← (1-σ_next)·x0 + σ_next·noise`.
//!
//! Models that were distilled with DMD, rCM or consistency losses are sampled so. It is the stochastic sampling of
//! diffusers' `FlowMatchEulerDiscreteScheduler`.

use super::solver::{HISTORY, Solver, Update, Weights};
use bundle::units::Sigma;

/// Adds fresh noise to each predicted clean latent. The last step, to σ = 0, adds none.
#[derive(Debug, Clone, Copy)]
pub struct Renoise;

impl Solver for Renoise {
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update {
        let to = f64::from(sigmas[step + 1].0);
        let mut predictions = [0.0; HISTORY];
        predictions[0] = 1.0 - to;
        Update { correction: None, advance: Weights { latent: 0.0, predictions }, noise: to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_but_the_last_adds_noise_of_the_next_level() {
        let sigmas = [Sigma(1.0), Sigma(0.75), Sigma(0.0)];
        let first = Renoise.update(&sigmas, 0);
        assert_eq!(first.noise, 0.75);
        assert_eq!(first.advance, Weights { latent: 0.0, predictions: [0.25, 0.0, 0.0] });
        let last = Renoise.update(&sigmas, 1);
        assert_eq!(last.noise, 0.0);
        assert_eq!(last.advance, Weights { latent: 0.0, predictions: [1.0, 0.0, 0.0] });
    }
}
