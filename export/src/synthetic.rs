//! Bundles of realistic size with random weights, for benchmarks.

use crate::Error;
use crate::checkpoint::inventory::{self, Required};
use crate::model::{
    Chunk, GraphWeights, Lowering, decoder_graph, decoder_trunk_graph, decoder_upsampler_graph, step_graph,
    text_encoder_graph,
};
use crate::weights::{ExternalTensor, PlacedWeights};
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::layout;
use bundle::manifest::{self, Bundle, Component, ComponentEntry, GraphEntry, Manifest, Part, WeightFile};
use bundle::routing::Routing;
use bundle::settings::Defaults;
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Standard deviation of the weights; keeps the activations of deep models finite.
const SPREAD: f32 = 0.02;
/// Weights that are generated at a time.
const BLOCK: usize = 1 << 20;

/// The sizes of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Text encoder.
    pub text_encoder: TextEncoderSpec,
    /// The only expert.
    pub denoiser: DenoiserSpec,
    /// VAE.
    pub vae: VaeSpec,
}

/// The target of a bundle, and the number format of its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The target of its graphs.
    pub target: Target,
    /// The number format of its weights.
    pub weights: WeightType,
}

impl Form {
    /// f32 for the CPU.
    pub const CPU: Self = Self { target: Target::Cpu, weights: WeightType::F32 };
}

/// Writes a bundle of the given components with random weights. It has no tokenizer and no `bundle.json`.
///
/// # Errors
/// I/O errors, and an error if a stop was requested.
pub fn write(
    folder: &Path,
    sizes: &Sizes,
    components: &[Component],
    form: Form,
    stop: &Stop,
) -> Result<Bundle, Error> {
    let entries = components.iter().map(|component| write_component(folder, sizes, component, form, stop));
    let manifest = Manifest {
        format: manifest::FORMAT,
        rushes: env!("CARGO_PKG_VERSION").into(),
        model: "random".into(),
        text_encoder: sizes.text_encoder.clone(),
        denoiser: sizes.denoiser.clone(),
        vae: sizes.vae.clone(),
        tiny_decoder: None,
        routing: Routing::single(),
        defaults: Defaults::resolve(&[], 1)?,
        components: entries.collect::<Result<_, _>>()?,
        digests: BTreeMap::new(),
    };
    Ok(Bundle { folder: folder.to_owned(), manifest })
}

fn write_component(
    folder: &Path,
    sizes: &Sizes,
    component: &Component,
    form: Form,
    stop: &Stop,
) -> Result<ComponentEntry, Error> {
    let required = match component {
        Component::TextEncoder => inventory::text_encoder(&sizes.text_encoder),
        Component::Expert(_) => inventory::denoiser(&sizes.denoiser),
        Component::Decoder => inventory::decoder(&sizes.vae),
        Component::ImageEncoder | Component::Preview => Vec::new(),
    };
    let component_folder = layout::component_folder(component);
    let location = format!("{}/random.safetensors", layout::WEIGHTS);
    let weights = folder.join(&component_folder).join(layout::WEIGHTS);
    std::fs::create_dir_all(&weights).map_err(Error::file("create", &weights))?;
    let path = folder.join(&component_folder).join(&location);
    let (tensors, bytes) = write_weights(&path, &location, &required, form.weights, stop)?;
    let files = vec![WeightFile { file: format!("{component_folder}/{location}"), bytes: ByteCount(bytes) }];
    let placed = PlacedWeights { tensors, files, from: weights };
    let read = GraphWeights::new(&placed).lowered(Lowering::new(form.target, form.weights));
    let models = match component {
        Component::TextEncoder => vec![(Part::Whole, text_encoder_graph(&sizes.text_encoder, read)?)],
        Component::Expert(_) => vec![(Part::Whole, step_graph(&sizes.denoiser, read)?)],
        Component::Decoder => vec![
            (Part::First, decoder_graph(&sizes.vae, Chunk::First, read)?),
            (Part::Next, decoder_graph(&sizes.vae, Chunk::Next, read)?),
            (Part::TrunkFirst, decoder_trunk_graph(&sizes.vae, Chunk::First, read)?),
            (Part::UpsamplerFirst, decoder_upsampler_graph(&sizes.vae, Chunk::First, read)?),
            (Part::TrunkNext, decoder_trunk_graph(&sizes.vae, Chunk::Next, read)?),
            (Part::UpsamplerNext, decoder_upsampler_graph(&sizes.vae, Chunk::Next, read)?),
        ],
        Component::ImageEncoder | Component::Preview => Vec::new(),
    };
    let digest = Digest::of_parts([component.to_string().as_bytes()]);
    let precision = Precision::from(form.weights);
    let variant = Variant { target: form.target, precision, kernels: KernelLibrary::OnnxRuntime };
    let mut graphs = Vec::new();
    for (part, model) in models {
        let file = layout::graph_file(component, part, variant, &digest);
        model.write(&folder.join(&file))?;
        graphs.push(GraphEntry { part, variant, file, batch_invariant: None });
    }
    Ok(ComponentEntry {
        component: component.clone(),
        graphs,
        weights: placed.files,
        weight_type: form.weights,
        digest,
        variants: Vec::new(),
        loras: Vec::new(),
    })
}

