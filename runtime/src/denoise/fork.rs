//! Forks: another ending from a snapshot.

use super::denoising::{Denoising, Snapshot, StepError, check_guidance, check_policy};
use super::policy::StepPolicy;
use crate::sampler::{NoiseStream, Schedule};
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Seed, Sigma};
use ndarray::{Array4, Zip};
use std::sync::Arc;

/// The changes of a fork. The prompts are not part of a [`Denoising`]: the caller passes other text states to the
/// experts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForkChanges {
    /// Other guidance scales, one for each expert.
    pub guidance: Option<Vec<GuidanceScale>>,
    /// Another end of guidance.
    pub guidance_until: Option<Sigma>,
    /// Another grid for the steps that are left.
    pub grid: Option<GridChange>,
    /// Another policy of what steps compute.
    pub policy: Option<StepPolicy>,
    /// Fresh noise.
    pub variation: Option<Variation>,
}

/// Another grid from the sigma of a snapshot down. It forgets the solver's history.
#[derive(Debug, Clone, PartialEq)]
pub struct GridChange {
    /// The solver.
    pub solver: SolverKind,
    /// The whole grid, from pure noise; its steps below the sigma of the snapshot run.
    pub schedule: Schedule,
}

/// Fresh noise that is mixed into a latent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variation {
    /// The share `V` of the fresh noise, 0..=1.
    pub strength: f64,
    /// The seed of the fresh noise.
    pub seed: Seed,
    /// Factor on the fresh noise, as on the initial noise.
    pub noise_scale: f32,
}

/// A fork that cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ForkError {
    /// The guidance scales do not match the experts.
    #[error(transparent)]
    Step(#[from] StepError),
    /// All steps are done.
    #[error("all {steps} steps of the snapshot are done")]
    Finished {
        /// The number of steps.
        steps: usize,
    },
    /// The strength of the variation is not in 0..=1.
    #[error("the variation is {strength}, and it must be from 0 to 1")]
    Strength {
        /// The strength.
        strength: f64,
    },
    /// The end of guidance is not in 0..=1.
    #[error("guidance ends at {}, and it must end at a sigma from 0 to 1", sigma.0)]
    GuidanceUntil {
        /// The sigma.
        sigma: Sigma,
    },
}

impl Denoising {
    /// Continues from a snapshot with other settings.
    ///
    /// Guidance and policy change nothing else. Another grid forgets the solver's history and the velocities that are kept
    /// for later steps, and so does fresh noise: the correction of UniPC starts from the latent of an earlier step and
    /// would undo the mixing.
    ///
    /// # Errors
    /// No step is left, a value is out of range, or the policy does not fit the steps.
    pub fn fork(snapshot: Snapshot, changes: ForkChanges) -> Result<Self, ForkError> {
        let mut state = Self::resume(snapshot);
        let (step, steps) = (state.steps_done(), state.steps());
        if step >= steps {
            return Err(ForkError::Finished { steps });
        }
        if let Some(guidance) = changes.guidance {
            check_guidance(&guidance, &state.routing)?;
            state.guidance = guidance;
        }
        if let Some(sigma) = changes.guidance_until {
            if !(0.0..=1.0).contains(&sigma.0) {
                return Err(ForkError::GuidanceUntil { sigma });
            }
            state.guidance_until = sigma;
        }
        state.policy = changes.policy.unwrap_or(state.policy);
        if let Some(Variation { strength, seed, noise_scale }) = changes.variation {
            if !(0.0..=1.0).contains(&strength) {
                return Err(ForkError::Strength { strength });
            }
            let mut stream = NoiseStream::new(seed);
            let mut fresh = stream.draw(state.latent.len());
            fresh.iter_mut().for_each(|value| *value *= noise_scale);
            let fresh = Array4::from_shape_vec(state.latent.dim(), fresh)
                .unwrap_or_else(|_| unreachable!("as many values as the latent has"));
            // Before the first step the latent is the noise, whatever its sigma.
            let sigma = if state.clean.is_some() { state.sampler.sigma() } else { Sigma(1.0) };
            state.latent = Arc::new(varied(&state.latent, state.clean.as_deref(), sigma, strength, &fresh));
            (state.noise, state.cache) = (stream, None);
            let (schedule, solver) = (state.schedule().clone(), state.sampler.solver());
            state.sampler.restart(schedule, solver);
        }
        if let Some(GridChange { solver, schedule }) = changes.grid {
            let schedule = state.schedule().continued(step, solver, &schedule);
            let schedule = schedule.ok_or(ForkError::Finished { steps })?;
            state.sampler.restart(schedule, solver);
            state.cache = None;
        }
        check_policy(state.policy, state.schedule(), state.sampler.solver())?;
        state.decide();
        Ok(state)
    }
}

