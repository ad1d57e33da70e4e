//! What the tests of jobs share: a small bundle with two experts, exported and quantised once, and runs on it.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::geometry::PixelSize;
use bundle::manifest::Bundle;
use bundle::units::{GuidanceScale, Seed};
use bundle::variant::Precision;
use engines::OnnxRuntime;
use engines::residency::Residency;
use engines::sessions::Sessions;
use ndarray::Array4;
use runtime::job::{Job, JobEvent, JobStart, JobState, LatentDigest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;
use std::sync::mpsc::Receiver;
use tests::program::{event, rushes};
use tests::{edit, golden};

/// A bundle with an f32 and an int8 variant.
pub(super) static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = rushes(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    edit::copy_folder(&golden::case("two-experts").checkpoint(), &folder.path().join("ck"));
    // The clips that the quantised variant is compared on are of this size.
    let defaults = r#"{"size":"32x32","frames":5,"steps":3}"#;
    std::fs::write(folder.path().join("ck/rushes.json"), defaults).unwrap();
    run(&["export", "ck", "--out", "bundle"]);
    std::fs::write(folder.path().join("prompts"), "a red fox\n").unwrap();
    run(&["calibrate", "bundle", "--prompts", "prompts"]);
    let quantize = ["quantize", "bundle", "--clips", "1", "--sensitivity", "estimated"];
    run(&[&quantize[..], &["--kernels", "onnxruntime"]].concat());
    let bundle = folder.path().join("bundle");
    (folder, bundle)
});

/// The number of steps of [`request`].
pub(super) const STEPS: usize = 5;

/// The shared bundle in a precision.
pub(super) fn model(precision: Precision) -> Model {
    model_with(precision, Residency::Auto)
}

/// The shared bundle in a precision, with sessions of its own.
pub(super) fn model_with(precision: Precision, residency: Residency) -> Model {
    let options = ModelOptions { precision: Some(precision), ..ModelOptions::default() };
    let sessions = Sessions::in_available_memory(OnnxRuntime::load(None).unwrap(), residency);
    Model::with_sessions(Bundle::open(&BUNDLE.1).unwrap(), &sessions, options).unwrap()
}

/// A small clip of [`STEPS`] steps that crosses the boundary.
pub(super) fn request(prompt: &str, seed: u64) -> GenerateRequest {
    GenerateRequest {
        size: Some(PixelSize { width: 32, height: 32 }),
        length: Some(Length::Frames(5)),
        steps: Some(STEPS),
        guidance: Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]),
        ..GenerateRequest::new(prompt, Seed(seed))
    }
}

/// The start of a job from the noise of its seed.
pub(super) fn start(pipeline: &Pipeline, request: &GenerateRequest) -> JobStart {
    let plan = GenerationPlan::new(pipeline.model().manifest(), request).unwrap();
    let steps: Vec<usize> = plan.expert_steps.iter().map(|(_, steps)| *steps).collect();
    assert!(
        steps.len() == 2 && steps.iter().all(|steps| *steps > 0),
        "{steps:?}: the boundary is not crossed"
    );
    let noise = seeded_noise(&plan);
    JobStart::new(pipeline, plan, noise).unwrap()
}

/// The bits of a clip.
#[derive(Debug, PartialEq)]
pub(super) struct Bits {
    pub(super) latents: Vec<LatentDigest>,
    pub(super) frames: Vec<Array4<f32>>,
}

/// The bits of a job that has ended.
pub(super) fn bits(job: &Job, events: &Receiver<JobEvent>) -> Bits {
    let frames = events.try_iter().filter_map(|event| match event {
        JobEvent::Frames(frames) => Some(frames),
        _ => None,
    });
    Bits { frames: frames.collect(), latents: job.record().latents }
}

/// Runs a job to its end.
pub(super) fn finished(pipeline: &mut Pipeline, start: JobStart) -> Bits {
    let (mut job, events) = Job::new(pipeline, start);
    while job.advance(pipeline).unwrap() == JobState::Working {}
    let bits = bits(&job, &events);
    assert_eq!(bits.latents.len(), job.denoising().steps());
    assert!(!bits.frames.is_empty());
    bits
}

/// Settings of a small clip, as arguments.
pub(super) const CLIP: [&str; 8] = ["--size", "32x32", "--frames", "5", "--steps", "6", "--guidance", "4,3"];

/// Runs `rushes` with the shared bundle.
pub(super) fn run(folder: &Path, arguments: &[&str]) -> Output {
    rushes(folder).args(arguments).arg("--bundle").arg(&BUNDLE.1).output().unwrap()
}

/// Runs `rushes` with the shared bundle, which must succeed.
pub(super) fn done(folder: &Path, arguments: &[&str]) -> Output {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// The digests of the latents in the result of `rushes generate --json`.
pub(super) fn latents(output: &Output) -> Vec<Value> {
    event(output, "done")["latents"].as_array().unwrap().clone()
}

/// Standard error as text.
pub(super) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file in a folder and its subfolders, with its content.
pub(super) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}
