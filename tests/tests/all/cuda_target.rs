//! Graphs for the targets `cuda` and `plain`: the CUDA provider has a kernel for every operator in its number format,
//! the signatures are those of the contract, and the same graphs in f32 give the results of the CPU graphs.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::{Component, Part};
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Outputs, Value, WeightMemory};
use export::{ExportReport, ExportRequest};
use graph::Model;
use graph::proto::GraphProto;
use graph::providers::{Accelerator, refused};
use ndarray::{Array, Array1, ArrayD, IxDyn};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tests::compare::largest_difference;
use tests::golden;

/// Operators that must run in bf16, except for the two small products of the time embedding.
const PRODUCTS: [&str; 3] = ["Gemm", "Conv", "MultiHeadAttention"];

fn exported(folder: &Path, targets: &[Target], weights: Option<WeightType>) -> ExportReport {
    let checkpoint = golden::case("two-experts").checkpoint();
    let request = ExportRequest {
        targets: targets.to_vec(),
        weights,
        ..ExportRequest::new(&checkpoint, &folder.join("bundle"))
    };
    export::export(&request, &mut |_| ()).unwrap()
}

/// The number format of every value of a graph.
fn elements(graph: &GraphProto, model: &Model) -> BTreeMap<String, ElementType> {
    let mut known: BTreeMap<String, ElementType> =
        model.signature().inputs.into_iter().map(|input| (input.name, input.element)).collect();
    let of_number = |number: i32| match number {
        1 => ElementType::F32,
        7 => ElementType::I64,
        16 => ElementType::Bf16,
        other => panic!("unexpected number format {other} of ONNX"),
    };
    known.extend(graph.initializer.iter().map(|weight| (weight.name.clone(), of_number(weight.data_type))));
    for node in &graph.node {
        let element = match node.op_type.as_str() {
            "Shape" => ElementType::I64,
            "Cast" => {
                let to = node.attribute.iter().find(|attribute| attribute.name == "to").unwrap().i;
                of_number(i32::try_from(to).unwrap())
            }
            _ => known[&node.input[0]],
        };
        known.extend(node.output.iter().map(|output| (output.clone(), element)));
    }
    known
}

#[test]
fn every_operator_has_a_kernel_and_products_are_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let report = exported(folder.path(), &[Target::Cuda], None);
    for entry in &report.manifest.components {
        assert_eq!(entry.weight_type, WeightType::Bf16);
        for found in &entry.graphs {
            assert_eq!((found.variant.target, found.variant.precision), (Target::Cuda, Precision::Bf16));
            let model = Model::read(&report.folder.join(&found.file)).unwrap();
            let graph = model.proto.graph.as_ref().unwrap();
            let elements = elements(graph, &model);
            assert_eq!(refused(&model, Accelerator::Cuda).unwrap(), [], "{}", found.file);
            let mut in_f32 = BTreeSet::new();
            for node in &graph.node {
                let element = elements[&node.input[0]];
                let floats = node.input.iter().filter(|name| !name.is_empty()).map(|name| elements[name]);
                let floats: BTreeSet<_> = floats.filter(|element| *element != ElementType::I64).collect();
                assert!(floats.len() <= 1, "{}: {} mixes {floats:?}", found.file, node.name);
                if PRODUCTS.contains(&node.op_type.as_str()) && element != ElementType::Bf16 {
                    in_f32.insert(node.name.clone());
                }
            }
            let expected: BTreeSet<String> = match &entry.component {
                Component::Expert(_) => ["time/Gemm".to_owned(), "time/Gemm.2".to_owned()].into(),
                _ => BTreeSet::new(),
            };
            assert_eq!(in_f32, expected, "{}", found.file);
            let weights = graph.initializer.iter().filter(|weight| !weight.external_data.is_empty());
            assert!(weights.clone().all(|weight| weight.data_type == 16), "a weight is not bf16");
            assert!(weights.count() > 10);
        }
    }
}

