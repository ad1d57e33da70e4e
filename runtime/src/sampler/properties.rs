//! Properties of every solver on every grid.

use super::{NoiseStream, Sampler, SamplerError, Schedule};
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::TimestepList;
use bundle::units::{Seed, Shift, Sigma, Timestep};
use ndarray::{Array4, Axis, Zip, concatenate};
use proptest::prelude::*;
use std::sync::Arc;

fn solvers() -> impl Strategy<Value = SolverKind> {
    prop_oneof![Just(SolverKind::UniPc), Just(SolverKind::DpmPp), Just(SolverKind::Euler)]
}

fn all_solvers() -> impl Strategy<Value = SolverKind> {
    prop_oneof![solvers(), Just(SolverKind::Renoise)]
}

fn schedules() -> impl Strategy<Value = ScheduleKind> {
    prop_oneof![Just(ScheduleKind::Official), Just(ScheduleKind::Diffusers)]
}

fn latents() -> impl Strategy<Value = Array4<f32>> {
    proptest::collection::vec(-4.0_f32..4.0, 12)
        .prop_map(|values| Array4::from_shape_vec((2, 3, 1, 2), values).unwrap())
}

/// Every latent of a run, including the start.
fn run(
    schedule: Schedule,
    solver: SolverKind,
    noise: Array4<f32>,
    field: impl Fn(&Array4<f32>, f32) -> Array4<f32>,
) -> Vec<Array4<f32>> {
    let sigmas: Vec<f32> = schedule.sigmas().iter().map(|sigma| sigma.0).collect();
    let steps = schedule.steps();
    let (mut sampler, mut stream) = (Sampler::new(schedule, solver), NoiseStream::new(Seed(7)));
    let mut latents = vec![Arc::new(noise)];
    for sigma in sigmas.into_iter().take(steps) {
        let latent = &latents[latents.len() - 1];
        let next = sampler.step(latent, &field(latent, sigma), &mut stream).unwrap();
        latents.push(next);
    }
    latents.into_iter().map(Arc::unwrap_or_clone).collect()
}

/// A velocity field that is neither linear in the latent nor constant in time.
fn bending(latent: &Array4<f32>, sigma: f32) -> Array4<f32> {
    latent.mapv(|x| (2.0 * x).sin() + sigma * x)
}