/// Writes a safetensors file of random weights. Returns their locations and the length of the file.
fn write_weights(
    path: &Path,
    location: &str,
    required: &[Required],
    weights: WeightType,
    stop: &Stop,
) -> Result<(BTreeMap<String, ExternalTensor>, u64), Error> {
    let count = |weight: &Required| weight.shape.iter().product::<usize>();
    let bytes_of = |weight: &Required| count(weight) * weights.element().bytes();
    let dtype = match weights {
        WeightType::F32 => Dtype::F32,
        WeightType::F16 => Dtype::F16,
        WeightType::Bf16 => Dtype::BF16,
    };
    let mut end = 0;
    let entries: Vec<(String, TensorInfo)> = required
        .iter()
        .map(|weight| {
            let begin = end;
            end += bytes_of(weight);
            let info = TensorInfo { dtype, shape: weight.shape.clone(), data_offsets: (begin, end) };
            (weight.name.clone(), info)
        })
        .collect();
    let header = Metadata::new(None, entries)
        .map_err(|error| error.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|error| error.to_string()));
    let mut header = header.map_err(|why| Error::Config { path: path.to_owned(), why })?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = || Error::file("write", path);
    let mut file = File::create(path).map_err(io())?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    file.write_all(&header).map_err(io())?;
    let mut offset = 8 + header.len() as u64;
    let mut tensors = BTreeMap::new();
    for (seed, weight) in (1..).zip(required) {
        for block in (0..count(weight)).step_by(BLOCK) {
            stop.check()?;
            let values = BLOCK.min(count(weight) - block);
            let values = random(centre(&weight.name), seed, block, values);
            file.write_all(&narrowed(values, weights)).map_err(io())?;
        }
        let tensor = ExternalTensor {
            location: location.to_owned(),
            offset,
            length: bytes_of(weight) as u64,
            element: weights.element(),
            shape: weight.shape.clone(),
        };
        offset += tensor.length;
        tensors.insert(weight.name.clone(), tensor);
    }
    Ok((tensors, offset))
}

/// Returns the mean of a weight: 1 for gains, else 0.
fn centre(name: &str) -> f32 {
    let is_gain = (name.contains("norm") && name.ends_with(".weight")) || name.ends_with("gamma");
    if is_gain { 1.0 } else { 0.0 }
}

/// Advances a xorshift generator, whose state is never 0, and returns a number uniform in -0.5..0.5.
pub fn uniform(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
    let unit = (*state >> 40) as f32 / (1_u32 << 24) as f32;
    unit - 0.5
}