/// Mixes fresh noise into a latent at noise level σ, keeping the variance of its noise:
/// `n = (x - (1-σ)·x0)/σ`, `x' = (1-σ)·x0 + σ·(√(1-V²)·n + V·fresh)`. All are `[C,T,h,w]`.
fn varied(
    latent: &Array4<f32>,
    clean: Option<&Array4<f32>>,
    sigma: Sigma,
    strength: f64,
    fresh: &Array4<f32>,
) -> Array4<f32> {
    let (sigma, kept) = (f64::from(sigma.0), (1.0 - strength * strength).sqrt());
    let mixed = |x: f32, clean: f32, fresh: f32| {
        let base = (1.0 - sigma) * f64::from(clean);
        let noise = (f64::from(x) - base) / sigma;
        #[expect(clippy::cast_possible_truncation, reason = "latents are f32")]
        let mixed = (base + sigma * (kept * noise + strength * f64::from(fresh))) as f32;
        mixed
    };
    match clean {
        Some(clean) => {
            Zip::from(latent).and(clean).and(fresh).map_collect(|x, clean, new| mixed(*x, *clean, *new))
        }
        None => Zip::from(latent).and(fresh).map_collect(|x, new| mixed(*x, 0.0, *new)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{denoising, noise, run, step};
    use super::*;
    use bundle::settings::ScheduleKind;
    use bundle::units::Shift;
    use proptest::prelude::*;

    fn stopped(solver: SolverKind, kind: ScheduleKind, steps: usize, stop: usize, seed: u64) -> Denoising {
        let mut state = denoising(solver, kind, steps, 1, 500, seed);
        for _ in 0..stop {
            step(&mut state);
        }
        state
    }

    proptest! {
        #[test]
        fn a_variation_follows_the_formula(
            solver in 0..SolverKind::ALL.len(), stop in 1_usize..6, strength in 0.0_f64..=1.0, seed in 0_u64..100,
        ) {
            let state = stopped(SolverKind::ALL[solver], ScheduleKind::Official, 7, stop, seed);
            let variation = Variation { strength, seed: Seed(seed + 1000), noise_scale: 1.0 };
            let changes = ForkChanges { variation: Some(variation), ..ForkChanges::default() };
            let forked = Denoising::fork(state.snapshot(), changes).unwrap();
            // In other words: x' = √(1-V²)·x + (1-√(1-V²))·(1-σ)·x0 + σ·V·fresh.
            let fresh = noise(Seed(seed + 1000));
            let sigma = f64::from(state.next().unwrap().sigma.0);
            let kept = (1.0 - strength * strength).sqrt();
            let clean = state.clean_estimate().unwrap();
            for (index, found) in forked.latent().indexed_iter() {
                let [x, x0, new] = [state.latent()[index], clean[index], fresh[index]].map(f64::from);
                let expected = kept * x + (1.0 - kept) * (1.0 - sigma) * x0 + sigma * strength * new;
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{} is not {}", found, expected);
            }
            prop_assert_eq!(forked.random().seed, Seed(seed + 1000));
            prop_assert!(run(forked).iter().all(|x| x.is_finite()));
        }

        #[test]
        fn a_grid_of_the_same_settings_goes_on_at_the_same_levels(
            solver in 0..SolverKind::ALL.len(), kind in 0_usize..2, steps in 2_usize..20, stop in 0_usize..20, shift in 0.5_f64..12.0,
        ) {
            let (solver, kind) = (SolverKind::ALL[solver], ScheduleKind::ALL[kind]);
            let schedule = Schedule::new(solver, kind, steps, Shift(shift));
            let stop = stop % steps;
            let continued = schedule.continued(stop, solver, &schedule).unwrap();
            prop_assert_eq!(continued, schedule);
        }

        #[test]
        fn another_grid_begins_at_the_level_of_the_snapshot_and_falls_to_zero(
            from in 0..SolverKind::ALL.len(), to in 0..SolverKind::ALL.len(), kind in 0_usize..2, steps in 1_usize..40, stop in 0_usize..6,
            shift in 0.5_f64..12.0,
        ) {
            let state = stopped(SolverKind::ALL[from], ScheduleKind::Diffusers, 7, stop, 3);
            let (solver, kind) = (SolverKind::ALL[to], ScheduleKind::ALL[kind]);
            let whole = Schedule::new(solver, kind, steps, Shift(shift));
            let grid = GridChange { solver, schedule: whole.clone() };
            let sigma = state.next().unwrap().sigma;
            let forked =
                Denoising::fork(state.snapshot(), ForkChanges { grid: Some(grid), ..ForkChanges::default() }).unwrap();
            prop_assert_eq!(forked.next().unwrap().sigma, sigma);
            prop_assert_eq!(forked.steps_done(), stop);
            let below: Vec<Sigma> = whole.sigmas().iter().copied().filter(|other| *other < sigma).collect();
            prop_assert_eq!(&forked.schedule().sigmas()[stop + 1..], &below[..]);
            prop_assume!(solver != SolverKind::Renoise);
            // The first step after the change knows no earlier one: it is a step of order 1.
            let start = Arc::clone(forked.latent());
            let mut stepped = forked.clone();
            step(&mut stepped);
            let ratio = below[0].0 / sigma.0;
            let clean = stepped.clean_estimate().unwrap();
            for (index, found) in stepped.latent().indexed_iter() {
                let expected = ratio * start[index] + (1.0 - ratio) * clean[index];
                prop_assert!((found - expected).abs() < 1e-4, "{} is not {}", found, expected);
            }
            prop_assert!(run(stepped).iter().all(|x| x.is_finite()));
        }

        #[test]
        fn other_guidance_keeps_the_history(
            solver in 0..SolverKind::ALL.len(), stop in 0_usize..6, high in 1.0_f32..9.0, low in 1.0_f32..9.0,
        ) {
            let state = stopped(SolverKind::ALL[solver], ScheduleKind::Official, 7, stop, 3);
            let guidance = vec![GuidanceScale(high), GuidanceScale(low)];
            let changes = ForkChanges { guidance: Some(guidance.clone()), ..ForkChanges::default() };
            let forked = Denoising::fork(state.snapshot(), changes).unwrap();
            let expected = Denoising { guidance, ..state };
            prop_assert_eq!(forked, expected);
        }
    }

    #[test]
    fn a_variation_before_the_first_step_mixes_two_noises() {
        let state = stopped(SolverKind::UniPc, ScheduleKind::Official, 4, 0, 5);
        let variation = Variation { strength: 0.6, seed: Seed(6), noise_scale: 1.0 };
        let changes = ForkChanges { variation: Some(variation), ..ForkChanges::default() };
        let forked = Denoising::fork(state.snapshot(), changes).unwrap();
        let (old, new) = (noise(Seed(5)), noise(Seed(6)));
        for (index, found) in forked.latent().indexed_iter() {
            assert!((found - (0.8 * old[index] + 0.6 * new[index])).abs() < 1e-6);
        }
    }

    #[test]
    fn forks_out_of_range_are_refused() {
        let done = stopped(SolverKind::Euler, ScheduleKind::Official, 2, 2, 1);
        assert_eq!(
            Denoising::fork(done.snapshot(), ForkChanges::default()),
            Err(ForkError::Finished { steps: 2 })
        );
        let state = stopped(SolverKind::Euler, ScheduleKind::Official, 2, 1, 1);
        for strength in [-0.1, 1.1, f64::NAN] {
            let variation = Variation { strength, seed: Seed(1), noise_scale: 1.0 };
            let changes = ForkChanges { variation: Some(variation), ..ForkChanges::default() };
            assert!(matches!(Denoising::fork(state.snapshot(), changes), Err(ForkError::Strength { .. })));
        }
        let changes = ForkChanges { guidance: Some(vec![GuidanceScale(1.0)]), ..ForkChanges::default() };
        assert!(matches!(Denoising::fork(state.snapshot(), changes), Err(ForkError::Step(_))));
    }
}
