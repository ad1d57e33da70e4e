//! A step with several timesteps: each token is computed with the timestep that its row names.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::geometry::{LatentShape, Patch};
use bundle::quantization::layers::fused;
use bundle::signature::{ROWS_INPUT, Signature};
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use bundle::units::Timestep;
use engines::{Cancel, Engine, Error, OnnxRuntime, OpenOptions, Value, WeightMemory};
use export::checkpoint::inventory::{self, Required};
use export::model::{GraphWeights, KernelLowering, kernel_step_graph, step_graph};
use export::weights::PlacedWeights;
use export::weights::packed::{PackedFormat, pack};
use ndarray::{Array1, Array2, Array3, Array5, ArrayView3, s};
use runtime::denoise::{RotaryTables, TokenRows, token_rows};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use test_support::Random;
use tests::synthetic;

/// The denoiser of the graphs in `tests/data`.
fn spec() -> DenoiserSpec {
    DenoiserSpec {
        heads: 2,
        head_width: 32,
        layers: 2,
        feed_forward: 100,
        in_channels: 4,
        out_channels: 4,
        patch: Patch { time: 1, height: 2, width: 2 },
        text_width: 40,
        frequency_width: 64,
        epsilon: 1e-6,
    }
}

const LATENT: LatentShape = LatentShape { channels: 4, frames: 3, height: 8, width: 10 };
/// Tokens of the latent, and of one frame.
const TOKENS: usize = 60;
const FRAME: usize = 20;

/// The kernels of a step, with the number format of the layers of Rushes kernels.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    OnnxRuntime,
    Rushes(PackedFormat),
}

const KINDS: [Kind; 3] =
    [Kind::OnnxRuntime, Kind::Rushes(PackedFormat::Int8), Kind::Rushes(PackedFormat::Bf16)];

impl Kind {
    /// The largest difference between results of the same numbers. Time embeddings of several timesteps are sums in
    /// another order than that of one, and the narrow formats of Rushes kernels round some of them to another value.
    fn rounding(self) -> f32 {
        match self {
            Self::OnnxRuntime => 1e-5,
            Self::Rushes(_) => 2e-3,
        }
    }
}

/// The results of the attentions of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Attention {
    /// Depend on all tokens.
    Mixes,
    /// The biases of their last layers, so that no token depends on another.
    Constant,
}

/// A model with random weights.
struct Weights {
    folder: TempDir,
    placed: PlacedWeights,
}

impl Weights {
    fn new(attention: Attention) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = Random::new(0x5EED_0F5E_A115);
        let mut value = |weight: &Required, _| {
            let is_gain = weight.name.contains("norm") && weight.name.ends_with("weight");
            let spread = 1.0 / (*weight.shape.last().unwrap() as f32).sqrt();
            let value = random.next_normal();
            match () {
                () if is_gain => 1.0 + 0.1 * value,
                () if attention == Attention::Constant && weight.name.ends_with("to_out.0.weight") => 0.0,
                () => spread * value,
            }
        };
        let (placed, _) =
            synthetic::write_weights(folder.path(), &inventory::denoiser(&spec()), Some(&mut value));
        Self { folder, placed }
    }

    fn packed(&self, format: PackedFormat) -> PlacedWeights {
        pack(self.folder.path(), &self.placed, &fused(&spec()), format, "packed.safetensors").unwrap()
    }

    /// Writes the graph of the step.
    fn graph(&self, kind: Kind) -> PathBuf {
        let model = match kind {
            Kind::OnnxRuntime => step_graph(&spec(), GraphWeights::new(&self.placed)),
            Kind::Rushes(format) => {
                let placed = self.packed(format);
                let weights = GraphWeights::new(&placed);
                kernel_step_graph(&spec(), KernelLowering { weights, values_as_bytes: true, branches: None })
            }
        };
        let path = self.folder.path().join("step.onnx");
        model.unwrap().write(&path).unwrap();
        path
    }

    fn step(&self, kind: Kind) -> Step {
        self.open(&self.graph(kind), kind)
    }

    fn open(&self, path: &Path, kind: Kind) -> Step {
        let contract = match kind {
            Kind::OnnxRuntime => Signature::of_step(&spec()),
            Kind::Rushes(_) => Signature::of_step_with_key_bias(&spec()),
        };
        let options = OpenOptions::cpu(NonZeroUsize::new(1), WeightMemory::Mapped);
        Step { engine: OnnxRuntime::load(None).unwrap().open(path, &contract, &options).unwrap(), kind }
    }
}

