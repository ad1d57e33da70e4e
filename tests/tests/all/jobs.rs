//! A job that stops after any step and goes on from its snapshot as bytes has the bits of one that never stopped.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{Bits, STEPS, finished, model, request, start};
use bundle::geometry::PixelSize;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::{GuidanceUntil, Start};
use bundle::units::{GuidanceScale, Sigma};
use bundle::variant::Precision;
use runtime::denoise::{Denoising, GuidanceForm, StepPolicy, TextConditioning};
use runtime::job::{
    FoundSnapshot, Job, JobEvent, JobFolder, JobStart, JobState, LatentDigest, ResumeFrom, Resumed,
    StoredSnapshot,
};
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, Length};

/// A job that ran to the end of its steps, and its snapshots before the first step and after each.
struct Whole {
    latents: Vec<LatentDigest>,
    snapshots: Vec<Vec<u8>>,
    text: TextConditioning,
    form: GuidanceForm,
}

fn denoised(pipeline: &mut Pipeline, request: &GenerateRequest) -> Whole {
    let (mut job, events) = Job::new(pipeline, start(pipeline, request));
    let mut snapshots = Vec::new();
    while snapshots.len() <= job.denoising().steps() {
        assert_eq!(job.advance(pipeline).unwrap(), JobState::Working);
        assert_eq!(job.denoising().steps_done(), snapshots.len());
        snapshots.push(job.snapshot().unwrap().to_bytes());
    }
    let text = events.try_iter().find_map(|event| match event {
        JobEvent::Encoded(text) => Some(text),
        _ => None,
    });
    let form = job.conditions().guidance;
    Whole { latents: job.record().latents, snapshots, text: text.unwrap(), form }
}

/// The start of a job from a snapshot as bytes.
fn from_bytes(
    pipeline: &Pipeline,
    request: &GenerateRequest,
    bytes: &[u8],
    text: &TextConditioning,
) -> JobStart {
    let StoredSnapshot { snapshot, latents, forks_applied, .. } = StoredSnapshot::from_bytes(bytes).unwrap();
    let text = Some(text.clone());
    let denoising = Denoising::resume(snapshot);
    JobStart { denoising, latents, text, forks_applied, ..start(pipeline, request) }
}

/// Goes on from every snapshot to the end of the steps.
fn goes_on_from_every_step(pipeline: &mut Pipeline, request: &GenerateRequest) -> Whole {
    let whole = denoised(pipeline, request);
    for (stop, bytes) in whole.snapshots.iter().enumerate() {
        let (mut job, _) = Job::new(pipeline, from_bytes(pipeline, request, bytes, &whole.text));
        assert_eq!(job.denoising().steps_done(), stop);
        while job.denoising().steps_done() < job.denoising().steps() {
            job.advance(pipeline).unwrap();
        }
        assert_eq!(job.record().latents, whole.latents, "stopped after {stop}: {request:?}");
        let last = StoredSnapshot::from_bytes(whole.snapshots.last().unwrap()).unwrap();
        assert!(job.denoising().snapshot() == last.snapshot, "stopped after {stop}: {request:?}");
    }
    whole
}

fn scales(scales: [f32; 2]) -> Option<Vec<GuidanceScale>> {
    Some(scales.map(GuidanceScale).to_vec())
}

#[test]
fn every_sampler_schedule_and_guidance_goes_on_from_every_step_with_the_same_bits() {
    for precision in [Precision::F32, Precision::Int8] {
        let mut pipeline = Pipeline::new(&model(precision));
        assert_eq!(pipeline.model().variant().precision, precision);
        let mut different = std::collections::BTreeSet::new();
        for solver in SolverKind::ALL {
            for schedule in ScheduleKind::ALL {
                for guidance in [[1.0, 1.0], [4.0, 3.0], [1.0, 3.0]] {
                    let request = GenerateRequest {
                        sampler: Some(solver),
                        schedule: Some(schedule),
                        guidance: scales(guidance),
                        ..request("a boat", 7)
                    };
                    let whole = goes_on_from_every_step(&mut pipeline, &request);
                    assert_eq!(whole.text.negative.is_some(), guidance != [1.0, 1.0]);
                    assert_eq!(whole.form, GuidanceForm::OneCall);
                    different.insert(whole.latents.last().unwrap().0.clone());
                }
            }
        }
        // The settings reach the latents.
        assert!(different.len() > 12, "{precision}: {different:?}");
    }
}

#[test]
fn lists_of_timesteps_and_reused_steps_go_on_with_the_same_bits() {
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    for sampler in [SolverKind::Euler, SolverKind::Renoise] {
        let request = GenerateRequest {
            sampler: Some(sampler),
            steps: None,
            timesteps: Some("990.5,930,700,400".parse().unwrap()),
            start: Some(Start::ScaledNoise),
            guidance_until: Some(GuidanceUntil::Sigma(Sigma(0.5))),
            ..request("a boat", 7)
        };
        goes_on_from_every_step(&mut pipeline, &request);
    }
    for threshold in [0.02, 0.9] {
        let request = GenerateRequest {
            steps: Some(14),
            step_cache: Some(StepPolicy::EasyCache { threshold }),
            guidance_until: Some(GuidanceUntil::Sigma(Sigma(0.6))),
            ..request("a boat", 7)
        };
        let whole = goes_on_from_every_step(&mut pipeline, &request);
        let last = StoredSnapshot::from_bytes(whole.snapshots.last().unwrap()).unwrap();
        let reused = last.snapshot.state().reused_steps().len();
        assert!(threshold < 0.9 || (3..12).contains(&reused), "{reused}");
    }
}

