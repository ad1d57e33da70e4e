//! EasyCache: a step reuses the velocities of an earlier one while their predicted change is small.
//!
//! Zhou et al. 2025, arXiv:2507.02860. Between two computed steps `p` and `q` a velocity changes at the rate
//! `k = ‖v_q - v_p‖ / ‖x_q - x_p‖` (means of absolute values). At a later step with the latent `x`, the relative change
//! since step `q` is predicted as `k·‖x - x_q‖ / ‖v_q‖`. While it is below a threshold, `v = v_q + (x - x_q)` is used.
//!
//! The paper adds up the changes of the latent from step to step; here the change since step `q` is measured, which is
//! the same on a straight path and needs one latent less. Each guidance pass has its own rate and its own change, and a
//! step is reused if all its passes may be.

use ndarray::{Array4, Zip};
use std::sync::Arc;

/// What is kept of the last computed step of an expert.
#[derive(Debug, Clone, PartialEq)]
pub struct StepCache {
    /// The latent at the start of the step, `[C,T,h,w]`.
    pub input: Arc<Array4<f32>>,
    /// The pass with the prompt.
    pub conditional: CachedPass,
    /// The pass with the negative prompt, if the step was guided.
    pub unconditional: Option<CachedPass>,
}

/// What is kept of a guidance pass.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedPass {
    /// The velocity, `[C,T,h,w]`.
    pub velocity: Arc<Array4<f32>>,
    /// The change of the velocity for a change of the latent, between the last two computed steps. `None` if only one
    /// was computed.
    pub rate: Option<f64>,
}

/// The velocities of a step, `[C,T,h,w]`: with the prompt and, if the step is guided, with the negative prompt.
pub(super) type Velocities = (Arc<Array4<f32>>, Option<Arc<Array4<f32>>>);

impl StepCache {
    /// What is kept after a step was computed at the latent `input`. `before` is what was kept of the computed step before
    /// it, if that ran on the same expert.
    pub(super) fn after(before: Option<&Self>, input: &Arc<Array4<f32>>, computed: &Velocities) -> Self {
        let moved = before.map(|before| mean_distance(input, &before.input));
        let pass = |velocity: &Arc<Array4<f32>>, last: Option<&CachedPass>| {
            let changed = last.map(|last| mean_distance(velocity, &last.velocity));
            let rate = changed.zip(moved).map(|(changed, moved)| changed / moved);
            CachedPass { velocity: Arc::clone(velocity), rate: rate.filter(|rate| rate.is_finite()) }
        };
        let (conditional, unconditional) = computed;
        Self {
            input: Arc::clone(input),
            conditional: pass(conditional, before.map(|before| &before.conditional)),
            unconditional: unconditional
                .as_ref()
                .map(|velocity| pass(velocity, before.and_then(|before| before.unconditional.as_ref()))),
        }
    }

    /// Returns true if the velocities at a latent are predicted to differ by less than `threshold` from those that are
    /// kept.
    pub(super) fn fits(&self, latent: &Array4<f32>, is_guided: bool, threshold: f32) -> bool {
        let moved = mean_distance(latent, &self.input);
        let fits = |pass: &CachedPass| {
            let change = pass.rate.map(|rate| rate * moved / mean_size(&pass.velocity));
            change.is_some_and(|change| change < f64::from(threshold))
        };
        fits(&self.conditional) && (!is_guided || self.unconditional.as_ref().is_some_and(fits))
    }

    /// The velocities at a latent, from those that are kept.
    pub(super) fn velocities(&self, latent: &Array4<f32>, is_guided: bool) -> Velocities {
        let at = |pass: &CachedPass| {
            let sum = |v: &f32, x: &f32, kept: &f32| v + (x - kept);
            Arc::new(Zip::from(&*pass.velocity).and(latent).and(&*self.input).map_collect(sum))
        };
        (at(&self.conditional), self.unconditional.as_ref().filter(|_| is_guided).map(at))
    }

    /// All latents and velocities.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Arc<Array4<f32>>> {
        let passes = std::iter::once(&self.conditional).chain(&self.unconditional);
        std::iter::once(&self.input).chain(passes.map(|pass| &pass.velocity))
    }

    /// All rates that are known.
    pub(super) fn rates(&self) -> impl Iterator<Item = f64> {
        [self.conditional.rate, self.unconditional.as_ref().and_then(|pass| pass.rate)].into_iter().flatten()
    }
}

/// The first steps of an expert that are always computed: a tenth of its `steps`, and at least one.
pub(super) fn steps_before_reuse(steps: usize) -> usize {
    steps.div_ceil(10)
}

/// The mean of `|a - b|`.
fn mean_distance(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum();
    sum / count(a)
}

/// The mean of `|a|`.
fn mean_size(a: &Array4<f32>) -> f64 {
    a.iter().map(|a| f64::from(a.abs())).sum::<f64>() / count(a)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(a: &Array4<f32>) -> f64 {
    a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(value: f32) -> Arc<Array4<f32>> {
        Arc::new(Array4::from_elem((1, 1, 1, 2), value))
    }

    #[test]
    fn the_change_is_predicted_from_the_last_two_computed_steps() {
        let first = StepCache::after(None, &filled(0.0), &(filled(1.0), Some(filled(2.0))));
        assert_eq!((first.conditional.rate, first.unconditional.as_ref().unwrap().rate), (None, None));
        assert!(!first.fits(&filled(0.0), false, 1.0), "the rate is not known");
        // The latent moves by 0.5, the velocities by 0.25 and 1.
        let second = StepCache::after(Some(&first), &filled(0.5), &(filled(1.25), Some(filled(3.0))));
        assert_eq!(second.rates().collect::<Vec<_>>(), [0.5, 2.0]);
        // Another 0.5: 0.25 of 1.25, and 1 of 3.
        assert!(second.fits(&filled(1.0), false, 0.21) && !second.fits(&filled(1.0), false, 0.19));
        assert!(second.fits(&filled(1.0), true, 0.34) && !second.fits(&filled(1.0), true, 0.33));
        let (conditional, unconditional) = second.velocities(&filled(1.0), true);
        assert_eq!((conditional, unconditional), (filled(1.75), Some(filled(3.5))));
        assert_eq!(second.velocities(&filled(1.0), false).1, None);
    }

    #[test]
    fn a_latent_that_did_not_move_has_no_rate() {
        let first = StepCache::after(None, &filled(0.0), &(filled(1.0), None));
        let second = StepCache::after(Some(&first), &filled(0.0), &(filled(1.0), None));
        assert_eq!(second.conditional.rate, None);
        assert!(!second.fits(&filled(0.0), true, 1.0), "the other pass is missing");
    }

    #[test]
    fn a_tenth_of_the_steps_is_always_computed() {
        assert_eq!([1, 9, 10, 11, 20, 40].map(steps_before_reuse), [1, 1, 1, 2, 2, 4]);
    }
}
