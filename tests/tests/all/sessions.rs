//! Sessions on ONNX Runtime: what survives between clips, and what fits a budget.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, Bits, finished, model, request, start};
use bundle::manifest::{Bundle, Component};
use bundle::preview::PreviewKind;
use bundle::units::ByteCount;
use bundle::variant::Precision;
use bundle::{Diagnose, ErrorClass};
use engines::residency::Residency;
use engines::sessions::{Purpose, Sessions};
use engines::{Cancel, MemoryBudgets, OnnxRuntime, WeightMemory};
use ndarray::Array4;
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::Pipeline;
use runtime::preview::PreviewRenderer;
use runtime::preview::budget::PreviewLength;
use std::collections::BTreeSet;
use std::sync::Arc;

const PROMPTS: [(&str, u64); 2] = [("a boat", 7), ("a red fox in the snow", 8)];

fn clip(pipeline: &mut Pipeline, (prompt, seed): (&str, u64)) -> Bits {
    let start = start(pipeline, &request(prompt, seed));
    finished(pipeline, start)
}

/// The bits of a clip that is made in sessions of its own.
fn alone(prompt: (&str, u64)) -> Bits {
    clip(&mut Pipeline::new(&model(Precision::F32)), prompt)
}

fn model_in(budget: ByteCount) -> Model {
    let backend = Arc::new(OnnxRuntime::load(None).unwrap());
    let sessions = Sessions::new(backend, MemoryBudgets::common(budget), Residency::Auto);
    let options = ModelOptions {
        precision: Some(Precision::F32),
        weights: WeightMemory::Prepacked,
        ..ModelOptions::default()
    };
    Model::with_sessions(Bundle::open(&BUNDLE.1).unwrap(), &sessions, options).unwrap()
}

#[test]
fn the_second_clip_of_a_process_opens_nothing() {
    let model = model(Precision::F32);
    let sessions = model.sessions();
    let mut pipeline = Pipeline::new(&model);
    let renderer = PreviewRenderer::new(&model, PreviewKind::Full).unwrap().unwrap();
    let preview = |latent: &Array4<f32>| {
        renderer.render(latent.view(), PreviewLength::AllFrames, &Cancel::new()).unwrap()
    };
    let latent = Array4::zeros((16, 2, 4, 4));

    assert!(clip(&mut pipeline, PROMPTS[0]) == alone(PROMPTS[0]));
    let shown = preview(&latent);
    // Text encoder, two experts, two graphs of the decoder, and the same two for previews.
    assert_eq!(sessions.opened(), 7);
    assert!(clip(&mut pipeline, PROMPTS[1]) == alone(PROMPTS[1]));
    assert_eq!(preview(&latent), shown);
    assert_eq!(sessions.opened(), 7);

    // Both prompts and the negative prompt are known: the text encoder is not needed again.
    sessions.close_idle_where(|key| key.component == Component::TextEncoder);
    assert!(clip(&mut pipeline, PROMPTS[0]) == alone(PROMPTS[0]));
    assert_eq!(sessions.opened(), 7);

    let usage = &sessions.usage()[0];
    assert!(usage.charged <= usage.budget && usage.charged.0 > 0, "{usage:?}");
    assert!(usage.sessions.iter().any(|session| session.key.purpose == Purpose::Preview));
    assert_eq!(sessions.close_idle(), 6);
    assert_eq!(sessions.usage()[0].charged, ByteCount(0));
}

#[test]
fn a_small_budget_closes_what_is_needed_last_and_changes_no_bits() {
    // What one clip charges if everything stays open.
    let all = {
        let model = model(Precision::F32);
        clip(&mut Pipeline::new(&model), PROMPTS[0]);
        model.sessions().usage()[0].clone()
    };
    let needs: Vec<u64> = all.sessions.iter().map(|session| session.predicted.held().0).collect();
    let (sum, largest) = (needs.iter().sum::<u64>(), *needs.iter().max().unwrap());
    let [first, second] = PROMPTS.map(alone);
    for budget in [sum - 1, sum.midpoint(largest)] {
        let model = model_in(ByteCount(budget));
        let mut pipeline = Pipeline::new(&model);
        assert!(clip(&mut pipeline, PROMPTS[0]) == first, "{budget}");
        assert!(clip(&mut pipeline, PROMPTS[1]) == second, "{budget}");
        let usage = &model.sessions().usage()[0];
        assert!(usage.peak.0 <= budget, "{usage:?}");
        assert!(model.sessions().opened() > 5, "nothing was closed");
    }
}

#[test]
fn a_session_that_never_fits_is_refused_by_name_and_opens_nothing() {
    let model = model_in(ByteCount(100_000));
    let mut pipeline = Pipeline::new(&model);
    let (mut job, _) = runtime::job::Job::new(&pipeline, start(&pipeline, &request("a boat", 7)));
    let error = job.advance(&mut pipeline).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::DoesNotFit);
    let text = error.to_string();
    assert!(text.contains("the text encoder needs") && text.contains("on cpu"), "{text}");
    assert_eq!(model.sessions().opened(), 0);
    let open: BTreeSet<u64> = model.sessions().usage().iter().map(|usage| usage.charged.0).collect();
    assert_eq!(open, BTreeSet::from([0]));
}
