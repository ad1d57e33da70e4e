//! DPM-Solver++ 2M in its midpoint form (Lu et al. 2022, arXiv:2211.01095), for flow matching.
//!
//! The first and the last step are of order 1: before the first there is no previous prediction, and on the last `h` is
//! infinite. The official code and diffusers do the same whenever the final sigma is 0, for any number of steps (their
//! `lower_order_final` and `euler_at_final` then have no effect at order 2).

use super::solver::{Solver, Span, Update};
use bundle::units::Sigma;

/// Extrapolates the predicted clean latent linearly in λ from the last two predictions.
#[derive(Debug, Clone, Copy)]
pub struct DpmPp;

impl Solver for DpmPp {
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update {
        let span = Span::new(sigmas[step], sigmas[step + 1]);
        let advance = match step.checked_sub(1) {
            Some(before) => span.midpoint(&Span::new(sigmas[before], sigmas[step])),
            None => span.first_order(),
        };
        Update { correction: None, advance, noise: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMAS: [Sigma; 4] = [Sigma(0.9), Sigma(0.6), Sigma(0.3), Sigma(0.0)];

    #[test]
    fn the_first_and_the_last_step_use_one_prediction() {
        let is_second_order = |step| DpmPp.update(&SIGMAS, step).advance.predictions[1] != 0.0;
        assert_eq!([0, 1, 2].map(is_second_order), [false, true, false]);
    }

    #[test]
    fn the_weights_of_constant_predictions_add_up() {
        for step in 0..3 {
            let weights = DpmPp.update(&SIGMAS, step).advance;
            let share = 1.0 - f64::from(SIGMAS[step + 1].0) / f64::from(SIGMAS[step].0);
            assert!((weights.predictions.iter().sum::<f64>() - share).abs() < 1e-14);
        }
    }
}
