//! Small reference vectors: cleaned prompts, token ids, sigma schedules, sampler states, PyTorch's noise.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::{Start, TimestepList};
use bundle::units::{Seed, Shift};
use ndarray::Array4;
use prompt::{PromptTokenizer, clean};
use runtime::sampler::{NoiseStream, Sampler, Schedule, torch_normal};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tests::golden;

fn vectors<T: DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden::folder().join(file)).unwrap()).unwrap()
}

#[test]
fn prompts_are_cleaned_as_diffusers_cleans_them() {
    let pairs: Vec<(String, String)> = vectors("clean.json");
    assert!(pairs.len() > 300);
    for (raw, cleaned) in pairs {
        assert_eq!(clean(&raw), cleaned, "{raw:?}");
    }
}

#[test]
fn token_ids_are_those_of_the_reference() {
    for case in golden::cases() {
        let bytes = std::fs::read(golden::folder().join(&case.name).join("reference.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tokenizer = PromptTokenizer::open(&case.checkpoint().join("tokenizer/tokenizer.json")).unwrap();
        for (text, name) in [(&case.prompt, "prompt_ids"), (&case.negative, "negative_ids")] {
            let view = file.tensor(name).unwrap();
            let ids =
                view.data().chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            let found = tokenizer.encode(&clean(text)).unwrap();
            assert_eq!(found.ids, ids.collect::<Vec<_>>(), "{} of {}", name, case.name);
        }
    }
}

#[derive(Deserialize)]
struct Trajectory {
    sampler: SolverKind,
    schedule: ScheduleKind,
    steps: usize,
    shift: f64,
    sigmas: Vec<f32>,
    timesteps: Vec<f32>,
    states: Vec<[f32; 3]>,
}

/// The velocity field of every trajectory: `v = 0.5·x + (t/1000)·[1, -2, 0.25]`.
fn field(latent: &Array4<f32>, timestep: f32) -> Array4<f32> {
    let direction = Array4::from_shape_vec(latent.dim(), vec![1.0, -2.0, 0.25]).unwrap();
    latent * 0.5 + direction * (timestep / 1000.0)
}

#[test]
fn every_schedule_and_sampler_follows_the_reference() {
    let all: Vec<Trajectory> = vectors("schedules.json");
    assert!(all.len() > 50);
    for expected in all {
        let name =
            format!("{} {} {} {}", expected.sampler, expected.schedule, expected.steps, expected.shift);
        let shift = Shift::try_new(expected.shift).unwrap();
        let schedule = Schedule::new(expected.sampler, expected.schedule, expected.steps, shift);
        let sigmas: Vec<f32> = schedule.sigmas().iter().map(|sigma| sigma.0).collect();
        let timesteps: Vec<f32> = schedule.timesteps().iter().map(|timestep| timestep.0).collect();
        assert_eq!(sigmas, expected.sigmas, "{name}");
        assert_eq!(timesteps, expected.timesteps, "{name}");
        let (mut sampler, mut stream) = (Sampler::new(schedule, expected.sampler), NoiseStream::new(Seed(0)));
        let mut latent = Arc::new(Array4::from_shape_vec((3, 1, 1, 1), vec![1.0, -0.5, 0.25]).unwrap());
        // Only the last states of long runs are recorded.
        let unrecorded = expected.steps - expected.states.len();
        for (step, timestep) in timesteps.iter().enumerate() {
            latent = sampler.step(&latent, &field(&latent, *timestep), &mut stream).unwrap();
            let Some(state) = step.checked_sub(unrecorded).map(|recorded| &expected.states[recorded]) else {
                continue;
            };
            for (found, expected_value) in latent.iter().zip(state) {
                assert!((found - expected_value).abs() < 2e-6, "{name}: {latent} {state:?}");
            }
        }
    }
}

#[derive(Deserialize)]
struct ListedTrajectory {
    sampler: SolverKind,
    timesteps: TimestepList,
    start: Start,
    seed: u64,
    size: usize,
    sigmas: Vec<f32>,
    states: Vec<Vec<f32>>,
}

#[test]
fn lists_of_timesteps_follow_torch_with_the_same_noise() {
    let all: Vec<ListedTrajectory> = vectors("lists.json");
    assert!(all.len() > 20);
    for expected in all {
        let ListedTrajectory { sampler: solver, timesteps, start, seed, size, sigmas, states } = expected;
        let name = format!("{solver} {timesteps} seed {seed} size {size}");
        let schedule = Schedule::of_list(&timesteps);
        assert_eq!(schedule.sigmas().iter().map(|sigma| sigma.0).collect::<Vec<_>>(), sigmas, "{name}");
        let mut stream = NoiseStream::new(Seed(seed));
        let factor = start.factor(schedule.sigmas()[0]);
        let latent = |values: Vec<f32>| Array4::from_shape_vec((1, 1, 1, size), values).unwrap();
        let mut x = Arc::new(latent(stream.draw(size)) * factor);
        let direction = latent((0_u16..).take(size).map(|i| f32::from(i).cos()).collect());
        let mut sampler = Sampler::new(schedule, solver);
        for (timestep, state) in timesteps.timesteps().iter().zip(states) {
            let velocity = &*x * 0.5 + &direction * (timestep.0 / 1000.0);
            x = sampler.step(&x, &velocity, &mut stream).unwrap();
            for (found, expected) in x.iter().zip(&state) {
                assert!((found - expected).abs() < 5e-6, "{name}: {found} is not {expected}");
            }
        }
    }
}

#[derive(Deserialize)]
struct Randn {
    seed: u64,
    size: usize,
    first: Vec<f32>,
    last: Vec<f32>,
}

#[test]
fn noise_is_that_of_pytorchs_cpu_generator() {
    let all: Vec<Randn> = vectors("randn.json");
    assert!(all.len() > 50);
    for expected in all {
        let found = torch_normal(Seed(expected.seed), expected.size);
        assert_eq!(found.len(), expected.size);
        assert!(!expected.first.is_empty());
        let ends =
            found.iter().zip(&expected.first).chain(found.iter().rev().zip(expected.last.iter().rev()));
        for (found, expected_value) in ends {
            assert!((found - expected_value).abs() < 1e-6, "seed {} size {}", expected.seed, expected.size);
        }
    }
}
