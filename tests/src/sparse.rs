//! Checkpoints of true size that take little disk space: configs, headers and indexes are as published, and the data of
//! each file is a hole, with a marker at both ends of every tensor.

use crate::official_layout;
use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::manifest::Component;
use bundle::routing::ExpertName;
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use export::ExportRequest;
use export::checkpoint::inventory::{self, Required};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use test_support::torch_file::{TorchFile, TorchTensor};

/// Bytes of a marker.
const MARKER: usize = 16;

/// The layout of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// That of diffusers: shards of 5 GB.
    Diffusers,
    /// That of the official code: shards of 10 GB, text encoder and VAE in PyTorch files.
    Official,
}

impl Layout {
    /// Both layouts.
    pub const ALL: [Self; 2] = [Self::Diffusers, Self::Official];

    /// The published name of the folder, by which the model is recognised.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "Wan2.2-T2V-A14B-Diffusers",
            Self::Official => "Wan2.2-T2V-A14B",
        }
    }

    /// Bytes of the largest shard.
    fn shard(self) -> usize {
        match self {
            Self::Diffusers => 5_000_000_000,
            Self::Official => 10_000_000_000,
        }
    }

    /// The number of weight files of a component.
    pub fn files(self, component: &Component) -> usize {
        match (component, self) {
            (Component::TextEncoder, Self::Diffusers) => 3,
            (Component::Expert(_), Self::Diffusers) => 12,
            (Component::Expert(_), Self::Official) => 6,
            _ => 1,
        }
    }
}

/// Returns true if files in a folder can have holes.
///
/// # Panics
/// Panics if the folder cannot be written.
pub fn has_holes(folder: &Path) -> bool {
    let file = tempfile::tempfile_in(folder).expect("a temporary file");
    file.set_len(1 << 30).expect("a file of 1 GB");
    file.metadata().expect("metadata").blocks() < 1 << 11
}

/// Returns the bytes at the beginning and at the end of a tensor of `length` bytes. As f32 and as bf16 they are small and
/// finite, so that a model of them computes.
pub fn marker(component: &Component, tensor: &str, length: usize) -> Vec<u8> {
    let digest = bundle::digest::Digest::of_parts([component.to_string().as_bytes(), tensor.as_bytes()]);
    let bytes = digest.blake3.bytes().take(MARKER.min(length)).enumerate();
    // Little-endian: the odd bytes are the upper halves of bf16 numbers, with the exponents.
    bytes.map(|(at, byte)| if at % 2 == 1 { byte & 0x83 | 0x38 } else { byte }).collect()
}

/// A request to export [`write_a14b`] for the CPU, to the folder `bundle` beside it.
///
/// # Panics
/// Panics if a file cannot be written.
pub fn request(folder: &Path, layout: Layout) -> ExportRequest {
    ExportRequest::new(&write_a14b(folder, layout), &folder.join("bundle"))
}

/// Writes a checkpoint with the shapes, number formats and files of Wan2.2-T2V-A14B into a new folder in `folder`, and
/// returns its path. The tokenizer is that of mini.
///
/// # Panics
/// Panics if a file cannot be written.
pub fn write_a14b(folder: &Path, layout: Layout) -> PathBuf {
    let checkpoint = folder.join(layout.name());
    match layout {
        Layout::Diffusers => write_diffusers(&checkpoint),
        Layout::Official => write_official(&checkpoint),
    }
    checkpoint
}

fn copy_tokenizer(folder: &Path) {
    fs::create_dir_all(folder).expect("a folder");
    let mini =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint/tokenizer/tokenizer.json");
    fs::copy(mini, folder.join("tokenizer.json")).expect("a tokenizer");
}

fn expert(name: &str) -> Component {
    Component::Expert(ExpertName(name.into()))
}

/// A weight with the name under which it is stored.
type Named = (String, Required);

/// Weights under their own names.
fn canonical(weights: Vec<Required>) -> Vec<Named> {
    weights.into_iter().map(|weight| (weight.name.clone(), weight)).collect()
}

/// Weights under other names.
fn renamed(weights: Vec<Required>, name: impl Fn(&str) -> String) -> Vec<Named> {
    weights.into_iter().map(|weight| (name(&weight.name), weight)).collect()
}

