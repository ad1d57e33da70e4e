//! The solver trait: for each step, weights of the latent, of the clean latents predicted so far, and of fresh noise.
//!
//! The deterministic solvers are exponential integrators in `λ(σ) = ln(1-σ) - ln σ`. In terms of predicted clean latents
//! their update is a weighted sum, so a solver is a function from sigmas to a few scalars. A stochastic solver adds noise
//! with one more weight; it does not draw any, so it knows no random numbers. Only [`combine`] handles latents.

use bundle::units::Sigma;
use ndarray::Array4;
use std::borrow::Borrow;
use std::fmt;

/// Number of predicted clean latents that a solver uses, including the newest.
pub const HISTORY: usize = 3;

/// Weights of a weighted sum of latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Weight of the latent at the start of the step.
    pub latent: f64,
    /// Weights of the predicted clean latents, newest first.
    pub predictions: [f64; HISTORY],
}

/// One step of a solver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Repeats the previous step with the prediction at its end, which is now known. The sum starts from the latent at
    /// the start of that step and replaces the latent of this one.
    pub correction: Option<Weights>,
    /// Moves this step's latent to the next.
    pub advance: Weights,
    /// Weight of fresh noise, a standard normal latent that is added to the next one. 0 draws none.
    pub noise: f64,
}

/// Fresh noise with its weight.
#[derive(Debug, Clone, Copy)]
pub struct FreshNoise<'a> {
    /// The weight.
    pub weight: f64,
    /// Standard normal values of a latent `[C,T,h,w]`, in row-major order.
    pub values: &'a [f32],
}

/// An update rule.
pub trait Solver: fmt::Debug + Send + Sync {
    /// Returns the weights of step `step`, from `sigmas[step]` to `sigmas[step + 1]`.
    ///
    /// `sigmas` are those of a [`Schedule`](super::Schedule) and `step` is one of its steps. Weights of predictions
    /// that do not exist yet are 0.
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update;
}

/// Returns the weighted sum of a latent, of predictions (newest first) and of fresh noise, all `[C,T,h,w]`, summed in f64.
pub fn combine(
    weights: &Weights,
    latent: &Array4<f32>,
    predictions: &[impl Borrow<Array4<f32>>],
    noise: Option<FreshNoise<'_>>,
) -> Array4<f32> {
    let mut sum = latent.mapv(|x| weights.latent * f64::from(x));
    for (weight, prediction) in weights.predictions.iter().zip(predictions) {
        if *weight != 0.0 {
            sum.zip_mut_with(prediction.borrow(), |sum, x| *sum += weight * f64::from(*x));
        }
    }
    if let Some(FreshNoise { weight, values }) = noise {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * f64::from(*value));
    }
    #[expect(clippy::cast_possible_truncation, reason = "latents are f32")]
    sum.mapv(|x| x as f32)
}

/// The interval from one sigma to the next, in the quantities that solvers use.
///
/// Two equal sigmas are an empty interval, even if λ is infinite (σ = 1 and σ = 0).
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// `σ_to / σ_from`: the weight of the latent.
    pub(super) latent_weight: f64,
    /// `h = λ(σ_to) - λ(σ_from)`, at least 0 on a falling schedule; infinite to σ = 0 and from σ = 1.
    pub(super) h: f64,
    /// `(1-σ_to)·(1 - e^-h)`: the weight of the predicted clean latent.
    pub(super) gain: f64,
}

impl Span {
    pub(super) fn new(from: Sigma, to: Sigma) -> Self {
        if from == to {
            return Self { latent_weight: 1.0, h: 0.0, gain: 0.0 };
        }
        let h = log_snr(to) - log_snr(from);
        let (from, to) = (f64::from(from.0), f64::from(to.0));
        Self { latent_weight: to / from, h, gain: -(1.0 - to) * (-h).exp_m1() }
    }

    /// The update with the newest prediction as a constant over the interval.
    pub(super) fn first_order(&self) -> Weights {
        Weights { latent: self.latent_weight, predictions: [self.gain, 0.0, 0.0] }
    }

    /// The update with the two newest predictions extrapolated linearly in λ to the middle of the interval.
    ///
    /// `before` is the previous interval. Where no line exists this is the first-order update: λ is infinite at the end
    /// of this interval or at the start of the previous one, or the previous one is empty.
    pub(super) fn midpoint(&self, before: &Self) -> Weights {
        let slope = if before.h > 0.0 && self.h.is_finite() { 0.5 * self.h / before.h } else { 0.0 };
        Weights {
            latent: self.latent_weight,
            predictions: [self.gain * (1.0 + slope), -self.gain * slope, 0.0],
        }
    }
}

/// `λ(σ) = ln(1-σ) - ln σ`, computed in f64 from the sigma as stored in f32.
fn log_snr(sigma: Sigma) -> f64 {
    let sigma = f64::from(sigma.0);
    (1.0 - sigma).ln() - sigma.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_defined_at_pure_noise_and_at_the_clean_latent() {
        let from_noise = Span::new(Sigma(1.0), Sigma(0.9));
        assert_eq!(from_noise.h, f64::INFINITY);
        assert_eq!(from_noise.gain, 1.0 - f64::from(0.9_f32));
        let to_clean = Span::new(Sigma(0.2), Sigma(0.0));
        assert_eq!(to_clean.first_order(), Weights { latent: 0.0, predictions: [1.0, 0.0, 0.0] });
    }

    #[test]
    fn an_empty_span_does_not_change_the_latent() {
        let unchanged = Weights { latent: 1.0, predictions: [0.0; HISTORY] };
        for sigma in [0.0, 0.3, 1.0] {
            let span = Span::new(Sigma(sigma), Sigma(sigma));
            assert_eq!(span.first_order(), unchanged);
            assert_eq!(span.midpoint(&span), unchanged);
        }
    }

    #[test]
    fn a_step_after_one_from_pure_noise_is_first_order() {
        let (first, second) = (Span::new(Sigma(1.0), Sigma(0.9)), Span::new(Sigma(0.9), Sigma(0.7)));
        assert_eq!(second.midpoint(&first), second.first_order());
    }

    #[test]
    fn missing_predictions_are_not_read() {
        let latent = Array4::from_elem((1, 1, 2, 2), 2.0);
        let weights = Weights { latent: 0.5, predictions: [0.25, 0.0, 0.0] };
        assert_eq!(
            combine(&weights, &latent, &[] as &[Array4<f32>], None),
            Array4::from_elem((1, 1, 2, 2), 1.0)
        );
        assert_eq!(
            combine(&weights, &latent, std::slice::from_ref(&latent), None),
            Array4::from_elem((1, 1, 2, 2), 1.5)
        );
    }
}
