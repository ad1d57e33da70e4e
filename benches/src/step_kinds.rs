//! The same step with several kernels: ONNX Runtime kernels in f32 and INT8, Rushes kernels in INT8 and bf16, these also
//! with a LoRA beside every linear layer of the blocks.

use bundle::catalog::wan_denoiser;
use bundle::geometry::LatentShape;
use bundle::quantization::layers::{FusedLayer, fused};
use bundle::signature::Signature;
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Value};
use export::branched;
use export::checkpoint::inventory::{self, Required};
use export::model::{GraphWeights, KernelLowering, kernel_step_graph, step_graph};
use export::weights::PlacedWeights;
use export::weights::merge::{Factor, Merge};
use export::weights::packed::{PackedFormat, pack};
use graph::Model;
use graph::proto::{NodeProto, StringStringEntryProto, TensorProto};
use kernels::{MatrixShape, quantise_outputs};
use ndarray::{Array1, Array2, Array3, Array5, s};
use runtime::denoise::RotaryTables;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tempfile::TempDir;
use test_support::Random;
use tests::synthetic;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The standard deviation of the weights, which keeps activations of deep models finite.
const SPREAD: f32 = 0.02;
/// The rank of branches.
const RANK: usize = 64;
/// The number of text rows that are words; the other rows are equal.
const WORDS: usize = 60;

/// The kernels and number formats of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// ONNX Runtime kernels in f32.
    OnnxRuntimeF32,
    /// ONNX Runtime kernels with dynamic INT8 products, f32 for the rest.
    OnnxRuntimeInt8,
    /// Rushes kernels in INT8.
    RushesInt8,
    /// Rushes kernels in INT8, with bf16 values in self-attention.
    RushesInt8Bf16Values,
    /// Rushes kernels in bf16.
    RushesBf16,
    /// Rushes kernels in INT8, with a branch of rank 64 beside every linear layer of the blocks.
    RushesInt8Lora,
    /// The same in bf16.
    RushesBf16Lora,
}

impl StepKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::OnnxRuntimeF32,
        Self::OnnxRuntimeInt8,
        Self::RushesInt8,
        Self::RushesInt8Bf16Values,
        Self::RushesBf16,
        Self::RushesInt8Lora,
        Self::RushesBf16Lora,
    ];

    /// The name used in flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnnxRuntimeF32 => "onnxruntime-f32",
            Self::OnnxRuntimeInt8 => "onnxruntime-int8",
            Self::RushesInt8 => "rushes-int8",
            Self::RushesInt8Bf16Values => "rushes-int8-bf16-values",
            Self::RushesBf16 => "rushes-bf16",
            Self::RushesInt8Lora => "rushes-int8-lora-64",
            Self::RushesBf16Lora => "rushes-bf16-lora-64",
        }
    }

    /// The kind without branches, for one that has them.
    pub fn without_branches(self) -> Option<Self> {
        match self {
            Self::RushesInt8Lora => Some(Self::RushesInt8),
            Self::RushesBf16Lora => Some(Self::RushesBf16),
            _ => None,
        }
    }

    fn is_rushes(self) -> bool {
        !matches!(self, Self::OnnxRuntimeF32 | Self::OnnxRuntimeInt8)
    }
}

/// The random weights and the input sizes of a step.
#[derive(Debug)]
pub struct Setting {
    spec: DenoiserSpec,
    folder: TempDir,
    placed: PlacedWeights,
    latent: LatentShape,
}

/// A step that can run.
#[derive(Debug)]
pub struct Step {
    engine: Engine,
    inputs: Vec<(&'static str, Value)>,
}

impl Setting {
    /// Creates `layers` layers of the 1.3B shape, for a token grid `[frames, rows, columns]`.
    ///
    /// # Errors
    /// Returns an error if there is no disk space for the weights.
    pub fn new(layers: usize, grid: [usize; 3]) -> Outcome<Self> {
        let spec = wan_denoiser(12, layers, 8960);
        let folder = tempfile::tempdir()?;
        let placed = random_weights(folder.path(), &inventory::denoiser(&spec));
        let latent = LatentShape {
            channels: spec.in_channels,
            frames: grid[0],
            height: grid[1] * spec.patch.height,
            width: grid[2] * spec.patch.width,
        };
        Ok(Self { spec, folder, placed, latent })
    }

    /// The number of tokens of the latent.
    pub fn tokens(&self) -> usize {
        self.latent.tokens(self.spec.patch)
    }

