//! Clips whose steps reuse velocities, on a model that tests can compute.

use super::fork::{ForkChanges, ForkError, GridChange, Variation};
use super::policy::StepPolicy;
use super::step_cache::steps_before_reuse;
use super::synthetic::{denoising, noise, run, step};
use super::{DenoiseSettings, Denoising, StepError, StepOutputs};
use crate::sampler::Schedule;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
use proptest::prelude::*;

/// The solvers whose steps can be reused.
const SOLVERS: [SolverKind; 3] = [SolverKind::UniPc, SolverKind::DpmPp, SolverKind::Euler];

/// A clip of two experts with a policy and an end of guidance.
fn clip(solver: SolverKind, steps: usize, boundary: u16, until: f32, policy: StepPolicy) -> Denoising {
    let plain = denoising(solver, ScheduleKind::Official, steps, 1, boundary, 3);
    let settings = DenoiseSettings {
        routing: plain.routing().clone(),
        guidance: plain.guidance().to_vec(),
        guidance_until: Sigma(until),
        schedule: plain.schedule().clone(),
        solver,
        policy,
    };
    Denoising::new(settings, noise(Seed(3)), Seed(3)).unwrap()
}

fn cached(threshold: f32) -> StepPolicy {
    StepPolicy::EasyCache { threshold }
}

/// Makes all steps and returns the state.
fn finished(mut state: Denoising) -> Denoising {
    while state.next().is_some() {
        step(&mut state);
    }
    state
}

proptest! {
    #[test]
    fn a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
        solver in 0..SOLVERS.len(), steps in 12_usize..40, stop in 0_usize..40, boundary in 1_u16..1000,
        until in 0.0_f32..1.0, threshold in 0.001_f32..1.0,
    ) {
        let start = clip(SOLVERS[solver], steps, boundary, until, cached(threshold));
        let whole = finished(start.clone());
        let mut first = start;
        for _ in 0..stop.min(steps) {
            step(&mut first);
        }
        let stored = Denoising::from_stored(first.stored()).unwrap();
        prop_assert_eq!(&stored, &first);
        prop_assert_eq!(finished(Denoising::resume(first.snapshot())), whole.clone());
        prop_assert_eq!(finished(stored), whole);
    }

    #[test]
    fn the_first_tenth_of_each_expert_and_the_last_step_are_computed(
        solver in 0..SOLVERS.len(), steps in 12_usize..60, boundary in 1_u16..1000, threshold in 0.1_f32..1.0,
    ) {
        let state = finished(clip(SOLVERS[solver], steps, boundary, 0.0, cached(threshold)));
        let experts: Vec<usize> =
            state.schedule().timesteps().iter().map(|timestep| state.routing().expert_at(*timestep).0).collect();
        let high = experts.iter().filter(|expert| **expert == 0).count();
        for reused in state.reused_steps() {
            let (start, of) = if *reused < high { (0, high) } else { (high, steps - high) };
            // Two computed steps are needed to know how fast velocities change.
            prop_assert!(*reused >= start + steps_before_reuse(of).max(2), "{reused} of {experts:?}");
            prop_assert!(reused + 1 < steps);
        }
    }

    #[test]
    fn a_threshold_that_is_never_reached_changes_no_bit(
        solver in 0..SOLVERS.len(), steps in 12_usize..30, boundary in 1_u16..1000, until in 0.0_f32..1.0,
    ) {
        let [all, none] = [StepPolicy::ComputeAll, cached(f32::MIN_POSITIVE)];
        let made = |policy| run(clip(SOLVERS[solver], steps, boundary, until, policy));
        prop_assert_eq!(made(all), made(none));
    }
}

#[test]
fn a_larger_threshold_reuses_more_steps() {
    let reused =
        |threshold| finished(clip(SolverKind::UniPc, 40, 700, 0.0, cached(threshold))).reused_steps().len();
    let counts = [0.0001, 0.05, 0.5].map(reused);
    assert!(counts[0] < counts[1] && counts[1] < counts[2], "{counts:?}");
}