/// Returns uniformly distributed values of mean `centre` and standard deviation [`SPREAD`], the same in each run.
fn random(centre: f32, seed: u64, block: usize, count: usize) -> Vec<u8> {
    let width = SPREAD * 12.0_f32.sqrt();
    let mut bytes = vec![0; count * 4];
    bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, bytes)| {
        // An odd start for each chunk; xorshift never leaves 0.
        let mut state = (seed << 40 | (block as u64) << 8 | chunk as u64) * 2 + 1;
        for value in bytes.as_chunks_mut::<4>().0 {
            *value = (centre + width * uniform(&mut state)).to_le_bytes();
        }
    });
    bytes
}

/// Converts f32 values to another number format.
fn narrowed(values: Vec<u8>, weights: WeightType) -> Vec<u8> {
    let floats = values.as_chunks::<4>().0.par_iter().map(|bytes| f32::from_le_bytes(*bytes));
    match weights {
        WeightType::F32 => values,
        WeightType::F16 => floats.flat_map_iter(|value| f16::from_f32(value).to_le_bytes()).collect(),
        WeightType::Bf16 => floats.flat_map_iter(|value| bf16::from_f32(value).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::Family;
    use crate::checkpoint::shards::Shards;
    use bundle::routing::ExpertName;

    #[test]
    fn random_weights_are_a_valid_file_with_the_expected_deviation() {
        let folder = tempfile::tempdir().unwrap();
        let denoiser = DenoiserSpec {
            heads: 2,
            head_width: 12,
            layers: 1,
            feed_forward: 40,
            text_width: 32,
            ..bundle::catalog::wan_denoiser(1, 1, 1)
        };
        let text_encoder = TextEncoderSpec {
            vocabulary: 8,
            width: 32,
            heads: 1,
            head_width: 32,
            feed_forward: 8,
            layers: 1,
            buckets: 32,
            max_distance: 128,
            epsilon: 1e-6,
        };
        let sizes = Sizes { text_encoder, denoiser, vae: bundle::catalog::wan21_vae() };
        let expert = Component::Expert(ExpertName("only".into()));
        let components = std::slice::from_ref(&expert);
        let bundle = write(folder.path(), &sizes, components, Form::CPU, &Stop::new()).unwrap();
        let entry = bundle.manifest.component(&expert).unwrap();
        let file = folder.path().join(&entry.weights[0].file);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), entry.weights[0].bytes.0);
        let shards = Shards::open(file.parent().unwrap(), Family::Denoiser).unwrap();
        let stored = shards.tensor("blocks.0.ffn.net.2.weight").unwrap();
        let values: Vec<f32> =
            stored.read().unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        assert!((0.8..1.2).contains(&(deviation / SPREAD)), "{deviation}");
        assert!(folder.path().join(&entry.graphs[0].file).is_file());
        let gain = shards.tensor("blocks.0.norm2.weight").unwrap();
        assert!(gain.read().unwrap().as_chunks().0.iter().all(|b| f32::from_le_bytes(*b) > 0.9));

        let narrow = tempfile::tempdir().unwrap();
        let form = Form { target: Target::Plain, weights: WeightType::Bf16 };
        let bundle = write(narrow.path(), &sizes, components, form, &Stop::new()).unwrap();
        let entry = bundle.manifest.component(&expert).unwrap();
        let variant = entry.graphs[0].variant;
        assert_eq!((variant.target, variant.precision), (Target::Plain, Precision::Bf16));
        let file = narrow.path().join(&entry.weights[0].file);
        assert_eq!(std::fs::metadata(&file).unwrap().len(), entry.weights[0].bytes.0);
        let shards = Shards::open(file.parent().unwrap(), Family::Denoiser).unwrap();
        let stored = shards.tensor("blocks.0.ffn.net.2.weight").unwrap().read().unwrap();
        let wide = values;
        let found = stored.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
        let largest = found.zip(&wide).map(|(found, wide)| (found - wide).abs()).fold(0.0, f32::max);
        assert!(stored.len() == 2 * wide.len() && largest < 2e-4, "{largest}");
    }
}
