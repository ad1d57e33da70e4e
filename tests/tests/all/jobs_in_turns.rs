//! Jobs that take turns in one pipeline do not affect each other.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, Bits, STEPS, bits, finished, model, model_with, request, start};
use bundle::geometry::PixelSize;
use bundle::manifest::Bundle;
use bundle::settings::SolverKind;
use bundle::units::GuidanceScale;
use bundle::variant::Precision;
use engines::OnnxRuntime;
use engines::residency::Residency;
use runtime::Error;
use runtime::job::{Job, JobEvent, JobStart, JobState};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use tests::edit;

/// Two clips that differ in everything.
fn requests() -> [GenerateRequest; 2] {
    let first = request("a boat", 7);
    let second = GenerateRequest {
        size: Some(PixelSize { width: 48, height: 32 }),
        length: Some(Length::Frames(9)),
        sampler: Some(SolverKind::Euler),
        steps: Some(STEPS + 2),
        guidance: Some(vec![GuidanceScale(1.0), GuidanceScale(2.0)]),
        ..request("a red fox in the snow", 8)
    };
    [first, second]
}

/// The bits of each clip, made alone.
fn alone(model: &Model) -> [Bits; 2] {
    requests().map(|request| {
        let mut pipeline = Pipeline::new(model);
        let start = start(&pipeline, &request);
        finished(&mut pipeline, start)
    })
}

fn begun(pipeline: &Pipeline) -> [(Job, Receiver<JobEvent>); 2] {
    requests().map(|request| Job::new(pipeline, start(pipeline, &request)))
}

/// Runs a job to its end.
fn rest(pipeline: &mut Pipeline, job: &mut Job, events: &Receiver<JobEvent>) -> Bits {
    while job.advance(pipeline).unwrap() == JobState::Working {}
    bits(job, events)
}

fn name(event: &JobEvent) -> String {
    match event {
        JobEvent::Encoding => "encoding".into(),
        JobEvent::Encoded(_) => "encoded".into(),
        JobEvent::Denoising { done, steps } => format!("denoising {done} of {steps}"),
        JobEvent::Step { done, .. } => format!("step {}", done.step + 1),
        JobEvent::Decoding => "decoding".into(),
        JobEvent::Frames(frames) => format!("{} frames", frames.len_of(ndarray::Axis(0))),
        JobEvent::Paused => "paused".into(),
        JobEvent::Resumed => "resumed".into(),
        JobEvent::Finished => "finished".into(),
        JobEvent::Failed(report) => format!("failed: {}", report.what),
        other => format!("{other:?}"),
    }
}

fn names(events: &Receiver<JobEvent>) -> Vec<String> {
    events.try_iter().map(|event| name(&event)).collect()
}

#[test]
fn jobs_in_turns_have_the_bits_of_one_after_the_other() {
    for (precision, residency) in [
        (Precision::F32, Residency::Auto),
        (Precision::F32, Residency::One),
        (Precision::Int8, Residency::All),
    ] {
        let model = model_with(precision, residency);
        let expected = alone(&model);
        assert_ne!(expected[0].latents[0], expected[1].latents[0]);
        let mut pipeline = Pipeline::new(&model);
        let mut jobs = begun(&pipeline);
        let mut ended = [false; 2];
        while ended != [true; 2] {
            for ((job, _), ended) in jobs.iter_mut().zip(&mut ended) {
                *ended |= job.advance(&mut pipeline).unwrap() == JobState::Ended;
            }
        }
        let found = jobs.map(|(job, events)| bits(&job, &events));
        assert!(found == expected, "{precision} {residency}");
    }
}

#[test]
fn a_cancelled_job_leaves_the_other_untouched() {
    let model = model(Precision::F32);
    let expected = alone(&model);
    // In the text, while denoising, while decoding.
    for units in [0, 3, STEPS + 2] {
        let mut pipeline = Pipeline::new(&model);
        let [(mut first, events_of_first), (mut second, events)] = begun(&pipeline);
        for _ in 0..units {
            assert_eq!(first.advance(&mut pipeline).unwrap(), JobState::Working);
            second.advance(&mut pipeline).unwrap();
        }
        first.cancel();
        assert!(first.advance(&mut pipeline).unwrap_err().is_cancelled());
        assert_eq!(first.advance(&mut pipeline).unwrap(), JobState::Ended);
        let last = names(&events_of_first).pop().unwrap();
        assert!(last.starts_with("failed: ") && last.contains("stopped"), "{last}");
        assert!(rest(&mut pipeline, &mut second, &events) == expected[1], "cancelled after {units} units");
    }
}

