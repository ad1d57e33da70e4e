//! Every graph that is written for a target is taken by the providers that read it, in the number formats that are
//! promised: by the table of `graph::providers`.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, GraphEntry};
use bundle::quantization::Scheme;
use bundle::variant::{Precision, Target};
use engines::Provider;
use graph::Model;
use graph::providers::{Accelerator, refused};
use tempfile::TempDir;
use tests::golden;
use tests::made_up_scales::quantize;

/// The precisions in which a provider takes the graphs of its target.
fn promised(by: Accelerator) -> &'static [Precision] {
    match by {
        Accelerator::Cuda => &[Precision::F32, Precision::Bf16],
        Accelerator::TensorRt | Accelerator::TensorRtRtx | Accelerator::OpenVino => {
            &[Precision::F32, Precision::Bf16, Precision::Int8, Precision::Fp8]
        }
        Accelerator::WebGpu => &[Precision::F32],
    }
}

fn provider(by: Accelerator) -> Provider {
    by.name().parse().unwrap()
}

/// A golden case, exported for every target, and quantised to INT8 and E4M3.
fn exported(case: &str, weights: WeightType) -> (TempDir, Bundle) {
    let (folder, bundle) = golden::export_for_all_targets(case, weights);
    [Scheme::Int8, Scheme::Fp8].into_iter().for_each(|scheme| quantize(&bundle.folder, scheme));
    (folder, Bundle::open(&bundle.folder).unwrap())
}

fn graphs(bundle: &Bundle) -> impl Iterator<Item = (&GraphEntry, Model)> {
    let graphs = bundle.manifest.components.iter().flat_map(|entry| &entry.graphs);
    graphs.map(|graph| (graph, Model::read(&bundle.path(&graph.file)).unwrap()))
}

#[test]
fn every_provider_beside_the_cpu_is_in_the_table() {
    let names = Accelerator::ALL.map(Accelerator::name);
    let providers = Provider::ALL.into_iter().filter(|provider| *provider != Provider::Cpu);
    assert_eq!(providers.map(Provider::name).collect::<Vec<_>>(), names);
}

#[test]
fn graphs_are_taken_by_the_providers_of_their_target() {
    for case in ["two-experts", "mini"] {
        for weights in [WeightType::F32, WeightType::Bf16] {
            let (_folder, bundle) = exported(case, weights);
            let mut checked = Accelerator::ALL.map(|_| 0);
            for (graph, model) in graphs(&bundle) {
                for (by, checked) in Accelerator::ALL.into_iter().zip(&mut checked) {
                    let variant = graph.variant;
                    if provider(by).target() == variant.target && promised(by).contains(&variant.precision) {
                        let refused = refused(&model, by).unwrap();
                        let first = refused.first().map(ToString::to_string);
                        assert_eq!(first, None, "{by}: {} of {}", refused.len(), graph.file);
                        *checked += 1;
                    }
                }
            }
            let is_checked = checked.map(|count| count > 8);
            assert_eq!(is_checked, [true, true, true, true, weights == WeightType::F32]);
        }
    }
}

#[test]
fn graphs_that_a_provider_does_not_take_are_found() {
    let (_folder, bundle) = exported("two-experts", WeightType::Bf16);
    let step = |target, precision| {
        let entries = bundle.manifest.components.iter();
        let mut experts = entries.filter(|entry| matches!(entry.component, Component::Expert(_)));
        let mut graphs = experts.next().unwrap().graphs.iter();
        let variant = graphs
            .find(|graph| (graph.variant.target, graph.variant.precision) == (target, precision))
            .unwrap();
        Model::read(&bundle.path(&variant.file)).unwrap()
    };
    let names =
        |model: &Model, by| refused(model, by).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    let plain = step(Target::Plain, Precision::Bf16);
    for by in [Accelerator::TensorRt, Accelerator::OpenVino] {
        // Fused operators of the graphs for CUDA, and those for the CPU.
        for target in [Target::Cuda, Target::Cpu] {
            let found = names(&step(target, Precision::Bf16), by);
            assert!(found.iter().any(|node| node.contains("RotaryEmbedding")), "{by}: {found:?}");
        }
        let mut changed = plain.clone();
        let nodes = &mut changed.proto.graph.as_mut().unwrap().node;
        nodes.iter_mut().find(|node| node.op_type == "Gemm").unwrap().op_type = "MatMulInteger".into();
        assert_eq!(names(&changed, by)[0], "time/Gemm (MatMulInteger in f32)", "{by}");
    }
    assert!(!names(&plain, Accelerator::WebGpu).is_empty(), "WebGPU takes no bf16");
    // CUDA has no kernels for `Cos` and `Sin` of the version that a convolution in bf16 needs.
    let found = names(&plain, Accelerator::Cuda);
    assert!(found.contains(&"time/Cos (Cos in f32)".to_owned()), "{found:?}");
    assert!(!names(&step(Target::Plain, Precision::Fp8), Accelerator::Cuda).is_empty());
    let int8 = step(Target::Plain, Precision::Int8);
    for by in [Accelerator::TensorRt, Accelerator::TensorRtRtx, Accelerator::OpenVino] {
        assert_eq!(names(&int8, by), [""; 0], "{by}");
        // The graphs of the CPU have unsigned activations, fused operators and integer products.
        let found = names(&step(Target::Cpu, Precision::Int8), by);
        assert!(found.iter().any(|node| node.contains("(QuantizeLinear in f32, u8)")), "{by}: {found:?}");
    }
}