#[test]
fn guidance_ends_at_its_sigma_and_no_pass_is_asked_for_below() {
    let mut state = clip(SolverKind::Euler, 12, 500, 0.8, StepPolicy::ComputeAll);
    let mut guided = 0;
    while let Some(request) = state.next() {
        assert_eq!(request.is_guided, request.sigma >= Sigma(0.8));
        assert_eq!(state.needs_unconditional(), request.is_guided, "sigmas fall");
        guided += usize::from(request.is_guided);
        step(&mut state);
    }
    assert!((1..12).contains(&guided), "{guided}");
}

/// A clip before a step that reuses velocities.
fn before_reuse() -> Denoising {
    let mut state = clip(SolverKind::UniPc, 40, 500, 0.0, cached(0.5));
    while !state.next().unwrap().passes.is_reused() {
        step(&mut state);
    }
    state
}

#[test]
fn computed_and_reused_steps_are_not_confused() {
    let mut state = before_reuse();
    let before = state.clone();
    let step = state.steps_done();
    let outputs = StepOutputs { conditional: noise(Seed(1)), unconditional: Some(noise(Seed(2))) };
    assert_eq!(state.advance(outputs.clone()), Err(StepError::Reused { step }));
    assert_eq!(state, before);
    state.reuse().unwrap();
    assert_eq!(state.reused_steps(), [step]);
    let mut first = clip(SolverKind::UniPc, 40, 500, 0.0, cached(0.5));
    assert_eq!(first.reuse(), Err(StepError::Computed { step: 0 }));
    first.advance(outputs).unwrap();
}

#[test]
fn another_grid_and_fresh_noise_drop_the_velocities_and_guidance_keeps_them() {
    let state = before_reuse();
    let fork =
        |changes| Denoising::fork(state.snapshot(), changes).unwrap().next().unwrap().passes.is_reused();
    let schedule = Schedule::new(SolverKind::Euler, ScheduleKind::Official, 20, Shift(5.0));
    let grid = GridChange { solver: SolverKind::Euler, schedule };
    assert!(!fork(ForkChanges { grid: Some(grid), ..ForkChanges::default() }));
    let variation = Variation { strength: 0.1, seed: Seed(5), noise_scale: 1.0 };
    assert!(!fork(ForkChanges { variation: Some(variation), ..ForkChanges::default() }));
    assert!(!fork(ForkChanges { policy: Some(StepPolicy::ComputeAll), ..ForkChanges::default() }));
    let guidance = vec![GuidanceScale(5.0), GuidanceScale(2.0)];
    assert!(fork(ForkChanges { guidance: Some(guidance), ..ForkChanges::default() }));
}

#[test]
fn a_policy_that_does_not_fit_the_steps_is_refused() {
    let state = denoising(SolverKind::UniPc, ScheduleKind::Official, 8, 1, 500, 1);
    let changes = ForkChanges { policy: Some(cached(0.05)), ..ForkChanges::default() };
    let refused = Denoising::fork(state.snapshot(), changes);
    assert!(matches!(refused, Err(ForkError::Step(StepError::Policy { .. }))));
    for sigma in [-0.1, 1.1, f32::NAN].map(Sigma) {
        let changes = ForkChanges { guidance_until: Some(sigma), ..ForkChanges::default() };
        assert!(matches!(Denoising::fork(state.snapshot(), changes), Err(ForkError::GuidanceUntil { .. })));
    }
}

#[test]
fn a_stored_state_that_contradicts_itself_is_refused() {
    let state = before_reuse();
    Denoising::from_stored(state.stored()).unwrap();
    let mut other = state.stored();
    other.policy = StepPolicy::ComputeAll;
    assert!(Denoising::from_stored(other).unwrap_err().contains("velocities"));
    let mut other = state.stored();
    other.cache.as_mut().unwrap().conditional.rate = Some(f64::NAN);
    assert!(Denoising::from_stored(other).unwrap_err().contains("rate"));
    let mut other = state.stored();
    other.reused = vec![state.steps_done()];
    assert!(Denoising::from_stored(other).unwrap_err().contains("reused"));
    for drawn in [1, u64::MAX - u64::MAX % 24] {
        let mut other = state.stored();
        other.random.drawn = drawn;
        assert!(Denoising::from_stored(other).unwrap_err().contains("random"));
    }
    let mut other = state.stored();
    other.guidance_until = Sigma(2.0);
    assert!(Denoising::from_stored(other).unwrap_err().contains("guidance"));
}
