//! Stored jobs: snapshots, specs and records of clips.

use crate::seal;
use bundle::manifest::Manifest;
use runtime::denoise::{Denoising, StepOutputs};
use runtime::job::{ClipRecord, JobSpec, StoredSnapshot};
use runtime::plan::GenerationPlan;
use std::path::Path;
use std::sync::LazyLock;

/// The bundle that specs are checked against.
static MANIFEST: LazyLock<Manifest> = LazyLock::new(|| {
    let text = include_bytes!("../../../fuzz/seeds/bundle_json/two-experts.json");
    Manifest::from_json(text, Path::new("bundle.json")).unwrap_or_else(|error| panic!("{error}"))
});

/// A snapshot: it is read as it is, and with the right digest.
///
/// # Panics
/// A snapshot that was read changes when it is written and read again, or its next step panics.
pub fn snapshot(bytes: &[u8]) -> bool {
    let is_read = resumed(bytes);
    seal::snapshot(bytes).is_some_and(|sealed| resumed(&sealed)) || is_read
}

fn resumed(bytes: &[u8]) -> bool {
    let Ok(found) = StoredSnapshot::from_bytes(bytes) else { return false };
    match StoredSnapshot::from_bytes(&found.to_bytes()) {
        Ok(again) => assert_eq!(again, found, "the snapshot changes when it is written and read again"),
        Err(error) => panic!("the snapshot is refused once it is written again: {error}"),
    }
    let mut state = Denoising::resume(found.snapshot);
    let (before, has_boundary) = (state.steps_done(), state.is_at_boundary());
    assert!(!has_boundary || before > 0, "a boundary before the first step");
    let Some(request) = state.next() else { return true };
    let conditional = state.latent().mapv(|value| 0.5 * value);
    let unconditional = request.is_guided.then(|| conditional.clone());
    let outputs = StepOutputs { unconditional, conditional };
    // A step whose numbers overflow is refused and changes nothing.
    let made = if request.passes.is_reused() { state.reuse() } else { state.advance(outputs) };
    let expected = before + usize::from(made.is_ok());
    assert_eq!(state.steps_done(), expected);
    true
}

/// The spec of a job.
///
/// # Panics
/// A spec that was read changes when it is written and read again, or its plan is not that of the spec.
pub fn job_spec(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(spec) = JobSpec::from_json(text) else { return false };
    let json = serde_json::to_string(&spec).unwrap_or_else(|error| panic!("a spec that was read: {error}"));
    match JobSpec::from_json(&json) {
        Ok(again) => assert_eq!((again.digest(), &again), (spec.digest(), &spec), "{json}"),
        Err(error) => panic!("the spec is refused once it is written again: {error}"),
    }
    planned(&spec);
    true
}

/// Plans the clip of a spec.
fn planned(spec: &JobSpec) {
    for fork in &spec.forks {
        let (prompt, _) = spec.prompts_after(fork.after);
        assert!(
            spec.forks
                .iter()
                .filter_map(|fork| fork.prompt.as_deref())
                .chain([&*spec.prompt])
                .any(|known| known == prompt)
        );
    }
    let Ok(plan) = spec.plan(&MANIFEST) else { return };
    assert_eq!(
        plan,
        GenerationPlan::new(&MANIFEST, &spec.request()).unwrap_or_else(|error| panic!("{error}"))
    );
    assert_eq!(
        (&plan.prompt, plan.size, plan.frames.get(), plan.schedule.steps(), plan.seed),
        (&spec.prompt, spec.size, spec.frames, spec.steps, spec.seed)
    );
}

/// The record of a clip, as JSON: it is read as it is, and with the right digest.
///
/// # Panics
/// A record that was read changes when it is stored and read again.
pub fn clip_record(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let is_read = repeated(text);
    seal::record(text).is_some_and(|sealed| repeated(&sealed)) || is_read
}

fn repeated(text: &str) -> bool {
    let Ok(record) = ClipRecord::from_json(text) else { return false };
    let stored = record.stored();
    // Numbers may be longer than in the text that was read.
    let Some(json) = stored.json else { return true };
    match ClipRecord::from_json(&json) {
        Ok(again) if stored.left_out.is_none() => assert_eq!(again, record),
        Ok(again) => assert_eq!((again.spec, again.latents.len()), (record.spec.clone(), 0)),
        Err(error) => panic!("the record is refused once it is stored again: {error}"),
    }
    planned(&record.spec);
    true
}
