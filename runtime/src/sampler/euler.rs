//! Euler: `x ← x + (σ_next - σ)·v`.

use super::solver::{HISTORY, Solver, Update, Weights};
use bundle::units::Sigma;

/// Follows each velocity in a straight line to the next sigma.
#[derive(Debug, Clone, Copy)]
pub struct Euler;

impl Solver for Euler {
    /// With `v = (x - x0)/σ` the step is a weighted mean of the latent and the predicted clean latent.
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update {
        let (from, to) = (f64::from(sigmas[step].0), f64::from(sigmas[step + 1].0));
        let latent = if from == to { 1.0 } else { to / from };
        let mut predictions = [0.0; HISTORY];
        predictions[0] = 1.0 - latent;
        Update { correction: None, advance: Weights { latent, predictions }, noise: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_are_a_mean() {
        let sigmas = [Sigma(1.0), Sigma(0.75), Sigma(0.0)];
        let first = Euler.update(&sigmas, 0).advance;
        assert_eq!(first, Weights { latent: 0.75, predictions: [0.25, 0.0, 0.0] });
        let last = Euler.update(&sigmas, 1).advance;
        assert_eq!(last, Weights { latent: 0.0, predictions: [1.0, 0.0, 0.0] });
    }
}
