//! Files of models: headers of weights, PyTorch files, `bundle.json`, `graphs.json`, graphs.

use bundle::graph_set::GraphSet;
use bundle::manifest::Manifest;
use bundle::preview::PreviewKind;
use bundle::units::Seed;
use bundle::variant::{KernelLibrary, Precision, Target};
use engines::WeightMemory;
use export::checkpoint::{header, torch_file as torch};
use export::lora::{Lora, LoraFile};
use graph::Model;
use graph::observe::Observed;
use runtime::memory_plan::{MemorySettings, footprints};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::path::Path;

/// A safetensors file: its header is read as an export reads it.
///
/// # Panics
/// A tensor that was read is not inside the file, overlaps another, or leaves a gap.
pub fn safetensors_header(bytes: &[u8]) -> bool {
    let read = header::parse(Path::new("x.safetensors"), bytes, bytes.len() as u64);
    let Ok(tensors) = read else { return false };
    let mut end = tensors.first().map_or(bytes.len(), |tensor| tensor.span.start);
    for tensor in &tensors {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.span.start, end, "{tensor:?}");
        assert_eq!(tensor.span.len(), elements * tensor.element.bytes(), "{tensor:?}");
        end = tensor.span.end;
    }
    assert_eq!(end, bytes.len());
    true
}

/// A LoRA file: its keys are read, and its changes are listed and measured.
///
/// # Panics
/// A key is neither part of a change nor named as unknown, or the sum of changes is negative.
pub fn lora(bytes: &[u8]) -> bool {
    let Ok(file) = LoraFile::from_bytes(Path::new("x.safetensors"), bytes.to_vec()) else { return false };
    let keys = file.keys().count();
    let Ok(lora) = Lora::of(file) else { return false };
    let Ok(summary) = lora.summary() else { return false };
    let changes: usize = summary.forms.values().sum();
    assert!(keys == 0 || changes + summary.unknown.len() > 0, "{keys} keys are lost");
    assert!(summary.change.is_none_or(|change| change >= 0.0 || change.is_nan()), "{:?}", summary.change);
    true
}

/// A file of `torch.save`: the directories of its archive and its pickle are read as an export reads them.
///
/// # Panics
/// A tensor that was read is not inside the file, has not as many bytes as its shape needs, or overlaps another that is
/// not the same bytes.
pub fn torch_file(bytes: &[u8]) -> bool {
    let Ok(tensors) = torch::parse(Path::new("x.pth"), bytes) else { return false };
    let mut last = 0..0;
    for tensor in tensors.iter().filter(|tensor| !tensor.span.is_empty()) {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.span.len(), elements * tensor.element.bytes(), "{tensor:?}");
        assert!(tensor.span == last || tensor.span.start >= last.end, "{tensor:?} after {last:?}");
        assert!(tensor.span.end <= bytes.len(), "{tensor:?}");
        last = tensor.span.clone();
    }
    true
}

/// A `bundle.json`: it is read and checked, and a clip is planned with it.
///
/// # Panics
/// A manifest that was read changes when it is written and read again, or its numbers overflow where they are used.
pub fn bundle_json(bytes: &[u8]) -> bool {
    let path = Path::new("bundle.json");
    let Ok(manifest) = Manifest::from_json(bytes, path) else { return false };
    let json = serde_json::to_vec(&manifest).unwrap_or_else(|error| panic!("{error}"));
    match Manifest::from_json(&json, path) {
        Ok(again) => assert_eq!(again, manifest),
        Err(error) => panic!("the manifest is refused once it is written again: {error}"),
    }
    let precisions = manifest.precisions(Target::Cpu, KernelLibrary::Rushes);
    assert!(precisions.iter().all(|precision| Precision::ALL.contains(precision)));
    assert!(manifest.files().iter().all(|file| Path::new(file).is_relative()));
    if let Ok(plan) = GenerationPlan::new(&manifest, &GenerateRequest::new("a red ball", Seed(1))) {
        for preview in [PreviewKind::Off, PreviewKind::Tiny, PreviewKind::Full] {
            let settings = MemorySettings { preview, ..MemorySettings::plain(WeightMemory::Prepacked) };
            // The decoder has two graphs, and previews have two.
            assert!(footprints(&manifest, &plan, &settings).len() <= manifest.components.len() + 3);
        }
    }
    true
}

/// A `graphs.json`: it is read and checked.
///
/// # Panics
/// A graph set that was read changes when it is written and read again.
pub fn graphs_json(bytes: &[u8]) -> bool {
    let path = Path::new("graphs.json");
    let Ok(set) = GraphSet::from_json(bytes, path) else { return false };
    let json = serde_json::to_vec(&set).unwrap_or_else(|error| panic!("{error}"));
    match GraphSet::from_json(&json, path) {
        Ok(again) => assert_eq!(again, set),
        Err(error) => panic!("the graph set is refused once it is written again: {error}"),
    }
    assert_eq!(set.bindings.len(), set.manifest.components.len());
    true
}

/// An ONNX graph: it is read, printed and searched for weights.
///
/// # Panics
/// A graph that was read changes when it is written and read again.
pub fn onnx(bytes: &[u8]) -> bool {
    let path = Path::new("x.onnx");
    let Ok(model) = Model::from_bytes(bytes, path) else { return false };
    let written = model.to_bytes();
    // Bytes are compared, because a float may be NaN.
    match Model::from_bytes(&written, path) {
        Ok(again) => assert_eq!(again.to_bytes(), written),
        Err(error) => panic!("the graph is refused once it is written again: {error}"),
    }
    let graph = model.proto.graph.clone().unwrap_or_default();
    let signature = model.signature();
    assert!(signature.inputs.len() <= graph.input.len() && signature.outputs.len() <= graph.output.len());
    assert!(model.external_data().len() <= graph.initializer.len());
    assert!(model.dump().lines().count() >= graph.node.len());
    let observed = Observed::new(model);
    assert!(observed.weight_uses().len() <= graph.node.len());
    assert!(observed.attention_uses().len() <= graph.node.len());
    true
}
