//! The three graphs at the sizes that are timed.

use crate::random_weights::{self, Random};
use bundle::catalog::{wan_denoiser, wan21_vae};
use bundle::geometry::LatentShape;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Value};
use export::checkpoint::inventory::{self, Required};
use export::model::{Chunk, GraphWeights, decoder_graph, step_graph, text_encoder_graph};
use graph::Model;
use ndarray::{Array, Array1, Array2, ArrayD, IxDyn};
use runtime::denoise::RotaryTables;
use std::error::Error;
use std::path::Path;
use tempfile::TempDir;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The denoiser of the 1.3B shape with fewer layers: every layer costs the same.
pub fn denoiser(layers: usize) -> DenoiserSpec {
    wan_denoiser(12, layers, 8960)
}

/// The encoder of umT5-XXL with fewer layers and a small vocabulary: neither changes the cost of a layer.
pub fn text_encoder(layers: usize) -> TextEncoderSpec {
    TextEncoderSpec {
        vocabulary: 1024,
        width: 4096,
        heads: 64,
        head_width: 64,
        feed_forward: 10_240,
        layers,
        buckets: 32,
        max_distance: 128,
        epsilon: 1e-6,
    }
}

fn normal(shape: &[usize]) -> Value {
    let mut random = Random(88_172_645_463_325_252);
    let values: ArrayD<f32> = Array::from_shape_simple_fn(IxDyn(shape), || random.next());
    Value::from_f32(values)
}

fn open(
    folder: &Path,
    name: &str,
    model: &Model,
    contract: &Signature,
    options: &OpenOptions,
) -> Outcome<Engine> {
    let path = folder.join(name);
    model.write(&path)?;
    Ok(OnnxRuntime::load(None)?.open(&path, contract, options)?)
}

fn weights(required: &[Required]) -> Outcome<(TempDir, export::weights::PlacedWeights)> {
    let folder = tempfile::tempdir()?;
    let placed = random_weights::write(folder.path(), required)?;
    Ok((folder, placed))
}

/// One denoising step.
#[derive(Debug)]
pub struct Step {
    engine: Engine,
    inputs: Vec<(&'static str, Value)>,
    /// Floating-point operations of one run.
    pub flops: f64,
    _folder: TempDir,
}

impl Step {
    /// A step of `layers` layers over a token grid `[frames, rows, columns]`.
    ///
    /// # Errors
    /// No ONNX Runtime, no room for the weights, or a graph that cannot be opened.
    pub fn new(layers: usize, grid: [usize; 3], options: &OpenOptions) -> Outcome<Self> {
        let spec = denoiser(layers);
        let (folder, placed) = weights(&inventory::denoiser(&spec))?;
        let model = step_graph(&spec, GraphWeights::new(&placed))?;
        let engine = open(folder.path(), "step.onnx", &model, &Signature::of_step(&spec), options)?;
        let latent = LatentShape {
            channels: spec.in_channels,
            frames: grid[0],
            height: grid[1] * spec.patch.height,
            width: grid[2] * spec.patch.width,
        };
        let tables = RotaryTables::new(&spec, latent);
        let inputs = vec![
            ("latent", normal(&[1, latent.channels, latent.frames, latent.height, latent.width])),
            ("timestep", Value::from_f32(Array1::from_elem(1, 500.0_f32))),
            ("text", normal(&[1, TEXT_ROWS, spec.text_width])),
            ("cos", Value::from_f32(tables.cos)),
            ("sin", Value::from_f32(tables.sin)),
        ];
        Ok(Self { engine, inputs, flops: spec.step_flops(latent.tokens(spec.patch)), _folder: folder })
    }