proptest! {
    #[test]
    fn sigmas_fall_to_zero_and_timesteps_follow(
        solver in all_solvers(), kind in schedules(), steps in 1_usize..=100, shift in 0.5_f64..20.0,
    ) {
        let schedule = Schedule::new(solver, kind, steps, Shift(shift));
        prop_assert_eq!(schedule.steps(), steps);
        prop_assert_eq!(schedule.sigmas().len(), steps + 1);
        prop_assert!(schedule.sigmas().windows(2).all(|pair| pair[0] > pair[1]), "{:?}", schedule);
        prop_assert_eq!(schedule.sigmas()[steps].0, 0.0);
        prop_assert!(schedule.sigmas()[0].0 <= 1.0);
        prop_assert!(schedule.timesteps().windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", schedule);
        for (Timestep(timestep), sigma) in schedule.timesteps().iter().zip(schedule.sigmas()) {
            let distance = 1000.0 * sigma.0 - timestep;
            prop_assert!((-1e-3..=1.0).contains(&distance), "timestep {timestep} at sigma {}", sigma.0);
        }
    }

    #[test]
    fn a_field_that_points_to_one_latent_ends_there(
        solver in solvers(), kind in schedules(), steps in 1_usize..=100, shift in 0.5_f64..20.0,
        noise in latents(), clean in latents(),
    ) {
        let schedule = Schedule::new(solver, kind, steps, Shift(shift));
        let latents = run(schedule.clone(), solver, noise.clone(), |latent, sigma| (latent - &clean) / sigma);
        // On the straight path every latent is a weighted mean of noise and clean.
        for (latent, sigma) in latents.iter().zip(schedule.sigmas()) {
            let share = sigma.0 / schedule.sigmas()[0].0;
            Zip::from(latent).and(&noise).and(&clean).for_each(|x, noise, clean| {
                let expected = share * noise + (1.0 - share) * clean;
                assert!((x - expected).abs() < 5e-5, "{x} at {} is not {expected}", sigma.0);
            });
        }
    }

    #[test]
    fn renoise_ends_at_the_clean_latent_with_noise_of_each_level_on_the_way(
        kind in schedules(), steps in 1_usize..=100, shift in 0.5_f64..20.0, noise in latents(), clean in latents(),
    ) {
        let schedule = Schedule::new(SolverKind::Renoise, kind, steps, Shift(shift));
        let latents = run(schedule.clone(), SolverKind::Renoise, noise, |latent, sigma| (latent - &clean) / sigma);
        let mut stream = NoiseStream::new(Seed(7));
        for (latent, Sigma(sigma)) in latents.iter().zip(schedule.sigmas()).skip(1) {
            let fresh = if *sigma > 0.0 { stream.draw(clean.len()) } else { vec![0.0; clean.len()] };
            for ((x, clean), fresh) in latent.iter().zip(&clean).zip(fresh) {
                let expected = (1.0 - sigma) * clean + sigma * fresh;
                prop_assert!((x - expected).abs() < 5e-5, "{} at {} is not {}", x, sigma, expected);
            }
        }
    }

    #[test]
    fn the_sigmas_of_a_list_are_its_timesteps(values in proptest::collection::btree_set(1_u32..1_000_000, 1..40)) {
        let falling: Vec<f32> = values.iter().rev().map(|value| *value as f32 / 1000.0).collect();
        prop_assume!(falling.windows(2).all(|pair| pair[0] > pair[1]));
        let schedule = Schedule::of_list(&TimestepList::try_new(falling.clone()).unwrap());
        prop_assert!(Schedule::from_parts(schedule.sigmas().to_vec(), schedule.timesteps().to_vec()).is_ok());
        for ((timestep, sigma), value) in schedule.timesteps().iter().zip(schedule.sigmas()).zip(falling) {
            prop_assert_eq!(timestep.0, value);
            prop_assert_eq!(sigma.0, value / 1000.0);
        }
    }

    #[test]
    fn positions_of_a_latent_are_independent(
        solver in solvers(), kind in schedules(), steps in 1_usize..=30, shift in 0.5_f64..20.0,
        first in latents(), second in latents(), axis in 0_usize..4,
    ) {
        let schedule = Schedule::new(solver, kind, steps, Shift(shift));
        let last = |noise| run(schedule.clone(), solver, noise, bending).pop().unwrap();
        let joined = |a: &Array4<f32>, b: &Array4<f32>| concatenate(Axis(axis), &[a.view(), b.view()]).unwrap();
        prop_assert_eq!(last(joined(&first, &second)), joined(&last(first), &last(second)));
    }

    #[test]
    fn latents_are_finite(
        solver in all_solvers(), kind in schedules(), steps in 1_usize..=100, shift in 0.5_f64..20.0, noise in latents(),
    ) {
        let schedule = Schedule::new(solver, kind, steps, Shift(shift));
        for latent in run(schedule, solver, noise, bending) {
            prop_assert!(latent.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn latents_are_finite_where_sigmas_coincide(
        solver in all_solvers(), kind in schedules(), steps in 1_usize..=30, exponent in -60_i32..60, noise in latents(),
    ) {
        let schedule = Schedule::new(solver, kind, steps, Shift(10_f64.powi(exponent)));
        for latent in run(schedule, solver, noise, |latent, _| latent.mapv(f32::sin)) {
            prop_assert!(latent.iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn a_schedule_may_have_no_steps() {
    for solver in SolverKind::ALL {
        for kind in [ScheduleKind::Official, ScheduleKind::Diffusers] {
            let schedule = Schedule::new(solver, kind, 0, Shift(5.0));
            assert_eq!((schedule.steps(), schedule.sigmas().len()), (0, 1));
        }
    }
}

#[test]
fn solvers_of_order_two_are_more_accurate_than_euler() {
    // `dx/dσ = -x` multiplies the latent by e from σ = 1 to 0.
    let error = |solver, steps| {
        let schedule = Schedule::new(solver, ScheduleKind::Official, steps, Shift(1.0));
        let start = Array4::from_elem((1, 1, 1, 1), (1.0 - schedule.sigmas()[0].0).exp());
        let latents = run(schedule, solver, start, |latent, _| -latent);
        (latents[steps][[0, 0, 0, 0]] - 1_f32.exp()).abs()
    };
    for steps in [20, 40, 80] {
        let euler = error(SolverKind::Euler, steps);
        assert!(error(SolverKind::Euler, 2 * steps) < 0.55 * euler, "euler, {steps} steps");
        for solver in [SolverKind::UniPc, SolverKind::DpmPp] {
            assert!(error(solver, steps) < 0.1 * euler, "{solver}, {steps} steps");
        }
    }
}

#[test]
fn a_step_after_the_last_one_is_an_error() {
    let latent = Arc::new(Array4::zeros((1, 1, 1, 1)));
    let mut sampler = Sampler::new(
        Schedule::new(SolverKind::UniPc, ScheduleKind::Official, 1, Shift(5.0)),
        SolverKind::UniPc,
    );
    let other = Array4::zeros((1, 1, 1, 2));
    let mut stream = NoiseStream::new(Seed(7));
    assert!(matches!(sampler.step(&latent, &other, &mut stream), Err(SamplerError::Shape { .. })));
    assert_eq!(sampler.step_index(), 0);
    sampler.step(&latent, &latent, &mut stream).unwrap();
    assert_eq!(sampler.step(&latent, &latent, &mut stream), Err(SamplerError::Finished { steps: 1 }));
    assert_eq!(stream, NoiseStream::new(Seed(7)), "nothing was drawn");
}
