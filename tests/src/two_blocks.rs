//! Two blocks of each expert of Wan2.2-T2V-A14B, at full width, from a sparse checkpoint.

use crate::sparse::{self, Layout};
use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use bundle::variant::Target;
use engines::{Cancel, OnnxRuntime, OpenOptions};
use export::{ExportRequest, export};
use quality::bench::batches::BatchCase;
use runtime::model::step_contract;
use std::num::NonZeroUsize;
use std::path::Path;

/// Exports two blocks of a checkpoint in `folder` in f32, for the CPU and another target.
///
/// # Panics
/// Panics if a file cannot be written or the export fails.
pub fn exported(folder: &Path, layout: Layout, other: Target) -> Bundle {
    let request = ExportRequest {
        targets: vec![Target::Cpu, other],
        weights: Some(WeightType::F32),
        verify: false,
        layers: NonZeroUsize::new(2),
        ..sparse::request(folder, layout)
    };
    let report = export(&request, &mut |_| ()).expect("an export");
    Bundle::open(&report.folder).expect("a bundle")
}

/// The velocity of one step of 15 tokens of every expert, on the graphs for a target.
///
/// # Panics
/// Panics if a graph cannot be opened or run.
pub fn velocities(
    bundle: &Bundle,
    target: Target,
    onnx: &OnnxRuntime,
    options: &OpenOptions,
) -> Vec<Vec<f32>> {
    let case = BatchCase::all(&bundle.manifest.denoiser).remove(2);
    let experts = bundle.manifest.components.iter();
    let experts = experts.filter(|entry| matches!(entry.component, Component::Expert(_)));
    experts
        .map(|entry| {
            let graph = entry.graphs.iter().find(|graph| graph.variant.target == target).expect("a graph");
            let contract = step_contract(&bundle.manifest, graph.variant.kernels);
            let mut engine = onnx.open(&bundle.path(&graph.file), &contract, options).expect("an engine");
            let inputs = case.inputs(graph.variant.kernels, true, &[0]).expect("inputs");
            let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
            let mut outputs = engine.run(&inputs, &Cancel::new()).expect("a step");
            let velocity = outputs.take("velocity").expect("a velocity").to_f32().expect("f32");
            velocity.iter().copied().collect()
        })
        .collect()
}
