//! Bundles with an image encoder: it is read and opened, and no clip requires it.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component, Part};
use bundle::signature::Signature;
use bundle::units::Seed;
use bundle::variant::{KernelLibrary, Precision, Target};
use engines::residency::Role;
use engines::{OnnxRuntime, WeightMemory};
use export::digests;
use runtime::memory_plan::{MemorySettings, footprints};
use runtime::model::{Model, ModelOptions};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tests::golden;
use tests::program::rushes;

/// Exports a golden checkpoint and adds its text encoder a second time, as the image encoder.
fn bundle_with_image_encoder(folder: &Path) -> Bundle {
    let checkpoint = golden::case("moving-clip").checkpoint();
    export::export(&export::ExportRequest::new(&checkpoint, folder), &mut |_| ()).unwrap();
    let mut bundle = Bundle::open(folder).unwrap();
    let mut entry = bundle.manifest.component(&Component::TextEncoder).unwrap().clone();
    entry.component = Component::ImageEncoder;
    let names =
        [Component::TextEncoder, Component::ImageEncoder].map(|component| component_folder(&component));
    let files = entry.graphs.iter_mut().map(|graph| &mut graph.file);
    for file in files.chain(entry.weights.iter_mut().map(|weights| &mut weights.file)) {
        let copy = file.replacen(&names[0], &names[1], 1);
        fs::create_dir_all(folder.join(&copy).parent().unwrap()).unwrap();
        fs::copy(folder.join(&*file), folder.join(&copy)).unwrap();
        *file = copy;
    }
    bundle.manifest.components.insert(1, entry);
    digests::complete(folder, &mut bundle.manifest, &BTreeMap::new()).unwrap();
    bundle::manifest::write(folder, &bundle.manifest).unwrap();
    Bundle::open(folder).unwrap()
}

#[test]
fn a_bundle_with_an_image_encoder_is_read_and_its_graph_opens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let bundle = bundle_with_image_encoder(&path);
    let manifest = &bundle.manifest;
    let entry = manifest.component(&Component::ImageEncoder).unwrap();
    assert!(entry.weights[0].file.starts_with("image_encoder/weights/"), "{:?}", entry.weights);

    let plan = GenerationPlan::new(manifest, &GenerateRequest::new("a fox", Seed(1))).unwrap();
    let needed = footprints(manifest, &plan, &MemorySettings::plain(WeightMemory::Prepacked));
    assert!(needed.iter().any(|footprint| footprint.role == Role::Clip(Component::TextEncoder)));
    assert!(needed.iter().all(|footprint| footprint.role != Role::Clip(Component::ImageEncoder)));

    let shown = rushes(folder.path()).args(["inspect", "bundle"]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("the image encoder: ") && shown.contains("graph   image_encoder/"), "{shown}");

    let model =
        Model::new(bundle.clone(), OnnxRuntime::load(None).unwrap(), ModelOptions::default()).unwrap();
    model.check_parts(false).unwrap();
    let contract = Signature::of_text_encoder(&manifest.text_encoder);
    model.open_alone(&Component::ImageEncoder, Part::Whole, &contract).unwrap();
    let error = model.graph(&Component::ImageEncoder, Part::First).unwrap_err().to_string();
    assert!(error.contains("the image encoder"), "{error}");

    fs::write(path.join(&entry.weights[0].file), "").unwrap();
    let error = Bundle::open(&path).unwrap_err().to_string();
    assert!(error.contains("image_encoder/weights"), "{error}");
}

#[test]
fn an_image_encoder_is_in_no_quantised_variant() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = bundle_with_image_encoder(&folder.path().join("bundle")).manifest;
    for entry in manifest.components.iter_mut().filter(|entry| entry.component != Component::ImageEncoder) {
        let mut quantized = entry.graphs.clone();
        quantized.iter_mut().for_each(|graph| graph.variant.precision = Precision::Int8);
        entry.graphs.extend(quantized);
    }
    let precisions = manifest.precisions(Target::Cpu, KernelLibrary::OnnxRuntime);
    assert_eq!(precisions, [Precision::F32, Precision::Int8]);
}

#[test]
fn a_bundle_without_an_image_encoder_does_not_mention_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let checkpoint = golden::case("moving-clip").checkpoint();
    let report = export::export(&export::ExportRequest::new(&checkpoint, &path), &mut |_| ()).unwrap();
    let text = fs::read_to_string(path.join("bundle.json")).unwrap();
    assert!(!text.contains("image_encoder"), "{text}");
    let error = report.manifest.component(&Component::ImageEncoder).unwrap_err().to_string();
    assert!(error.contains("the image encoder"), "{error}");
}