/// An open step.
struct Step {
    engine: Engine,
    kind: Kind,
}

impl Step {
    /// Runs a batch of the same random inputs; the velocity is `[B,C,F,H,W]`.
    fn try_run(&mut self, batch: usize, timesteps: &[f32], rows: &[i64]) -> Result<Array5<f32>, Error> {
        let spec = spec();
        let mut random = Random::new(77);
        let LatentShape { channels, frames, height, width } = LATENT;
        let latent =
            Array5::from_shape_simple_fn((batch, channels, frames, height, width), || random.next_normal());
        let text_rows = if self.kind == Kind::OnnxRuntime { TEXT_ROWS } else { 3 };
        let text = Array3::from_shape_simple_fn((batch, text_rows, spec.text_width), || random.next_normal());
        let tables = RotaryTables::new(&spec, LATENT);
        let mut inputs = vec![
            ("latent", Value::from_f32(latent)),
            ("timestep", Value::from_f32(Array1::from(timesteps.to_vec()))),
            ("text", Value::from_f32(text)),
            ("cos", Value::from_f32(tables.cos)),
            ("sin", Value::from_f32(tables.sin)),
        ];
        if self.engine.signature().takes_rows() {
            inputs.push((ROWS_INPUT, Value::from_i64(Array1::from(rows.to_vec()))));
        }
        if self.kind != Kind::OnnxRuntime {
            inputs.push(("key_bias", Value::from_f32(Array2::zeros((batch, text_rows)))));
        }
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let velocity = self.engine.run(&inputs, &Cancel::new())?.take("velocity")?;
        Ok(velocity.to_f32()?.into_dimensionality().unwrap())
    }

    fn run(&mut self, batch: usize, timesteps: &[f32], rows: &[i64]) -> Array5<f32> {
        self.try_run(batch, timesteps, rows).unwrap()
    }
}

/// The velocity of one token, `[C,2,2]`.
fn token(velocity: &Array5<f32>, batch: usize, token: usize) -> ArrayView3<'_, f32> {
    let (frame, in_frame) = (token / FRAME, token % FRAME);
    let (row, column) = (2 * (in_frame / 5), 2 * (in_frame % 5));
    velocity.slice(s![batch, .., frame, row..row + 2, column..column + 2])
}

/// The largest difference, relative to the largest value of `b`.
fn distance<'a>(a: impl IntoIterator<Item = &'a f32>, b: impl IntoIterator<Item = &'a f32>) -> f32 {
    let pairs = a.into_iter().zip(b);
    let (apart, largest) = pairs.fold((0.0_f32, 0.0_f32), |(apart, largest), (a, b)| {
        (apart.max((a - b).abs()), largest.max(b.abs()))
    });
    apart / largest
}

#[test]
fn without_attention_each_token_gets_the_result_of_its_timestep() {
    let weights = Weights::new(Attention::Constant);
    let timesteps = [0.0, 400.0, 900.0];
    let mut random = Random::new(3);
    let rows: Vec<i64> = (0..TOKENS).map(|_| (random.bits() % 3) as i64).collect();
    for kind in KINDS {
        let mut step = weights.step(kind);
        for batch in [1, 2] {
            let alone = timesteps.map(|timestep| step.run(batch, &[timestep], &[0]));
            for (a, b) in [(0, 1), (1, 2), (0, 2)] {
                let apart = distance(&alone[a], &alone[b]);
                assert!(apart > 0.1, "{kind:?}: the timestep changes little: {apart}");
            }
            let found = step.run(batch, &timesteps, &rows);
            for index in 0..batch {
                for (place, row) in rows.iter().enumerate() {
                    let expected = token(&alone[usize::try_from(*row).unwrap()], index, place);
                    let apart = distance(token(&found, index, place), expected);
                    assert!(apart < kind.rounding(), "{kind:?}, batch {batch}, token {place}: {apart}");
                }
            }
            // One row for all tokens, but not the first.
            let last = step.run(batch, &timesteps, &[2]);
            let apart = distance(&last, &alone[2]);
            assert!(apart < kind.rounding(), "{kind:?}, one row: {apart}");
        }
    }
}