#[test]
fn events_come_in_order_and_a_paused_job_does_nothing() {
    let model = model(Precision::F32);
    let [expected, _] = alone(&model);
    let mut pipeline = Pipeline::new(&model);
    let [(mut job, events), _] = begun(&pipeline);
    for _ in 0..3 {
        job.advance(&mut pipeline).unwrap();
    }
    let mut order = names(&events);
    job.pause();
    job.pause();
    let before = job.snapshot().unwrap();
    for _ in 0..3 {
        assert_eq!(job.advance(&mut pipeline).unwrap(), JobState::Paused);
    }
    assert_eq!(job.snapshot().unwrap(), before);
    job.resume();
    job.resume();
    assert_eq!(job.advance(&mut pipeline).unwrap(), JobState::Working);
    order.extend(names(&events));
    let found = rest(&mut pipeline, &mut job, &events);
    assert!(found == expected);
    job.pause();
    assert_eq!(job.advance(&mut pipeline).unwrap(), JobState::Ended);
    assert_eq!(names(&events), Vec::<String>::new());
    let start =
        ["encoding", "encoded", "denoising 0 of 5", "step 1", "step 2", "paused", "resumed", "step 3"];
    assert_eq!(order, start);

    let [(mut job, events), _] = begun(&pipeline);
    while job.advance(&mut pipeline).unwrap() == JobState::Working {}
    let all = [&start[..5], &["step 3", "step 4", "step 5", "decoding", "1 frames", "4 frames", "finished"]];
    assert_eq!(names(&events), all.concat());

    // A paused job can be cancelled.
    let [(mut job, events), _] = begun(&pipeline);
    job.advance(&mut pipeline).unwrap();
    job.pause();
    job.cancel();
    assert!(job.advance(&mut pipeline).unwrap_err().is_cancelled());
    assert!(names(&events).pop().unwrap().starts_with("failed"));
}

#[test]
fn values_that_are_not_finite_end_one_job_alone() {
    let model = model(Precision::F32);
    let [expected, _] = alone(&model);
    let mut pipeline = Pipeline::new(&model);
    let [(mut good, events), _] = begun(&pipeline);
    let plan = GenerationPlan::new(model.manifest(), &requests()[1]).unwrap();
    let mut noise = seeded_noise(&plan);
    noise[[0, 0, 0, 0]] = f32::NAN;
    let (mut bad, events_of_bad) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise).unwrap());
    good.advance(&mut pipeline).unwrap();
    bad.advance(&mut pipeline).unwrap();
    good.advance(&mut pipeline).unwrap();
    let error = bad.advance(&mut pipeline).unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 1, .. }), "{error}");
    assert_eq!(bad.advance(&mut pipeline).unwrap(), JobState::Ended);
    assert_eq!(bad.record().latents, []);
    assert!(names(&events_of_bad).pop().unwrap().starts_with("failed: the latent is not finite"));
    assert!(rest(&mut pipeline, &mut good, &events) == expected);
}

/// The files of a bundle below these folders that hold graphs or weights.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Graphs and weights that are missing when a unit needs them, and are back for the next job.
#[test]
fn missing_files_end_one_job_alone() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("bundle");
    edit::copy_folder(&BUNDLE.1, &copy);
    let options = ModelOptions { precision: Some(Precision::F32), ..ModelOptions::default() };
    let model = Model::new(Bundle::open(&copy).unwrap(), OnnxRuntime::load(None).unwrap(), options).unwrap();
    let expected = alone(&model);
    for component in ["text_encoder", "experts", "decoder"] {
        let mut pipeline = Pipeline::new(&model);
        let [(mut first, events_of_first), (mut second, events)] = begun(&pipeline);
        // The second job is past the text, and before the last expert and the decoder.
        second.advance(&mut pipeline).unwrap();
        if component != "text_encoder" {
            first.advance(&mut pipeline).unwrap();
        }
        model.sessions().close_idle();
        let removed = files(&copy.join(component));
        assert!(removed.len() >= 2, "{removed:?}");
        let aside = |path: &Path| path.with_extension("aside");
        removed.iter().for_each(|path| std::fs::rename(path, aside(path)).unwrap());
        let error = loop {
            match first.advance(&mut pipeline) {
                Ok(state) => assert_eq!(state, JobState::Working, "{component}"),
                Err(error) => break error,
            }
        };
        removed.iter().for_each(|path| std::fs::rename(aside(path), path).unwrap());
        assert!(!error.is_cancelled() && !error.to_string().contains("bug"), "{component}: {error}");
        assert_eq!(first.advance(&mut pipeline).unwrap(), JobState::Ended);
        assert!(names(&events_of_first).pop().unwrap().starts_with("failed: "));
        assert!(rest(&mut pipeline, &mut second, &events) == expected[1], "{component}");
        let start = start(&pipeline, &requests()[0]);
        assert!(finished(&mut pipeline, start) == expected[0], "{component}");
    }
}