    /// The number of operations of the blocks' products: linear layers, and attention to the tokens and the merged
    /// text.
    pub fn operations(&self) -> f64 {
        let (l, d, f) = (self.tokens() as f64, self.spec.width() as f64, self.spec.feed_forward as f64);
        let text = (WORDS + 1) as f64;
        let linear = 2.0 * l * (6.0 * d * d + 2.0 * d * f);
        let attention = 4.0 * l * (l + text) * d;
        self.spec.layers as f64 * (linear + attention + 4.0 * text * d * d)
    }

    /// Opens the step in one kind.
    ///
    /// # Errors
    /// Returns an error if there is no disk space, or if the graph cannot be opened.
    pub fn open(&self, onnx: &OnnxRuntime, kind: StepKind, options: &OpenOptions) -> Outcome<Step> {
        let folder = self.folder.path();
        let standard_step = || step_graph(&self.spec, GraphWeights::new(&self.placed));
        let rushes_step = |format, values_as_bytes, name: &str| -> Outcome<Model> {
            let mut placed = pack(folder, &self.placed, &fused(&self.spec), format, name)?;
            let mut branches = None;
            if kind.without_branches().is_some() {
                let (with_factors, of_layers) =
                    branched::pack(folder, &placed, &self.spec, &self.lora()?, &format!("lora.{name}"))?;
                (placed, branches) = (with_factors, Some(of_layers));
            }
            let weights = GraphWeights::new(&placed);
            let lowering = KernelLowering { weights, values_as_bytes, branches: branches.as_ref() };
            Ok(kernel_step_graph(&self.spec, lowering)?)
        };
        let model = match kind {
            StepKind::OnnxRuntimeF32 => standard_step()?,
            StepKind::OnnxRuntimeInt8 => with_dynamic_int8(standard_step()?, folder)?,
            StepKind::RushesInt8 | StepKind::RushesInt8Lora => {
                rushes_step(PackedFormat::Int8, true, "int8.safetensors")?
            }
            StepKind::RushesInt8Bf16Values => rushes_step(PackedFormat::Int8, false, "int8.safetensors")?,
            StepKind::RushesBf16 | StepKind::RushesBf16Lora => {
                rushes_step(PackedFormat::Bf16, false, "bf16.safetensors")?
            }
        };
        let path = folder.join(format!("{}.onnx", kind.name()));
        model.write(&path)?;
        let signature = if kind.is_rushes() {
            Signature::of_step_with_key_bias(&self.spec)
        } else {
            Signature::of_step(&self.spec)
        };
        let engine = onnx.open(&path, &signature, options)?;
        Ok(Step { engine, inputs: self.inputs(kind.is_rushes()) })
    }

    /// Random changes of every linear layer of the blocks, about a tenth of the weights.
    fn lora(&self) -> Outcome<Vec<Merge>> {
        let mut random = Random::new(0x2545_F491_4F6C_DD1D);
        let mut factor = |shape: [usize; 2]| Factor {
            shape,
            values: (0..shape[0] * shape[1]).map(|_| SPREAD * random.next_normal()).collect(),
        };
        let mut merges = Vec::new();
        for FusedLayer { parts, shape: [outputs, inputs], .. } in fused(&self.spec) {
            for part in parts {
                let (up, down) = (factor([outputs, RANK]), factor([RANK, inputs]));
                merges.push(Merge::new(format!("{part}.weight"), 0.6, up, down)?);
            }
        }
        Ok(merges)
    }

