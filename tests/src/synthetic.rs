//! Bundles of any shape with random weights, for tests that depend only on shapes, and for errors of single steps.

use bundle::catalog::{wan_denoiser, wan21_vae};
use bundle::digest::Digest;
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::{Bundle, Component, ComponentEntry, GraphEntry, Manifest, Part, WeightFile};
use bundle::routing::{ExpertName, Routing};
use bundle::spec::{DenoiserSpec, VaeSpec};
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Variant};
use export::checkpoint::inventory::{self, Required};
use export::model::{Chunk, GraphWeights, decoder_graph, step_graph};
use export::weights::{ExternalTensor, PlacedWeights};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use test_support::Random;

/// The file of weights below the folder of a component.
const WEIGHTS: &str = "weights/f32.safetensors";

/// The values of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// Zeros, which take no disk space.
    Zeros,
    /// Random values that keep activations in range; one channel in 96 of every norm is ten times as large.
    Outliers,
}

/// The denoiser of Wan2.1-T2V-1.3B with fewer layers.
pub fn denoiser(layers: usize) -> DenoiserSpec {
    wan_denoiser(12, layers, 8960)
}

/// The VAE of Wan2.1.
pub fn vae() -> VaeSpec {
    wan21_vae()
}

/// Writes a bundle with one component to `folder`, with the other settings of `template`.
///
/// # Panics
/// Panics if a file cannot be written, or if no graph can be built for the spec.
pub fn bundle(
    folder: &Path,
    template: &Manifest,
    component: &Component,
    (denoiser, vae): (DenoiserSpec, VaeSpec),
    values: Values,
) -> Bundle {
    let required = match component {
        Component::Decoder => inventory::decoder(&vae),
        _ => inventory::denoiser(&denoiser),
    };
    let component_folder = bundle::layout::component_folder(component);
    let file = format!("{component_folder}/{WEIGHTS}");
    let component_path = folder.join(&component_folder);
    let mut random = Random::new(0x9E37_79B9_7F4A_7C15);
    let mut value = |weight: &Required, index| outlier(weight, index, &mut random);
    let (placed, bytes) = match values {
        Values::Zeros => write_weights(&component_path, &required, None),
        Values::Outliers => write_weights(&component_path, &required, Some(&mut value)),
    };
    let weights = GraphWeights::new(&placed);
    let models = match component {
        Component::Decoder => [(Part::First, Chunk::First), (Part::Next, Chunk::Next)]
            .map(|(part, chunk)| (part, decoder_graph(&vae, chunk, weights).expect("a graph")))
            .into(),
        _ => vec![(Part::Whole, step_graph(&denoiser, weights).expect("a graph"))],
    };
    let digest = Digest::of_parts([component_folder.as_bytes()]);
    let graphs = models
        .into_iter()
        .map(|(part, model)| {
            let variant = Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime);
            let file = bundle::layout::graph_file(component, part, variant, &digest);
            model.write(&folder.join(&file)).expect("a file");
            GraphEntry { part, variant, file, batch_invariant: None }
        })
        .collect();
    let entry = ComponentEntry {
        component: component.clone(),
        graphs,
        weights: vec![WeightFile { file, bytes: ByteCount(bytes) }],
        weight_type: WeightType::F32,
        digest,
        variants: Vec::new(),
        loras: Vec::new(),
    };
    let mut manifest = Manifest {
        denoiser,
        vae,
        tiny_decoder: None,
        routing: Routing::single(),
        components: vec![entry],
        digests: BTreeMap::new(),
        ..template.clone()
    };
    manifest.defaults.guidance.value.truncate(1);
    std::fs::write(folder.join("tokenizer.json"), "{}").expect("a file");
    bundle::manifest::write(folder, &manifest).expect("a file");
    Bundle::open(folder).expect("a bundle")
}

/// The component of a model with one expert.
pub fn expert() -> Component {
    Component::Expert(ExpertName("only".into()))
}

/// Returns number `index` of a weight.
pub type Value<'a> = &'a mut dyn FnMut(&Required, usize) -> f32;

/// Writes `weights/f32.safetensors` below `folder` and returns where each weight is, and the length of the file. `value`
/// is called for every number of every weight, in order; without it all are zeros, which take no disk space.
///
/// # Panics
/// Panics if the file cannot be written.
pub fn write_weights(folder: &Path, required: &[Required], value: Option<Value<'_>>) -> (PlacedWeights, u64) {
    std::fs::create_dir_all(folder.join("weights")).expect("a folder");
    let mut end = 0;
    let entries: Vec<_> = required
        .iter()
        .map(|weight| {
            let begin = end;
            end += 4 * weight.shape.iter().product::<usize>();
            let info =
                TensorInfo { dtype: Dtype::F32, shape: weight.shape.clone(), data_offsets: (begin, end) };
            (weight.name.clone(), info)
        })
        .collect();
    let metadata = Metadata::new(None, entries.clone()).expect("metadata");
    let mut header = vec![0; 8];
    serde_json::to_writer(&mut header, &metadata).expect("a header");
    header.resize(header.len().next_multiple_of(64), b' ');
    let length = header.len() as u64 - 8;
    header[..8].copy_from_slice(&length.to_le_bytes());
    let mut file = BufWriter::new(File::create(folder.join(WEIGHTS)).expect("a file"));
    file.write_all(&header).expect("disk space");
    if let Some(value) = value {
        for weight in required {
            for index in 0..weight.shape.iter().product() {
                file.write_all(&value(weight, index).to_le_bytes()).expect("disk space");
            }
        }
    }
    let bytes = (header.len() + end) as u64;
    file.flush().expect("disk space");
    file.get_ref().set_len(bytes).expect("disk space");
    let tensor = |info: TensorInfo| ExternalTensor {
        location: WEIGHTS.into(),
        offset: (header.len() + info.data_offsets.0) as u64,
        length: (info.data_offsets.1 - info.data_offsets.0) as u64,
        element: ElementType::F32,
        shape: info.shape,
    };
    let tensors = entries.into_iter().map(|(name, info)| (name, tensor(info))).collect();
    (PlacedWeights { tensors, files: Vec::new(), from: folder.to_owned() }, bytes)
}

/// Number `index` of a weight of [`Values::Outliers`].
fn outlier(weight: &Required, index: usize, random: &mut Random) -> f32 {
    let name = &weight.name;
    let count = weight.shape.iter().product::<usize>();
    let inputs = count / weight.shape[0].max(1);
    let is_gain = name.contains("norm") && !name.ends_with("bias") || name.ends_with("gamma");
    let is_vector = weight.shape.len() < 2 || name.ends_with("bias");
    let spread = match () {
        () if is_gain || is_vector => 0.05,
        () if name.ends_with("scale_shift_table") => 0.2,
        () => 1.0 / (inputs as f32).sqrt(),
    };
    let width = *weight.shape.last().unwrap_or(&1);
    // Rows 1 and 4 of a table scale the output of a norm.
    let scales = name == "norm2.weight"
        || name.ends_with("norm2.weight")
        || name.contains("blocks.") && name.ends_with("table") && [1, 4].contains(&(index / width % 6));
    let raised = if scales && index % 96 == 17 { 9.0 } else { 0.0 };
    spread * random.next_normal() + if is_gain { 1.0 } else { 0.0 } + raised
}
