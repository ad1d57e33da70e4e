//! Small checkpoints for tests, in the layout of published ones.

use super::inventory::{self, Required};
use super::{Checkpoint, config};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::Path;

/// Returns the bytes of f32 values.
pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes a safetensors file of f32 tensors.
pub(crate) fn write_shard(path: &Path, tensors: &[(&str, &[usize], &[u8])]) {
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes a component's config and its weights: each element is one hundredth of its position in its tensor.
fn write_component(folder: &Path, config: &Value, required: &[Required]) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let data: Vec<Vec<u8>> = required
        .iter()
        .map(|tensor| {
            let elements = u16::try_from(tensor.shape.iter().product::<usize>()).unwrap();
            bytes_of(&(0..elements).map(|i| f32::from(i) / 100.0).collect::<Vec<_>>())
        })
        .collect();
    let tensors: Vec<(&str, &[usize], &[u8])> = required
        .iter()
        .zip(&data)
        .map(|(tensor, data)| (tensor.name.as_str(), tensor.shape.as_slice(), data.as_slice()))
        .collect();
    write_shard(&folder.join("diffusion_pytorch_model.safetensors"), &tensors);
}

/// Writes a complete two-expert checkpoint of tiny models.
pub(crate) fn write_checkpoint(folder: &Path) {
    let text =
        json!({ "vocab_size": 30, "d_model": 8, "num_heads": 2, "d_kv": 4, "d_ff": 12, "num_layers": 1 });
    let denoiser = json!({
        "num_attention_heads": 2, "attention_head_dim": 6, "in_channels": 4, "out_channels": 4, "text_dim": 8,
        "freq_dim": 16, "ffn_dim": 20, "num_layers": 2,
    });
    let vae = json!({
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [true],
        "latents_mean": [0.0, 0.0, 0.0, 0.0], "latents_std": [1.0, 1.0, 1.0, 1.0],
    });
    let path = Path::new("config.json");
    let spec: config::TextEncoderConfig = serde_json::from_value(text.clone()).unwrap();
    write_component(&folder.join("text_encoder"), &text, &inventory::text_encoder(&spec.spec(path).unwrap()));
    let spec: config::DenoiserConfig = serde_json::from_value(denoiser.clone()).unwrap();
    let required = inventory::denoiser(&spec.spec(path).unwrap());
    write_component(&folder.join("transformer"), &denoiser, &required);
    write_component(&folder.join("transformer_2"), &denoiser, &required);
    let spec: config::VaeConfig = serde_json::from_value(vae.clone()).unwrap();
    write_component(&folder.join("vae"), &vae, &inventory::decoder(&spec.spec(path).unwrap()));

    let write = |file: &str, value: Value| {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    };
    let class = |name: &str| json!(["diffusers", name]);
    write(
        "model_index.json",
        json!({
            "_class_name": "WanPipeline", "boundary_ratio": 0.9, "expand_timesteps": false,
            "transformer": class("WanTransformer3DModel"), "transformer_2": class("WanTransformer3DModel"),
        }),
    );
    write(
        "scheduler/scheduler_config.json",
        json!({
            "_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true, "flow_shift": 3.0,
            "prediction_type": "flow_prediction",
        }),
    );
    write("tokenizer/tokenizer.json", tokenizer());
    write("rushes.json", json!({ "size": "64x48", "steps": 4 }));
}

/// Returns a `tokenizer.json` of six tokens.
pub(crate) fn tokenizer() -> Value {
    let pieces = ["<pad>", "</s>", "<s>", "<unk>", "▁", "▁cat"].map(|piece| json!([piece, -1.0]));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false },
    })
}

/// Writes and opens a complete two-expert checkpoint of tiny models.
pub(crate) fn checkpoint() -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}
