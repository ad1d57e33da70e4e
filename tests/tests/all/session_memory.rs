//! The predicted memory of a session is at least what the process grows by, and at most a quarter more.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, Part};
use bundle::routing::ExpertName;
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision};
use engines::memory::settled_anonymous;
use engines::{OnnxRuntime, WeightMemory};
use export::ExportRequest;
use export::synthetic::Form;
use quality::bench::memory::{DecodeWork, StepWork, Work, measure};
use quality::bench::shape::{Shape, Subject, random_bundle, random_bundle_in, text_encoder};
use quality::bench::variants;
use runtime::model::{Model, ModelOptions};
use std::path::Path;
use tests::golden::case;
use tests::own_process;

/// Memory that is not the session's, such as caches of the allocator and the system's counters, which lag by this much.
const NOISE: u64 = 2_500_000;
/// What the library takes for a time to read and optimise a graph.
const OPENING_NOISE: u64 = 10_000_000;

fn step(grid: [usize; 3], batch: usize, words: usize) -> Work {
    Work::Step(StepWork { grid, batch, words, has_clean_start: false })
}

fn decode(part: Part, height: usize, width: usize) -> Work {
    Work::Decode(DecodeWork { part, height, width, tile: None })
}

/// Checks the predictions for `works` on sessions of a component.
fn check(model: &Model, component: &Component, works: &[Work]) {
    for work in works {
        let measured = measure(model, component, *work).unwrap();
        let (predicted, found) = (measured.predicted.held().0, measured.total().0);
        assert!(found <= predicted + NOISE, "{component} {work:?}: too little is predicted: {measured:?}");
        assert!(
            predicted <= found + found / 4 + NOISE,
            "{component} {work:?}: too much is predicted: {measured:?}"
        );
        let most = measured.predicted.total();
        assert!(
            measured.opening.0 <= most.0 + OPENING_NOISE,
            "{component} {work:?}: too little is predicted for opening: {measured:?}"
        );
    }
}

fn exported(name: &str, out: &Path) -> Bundle {
    export::export(&ExportRequest::new(&case(name).checkpoint(), out), &mut |_| ()).unwrap();
    Bundle::open(out).unwrap()
}

fn model(bundle: Bundle, options: ModelOptions) -> Model {
    Model::new(bundle, OnnxRuntime::load(None).unwrap(), options).unwrap()
}

/// mini, and a golden case with two experts.
#[test]
fn the_memory_of_small_models_is_predicted() {
    if !own_process::entered("session_memory::the_memory_of_small_models_is_predicted") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["mini", "two-experts"] {
        let model = model(exported(name, &folder.path().join(name)), ModelOptions::default());
        let expert = Component::Expert(model.manifest().routing.routes()[0].expert.clone());
        // The first session of a process starts ONNX Runtime.
        measure(&model, &expert, step([1, 1, 1], 1, 3)).unwrap();
        check(&model, &Component::TextEncoder, &[Work::Text(7), Work::Text(150), Work::Text(400)]);
        check(&model, &expert, &[step([3, 5, 7], 2, 9), step([2, 20, 12], 1, 9), step([5, 12, 20], 2, 9)]);
        for part in [Part::First, Part::Next, Part::TrunkNext, Part::UpsamplerNext] {
            let works = [[12, 20], [20, 14], [9, 31]].map(|[height, width]| decode(part, height, width));
            check(&model, &Component::Decoder, &works);
        }
    }
}

/// One layer of the shape of Wan2.1-T2V-1.3B.
#[test]
fn the_memory_of_a_large_step_is_predicted() {
    if !own_process::entered("session_memory::the_memory_of_a_large_step_is_predicted") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let onnx = OnnxRuntime::load(None).unwrap();
    let subject = Subject::Step(Shape::Small.denoiser(Some(1)));
    let mut bundle = random_bundle(folder.path(), &subject, &Stop::new()).unwrap();
    variants::add(&mut bundle, &[Precision::Int8], onnx.kernels(), &Stop::new()).unwrap();
    let expert = Component::Expert(ExpertName("only".into()));
    for (precision, kernels, weights) in [
        (Precision::F32, KernelLibrary::OnnxRuntime, WeightMemory::Mapped),
        (Precision::Int8, KernelLibrary::OnnxRuntime, WeightMemory::Prepacked),
        (Precision::Int8, KernelLibrary::Rushes, WeightMemory::Prepacked),
    ] {
        let options = ModelOptions {
            precision: Some(precision),
            kernels: Some(kernels),
            weights,
            ..ModelOptions::default()
        };
        let model = model(bundle.clone(), options);
        measure(&model, &expert, step([1, 1, 1], 1, 3)).unwrap();
        check(
            &model,
            &expert,
            &[step([1, 18, 11], 1, 40), step([2, 9, 16], 2, 25), step([3, 10, 13], 1, 70)],
        );
    }
}

/// One layer of umT5-XXL, and one of Wan2.1-T2V-1.3B.
#[test]
fn mapped_bf16_weights_of_linear_layers_take_no_memory() {
    if !own_process::entered("session_memory::mapped_bf16_weights_of_linear_layers_take_no_memory") {
        return;
    }
    let form = Form { weights: WeightType::Bf16, ..Form::CPU };
    let options = ModelOptions { weights: WeightMemory::Mapped, ..ModelOptions::default() };
    let of = |subject: &Subject| {
        let folder = tempfile::tempdir().unwrap();
        let bundle = random_bundle_in(folder.path(), subject, form, &Stop::new()).unwrap();
        (folder, model(bundle, options))
    };
    let (_folder, model) = of(&Subject::Text(text_encoder(1)));
    // The first session of a process starts ONNX Runtime.
    measure(&model, &Component::TextEncoder, Work::Text(1)).unwrap();
    check(&model, &Component::TextEncoder, &[Work::Text(60), Work::Text(220)]);
    let measured = measure(&model, &Component::TextEncoder, Work::Text(3)).unwrap();
    assert!(measured.opened.0 < 5_000_000, "{measured:?}");
    let (_folder, model) = of(&Subject::Step(Shape::Small.denoiser(Some(1))));
    let expert = Component::Expert(ExpertName("only".into()));
    check(&model, &expert, &[step([1, 18, 11], 1, 40), step([2, 9, 16], 2, 25)]);
}

#[test]
fn a_closed_component_leaves_no_memory_behind() {
    if !own_process::entered("session_memory::a_closed_component_leaves_no_memory_behind") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = model(exported("mini", &folder.path().join("mini")), ModelOptions::default());
    let expert = Component::Expert(model.manifest().routing.routes()[0].expert.clone());
    let work = [
        (&Component::TextEncoder, Work::Text(500)),
        (&expert, step([5, 24, 20], 2, 9)),
        (&Component::Decoder, decode(Part::Next, 24, 40)),
    ];
    // The first session of each kind starts what the library keeps.
    for (component, work) in work {
        measure(&model, component, work).unwrap();
    }
    let before = settled_anonymous().unwrap().0;
    for (component, work) in work {
        let measured = measure(&model, component, work).unwrap();
        let after = settled_anonymous().unwrap().0;
        let used = measured.total().0;
        assert!(used > 20_000_000, "{component} is too small to show it: {measured:?}");
        assert!(after <= before + used / 20, "{component}: {before} before, {after} after: {measured:?}");
    }
}
