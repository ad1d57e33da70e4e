//! Jobs that are forked from a snapshot: what they keep, and that their spec repeats them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{Bits, STEPS, contents, finished, model, request, start};
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
use bundle::variant::Precision;
use runtime::Error;
use runtime::job::{
    ForkSpec, GridSpec, Job, JobFolder, JobSpec, JobStart, JobState, KeepSteps, ResumeFrom, VariationSpec,
};
use runtime::pipeline::Pipeline;
use std::path::Path;

/// The step after which the forks begin.
const AFTER: usize = 2;

/// A fork of every kind, and one of all kinds together.
fn forks() -> Vec<(&'static str, ForkSpec)> {
    let prompt = Some("a red fox in the snow".to_owned());
    let negative = Some("blurry".to_owned());
    let guidance = Some(vec![GuidanceScale(1.0), GuidanceScale(6.0)]);
    let grid = Some(GridSpec {
        sampler: SolverKind::DpmPp,
        schedule: ScheduleKind::Official,
        steps: 7,
        shift: Shift(4.0),
        timesteps: None,
    });
    let listed = Some(GridSpec {
        sampler: SolverKind::Renoise,
        schedule: ScheduleKind::Official,
        steps: 3,
        shift: Shift(4.0),
        timesteps: Some("1000,800,400".parse().unwrap()),
    });
    let variation = Some(VariationSpec { strength: 0.5, seed: Seed(99) });
    let none = ForkSpec::default;
    vec![
        ("prompt", ForkSpec { prompt: prompt.clone(), ..none() }),
        ("negative", ForkSpec { negative: negative.clone(), ..none() }),
        ("guidance", ForkSpec { guidance: guidance.clone(), ..none() }),
        ("grid", ForkSpec { grid: grid.clone(), ..none() }),
        ("timesteps", ForkSpec { grid: listed, ..none() }),
        ("guidance until", ForkSpec { guidance_until: Some(Sigma(0.9)), ..none() }),
        ("variation", ForkSpec { variation, ..none() }),
        (
            "all",
            ForkSpec {
                after: 0,
                prompt,
                negative,
                guidance,
                guidance_until: Some(Sigma(0.5)),
                grid,
                step_cache: None,
                variation,
            },
        ),
    ]
}

/// A job in a folder that stops after [`AFTER`] steps.
fn stopped(folder: &Path, pipeline: &mut Pipeline) {
    let start = start(pipeline, &request("a boat", 7));
    let folder = JobFolder::create(folder, &start.spec).unwrap();
    let (job, _events) = Job::new(pipeline, start);
    let mut job = job.with_folder(folder);
    while job.denoising().steps_done() < AFTER {
        job.advance(pipeline).unwrap();
    }
    job.abandon();
}

fn resumed(folder: &JobFolder, pipeline: &Pipeline, fork: Option<ForkSpec>) -> JobStart {
    JobStart::resume(pipeline, folder, folder.snapshot(ResumeFrom::Newest).unwrap().snapshot, fork)
        .unwrap()
        .start
}

/// The clip of a spec from its beginning, as `rushes generate --like` makes it.
fn replayed(pipeline: &mut Pipeline, spec: &JobSpec) -> Bits {
    let json = serde_json::to_string(spec).unwrap();
    let spec = JobSpec::from_json(&json).unwrap();
    let plan = spec.plan(pipeline.model().manifest()).unwrap();
    let noise = runtime::pipeline::seeded_noise(&plan);
    let mut start = JobStart::new(pipeline, plan, noise).unwrap();
    start.spec.forks = spec.forks;
    finished(pipeline, start)
}

#[test]
fn a_fork_has_the_bits_of_its_spec_and_goes_on_after_every_unit() {
    for precision in [Precision::F32, Precision::Int8] {
        let mut pipeline = Pipeline::new(&model(precision));
        let begun = start(&pipeline, &request("a boat", 7));
        let plain = finished(&mut pipeline, begun);
        let parent = tempfile::tempdir().unwrap();
        let base = parent.path().join("base");
        stopped(&base, &mut pipeline);
        let before = contents(&base);
        for (name, fork) in forks() {
            let folder = JobFolder::open(&base).unwrap();
            let start = resumed(&folder, &pipeline, Some(fork));
            let spec = start.spec.clone();
            assert_eq!(spec.forks[0].after, AFTER);
            let forked = finished(&mut pipeline, start);
            assert_eq!(forked.latents[..AFTER], plain.latents[..AFTER], "{precision} {name}");
            assert_ne!(forked.latents[AFTER], plain.latents[AFTER], "{precision} {name}");
            assert!(replayed(&mut pipeline, &spec) == forked, "{precision} {name}: replayed");
            if precision == Precision::F32 {
                for units in 0..=STEPS - AFTER {
                    let own = parent.path().join(format!("{name}-{units}"));
                    let start = resumed(&folder, &pipeline, Some(spec.forks[0].clone()));
                    let own_folder = JobFolder::create(&own, &start.spec).unwrap();
                    let (job, _events) = Job::new(&pipeline, start);
                    let mut job = job.with_folder(own_folder);
                    for _ in 0..units {
                        assert_eq!(job.advance(&mut pipeline).unwrap(), JobState::Working);
                    }
                    if units == 0 {
                        // Nothing was stored.
                        job.abandon();
                        continue;
                    }
                    job.abandon();
                    drop(job);
                    let start = resumed(&JobFolder::open(&own).unwrap(), &pipeline, None);
                    assert!(finished(&mut pipeline, start) == forked, "{name}: stopped after {units} units");
                }
            }
        }
        assert_eq!(contents(&base), before, "a fork changed the folder that it began in");
    }
}

