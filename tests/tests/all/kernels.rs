//! A step with Rushes kernels is close to the f32 graph of ONNX Runtime kernels.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::geometry::Patch;
use bundle::quantization::layers::fused;
use bundle::signature::Signature;
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use engines::{Cancel, OnnxRuntime, OpenOptions, Value, WeightMemory};
use export::checkpoint::inventory::{self, Required};
use export::model::{GraphWeights, KernelLowering, kernel_step_graph, step_graph};
use export::weights::PlacedWeights;
use export::weights::packed::{PackedFormat, pack};
use kernels::Kernels;
use ndarray::{Array1, Array2, Array3, Array5, Axis, concatenate, s};
use std::num::NonZeroUsize;
use tempfile::TempDir;
use test_support::Random;
use tests::{cpu_paths, synthetic};

/// The number of words of the two prompts of a batch.
const WORDS: [usize; 2] = [9, 3];

fn spec() -> DenoiserSpec {
    DenoiserSpec {
        heads: 3,
        head_width: 32,
        layers: 2,
        feed_forward: 200,
        in_channels: 4,
        out_channels: 4,
        patch: Patch { time: 1, height: 2, width: 2 },
        text_width: 40,
        frequency_width: 64,
        epsilon: 1e-6,
    }
}

/// Writes random weights to a file.
fn weights(folder: &TempDir) -> PlacedWeights {
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut value = |weight: &Required, _| {
        let is_gain = weight.name.contains("norm") && weight.name.ends_with("weight");
        let spread = 1.0 / (*weight.shape.last().unwrap() as f32).sqrt();
        if is_gain { 1.0 + 0.1 * random.next_normal() } else { spread * random.next_normal() }
    };
    synthetic::write_weights(folder.path(), &inventory::denoiser(&spec()), Some(&mut value)).0
}

/// The inputs for a batch of two, with merged text rows or all 512.
fn inputs(merged: bool) -> Vec<(&'static str, Value)> {
    let spec = spec();
    let mut random = Random::new(77);
    let latent = Array5::from_shape_simple_fn((2, spec.in_channels, 3, 10, 14), || random.next_normal());
    let half = spec.head_width / 2;
    let angle = |(row, at): (usize, usize)| row as f32 * 0.6_f32.powi(at as i32);
    let cos = Array2::from_shape_fn((3 * 5 * 7, half), |at| angle(at).cos());
    let sin = Array2::from_shape_fn((3 * 5 * 7, half), |at| angle(at).sin());
    let mut text = Array3::from_shape_simple_fn((2, TEXT_ROWS, spec.text_width), || random.next_normal());
    for (index, words) in WORDS.into_iter().enumerate() {
        text.slice_mut(s![index, words.., ..]).fill(0.0);
    }
    let mut inputs = vec![
        ("latent", Value::from_f32(latent)),
        ("timestep", Value::from_f32(Array1::from_elem(1, 700.0_f32))),
        ("rows", Value::from_i64(Array1::zeros(1))),
        ("cos", Value::from_f32(cos)),
        ("sin", Value::from_f32(sin)),
    ];
    if !merged {
        inputs.push(("text", Value::from_f32(text)));
        return inputs;
    }
    // The row after the words represents all padding rows. Rows that the shorter prompt lacks are masked.
    let rows = WORDS[0] + 1;
    let mut bias = Array2::from_elem((2, rows), f32::NEG_INFINITY);
    for (index, words) in WORDS.into_iter().enumerate() {
        bias.slice_mut(s![index, ..words]).fill(0.0);
        bias[[index, words]] = ((TEXT_ROWS - words) as f32).ln();
    }
    let text = concatenate(Axis(1), &[text.slice(s![.., ..rows, ..])]).unwrap();
    inputs.push(("text", Value::from_f32(text)));
    inputs.push(("key_bias", Value::from_f32(bias)));
    inputs
}

/// Runs steps with the same random weights and returns their velocities.
struct TestStep {
    folder: TempDir,
    placed: PlacedWeights,
}

impl TestStep {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let placed = weights(&folder);
        Self { folder, placed }
    }

    fn run(&self, model: &graph::Model, contract: &Signature, kernels: Kernels, threads: usize) -> Vec<f32> {
        let path = self.folder.path().join("step.onnx");
        model.write(&path).unwrap();
        let options = OpenOptions::cpu(NonZeroUsize::new(threads), WeightMemory::Mapped);
        let onnx = OnnxRuntime::load(None).unwrap().with_kernels(kernels);
        let mut engine = onnx.open(&path, contract, &options).unwrap();
        let merged = contract.inputs.iter().any(|input| input.name == "key_bias");
        let inputs = inputs(merged);
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let velocity = engine.run(&inputs, &Cancel::new()).unwrap().take("velocity").unwrap();
        velocity.view_f32().unwrap().iter().copied().collect()
    }

    fn onnxruntime(&self) -> Vec<f32> {
        let model = step_graph(&spec(), GraphWeights::new(&self.placed)).unwrap();
        self.run(&model, &Signature::of_step(&spec()), Kernels::best(), 1)
    }

    fn rushes(&self, format: PackedFormat, kernels: Kernels, threads: usize) -> Vec<f32> {
        let layers = fused(&spec());
        let placed = pack(self.folder.path(), &self.placed, &layers, format, "packed.safetensors").unwrap();
        let lowering =
            KernelLowering { weights: GraphWeights::new(&placed), values_as_bytes: true, branches: None };
        let model = kernel_step_graph(&spec(), lowering).unwrap();
        self.run(&model, &Signature::of_step_with_key_bias(&spec()), kernels, threads)
    }
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)))
        / squares(&mut b.iter().map(|b| f64::from(*b)))
}

#[test]
fn rushes_kernels_are_close_to_onnxruntime_kernels_on_every_path() {
    let step = TestStep::new();
    let exact = step.onnxruntime();
    for kernels in cpu_paths::available() {
        let path = kernels.path();
        let int8 = distance(&step.rushes(PackedFormat::Int8, kernels, 1), &exact);
        let bf16 = distance(&step.rushes(PackedFormat::Bf16, kernels, 1), &exact);
        assert!(int8 < 0.03, "{path}: {int8}");
        assert!(bf16 < 0.012, "{path}: {bf16}");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let step = TestStep::new();
    for format in [PackedFormat::Int8, PackedFormat::Bf16] {
        let run = |threads| step.rushes(format, Kernels::best(), threads);
        assert_eq!(run(1), run(3));
    }
}