#[test]
fn guidance_in_two_calls_goes_on_with_the_same_bits() {
    let request = GenerateRequest {
        size: Some(PixelSize { width: 736, height: 720 }),
        length: Some(Length::Frames(1)),
        steps: Some(3),
        ..request("a boat", 7)
    };
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    let whole = goes_on_from_every_step(&mut pipeline, &request);
    assert_eq!(whole.form, GuidanceForm::TwoCalls);
}

#[test]
fn the_frames_are_those_of_a_run_that_never_stopped() {
    for (precision, solver) in [(Precision::F32, SolverKind::UniPc), (Precision::Int8, SolverKind::DpmPp)] {
        let model = model(precision);
        let mut pipeline = Pipeline::new(&model);
        let request = GenerateRequest { sampler: Some(solver), ..request("a boat", 7) };
        let start = start(&pipeline, &request);
        let expected = finished(&mut pipeline, start);
        let whole = denoised(&mut pipeline, &request);
        for bytes in &whole.snapshots {
            // New graphs each time, as in a new process.
            model.sessions().close_idle();
            let mut pipeline = Pipeline::new(&model);
            let start = from_bytes(&pipeline, &request, bytes, &whole.text);
            assert!(finished(&mut pipeline, start) == expected);
        }
    }
}

/// A job in a folder, up to this many steps.
fn stopped_in(folder: &std::path::Path, pipeline: &mut Pipeline, request: &GenerateRequest, stop: usize) {
    let start = start(pipeline, request);
    let folder = JobFolder::create(folder, &start.spec).unwrap();
    let (job, events) = Job::new(pipeline, start);
    let mut job = job.with_folder(folder);
    job.advance(pipeline).unwrap();
    while job.denoising().steps_done() < stop {
        job.advance(pipeline).unwrap();
    }
    job.abandon();
    let mut warnings = events.try_iter().filter(|event| matches!(event, JobEvent::Warning(_)));
    assert!(warnings.next().is_none());
}

fn resumed(folder: &std::path::Path, pipeline: &mut Pipeline, from: ResumeFrom) -> (Bits, usize) {
    let folder = JobFolder::open(folder).unwrap();
    let FoundSnapshot { snapshot, instead_of } = folder.snapshot(from).unwrap();
    let Resumed { start, differences } = JobStart::resume(pipeline, &folder, snapshot, None).unwrap();
    assert_eq!((differences, instead_of), (Vec::new(), None));
    let done = start.steps_done();
    (finished(pipeline, start), done)
}

#[test]
fn a_job_in_a_folder_goes_on_with_the_same_bits_also_without_its_text_states() {
    let mut pipeline = Pipeline::new(&model(Precision::F32));
    // Only the high-noise expert needs the negative prompt.
    let request = GenerateRequest { guidance: scales([4.0, 1.0]), ..request("a boat", 7) };
    let begun = start(&pipeline, &request);
    let boundary = begun.plan.expert_steps[0].1;
    let expected = finished(&mut pipeline, begun);
    for stop in 0..=STEPS {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("job");
        stopped_in(&folder, &mut pipeline, &request, stop);
        let (bits, done) = resumed(&folder, &mut pipeline, ResumeFrom::Newest);
        assert!(bits == expected && done == stop, "stopped after {stop}");
        if stop >= boundary {
            let (bits, done) = resumed(&folder, &mut pipeline, ResumeFrom::Boundary);
            assert!(bits == expected && done == boundary, "stopped after {stop}");
        }
        let names = tests::folder::names(&folder);
        let texts: Vec<_> = names.iter().filter(|name| name.starts_with("text-")).collect();
        assert_eq!(texts.len(), 1, "{names:?}");
        for damaged in [false, true] {
            std::fs::remove_file(folder.join(texts[0])).unwrap();
            if damaged {
                std::fs::write(folder.join(texts[0]), "damaged").unwrap();
            } else {
                std::fs::write(folder.join(".rushes-killed.part"), "of a killed run").unwrap();
            }
            let (bits, _) = resumed(&folder, &mut pipeline, ResumeFrom::Newest);
            assert!(bits == expected, "stopped after {stop}, damaged: {damaged}");
            assert!(!folder.join(".rushes-killed.part").exists());
            // The runs above did not write to the folder; this one does.
            let job_folder = JobFolder::open(&folder).unwrap();
            let again = {
                let found = job_folder.snapshot(ResumeFrom::Newest).unwrap();
                JobStart::resume(&pipeline, &job_folder, found.snapshot, None).unwrap()
            };
            let (job, _) = Job::new(&pipeline, again.start);
            let mut job = job.with_folder(job_folder);
            job.advance(&mut pipeline).unwrap();
            job.abandon();
            assert!(std::fs::read(folder.join(texts[0])).unwrap() != b"damaged");
        }
    }
}