fn write_diffusers(checkpoint: &Path) {
    let layout = Layout::Diffusers;
    let (text, denoiser, vae) = (umt5_xxl(), wan_denoiser(40, 40, 13824), wan21_vae());
    write_json(&checkpoint.join("model_index.json"), &model_index());
    write_json(&checkpoint.join("scheduler/scheduler_config.json"), &scheduler());
    copy_tokenizer(&checkpoint.join("tokenizer"));
    let part = checkpoint.join("text_encoder");
    write_json(&part.join("config.json"), &text_encoder_config(&text));
    let weights = canonical(inventory::text_encoder(&text));
    write_weights(&part.join("model"), layout, &Component::TextEncoder, &weights, Dtype::BF16);
    for (part, name) in [("transformer", "high_noise"), ("transformer_2", "low_noise")] {
        let (part, weights) = (checkpoint.join(part), canonical(inventory::denoiser(&denoiser)));
        write_json(&part.join("config.json"), &denoiser_config(&denoiser));
        write_weights(&part.join("diffusion_pytorch_model"), layout, &expert(name), &weights, Dtype::F32);
    }
    let part = checkpoint.join("vae");
    write_json(&part.join("config.json"), &vae_config(&vae));
    let weights =
        published_vae().into_iter().map(|(_, weight)| (weight.name.clone(), weight)).collect::<Vec<_>>();
    write_weights(&part.join("diffusion_pytorch_model"), layout, &Component::Decoder, &weights, Dtype::F32);
}

fn write_official(checkpoint: &Path) {
    let experts = [("high_noise", "high_noise_model"), ("low_noise", "low_noise_model")];
    write_official_model(checkpoint, &umt5_xxl(), &wan_denoiser(40, 40, 13824), &experts);
}

/// Writes a checkpoint of one expert in the official layout, with the VAE of Wan2.1.
///
/// # Panics
/// Panics if a file cannot be written.
pub fn write_single(checkpoint: &Path, text: &TextEncoderSpec, denoiser: &DenoiserSpec) {
    write_official_model(checkpoint, text, denoiser, &[("only", ".")]);
}

fn write_official_model(
    checkpoint: &Path,
    text: &TextEncoderSpec,
    denoiser: &DenoiserSpec,
    experts: &[(&str, &str)],
) {
    copy_tokenizer(&checkpoint.join("google/umt5-xxl"));
    fs::write(checkpoint.join("google/umt5-xxl/spiece.model"), b"\x0a").expect("disk space");
    fs::write(checkpoint.join("configuration.json"), "{}").expect("disk space");
    let weights = renamed(inventory::text_encoder(text), official_layout::text_encoder_name);
    let path = checkpoint.join("models_t5_umt5-xxl-enc-bf16.pth");
    write_torch(&path, &Component::TextEncoder, &weights, Dtype::BF16);
    write_torch(&checkpoint.join("Wan2.1_VAE.pth"), &Component::Decoder, &published_vae(), Dtype::F32);
    for (name, part) in experts {
        let part = checkpoint.join(part);
        write_json(&part.join("config.json"), &official_layout::denoiser_config(denoiser));
        let weights = renamed(inventory::denoiser(denoiser), official_layout::denoiser_name);
        let stem = part.join("diffusion_pytorch_model");
        write_weights(&stem, Layout::Official, &expert(name), &weights, Dtype::F32);
    }
}

/// Writes a PyTorch file of markers and holes.
fn write_torch(path: &Path, component: &Component, weights: &[Named], dtype: Dtype) {
    let tensors: Vec<TorchTensor> = weights
        .iter()
        .map(|(name, weight)| TorchTensor {
            name: name.clone(),
            storage: if dtype == Dtype::F32 { "FloatStorage" } else { "BFloat16Storage" },
            element: if dtype == Dtype::F32 { 4 } else { 2 },
            shape: weight.shape.iter().map(|extent| *extent as u64).collect(),
        })
        .collect();
    let layout = TorchFile::new(path.file_stem().and_then(|stem| stem.to_str()).expect("a name"), &tensors);
    let file = layout.write(path).expect("disk space");
    for ((_, weight), offset) in weights.iter().zip(&layout.offsets) {
        write_markers(&file, component, &weight.name, *offset, bytes_of(weight, dtype));
    }
}

/// Writes the markers of a tensor of `length` bytes from `offset` on.
fn write_markers(file: &File, component: &Component, name: &str, offset: u64, length: usize) {
    let marker = marker(component, name, length);
    for at in [0, length - marker.len()] {
        file.write_all_at(&marker, offset + at as u64).expect("disk space");
    }
}

/// The tensors of the VAE, its encoder included, with their official names.
fn published_vae() -> Vec<Named> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../export/src/checkpoint/wan21-vae-tensors.txt");
    let text = fs::read_to_string(path).expect("the list of tensors");
    let row = |line: &str| {
        let columns: Vec<&str> = line.split(' ').collect();
        let shape = columns[2].split(',').map(|extent| extent.parse().expect("an extent"));
        (columns[0].to_owned(), Required { name: columns[1].to_owned(), shape: shape.collect() })
    };
    text.lines().map(row).collect()
}