#[test]
fn a_fork_of_a_fork_has_the_bits_of_its_spec() {
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    let parent = tempfile::tempdir().unwrap();
    let (base, second) = (parent.path().join("base"), parent.path().join("second"));
    stopped(&base, &mut pipeline);
    let forks = forks();
    let start = resumed(&JobFolder::open(&base).unwrap(), &pipeline, Some(forks[5].1.clone()));
    let folder = JobFolder::create(&second, &start.spec).unwrap();
    let (job, _events) = Job::new(&pipeline, start);
    let mut job = job.with_folder(folder);
    while job.denoising().steps_done() < AFTER + 1 {
        job.advance(&mut pipeline).unwrap();
    }
    job.abandon();
    let start = resumed(&JobFolder::open(&second).unwrap(), &pipeline, Some(forks[4].1.clone()));
    let spec = start.spec.clone();
    let after: Vec<usize> = spec.forks.iter().map(|fork| fork.after).collect();
    assert_eq!(after, [AFTER, AFTER + 1]);
    let forked = finished(&mut pipeline, start);
    assert!(replayed(&mut pipeline, &spec) == forked);
}

#[test]
fn a_fork_from_an_origin_has_the_bits_of_one_from_the_job() {
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    let begun = start(&pipeline, &request("a boat", 7));
    let folder = JobFolder::create(&at("job"), &begun.spec).unwrap();
    let (job, _events) = Job::new(&pipeline, begun);
    let mut job = job.with_folder(folder).keep_steps(KeepSteps::All);
    while job.denoising().steps_done() < STEPS - 1 {
        job.advance(&mut pipeline).unwrap();
    }
    // Step n is written before step n + 2 begins.
    let from: Vec<usize> = (1..STEPS - 1).collect();
    for steps in &from {
        JobFolder::make_origin(&at("job"), *steps, &at(&format!("origin-{steps}"))).unwrap();
    }
    job.abandon();
    drop(job);
    let folder = JobFolder::open(&at("job")).unwrap();
    assert_eq!(folder.kept_steps()[..from.len()], from);
    for (name, fork) in forks() {
        for steps in &from {
            let snapshot = folder.snapshot(ResumeFrom::Step(*steps)).unwrap().snapshot;
            let expected = JobStart::resume(&pipeline, &folder, snapshot, Some(fork.clone())).unwrap().start;
            let origin = JobFolder::open(&at(&format!("origin-{steps}"))).unwrap();
            let found = resumed(&origin, &pipeline, Some(fork.clone()));
            assert_eq!(found.spec, expected.spec, "{name} after {steps}");
            assert!(found.text.is_some());
            let expected = finished(&mut pipeline, expected);
            assert!(finished(&mut pipeline, found) == expected, "{name} after {steps}");
        }
    }
}

#[test]
fn forks_that_cannot_be_made_are_refused() {
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    let parent = tempfile::tempdir().unwrap();
    let base = parent.path().join("base");
    stopped(&base, &mut pipeline);
    let variation = |strength| Some(VariationSpec { strength, seed: Seed(1) });
    let wrong = [
        ForkSpec { variation: variation(1.5), ..ForkSpec::default() },
        ForkSpec { variation: variation(f64::NAN), ..ForkSpec::default() },
        ForkSpec { guidance: Some(vec![GuidanceScale(1.0); 3]), ..ForkSpec::default() },
    ];
    for fork in wrong {
        let what = format!("{fork:?}");
        let folder = JobFolder::open(&base).unwrap();
        let snapshot = folder.snapshot(ResumeFrom::Newest).unwrap().snapshot;
        let error = JobStart::resume(&pipeline, &folder, snapshot, Some(fork)).unwrap_err();
        assert!(matches!(error, Error::Fork(_)), "{what}: {error}");
    }
}