#[test]
fn signatures_are_those_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let report = exported(folder.path(), &[Target::Cuda], None);
    let manifest = &report.manifest;
    for entry in &manifest.components {
        for graph in &entry.graphs {
            let contract = match (&entry.component, graph.part) {
                (Component::TextEncoder, _) => Signature::of_text_encoder(&manifest.text_encoder),
                (Component::Expert(_), _) => Signature::of_step(&manifest.denoiser),
                (_, Part::TrunkFirst | Part::TrunkNext) => Signature::of_decoder_trunk(&manifest.vae),
                (_, Part::UpsamplerFirst | Part::UpsamplerNext) => {
                    Signature::of_decoder_upsampler(&manifest.vae)
                }
                _ => Signature::of_decoder(&manifest.vae),
            };
            let model = Model::read(&report.folder.join(&graph.file)).unwrap();
            contract.check(&graph.file, &model.signature()).unwrap();
        }
    }
    // The caches of the first graph are the inputs of the next one.
    let decoder = manifest.component(&Component::Decoder).unwrap();
    let read = |part| {
        let graph = decoder
            .graph(
                part,
                Variant {
                    target: Target::Cuda,
                    precision: Precision::Bf16,
                    kernels: KernelLibrary::OnnxRuntime,
                },
            )
            .unwrap();
        Model::read(&report.folder.join(&graph.file)).unwrap().signature()
    };
    let (first, next) = (read(Part::First), read(Part::Next));
    let caches: Vec<_> =
        first.outputs.iter().filter(|output| output.name.starts_with(CACHE_OUTPUT)).collect();
    assert!(caches.len() > 20);
    for output in caches {
        let name = output.name.replace(CACHE_OUTPUT, CACHE_INPUT);
        let input = next.inputs.iter().find(|input| input.name == name).unwrap();
        assert_eq!(input.element, output.element, "{name}");
    }
}

#[test]
fn f16_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = golden::case("two-experts").checkpoint();
    let request = ExportRequest {
        targets: vec![Target::Cuda],
        weights: Some(WeightType::F16),
        ..ExportRequest::new(&checkpoint, &folder.path().join("bundle"))
    };
    let error = export::export(&request, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("weights cannot be f16") && error.contains("bf16"), "{error}");
}

/// Opens the f32 graphs of one part for every target on the CPU.
fn engines_of_all_targets(
    report: &ExportReport,
    component: &Component,
    part: Part,
    contract: &Signature,
) -> [Engine; Target::ALL.len()] {
    let entry = report.manifest.component(component).unwrap();
    let options = OpenOptions::cpu(None, WeightMemory::Mapped);
    let onnx = OnnxRuntime::load(None).unwrap();
    Target::ALL.map(|target| {
        let graph = entry
            .graph(part, Variant { target, precision: Precision::F32, kernels: KernelLibrary::OnnxRuntime })
            .unwrap();
        onnx.open(&report.folder.join(&graph.file), contract, &options).unwrap()
    })
}

fn values(shape: &[usize]) -> Value {
    let mut state = 1.0_f32;
    Value::from_f32(Array::<f32, IxDyn>::from_shape_simple_fn(IxDyn(shape), || {
        state = (state * 1.371 + 0.713) % 2.0;
        state - 1.0
    }))
}

