//! ONNX Runtime accepts every graph of every target. Its CPU provider may lack kernels for graphs of accelerators, and
//! has nothing else to say about them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, GraphEntry, Part};
use bundle::quantization::Scheme;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::{Backend, Error, GraphError, GraphSource, OnnxRuntime, OpenOptions, WeightMemory};
use graph::Model;
use graph::proto::DataType;
use std::path::Path;
use tests::golden;
use tests::made_up_scales::quantize_experts;

/// Opens a graph on the CPU.
fn open(runtime: &OnnxRuntime, file: &Path) -> Result<(), Error> {
    let options = OpenOptions::cpu(None, WeightMemory::Mapped);
    Backend::open(runtime, GraphSource::File(file), &options).map(|_open| ())
}

fn check(runtime: &OnnxRuntime, bundle: &Bundle, graph: &GraphEntry) {
    match open(runtime, &bundle.path(&graph.file)) {
        Ok(()) => {}
        Err(Error::Graph(GraphError::Unsupported { .. })) if graph.variant.target != Target::Cpu => {}
        Err(error) => panic!("{}: {error}", graph.file),
    }
}

#[test]
fn graphs_of_every_target_are_valid() {
    let runtime = OnnxRuntime::load(None).unwrap();
    for case in ["two-experts", "mini"] {
        for weights in [WeightType::F32, WeightType::Bf16] {
            let (_folder, bundle) = golden::export_for_all_targets(case, weights);
            let graphs = || bundle.manifest.components.iter().flat_map(|entry| &entry.graphs);
            for target in Target::ALL {
                assert!(graphs().filter(|graph| graph.variant.target == target).count() > 8, "{target}");
            }
            graphs().for_each(|graph| check(&runtime, &bundle, graph));
        }
    }
}

#[test]
fn graphs_of_quantised_experts_are_valid() {
    let runtime = OnnxRuntime::load(None).unwrap();
    for weights in [WeightType::F32, WeightType::Bf16] {
        let (_folder, bundle) = golden::export_for_all_targets("two-experts", weights);
        for scheme in [Scheme::Int8, Scheme::Fp8] {
            quantize_experts(&bundle.folder, scheme);
            let bundle = Bundle::open(&bundle.folder).unwrap();
            for entry in &bundle.manifest.components {
                if !matches!(entry.component, Component::Expert(_)) {
                    continue;
                }
                let quantized = entry.graphs.iter();
                let quantized: Vec<_> = quantized
                    .filter(|graph| graph.variant.precision == scheme.precision())
                    .inspect(|graph| check(&runtime, &bundle, graph))
                    .collect();
                // Two kernel libraries, or two targets.
                assert_eq!(quantized.len(), 2, "{scheme}");
            }
        }
    }
}

/// The plain graph of an expert in bf16.
fn plain_expert(bundle: &Bundle) -> GraphEntry {
    let expert = Component::Expert(bundle.manifest.routing.routes()[0].expert.clone());
    let variant =
        Variant { target: Target::Plain, precision: Precision::Bf16, kernels: KernelLibrary::OnnxRuntime };
    bundle.manifest.component(&expert).unwrap().graph(Part::Whole, variant).unwrap().clone()
}

#[test]
fn invalid_graphs_are_told_from_missing_kernels() {
    let runtime = OnnxRuntime::load(None).unwrap();
    let (_folder, bundle) = golden::export_for_all_targets("two-experts", WeightType::Bf16);
    let graph = plain_expert(&bundle);
    let file = bundle.path(&graph.file);
    let whole = Model::read(&file).unwrap();
    let refused = |change: &dyn Fn(&mut Model)| {
        let mut changed = whole.clone();
        change(&mut changed);
        let changed_file = file.with_file_name("changed.onnx");
        changed.write(&changed_file).unwrap();
        match open(&runtime, &changed_file) {
            Err(Error::Graph(GraphError::Refused { why, .. })) => why,
            other => panic!("{other:?}"),
        }
    };
    // A convolution in bf16 exists from version 22 of the operators.
    let why = refused(&|model| model.proto.opset_import[0].version = 21);
    assert!(why.contains("Type Error") && why.contains("bfloat16") && why.contains("Conv"), "{why}");
    let why = refused(&|model| {
        let output = &mut model.proto.graph.as_mut().unwrap().output[0];
        let tensor = output.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        tensor.elem_type = DataType::Bfloat16.into();
    });
    assert!(why.contains("velocity"), "{why}");
}