    fn inputs(&self, merged: bool) -> Vec<(&'static str, Value)> {
        let mut random = Random::new(88_172_645_463_325_252);
        let LatentShape { channels, frames, height, width } = self.latent;
        let latent =
            Array5::from_shape_simple_fn((1, channels, frames, height, width), || random.next_normal());
        let mut text =
            Array3::from_shape_simple_fn((1, TEXT_ROWS, self.spec.text_width), || random.next_normal());
        text.slice_mut(s![.., WORDS.., ..]).fill(0.0);
        let tables = RotaryTables::new(&self.spec, self.latent);
        let mut inputs = vec![
            ("latent", Value::from_f32(latent)),
            ("timestep", Value::from_f32(Array1::from_elem(1, 500.0_f32))),
            ("rows", Value::from_i64(Array1::zeros(1))),
            ("cos", Value::from_f32(tables.cos)),
            ("sin", Value::from_f32(tables.sin)),
        ];
        if merged {
            let mut bias = Array2::zeros((1, WORDS + 1));
            bias[[0, WORDS]] = ((TEXT_ROWS - WORDS) as f32).ln();
            inputs.push(("text", Value::from_f32(text.slice(s![.., ..=WORDS, ..]).to_owned())));
            inputs.push(("key_bias", Value::from_f32(bias)));
        } else {
            inputs.push(("text", Value::from_f32(text)));
        }
        inputs
    }
}

impl Step {
    /// Runs the step once and returns the velocity.
    ///
    /// # Errors
    /// Returns an error if the run fails.
    pub fn run(&mut self) -> Outcome<Vec<f32>> {
        let inputs: Vec<_> = self.inputs.iter().map(|(name, value)| (*name, value)).collect();
        let velocity = self.engine.run(&inputs, &Cancel::new())?.take("velocity")?;
        Ok(velocity.to_f32()?.into_iter().collect())
    }
}

/// Replaces the linear layers of the blocks with ONNX Runtime's dynamic INT8 products; weights are s8 with a scale per
/// output.
fn with_dynamic_int8(mut model: Model, folder: &Path) -> Outcome<Model> {
    let path = folder.join("weights/onnxruntime-int8.bin");
    let mut file = BufWriter::new(File::create(&path)?);
    let mut offset = 0_u64;
    let graph = model.proto.graph.as_mut().ok_or("a graph")?;
    let mut added: Vec<TensorProto> = Vec::new();
    for node in graph.node.iter_mut().filter(|node| node.op_type == "Gemm" && node.name.starts_with("block."))
    {
        let [x, weight, bias] = node.input.as_slice() else { return Err("a layer without a bias".into()) };
        let stored = graph.initializer.iter().find(|tensor| tensor.name == *weight).ok_or("a weight")?;
        let [outputs, inputs] = [0, 1].map(|axis| stored.dims[axis] as usize);
        let value = |key: &str| stored.external_data.iter().find(|entry| entry.key == key).map(|e| &e.value);
        let start: u64 = value("offset").ok_or("an offset")?.parse()?;
        let mut bytes = vec![0; outputs * inputs * 4];
        File::open(folder.join(value("location").ok_or("a location")?))?.read_exact_at(&mut bytes, start)?;
        let floats: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let (quantized, scales) = quantise_outputs(MatrixShape::new(outputs, inputs)?, &floats)?;
        let transposed: Vec<u8> = (0..outputs * inputs)
            .map(|i| quantized[i % outputs * inputs + i / outputs].cast_unsigned())
            .collect();
        file.write_all(&transposed)?;
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        let (name, scales_name) = (format!("{weight}.quantized"), format!("{weight}.scales"));
        added.push(TensorProto {
            dims: vec![inputs as i64, outputs as i64],
            data_type: 3,
            name: name.clone(),
            external_data: vec![
                entry("location", "weights/onnxruntime-int8.bin".into()),
                entry("offset", offset.to_string()),
                entry("length", transposed.len().to_string()),
            ],
            data_location: 1,
            ..TensorProto::default()
        });
        offset += transposed.len() as u64;
        added.push(TensorProto {
            dims: vec![outputs as i64],
            data_type: 1,
            name: scales_name.clone(),
            raw_data: scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
            ..TensorProto::default()
        });
        *node = NodeProto {
            input: vec![x.clone(), name, scales_name, String::new(), bias.clone()],
            output: node.output.clone(),
            name: node.name.clone(),
            op_type: "DynamicQuantizeMatMul".into(),
            attribute: Vec::new(),
            domain: "com.microsoft".into(),
        };
    }
    file.flush()?;
    let used: Vec<&String> = graph.node.iter().flat_map(|node| &node.input).collect();
    graph.initializer.retain(|tensor| tensor.data_type != 1 || used.contains(&&tensor.name));
    graph.initializer.extend(added);
    Ok(model)
}

/// Writes random f32 weights and returns where each is. Gains have the mean 1, all other weights 0.
fn random_weights(folder: &Path, required: &[Required]) -> PlacedWeights {
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut value = |weight: &Required, _| {
        let is_gain = weight.name.contains("norm") || weight.name.ends_with("gamma");
        let mean = if is_gain { 1.0 } else { 0.0 };
        mean + SPREAD * 12.0_f32.sqrt() * random.uniform()
    };
    synthetic::write_weights(folder, required, Some(&mut value)).0
}
