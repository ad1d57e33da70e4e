//! UniPC of order 2 in its B(h) = expm1(h) form (Zhao et al. 2023, arXiv:2302.04867), with clean-latent predictions.
//!
//! Each step first corrects the previous step with the newest prediction, at the order of that step, then advances from
//! the corrected latent. The prediction itself is computed from the latent before the correction. The first step is of
//! order 1 because it has no previous prediction, and the last one because `h` is infinite.

use super::solver::{Solver, Span, Update, Weights};
use bundle::units::Sigma;

/// A predictor-corrector solver.
#[derive(Debug, Clone, Copy)]
pub struct UniPc;

impl Solver for UniPc {
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update {
        let span = Span::new(sigmas[step], sigmas[step + 1]);
        let advance = match step.checked_sub(1) {
            Some(before) => span.midpoint(&Span::new(sigmas[before], sigmas[step])),
            None => span.first_order(),
        };
        // The weight of the latent is 0 in the last step, so a correction would have no effect.
        let is_corrected = step > 0 && span.latent_weight != 0.0;
        Update { correction: is_corrected.then(|| correction(sigmas, step)), advance, noise: 0.0 }
    }
}

/// Weights that repeat step `step - 1`. The predictions are, newest first, those at its end, at its start, and at the
/// start of the step before it; without the last one the correction is of order 1.
fn correction(sigmas: &[Sigma], step: usize) -> Weights {
    let span = Span::new(sigmas[step - 1], sigmas[step]);
    let before = step.checked_sub(2).map(|before| Span::new(sigmas[before], sigmas[step - 1]));
    let (to_end, to_before) = match before {
        Some(before) if before.h > 0.0 && span.h > 0.0 && span.h.is_finite() => {
            second_order(span.h, -before.h / span.h)
        }
        _ => (0.5, 0.0),
    };
    Weights {
        latent: span.latent_weight,
        predictions: [span.gain * to_end, span.gain * (1.0 - to_end - to_before), span.gain * to_before],
    }
}

/// The coefficients `(ρ_end, ρ_before)` of the differences to the prediction at the end of the step and to the one
/// before its start.
///
/// `ratio` is the position of the latter on the λ axis, where 0 is the step's start and 1 its end. The coefficients
/// solve `ρ_before + ρ_end = b1` and `ratio·ρ_before + ρ_end = b2`.
fn second_order(h: f64, ratio: f64) -> (f64, f64) {
    let b = (-h).exp_m1();
    let phi = b / -h - 1.0;
    let b1 = phi / b;
    let b2 = 2.0 * (phi / -h - 0.5) / b;
    let before = (b1 - b2) / (1.0 - ratio);
    (b1 - before, before / ratio)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMAS: [Sigma; 5] = [Sigma(0.95), Sigma(0.8), Sigma(0.6), Sigma(0.3), Sigma(0.0)];

    #[test]
    fn every_step_but_the_first_and_the_last_corrects_the_previous_one() {
        let corrects = |step| UniPc.update(&SIGMAS, step).correction.is_some();
        assert_eq!([0, 1, 2, 3].map(corrects), [false, true, true, false]);
    }

    #[test]
    fn a_correction_has_the_order_of_the_step_that_it_corrects() {
        let third = |step| UniPc.update(&SIGMAS, step).correction.unwrap().predictions[2];
        assert_eq!(third(1), 0.0);
        assert_ne!(third(2), 0.0);
    }

    #[test]
    fn the_weights_of_constant_predictions_add_up() {
        for step in 0..4 {
            let update = UniPc.update(&SIGMAS, step);
            for (weights, from) in [(Some(update.advance), step), (update.correction, step.wrapping_sub(1))] {
                let Some(weights) = weights else { continue };
                let share = 1.0 - f64::from(SIGMAS[from + 1].0) / f64::from(SIGMAS[from].0);
                assert!((weights.predictions.iter().sum::<f64>() - share).abs() < 1e-14);
            }
        }
    }
}
