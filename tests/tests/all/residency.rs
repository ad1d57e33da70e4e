//! With one expert at a time, the memory of the closed expert is returned to the system.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::Bundle;
use bundle::units::{ByteCount, GuidanceScale, Seed};
use engines::memory::settled_anonymous;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, OnnxRuntime};
use export::ExportRequest;
use runtime::job::{self, JobEvent};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::Pipeline;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::path::Path;
use tests::own_process;

/// mini with f16 weights, which ONNX Runtime widens, so that every expert needs its own memory.
fn model(folder: &Path, residency: Residency) -> (Model, ByteCount) {
    let out = folder.join("bundle");
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
    let request = ExportRequest { weights: Some(WeightType::F16), ..ExportRequest::new(&checkpoint, &out) };
    let report = export::export(&request, &mut |_| ()).unwrap();
    let expert =
        report.manifest.components.iter().find(|entry| entry.component.to_string().contains("high_noise"));
    let widened = ByteCount(expert.unwrap().weight_bytes().0 * 2);
    let sessions = Sessions::in_available_memory(OnnxRuntime::load(None).unwrap(), residency);
    let model =
        Model::with_sessions(Bundle::open(&out).unwrap(), &sessions, ModelOptions::default()).unwrap();
    (model, widened)
}

/// The anonymous memory of the process after the last step, when the low-noise expert has just run.
fn memory_at_last_step(model: &Model) -> u64 {
    let request = GenerateRequest {
        length: Some(Length::Frames(1)),
        steps: Some(4),
        guidance: Some(vec![GuidanceScale(1.0)]),
        ..GenerateRequest::new("a red ball", Seed(1))
    };
    let plan = GenerationPlan::new(model.manifest(), &request).unwrap();
    assert!(plan.expert_steps.iter().all(|(_, steps)| *steps > 0), "the plan does not cross the boundary");
    let mut at_last_step = 0;
    let mut pipeline = Pipeline::new(model);
    job::generate(&mut pipeline, &plan, &Cancel::new(), &mut |event| {
        if let JobEvent::Step { done, .. } = event {
            at_last_step = settled_anonymous().unwrap().0;
            assert_eq!(done.steps, 4);
        }
        Ok(())
    })
    .unwrap();
    drop(pipeline);
    model.sessions().close_idle();
    at_last_step
}

#[test]
fn closing_an_expert_returns_its_memory() {
    if !own_process::entered("residency::closing_an_expert_returns_its_memory") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (one, expert) = model(&folder.path().join("one"), Residency::One);
    let (all, _) = model(&folder.path().join("all"), Residency::All);
    // The first run includes allocations that ONNX Runtime keeps.
    memory_at_last_step(&one);
    let one = memory_at_last_step(&one);
    let all = memory_at_last_step(&all);
    let saved = all.saturating_sub(one);
    assert!(saved as f64 > 0.8 * expert.0 as f64, "{saved} bytes saved of an expert of {expert}");
}
