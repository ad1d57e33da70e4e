//! ONNX Runtime accepts every graph of every target. Its CPU provider may lack kernels for graphs of accelerators, and
//! has nothing else to say about them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, GraphEntry, Part};
use bundle::quantization::{Affine, ComponentNumerics, Scheme};
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::tensorrt_rules::broken_rules;
use engines::{Backend, Error, GraphError, GraphSource, OnnxRuntime, OpenOptions, WeightMemory};
use export::quantized::{VariantRequest, write_variant};
use graph::Model;
use graph::proto::DataType;
use std::collections::BTreeSet;
use std::path::Path;
use tests::golden;
use tests::made_up_scales::{fill, quantize};

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
fn graphs_of_quantised_components_are_valid() {
    let runtime = OnnxRuntime::load(None).unwrap();
    for case in ["two-experts", "mini"] {
        for weights in [WeightType::F32, WeightType::Bf16] {
            let (_folder, bundle) = golden::export_for_all_targets(case, weights);
            for scheme in [Scheme::Int8, Scheme::Fp8] {
                quantize(&bundle.folder, scheme);
                let bundle = Bundle::open(&bundle.folder).unwrap();
                for entry in &bundle.manifest.components {
                    let quantized = entry.graphs.iter();
                    let quantized: Vec<_> = quantized
                        .filter(|graph| graph.variant.precision == scheme.precision())
                        .inspect(|graph| check(&runtime, &bundle, graph))
                        .collect();
                    let plain =
                        quantized.iter().filter(|graph| graph.variant.target == Target::Plain).count();
                    // On the CPU, INT8 has steps and decoders for two kernel libraries, decoders of two parts.
                    let expected = match (&entry.component, scheme) {
                        (Component::TextEncoder, _) | (Component::Expert(_), Scheme::Fp8) => [2, 1],
                        (Component::Expert(_), _) => [3, 1],
                        (Component::Decoder, Scheme::Fp8) => [12, 6],
                        (Component::Decoder, _) => [10, 6],
                        (Component::ImageEncoder | Component::Preview, _) => [0, 0],
                    };
                    assert_eq!([quantized.len(), plain], expected, "{} in {scheme}", entry.component);
                }
            }
        }
    }
}

/// The rules of TensorRT, and the formats in which everything is stored: 8 bits for weights, the exported format for the
/// rest.
#[test]
fn quantised_plain_graphs_obey_the_rules_and_store_8_bits() {
    for (weights, activations) in [(WeightType::F32, DataType::Float), (WeightType::Bf16, DataType::Bfloat16)]
    {
        let (_folder, bundle) = golden::export_for_all_targets("mini", weights);
        for (scheme, stored) in [(Scheme::Int8, DataType::Int8), (Scheme::Fp8, DataType::Float8e4m3fn)] {
            quantize(&bundle.folder, scheme);
            let bundle = Bundle::open(&bundle.folder).unwrap();
            let graphs = bundle.manifest.components.iter().flat_map(|entry| &entry.graphs);
            let wanted =
                |variant: Variant| (variant.target, variant.precision) == (Target::Plain, scheme.precision());
            let mut checked = 0;
            for entry in graphs.filter(|entry| wanted(entry.variant)) {
                let model = Model::read(&bundle.path(&entry.file)).unwrap();
                assert_eq!(
                    broken_rules(&model, &BTreeSet::new(), activations),
                    Vec::<String>::new(),
                    "{}",
                    entry.file
                );
                let graph = model.proto.graph.as_ref().unwrap();
                let external = graph.initializer.iter().filter(|tensor| !tensor.external_data.is_empty());
                let mut eights = 0;
                for tensor in external {
                    let format = DataType::try_from(tensor.data_type).unwrap();
                    assert!(format == stored || format == activations, "{}: {format:?}", tensor.name);
                    eights += usize::from(format == stored);
                }
                let products = ["MatMul", "Conv"].map(String::from);
                let dequantized = graph.node.iter().filter(|node| {
                    products.contains(&node.op_type) && node.input[1].contains("DequantizeLinear")
                });
                // The two products of each attention in E4M3 have no weight.
                let attention = graph.node.iter().filter(|node| node.op_type == "Softmax").count();
                let is_step = entry.file.contains("experts");
                let without = if scheme == Scheme::Fp8 && is_step { 2 * attention } else { 0 };
                assert_eq!(eights, dequantized.count() - without, "{}", entry.file);
                assert!(eights > 5, "{}", entry.file);
                checked += 1;
            }
            assert_eq!(checked, 1 + 2 + 6);
        }
    }
}

#[test]
fn ranges_with_a_zero_point_have_no_plain_graph() {
    let (_folder, bundle) = golden::export_for_all_targets("two-experts", WeightType::F32);
    let mut entry = bundle.manifest.component(&Component::Decoder).unwrap().clone();
    let mut numerics = ComponentNumerics::empty(Component::Decoder, entry.digest.clone());
    fill(&mut numerics, &bundle.manifest, Scheme::Int8);
    let layer = numerics.layers.get_mut("decoder.conv_in").unwrap();
    layer.input = layer.input.map(|range| Affine { zero_point: 17, ..range });
    let request = VariantRequest {
        scheme: Scheme::Int8,
        numerics: &numerics,
        targets: &[Target::Plain],
        kernels: &[],
        is_measured: false,
        merges: &[],
        note: None,
        stop: &Stop::new(),
    };
    let error = write_variant(&bundle, &mut entry, &request).unwrap_err().to_string();
    assert!(error.contains("decoder.conv_in cannot be quantised"), "{error}");
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