    /// Runs the step once.
    ///
    /// # Errors
    /// The run fails.
    pub fn run(&mut self) -> Outcome<()> {
        let inputs: Vec<_> = self.inputs.iter().map(|(name, value)| (*name, value)).collect();
        self.engine.run(&inputs, &Cancel::new())?.take("velocity")?;
        Ok(())
    }
}

/// The decoder.
#[derive(Debug)]
pub struct Decode {
    first: Engine,
    next: Engine,
    frames: usize,
    latent: Value,
    _folder: TempDir,
}

impl Decode {
    /// A decoder for a latent of `[frames, height, width]`.
    ///
    /// # Errors
    /// No ONNX Runtime, no room for the weights, or a graph that cannot be opened.
    pub fn new([frames, height, width]: [usize; 3], options: &OpenOptions) -> Outcome<Self> {
        let spec = wan21_vae();
        let (folder, placed) = weights(&inventory::decoder(&spec))?;
        let contract = Signature::of_decoder(&spec);
        let graph = |chunk| decoder_graph(&spec, chunk, GraphWeights::new(&placed));
        let first = open(folder.path(), "first.onnx", &graph(Chunk::First)?, &contract, options)?;
        let next = open(folder.path(), "next.onnx", &graph(Chunk::Next)?, &contract, options)?;
        let latent = normal(&[1, spec.latent_channels, 1, height, width]);
        Ok(Self { first, next, frames, latent, _folder: folder })
    }

    /// Decodes the first latent frame and gives the caches.
    ///
    /// # Errors
    /// The run fails.
    pub fn run_first(&mut self) -> Outcome<Vec<(String, Value)>> {
        let outputs = self.first.run(&[("latent", &self.latent)], &Cancel::new())?;
        Ok(caches(outputs))
    }

    /// Decodes a later latent frame.
    ///
    /// # Errors
    /// The run fails.
    pub fn run_next(&mut self, before: &[(String, Value)]) -> Outcome<Vec<(String, Value)>> {
        let mut inputs = vec![("latent", &self.latent)];
        inputs.extend(before.iter().map(|(name, value)| (name.as_str(), value)));
        Ok(caches(self.next.run(&inputs, &Cancel::new())?))
    }

    /// Decodes the whole latent; `on_first` is called after its first frame.
    ///
    /// # Errors
    /// A run fails.
    pub fn run(&mut self, on_first: impl FnOnce()) -> Outcome<()> {
        let mut state = self.run_first()?;
        on_first();
        for _ in 1..self.frames {
            state = self.run_next(&state)?;
        }
        Ok(())
    }
}

fn caches(outputs: engines::Outputs) -> Vec<(String, Value)> {
    let cache = |(name, value): (String, Value)| {
        name.strip_prefix(CACHE_OUTPUT).map(|number| (format!("{CACHE_INPUT}{number}"), value))
    };
    outputs.into_iter().filter_map(cache).collect()
}

/// The text encoder.
#[derive(Debug)]
pub struct Text {
    engine: Engine,
    ids: Value,
    _folder: TempDir,
}

impl Text {
    /// An encoder of `layers` layers over a prompt of `tokens` tokens.
    ///
    /// # Errors
    /// No ONNX Runtime, no room for the weights, or a graph that cannot be opened.
    pub fn new(layers: usize, tokens: usize, options: &OpenOptions) -> Outcome<Self> {
        let spec = text_encoder(layers);
        let (folder, placed) = weights(&inventory::text_encoder(&spec))?;
        let model = text_encoder_graph(&spec, GraphWeights::new(&placed))?;
        let contract = Signature::of_text_encoder(&spec);
        let engine = open(folder.path(), "text.onnx", &model, &contract, options)?;
        let ids = Array2::from_shape_fn((1, tokens), |(_, position)| (position % spec.vocabulary) as i64);
        Ok(Self { engine, ids: Value::from_i64(ids), _folder: folder })
    }

    /// Encodes the prompt once.
    ///
    /// # Errors
    /// The run fails.
    pub fn run(&mut self) -> Outcome<()> {
        self.engine.run(&[("ids", &self.ids)], &Cancel::new())?.take("states")?;
        Ok(())
    }
}