/// Runs all engines and compares every f32 output with that of the first engine. Returns the outputs of each.
fn compare<const N: usize>(
    engines: &mut [Engine; N],
    inputs: [&[(&str, &Value)]; N],
) -> [Vec<(String, Value)>; N] {
    let mut index = 0;
    let outputs = engines.each_mut().map(|engine| {
        let outputs: Outputs = engine.run(inputs[index], &Cancel::new()).unwrap();
        index += 1;
        outputs.into_iter().collect::<Vec<_>>()
    });
    let names =
        |outputs: &[(String, Value)]| outputs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    for other in &outputs[1..] {
        assert_eq!(names(&outputs[0]), names(other));
        for ((name, cpu), (_, other)) in outputs[0].iter().zip(other) {
            let (cpu, other): (ArrayD<f32>, ArrayD<f32>) = (cpu.to_f32().unwrap(), other.to_f32().unwrap());
            let largest = cpu.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let apart = largest_difference(cpu.view(), other.view());
            // The last caches of a decoder are some thirty convolutions deep. Without AVX-512, ONNX Runtime sums them in
            // another order in each form: 1.2e-5 was seen.
            assert!(
                apart <= f64::from(5e-5 * largest.max(1.0)),
                "{name}: {apart} apart, values up to {largest}"
            );
        }
    }
    outputs
}

#[test]
fn all_targets_give_the_same_results_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let report = exported(folder.path(), &Target::ALL, Some(WeightType::F32));
    let manifest = &report.manifest;

    let spec = &manifest.denoiser;
    let expert = Component::Expert(manifest.routing.routes()[0].expert.clone());
    let mut step = engines_of_all_targets(&report, &expert, Part::Whole, &Signature::of_step(spec));
    let half = spec.head_width / 2;
    // One timestep, then two: one for the first frame and one for the second, each of six tokens.
    for (timesteps, rows) in [(1, vec![0; 1]), (2, [[0; 6], [1; 6]].concat())] {
        let inputs = [
            ("latent", values(&[2, spec.in_channels, 2, 4, 6])),
            ("timestep", Value::from_f32(Array1::from_iter([999.0, 417.5].into_iter().take(timesteps)))),
            ("rows", Value::from_i64(Array1::from(rows))),
            ("text", values(&[2, 512, spec.text_width])),
            ("cos", values(&[12, half])),
            ("sin", values(&[12, half])),
        ];
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        compare(&mut step, [&inputs[..]; 3]);
    }

    let contract = Signature::of_decoder(&manifest.vae);
    let mut first = engines_of_all_targets(&report, &Component::Decoder, Part::First, &contract);
    let latent = values(&[1, manifest.vae.latent_channels, 1, 3, 4]);
    let caches = compare(&mut first, [&[("latent", &latent)][..]; 3]);
    let mut next = engines_of_all_targets(&report, &Component::Decoder, Part::Next, &contract);
    let feeds = caches.each_ref().map(|caches| {
        let rename = |(name, value): &(String, Value)| {
            name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value.clone()))
        };
        caches.iter().filter_map(rename).collect::<Vec<_>>()
    });
    let inputs = feeds.each_ref().map(|feeds| {
        let mut inputs = vec![("latent", &latent)];
        inputs.extend(feeds.iter().map(|(name, value)| (name.as_str(), value)));
        inputs
    });
    compare(&mut next, inputs.each_ref().map(Vec::as_slice));
}

#[test]
fn plain_graphs_use_standard_operators_of_versions_21_and_22() {
    let folder = tempfile::tempdir().unwrap();
    let report = exported(folder.path(), &[Target::Plain], None);
    for entry in &report.manifest.components {
        for found in &entry.graphs {
            assert_eq!((found.variant.target, found.variant.precision), (Target::Plain, Precision::Bf16));
            let model = Model::read(&report.folder.join(&found.file)).unwrap();
            let opsets: Vec<_> =
                model.proto.opset_import.iter().map(|set| (set.domain.as_str(), set.version)).collect();
            let nodes = &model.proto.graph.as_ref().unwrap().node;
            // A convolution in bf16 needs version 22.
            let version = if nodes.iter().any(|node| node.op_type == "Conv") { 22 } else { 21 };
            assert_eq!(opsets, [("", version)], "{}", found.file);
            let younger = ["RMSNormalization", "RotaryEmbedding", "Attention"];
            for node in nodes {
                let is_plain = node.domain.is_empty() && !younger.contains(&node.op_type.as_str());
                assert!(is_plain, "{}: {}", found.file, node.name);
            }
        }
    }
}
