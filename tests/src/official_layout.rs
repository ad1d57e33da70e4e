//! The layout of the official code: names of tensors and configs, and small checkpoints in it.

use bundle::spec::DenoiserSpec;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use test_support::torch_file::{TorchFile, TorchTensor};

/// Parts of names of a text encoder in transformers and in the official code.
const TEXT_ENCODER: [(&str, &str); 10] = [
    ("shared.weight", "token_embedding.weight"),
    ("encoder.final_layer_norm.weight", "norm.weight"),
    ("encoder.block.", "blocks."),
    (".layer.0.layer_norm.", ".norm1."),
    (".layer.0.SelfAttention.relative_attention_bias.", ".pos_embedding.embedding."),
    (".layer.0.SelfAttention.", ".attn."),
    (".layer.1.layer_norm.", ".norm2."),
    (".layer.1.DenseReluDense.wi_0.", ".ffn.gate.0."),
    (".layer.1.DenseReluDense.wi_1.", ".ffn.fc1."),
    (".layer.1.DenseReluDense.wo.", ".ffn.fc2."),
];

/// Parts of names of a denoiser in diffusers and in the official code.
const DENOISER: [(&str, &str); 17] = [
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("proj_out.", "head.head."),
    (".scale_shift_table", ".modulation"),
    ("scale_shift_table", "head.modulation"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    (".norm2.", ".norm3."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
];

fn replaced(name: &str, table: &[(&str, &str)]) -> String {
    table.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The official name of a weight of a text encoder.
pub fn text_encoder_name(canonical: &str) -> String {
    replaced(canonical, &TEXT_ENCODER)
}

/// The official name of a weight of an expert.
pub fn denoiser_name(canonical: &str) -> String {
    replaced(canonical, &DENOISER)
}

/// The config of an expert, with the keys that the official code writes.
pub fn denoiser_config(spec: &DenoiserSpec) -> Value {
    json!({
        "_class_name": "WanModel", "_diffusers_version": "0.33.0", "model_type": "t2v", "dim": spec.width(),
        "ffn_dim": spec.feed_forward, "freq_dim": spec.frequency_width, "in_dim": spec.in_channels,
        "out_dim": spec.out_channels, "num_heads": spec.heads, "num_layers": spec.layers, "text_len": 512,
        "eps": spec.epsilon,
    })
}

/// Writes a checkpoint of diffusers to the folder `to` in the official layout. Its experts and its VAE must have official
/// names; its VAE has the statistics of latents of Wan2.1 afterwards. A single expert is at the top of the folder.
///
/// # Panics
/// Panics if a file cannot be read or written.
pub fn convert(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("google/umt5-xxl")).expect("a folder");
    let tokenizer = "tokenizer.json";
    fs::copy(from.join("tokenizer").join(tokenizer), to.join("google/umt5-xxl").join(tokenizer))
        .expect("a tokenizer");
    let is_pair = from.join("transformer_2").exists();
    let experts: &[(&str, &str)] = match is_pair {
        true => &[("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")],
        false => &[("transformer", ".")],
    };
    for (part, folder) in experts {
        let (part, folder) = (from.join(part), to.join(folder));
        fs::create_dir_all(&folder).expect("a folder");
        let weights = "diffusion_pytorch_model.safetensors";
        fs::copy(part.join(weights), folder.join(weights)).expect("weights");
        let config = fs::read(part.join("config.json")).expect("a config");
        let config: Value = serde_json::from_slice(&config).expect("a config");
        let width = config["num_attention_heads"].as_u64().zip(config["attention_head_dim"].as_u64());
        let official = json!({
            "_class_name": "WanModel", "model_type": "t2v", "dim": width.map(|(heads, head)| heads * head),
            "ffn_dim": config["ffn_dim"], "freq_dim": config["freq_dim"], "in_dim": config["in_channels"],
            "out_dim": config["out_channels"], "num_heads": config["num_attention_heads"],
            "num_layers": config["num_layers"], "text_len": 512, "eps": config["eps"],
        });
        fs::write(folder.join("config.json"), official.to_string()).expect("a config");
    }
    let text = to.join("models_t5_umt5-xxl-enc-bf16.pth");
    write_torch(&from.join("text_encoder/model.safetensors"), &text, text_encoder_name);
    let vae = from.join("vae/diffusion_pytorch_model.safetensors");
    write_torch(&vae, &to.join("Wan2.1_VAE.pth"), str::to_owned);
}

/// Writes the tensors of a safetensors file to a PyTorch file, under other names.
///
/// # Panics
/// Panics if a file cannot be read or written.
pub fn write_torch(from: &Path, to: &Path, name: impl Fn(&str) -> String) {
    let bytes = fs::read(from).expect("weights");
    let stored = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (tensors, values): (Vec<_>, Vec<_>) = stored
        .iter()
        .map(|(stored, view)| {
            let (storage, element) = match view.dtype() {
                Dtype::F32 => ("FloatStorage", 4),
                Dtype::BF16 => ("BFloat16Storage", 2),
                Dtype::F16 => ("HalfStorage", 2),
                other => panic!("{stored} is stored as {other:?}"),
            };
            let shape = view.shape().iter().map(|extent| *extent as u64).collect();
            (TorchTensor { name: name(stored), storage, element, shape }, view.data())
        })
        .unzip();
    let folder = to.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    fs::write(to, TorchFile::new(folder, &tensors).to_bytes(&values)).expect("disk space");
}
