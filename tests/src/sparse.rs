//! Checkpoints of true size that take little disk space: configs, headers and indexes are as published, and the data of
//! each file is a hole, with a marker at both ends of every tensor.

use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::manifest::Component;
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use export::checkpoint::inventory::{self, Required};
use export::{ExportReport, ExportRequest, export};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The name of the folder of the checkpoint, by which it is recognised.
const NAME: &str = "Wan2.2-T2V-A14B-Diffusers";
/// The largest shard, as published: 5 GB.
const SHARD: usize = 5_000_000_000;
/// Bytes of a marker.
const MARKER: usize = 16;

/// Returns true if files in a folder can have holes.
///
/// # Panics
/// Panics if the folder cannot be written.
pub fn has_holes(folder: &Path) -> bool {
    let file = tempfile::tempfile_in(folder).expect("a temporary file");
    file.set_len(1 << 30).expect("a file of 1 GB");
    file.metadata().expect("metadata").blocks() < 1 << 11
}

/// Returns the bytes at the beginning and at the end of a tensor of `length` bytes. As f32 and as bf16 they are finite.
pub fn marker(component: &Component, tensor: &str, length: usize) -> Vec<u8> {
    let digest = bundle::digest::Digest::of_parts([component.to_string().as_bytes(), tensor.as_bytes()]);
    digest.blake3.as_bytes()[..MARKER.min(length)].to_vec()
}

/// Exports [`write_a14b`] for the CPU, to `bundle` in the same folder.
///
/// # Panics
/// Panics if a file cannot be written or the export fails.
pub fn export_a14b(folder: &Path) -> ExportReport {
    let request = ExportRequest::new(&write_a14b(folder), &folder.join("bundle"));
    export(&request, &mut |_| ()).expect("an export")
}

/// Writes a checkpoint with the shapes, number formats and shards of Wan2.2-T2V-A14B into a new folder in `folder`, and
/// returns its path. The tokenizer is that of mini.
///
/// # Panics
/// Panics if a file cannot be written.
pub fn write_a14b(folder: &Path) -> PathBuf {
    let checkpoint = folder.join(NAME);
    let (text, denoiser, vae) = (umt5_xxl(), wan_denoiser(40, 40, 13824), wan21_vae());
    write_json(&checkpoint.join("model_index.json"), &model_index());
    write_json(&checkpoint.join("scheduler/scheduler_config.json"), &scheduler());
    fs::create_dir_all(checkpoint.join("tokenizer")).expect("a folder");
    let mini =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint/tokenizer/tokenizer.json");
    fs::copy(mini, checkpoint.join("tokenizer/tokenizer.json")).expect("a tokenizer");

    let part = checkpoint.join("text_encoder");
    write_json(&part.join("config.json"), &text_encoder_config(&text));
    write_weights(&part, "model", &Component::TextEncoder, &inventory::text_encoder(&text), Dtype::BF16);
    for (part, expert) in [("transformer", "high_noise"), ("transformer_2", "low_noise")] {
        let (part, weights) = (checkpoint.join(part), inventory::denoiser(&denoiser));
        write_json(&part.join("config.json"), &denoiser_config(&denoiser));
        let expert = Component::Expert(bundle::routing::ExpertName(expert.into()));
        write_weights(&part, "diffusion_pytorch_model", &expert, &weights, Dtype::F32);
    }
    let part = checkpoint.join("vae");
    write_json(&part.join("config.json"), &vae_config(&vae));
    write_weights(&part, "diffusion_pytorch_model", &Component::Decoder, &published_vae(), Dtype::F32);
    checkpoint
}

/// The tensors of the VAE, its encoder included.
fn published_vae() -> Vec<Required> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../export/src/checkpoint/wan21-vae-tensors.txt");
    let text = fs::read_to_string(path).expect("the list of tensors");
    let row = |line: &str| {
        let columns: Vec<&str> = line.split(' ').collect();
        let shape = columns[2].split(',').map(|extent| extent.parse().expect("an extent"));
        Required { name: columns[1].to_owned(), shape: shape.collect() }
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

/// Writes the weights of a component: one file, or shards that are filled in order, with an index.
fn write_weights(folder: &Path, stem: &str, component: &Component, weights: &[Required], dtype: Dtype) {
    let mut shards: Vec<Vec<&Required>> = vec![Vec::new()];
    let mut filled = 0;
    for weight in weights {
        let bytes = bytes_of(weight, dtype);
        if filled + bytes > SHARD {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("a shard").push(weight);
    }
    let count = shards.len();
    let mut map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match count {
            1 => format!("{stem}.safetensors"),
            _ => format!("{stem}-{:05}-of-{count:05}.safetensors", index + 1),
        };
        write_shard(&folder.join(&file), component, shard, dtype);
        map.extend(shard.iter().map(|weight| (weight.name.clone(), Value::from(file.clone()))));
    }
    if count > 1 {
        let total: usize = weights.iter().map(|weight| bytes_of(weight, dtype)).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&folder.join(format!("{stem}.safetensors.index.json")), &index);
    }
}

fn bytes_of(weight: &Required, dtype: Dtype) -> usize {
    weight.shape.iter().product::<usize>() * if dtype == Dtype::F32 { 4 } else { 2 }
}

/// Writes a safetensors file of markers and holes. Tensors are in the order of their names, as the library stores them.
fn write_shard(path: &Path, component: &Component, shard: &[&Required], dtype: Dtype) {
    let mut sorted = shard.to_vec();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut end = 0;
    let entries: Vec<(String, TensorInfo)> = sorted
        .iter()
        .map(|weight| {
            let begin = end;
            end += bytes_of(weight, dtype);
            let info = TensorInfo { dtype, shape: weight.shape.clone(), data_offsets: (begin, end) };
            (weight.name.clone(), info)
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
    for (name, TensorInfo { data_offsets: (begin, end), .. }) in entries {
        let marker = marker(component, &name, end - begin);
        for at in [begin, end - marker.len()] {
            file.write_all_at(&marker, (header.len() + at) as u64).expect("disk space");
        }
    }
}
