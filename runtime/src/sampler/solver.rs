//! What a solver is: for each step, weights of the latent and of the clean latents that were predicted so far.
//!
//! All solvers here are exponential integrators in `λ(σ) = ln(1-σ) - ln σ`. Written in terms of predicted clean latents
//! their update is a weighted sum, so that a solver is a function from sigmas to a few scalars; one function,
//! [`combine`], touches latents.

use super::dpmpp::DpmPp;
use super::euler::Euler;
use super::unipc::UniPc;
use bundle::settings::SolverKind;
use bundle::units::Sigma;
use ndarray::Array4;
use std::fmt;

/// How many predicted clean latents a solver looks at, the newest included.
pub const HISTORY: usize = 3;

/// Weights of a sum of latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of the latent that the step starts from.
    pub latent: f64,
    /// Of the predicted clean latents, the newest first.
    pub predictions: [f64; HISTORY],
}

/// One step of a solver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Makes the step before this one again, now that the prediction at its end is known. Its sum starts from the latent
    /// that step started from, and takes the place of this step's latent.
    pub correction: Option<Weights>,
    /// From this step's latent to the next.
    pub advance: Weights,
}

/// An update rule.
pub trait Solver: fmt::Debug + Send + Sync {
    /// The weights of step `step`, which goes from `sigmas[step]` to `sigmas[step + 1]`.
    ///
    /// `sigmas` are those of a [`Schedule`](super::Schedule), of which `step` is one. Weights of predictions that are
    /// not there yet are 0.
    fn update(&self, sigmas: &[Sigma], step: usize) -> Update;
}

/// The update rule of that name.
pub fn of_kind(kind: SolverKind) -> &'static dyn Solver {
    match kind {
        SolverKind::UniPc => &UniPc,
        SolverKind::DpmPp => &DpmPp,
        SolverKind::Euler => &Euler,
    }
}

/// The weighted sum of a latent and of predictions (newest first), all `[C,T,h,w]`; summed in f64.
pub fn combine(weights: &Weights, latent: &Array4<f32>, predictions: &[Array4<f32>]) -> Array4<f32> {
    let mut sum = latent.mapv(|x| weights.latent * f64::from(x));
    for (weight, prediction) in weights.predictions.iter().zip(predictions) {
        if *weight != 0.0 {
            sum.zip_mut_with(prediction, |sum, x| *sum += weight * f64::from(*x));
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "latents are f32")]
    sum.mapv(|x| x as f32)
}

/// The way from one sigma to the next, in the quantities that solvers are written in.
///
/// Two equal sigmas are a way of no length, also where λ is infinite (σ = 1 and σ = 0).
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// `σ_to / σ_from`: what is left of the latent.
    pub(super) kept: f64,
    /// `h = λ(σ_to) - λ(σ_from)`, at least 0 on a falling schedule; infinite to σ = 0 and from σ = 1.
    pub(super) h: f64,
    /// `(1-σ_to)·(1 - e^-h)`: how much of the predicted clean latent comes in.
    pub(super) gain: f64,
}

impl Span {
    pub(super) fn new(from: Sigma, to: Sigma) -> Self {
        if from == to {
            return Self { kept: 1.0, h: 0.0, gain: 0.0 };
        }
        let h = log_snr(to) - log_snr(from);
        let (from, to) = (f64::from(from.0), f64::from(to.0));
        Self { kept: to / from, h, gain: -(1.0 - to) * (-h).exp_m1() }
    }

    /// The update that takes the newest prediction as constant along the way.
    pub(super) fn first_order(&self) -> Weights {
        Weights { latent: self.kept, predictions: [self.gain, 0.0, 0.0] }
    }

    /// The update that takes the two newest predictions as points of a line over λ, and its value half-way.
    ///
    /// `before` is the way that led to this one. This is the first-order update where there is no such line: λ is infinite
    /// at the end of this way or at the start of the one before, or that one has no length.
    pub(super) fn midpoint(&self, before: &Self) -> Weights {
        let slope = if before.h > 0.0 && self.h.is_finite() { 0.5 * self.h / before.h } else { 0.0 };
        Weights { latent: self.kept, predictions: [self.gain * (1.0 + slope), -self.gain * slope, 0.0] }
    }
}

/// `λ(σ) = ln(1-σ) - ln σ`, computed in f64 from the sigma as it is stored in f32.
fn log_snr(sigma: Sigma) -> f64 {
    let sigma = f64::from(sigma.0);
    (1.0 - sigma).ln() - sigma.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_defined_at_both_ends_of_the_noise() {
        let from_noise = Span::new(Sigma(1.0), Sigma(0.9));
        assert_eq!(from_noise.h, f64::INFINITY);
        assert_eq!(from_noise.gain, 1.0 - f64::from(0.9_f32));
        let to_clean = Span::new(Sigma(0.2), Sigma(0.0));
        assert_eq!(to_clean.first_order(), Weights { latent: 0.0, predictions: [1.0, 0.0, 0.0] });
    }

    #[test]
    fn a_span_without_length_keeps_the_latent() {
        let whole = Weights { latent: 1.0, predictions: [0.0; HISTORY] };
        for sigma in [0.0, 0.3, 1.0] {
            let span = Span::new(Sigma(sigma), Sigma(sigma));
            assert_eq!(span.first_order(), whole);
            assert_eq!(span.midpoint(&span), whole);
        }
    }

    #[test]
    fn nothing_can_be_learnt_from_a_way_that_came_from_pure_noise() {
        let (first, second) = (Span::new(Sigma(1.0), Sigma(0.9)), Span::new(Sigma(0.9), Sigma(0.7)));
        assert_eq!(second.midpoint(&first), second.first_order());
    }

    #[test]
    fn a_sum_reads_no_prediction_that_is_missing() {
        let latent = Array4::from_elem((1, 1, 2, 2), 2.0);
        let weights = Weights { latent: 0.5, predictions: [0.25, 0.0, 0.0] };
        assert_eq!(combine(&weights, &latent, &[]), Array4::from_elem((1, 1, 2, 2), 1.0));
        assert_eq!(
            combine(&weights, &latent, std::slice::from_ref(&latent)),
            Array4::from_elem((1, 1, 2, 2), 1.5)
        );
    }
}