#[test]
fn equal_timesteps_in_two_rows_give_the_result_of_one() {
    let weights = Weights::new(Attention::Mixes);
    let frames = |values: [f32; 3]| {
        let TokenRows { timesteps, rows } = token_rows(&values.map(Timestep), LATENT, spec().patch).unwrap();
        (timesteps.into_iter().map(|timestep| timestep.0).collect::<Vec<_>>(), rows)
    };
    for kind in KINDS {
        let mut step = weights.step(kind);
        let (timesteps, rows) = frames([700.0; 3]);
        let one = step.run(1, &timesteps, &rows);
        let (_, rows) = frames([0.0, 700.0, 700.0]);
        let two = step.run(1, &[700.0; 2], &rows);
        let apart = distance(&two, &one);
        assert!(apart < kind.rounding(), "{kind:?}: {apart}");
        // A first frame with another timestep changes the other frames too, which attend to it.
        let (timesteps, rows) = frames([0.0, 700.0, 700.0]);
        let mixed = step.run(1, &timesteps, &rows);
        for frame in 0..3 {
            let part = |velocity: &Array5<f32>| velocity.slice(s![.., .., frame, .., ..]).to_owned();
            assert!(distance(&part(&mixed), &part(&one)) > 1e-4, "{kind:?}: frame {frame} is the same");
        }
    }
}

#[test]
fn vectors_of_tokens_are_gathered_right_before_their_use() {
    let weights = Weights::new(Attention::Mixes);
    let optimized = weights.folder.path().join("optimized.onnx");
    let onnx = OnnxRuntime::load(None).unwrap();
    onnx.write_optimized(&weights.graph(Kind::OnnxRuntime), &optimized).unwrap();
    let model = graph::Model::read(&optimized).unwrap();
    // In the order of execution.
    let nodes = &model.proto.graph.as_ref().unwrap().node;
    let gathers = nodes.iter().enumerate().filter(|(_, node)| node.op_type == "Gather");
    let mut count = 0;
    for (place, gather) in gathers {
        let user = nodes.iter().position(|node| node.input.contains(&gather.output[0])).unwrap();
        let between = nodes[place + 1..user].iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>();
        let of_tables = ["Slice", "Reshape", "Add", "Gather"];
        assert!(between.iter().all(|name| of_tables.contains(name)), "{}: {between:?}", gather.name);
        count += 1;
    }
    assert_eq!(count, 6 * spec().layers + 2);
}

#[test]
fn maps_that_do_not_fit_are_errors() {
    let weights = Weights::new(Attention::Mixes);
    for kind in KINDS {
        let mut step = weights.step(kind);
        for wrong in [vec![0; TOKENS - 1], vec![0; TOKENS + 1], vec![2; TOKENS], vec![2], vec![]] {
            let error = step.try_run(2, &[700.0, 0.0], &wrong);
            assert!(error.is_err(), "{kind:?}: a map of {} entries was accepted", wrong.len());
        }
        assert!(step.try_run(2, &[700.0, 0.0], &[1]).is_ok());
        if kind != Kind::OnnxRuntime {
            let error = step.try_run(2, &[700.0, 0.0], &[-1; TOKENS]).unwrap_err().to_string();
            assert!(error.contains("row -1"), "{error}");
        }
    }
}

#[test]
fn graphs_of_one_timestep_still_run_and_give_the_same_bits() {
    let weights = Weights::new(Attention::Mixes);
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let old = [(Kind::OnnxRuntime, "step-of-one-timestep.onnx")]
        .into_iter()
        .chain([(Kind::Rushes(PackedFormat::Int8), "step-of-one-timestep.rushes-int8.onnx")]);
    for (kind, name) in old {
        let path = weights.folder.path().join(name);
        std::fs::copy(data.join(name), &path).unwrap();
        if let Kind::Rushes(format) = kind {
            weights.packed(format);
        }
        let mut before = weights.open(&path, kind);
        assert!(!before.engine.signature().takes_rows());
        for batch in [1, 2] {
            let expected = before.run(batch, &[700.0], &[0]);
            let found = weights.step(kind).run(batch, &[700.0], &[0]);
            let apart = distance(&found, &expected);
            assert!(found == expected, "{kind:?}, batch {batch}: {apart} apart");
            assert!(before.try_run(batch, &[700.0, 0.0], &[0]).is_err(), "two timesteps were accepted");
        }
    }
}