fn write_json(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, value.to_string()).expect("disk space");
}

fn model_index() -> Value {
    let denoiser = json!(["diffusers", "WanTransformer3DModel"]);
    json!({
        "_class_name": "WanPipeline", "boundary_ratio": 0.875, "expand_timesteps": false,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": denoiser, "transformer_2": denoiser,
        "vae": ["diffusers", "AutoencoderKLWan"],
    })
}

fn scheduler() -> Value {
    json!({
        "_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": true,
        "prediction_type": "flow_prediction", "solver_order": 2,
    })
}

fn text_encoder_config(spec: &TextEncoderSpec) -> Value {
    json!({
        "model_type": "umt5", "feed_forward_proj": "gated-gelu", "vocab_size": spec.vocabulary,
        "d_model": spec.width, "num_heads": spec.heads, "d_kv": spec.head_width, "d_ff": spec.feed_forward,
        "num_layers": spec.layers, "relative_attention_num_buckets": spec.buckets,
        "relative_attention_max_distance": spec.max_distance, "layer_norm_epsilon": spec.epsilon,
    })
}

fn denoiser_config(spec: &DenoiserSpec) -> Value {
    json!({
        "_class_name": "WanTransformer3DModel", "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_width, "ffn_dim": spec.feed_forward, "num_layers": spec.layers,
        "in_channels": spec.in_channels, "out_channels": spec.out_channels, "text_dim": spec.text_width,
        "freq_dim": spec.frequency_width, "patch_size": [1, 2, 2], "cross_attn_norm": true,
        "qk_norm": "rms_norm_across_heads", "eps": spec.epsilon,
    })
}

fn vae_config(spec: &VaeSpec) -> Value {
    json!({
        "_class_name": "AutoencoderKLWan", "base_dim": spec.base, "z_dim": spec.latent_channels,
        "dim_mult": spec.multipliers, "num_res_blocks": spec.residual_blocks,
        "temperal_downsample": spec.temporal_downsample, "latents_mean": spec.latents_mean,
        "latents_std": spec.latents_std,
    })
}

/// Writes the weights of a component, `stem` being the beginning of their paths: one file, or shards that are filled in
/// order, with an index.
fn write_weights(stem: &Path, layout: Layout, component: &Component, weights: &[Named], dtype: Dtype) {
    let mut shards: Vec<Vec<&Named>> = vec![Vec::new()];
    let mut filled = 0;
    for weight in weights {
        let bytes = bytes_of(&weight.1, dtype);
        if filled + bytes > layout.shard() {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("a shard").push(weight);
    }
    let count = shards.len();
    let (folder, name) = (stem.parent().expect("a folder"), stem.file_name().and_then(|name| name.to_str()));
    let stem = name.expect("a name");
    let mut map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", index + 1),
        };
        write_shard(&folder.join(&file), component, shard, dtype);
        map.extend(shard.iter().map(|(name, _)| (name.clone(), Value::from(file.clone()))));
    }
    if count > 1 {
        let total: usize = weights.iter().map(|(_, weight)| bytes_of(weight, dtype)).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&folder.join(format!("{stem}.safetensors.index.json")), &index);
    }
}

fn bytes_of(weight: &Required, dtype: Dtype) -> usize {
    weight.shape.iter().product::<usize>() * if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Writes a safetensors file of markers and holes. Tensors are in the order of their names, as the library stores them.
fn write_shard(path: &Path, component: &Component, shard: &[&Named], dtype: Dtype) {
    let mut sorted = shard.to_vec();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut end = 0;
    let entries: Vec<(String, TensorInfo)> = sorted
        .iter()
        .map(|(name, weight)| {
            let begin = end;
            end += bytes_of(weight, dtype);
            let info = TensorInfo { dtype, shape: weight.shape.clone(), data_offsets: (begin, end) };
            (name.clone(), info)
        })
        .collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), entries.clone()).expect("metadata");
    let mut header = vec![0; 8];
    serde_json::to_writer(&mut header, &metadata).expect("a header");
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = header.len() as u64 - 8;
    header[..8].copy_from_slice(&length.to_le_bytes());
    let file = File::create(path).expect("a file");
    file.set_len((header.len() + end) as u64).expect("a large file");
    file.write_all_at(&header, 0).expect("disk space");
    for ((_, weight), (_, TensorInfo { data_offsets: (begin, end), .. })) in sorted.iter().zip(entries) {
        write_markers(&file, component, &weight.name, (header.len() + begin) as u64, end - begin);
    }
}
