//! The config files of a diffusers-layout checkpoint, as they are stored, and the specs that follow from them.
//!
//! A key that is absent has the value that diffusers gives it. Settings that the graphs do not have are refused by
//! name. Keys without influence on the result are not read.

use crate::Error;
use bundle::geometry::Patch;
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// The most layers, levels or residual blocks that a config may ask for.
const MAX_LAYERS: usize = 1000;
/// The largest width, number of heads or number of rows that a config may ask for.
const MAX_EXTENT: usize = 1 << 24;

/// Reads a JSON file of the checkpoint.
///
/// # Errors
/// A file that cannot be read, or does not hold what it should.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read(path).map_err(Error::file("read", path))?;
    serde_json::from_slice(&quote_non_finite(&text)).map_err(|error| Error::config(path, error.to_string()))
}

/// Puts quotes around `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON does not know. A key that is not
/// read may then hold one (`lambda_min_clipped` of schedulers does), and one that is read as a number is refused.
fn quote_non_finite(text: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut in_string = false;
    while let Some(byte) = rest.first() {
        let word: Option<&[u8]> = [&b"-Infinity"[..], b"Infinity", b"NaN"]
            .into_iter()
            .find(|word| !in_string && rest.starts_with(word));
        let length = match word {
            Some(word) => word.len(),
            None if in_string && *byte == b'\\' => 2.min(rest.len()),
            None => 1,
        };
        let (token, after) = rest.split_at(length);
        if word.is_some() {
            quoted.extend([b"\"", token, b"\""].concat());
        } else {
            quoted.extend(token);
        }
        in_string ^= *byte == b'"';
        rest = after;
    }
    quoted
}

/// `model_index.json`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelIndex {
    #[serde(rename = "_class_name")]
    class: Option<String>,
    boundary_ratio: Option<f64>,
    expand_timesteps: Option<bool>,
    /// Library and class; both null, or absent, when there is one expert.
    transformer_2: Option<Vec<Option<String>>>,
}

impl ModelIndex {
    /// The timestep from which upwards the first of two experts is used; none when there is one expert.
    pub(super) fn boundary(&self, path: &Path) -> Result<Option<f64>, Error> {
        let class = self.class.as_deref().unwrap_or("WanPipeline");
        if class != "WanPipeline" {
            return Err(Error::unsupported(
                path,
                format!("_class_name = {class}"),
                "only text-to-video pipelines (WanPipeline) are supported",
            ));
        }
        if self.expand_timesteps == Some(true) {
            return Err(Error::unsupported(
                path,
                "expand_timesteps = true",
                "one timestep for all tokens is supported; TI2V-5B needs one per token",
            ));
        }
        let two_experts = self.transformer_2.iter().flatten().any(Option::is_some);
        match (two_experts, self.boundary_ratio) {
            (false, None) => Ok(None),
            (true, Some(ratio)) if ratio > 0.0 && ratio <= 1.0 => Ok(Some(1000.0 * ratio)),
            (true, Some(ratio)) => Err(Error::config(
                path,
                format!("boundary_ratio is {ratio} and must be above 0 and at most 1"),
            )),
            (true, None) => Err(Error::config(path, "there are two experts and no boundary_ratio")),
            (false, Some(ratio)) => {
                Err(Error::config(path, format!("boundary_ratio is {ratio} and there is no transformer_2")))
            }
        }
    }
}

/// `text_encoder/config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct TextEncoderConfig {
    vocab_size: usize,
    d_model: usize,
    num_heads: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    relative_attention_num_buckets: Option<usize>,
    relative_attention_max_distance: Option<usize>,
    layer_norm_epsilon: Option<f64>,
    feed_forward_proj: Option<String>,
    model_type: Option<String>,
}

impl TextEncoderConfig {
    pub(super) fn spec(self, path: &Path) -> Result<TextEncoderSpec, Error> {
        let model = self.model_type.as_deref().unwrap_or("umt5");
        if model != "umt5" {
            let why = "only umT5, with a position table in every layer, is supported";
            return Err(Error::unsupported(path, format!("model_type = {model}"), why));
        }
        let activation = self.feed_forward_proj.as_deref().unwrap_or("gated-gelu");
        if activation != "gated-gelu" {
            let why = "only gated-gelu is supported";
            return Err(Error::unsupported(path, format!("feed_forward_proj = {activation}"), why));
        }
        let spec = TextEncoderSpec {
            vocabulary: extent(path, "vocab_size", self.vocab_size)?,
            width: extent(path, "d_model", self.d_model)?,
            heads: extent(path, "num_heads", self.num_heads)?,
            head_width: extent(path, "d_kv", self.d_kv)?,
            feed_forward: extent(path, "d_ff", self.d_ff)?,
            layers: layers(path, "num_layers", self.num_layers)?,
            buckets: extent(
                path,
                "relative_attention_num_buckets",
                self.relative_attention_num_buckets.unwrap_or(32),
            )?,
            max_distance: extent(
                path,
                "relative_attention_max_distance",
                self.relative_attention_max_distance.unwrap_or(128),
            )?,
            epsilon: epsilon(path, "layer_norm_epsilon", self.layer_norm_epsilon)?,
        };
        // A quarter of the buckets holds single distances, the next quarter distances up to the largest.
        if !spec.buckets.is_multiple_of(4) || spec.max_distance <= spec.buckets / 4 {
            let why = format!(
                "{} buckets for distances up to {} cannot be laid out",
                spec.buckets, spec.max_distance
            );
            return Err(Error::config(path, why));
        }
        Ok(spec)
    }
}

/// `transformer/config.json`, with the keys of diffusers or of the official code.
#[derive(Debug, Deserialize)]
pub(super) struct DenoiserConfig {
    patch_size: Option<[usize; 3]>,
    #[serde(alias = "num_heads")]
    num_attention_heads: Option<usize>,
    attention_head_dim: Option<usize>,
    /// Official: heads × head width.
    dim: Option<usize>,
    #[serde(alias = "in_dim")]
    in_channels: Option<usize>,
    #[serde(alias = "out_dim")]
    out_channels: Option<usize>,
    text_dim: Option<usize>,
    freq_dim: Option<usize>,
    ffn_dim: Option<usize>,
    num_layers: Option<usize>,
    cross_attn_norm: Option<bool>,
    /// Absent is not the same as null, which means no normalisation.
    #[serde(default = "default_qk_norm")]
    qk_norm: Option<String>,
    eps: Option<f64>,
    image_dim: Option<usize>,
    added_kv_proj_dim: Option<usize>,
    pos_embed_seq_len: Option<usize>,
}

const QK_NORM: &str = "rms_norm_across_heads";

fn default_qk_norm() -> Option<String> {
    Some(QK_NORM.into())
}

impl DenoiserConfig {
    pub(super) fn spec(self, path: &Path) -> Result<DenoiserSpec, Error> {
        self.check_supported(path)?;
        let heads = extent(path, "num_attention_heads", self.num_attention_heads.unwrap_or(40))?;
        let head_width = match (self.attention_head_dim, self.dim) {
            (Some(width), _) => width,
            (None, Some(dim)) if dim % heads == 0 => dim / heads,
            (None, Some(dim)) => {
                return Err(Error::config(path, format!("dim is {dim}, which {heads} heads do not divide")));
            }
            (None, None) => 128,
        };
        if head_width % 2 != 0 {
            let why = "rotary embedding turns pairs, so the width of a head must be even";
            return Err(Error::unsupported(path, format!("attention_head_dim = {head_width}"), why));
        }
        let frequency_width = extent(path, "freq_dim", self.freq_dim.unwrap_or(256))?;
        if frequency_width % 2 != 0 {
            let why = "the time embedding is half cosines and half sines, so its width must be even";
            return Err(Error::unsupported(path, format!("freq_dim = {frequency_width}"), why));
        }
        let [time, height, width] = self.patch_size.unwrap_or([1, 2, 2]);
        if time != 1 {
            let why = "a token covers one latent frame";
            return Err(Error::unsupported(path, format!("patch_size = [{time}, {height}, {width}]"), why));
        }
        let in_channels = extent(path, "in_channels", self.in_channels.unwrap_or(16))?;
        Ok(DenoiserSpec {
            heads,
            head_width: extent(path, "attention_head_dim", head_width)?,
            layers: layers(path, "num_layers", self.num_layers.unwrap_or(40))?,
            feed_forward: extent(path, "ffn_dim", self.ffn_dim.unwrap_or(13824))?,
            in_channels,
            out_channels: extent(path, "out_channels", self.out_channels.unwrap_or(in_channels))?,
            patch: Patch {
                time,
                height: layers(path, "patch_size", height)?,
                width: layers(path, "patch_size", width)?,
            },
            text_width: extent(path, "text_dim", self.text_dim.unwrap_or(4096))?,
            frequency_width,
            epsilon: epsilon(path, "eps", self.eps)?,
        })
    }

    fn check_supported(&self, path: &Path) -> Result<(), Error> {
        if self.qk_norm.as_deref() != Some(QK_NORM) {
            let found = self.qk_norm.as_deref().unwrap_or("null");
            let why = format!("queries and keys are normalised with {QK_NORM}");
            return Err(Error::unsupported(path, format!("qk_norm = {found}"), why));
        }
        if self.cross_attn_norm == Some(false) {
            let why = "cross attention has a normalisation of its own";
            return Err(Error::unsupported(path, "cross_attn_norm = false", why));
        }
        for (key, value) in [
            ("image_dim", self.image_dim),
            ("added_kv_proj_dim", self.added_kv_proj_dim),
            ("pos_embed_seq_len", self.pos_embed_seq_len),
        ] {
            if let Some(value) = value {
                let why = "denoisers that attend to an image (Wan2.1 I2V) are not supported";
                return Err(Error::unsupported(path, format!("{key} = {value}"), why));
            }
        }
        Ok(())
    }
}

/// `vae/config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct VaeConfig {
    base_dim: Option<usize>,
    decoder_base_dim: Option<usize>,
    z_dim: Option<usize>,
    dim_mult: Option<Vec<usize>>,
    num_res_blocks: Option<usize>,
    attn_scales: Option<Vec<f64>>,
    /// Spelled like this in every published file.
    temperal_downsample: Option<Vec<bool>>,
    latents_mean: Option<Vec<f32>>,
    latents_std: Option<Vec<f32>>,
    is_residual: Option<bool>,
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    patch_size: Option<usize>,
    scale_factor_temporal: Option<usize>,
    scale_factor_spatial: Option<usize>,
}

/// Latent statistics of the Wan2.1 VAE, which configs may leave out.
const WAN21_MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
    -0.1922, -0.9497, 0.2503, -0.2921,
];
const WAN21_DEVIATION: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
    1.1253, 2.8251, 1.9160,
];

impl VaeConfig {
    pub(super) fn spec(self, path: &Path) -> Result<VaeSpec, Error> {
        self.check_supported(path)?;
        let base = self.decoder_base_dim.or(self.base_dim).unwrap_or(96);
        let spec = VaeSpec {
            base: extent(path, "base_dim", base)?,
            latent_channels: extent(path, "z_dim", self.z_dim.unwrap_or(16))?,
            multipliers: self.dim_mult.unwrap_or_else(|| vec![1, 2, 4, 4]),
            residual_blocks: layers(path, "num_res_blocks", self.num_res_blocks.unwrap_or(2))?,
            temporal_downsample: self.temperal_downsample.unwrap_or_else(|| vec![false, true, true]),
            latents_mean: self.latents_mean.unwrap_or_else(|| WAN21_MEAN.to_vec()),
            latents_std: self.latents_std.unwrap_or_else(|| WAN21_DEVIATION.to_vec()),
        };
        let (levels, halvings) = (spec.multipliers.len(), spec.temporal_downsample.len());
        if levels != halvings + 1 || levels > 8 {
            let why = format!(
                "dim_mult has {levels} levels and temperal_downsample {halvings} steps; \
                 there must be one step fewer than levels, and at most 8 levels"
            );
            return Err(Error::config(path, why));
        }
        for multiplier in &spec.multipliers {
            layers(path, "dim_mult", *multiplier)?;
        }
        let channels = spec.latent_channels;
        for (key, values) in [("latents_mean", &spec.latents_mean), ("latents_std", &spec.latents_std)] {
            if values.len() != channels || values.iter().any(|value| !value.is_finite()) {
                let why = format!("{key} must hold {channels} finite numbers and holds {}", values.len());
                return Err(Error::config(path, why));
            }
        }
        if spec.latents_std.iter().any(|deviation| *deviation <= 0.0) {
            return Err(Error::config(path, "latents_std must be above 0 everywhere"));
        }
        let stride = spec.stride();
        for (key, given, derived) in [
            ("scale_factor_temporal", self.scale_factor_temporal, stride.time),
            ("scale_factor_spatial", self.scale_factor_spatial, stride.space),
        ] {
            if let Some(given) = given.filter(|given| *given != derived) {
                let why = format!("{key} is {given} and the levels scale by {derived}");
                return Err(Error::config(path, why));
            }
        }
        Ok(spec)
    }

    fn check_supported(&self, path: &Path) -> Result<(), Error> {
        if self.is_residual == Some(true) {
            let why = "the Wan2.1 VAE is supported; TI2V-5B has another one";
            return Err(Error::unsupported(path, "is_residual = true", why));
        }
        if let Some(patch) = self.patch_size {
            let why = "the VAE works on single pixels";
            return Err(Error::unsupported(path, format!("patch_size = {patch}"), why));
        }
        if let Some(scales) = self.attn_scales.as_ref().filter(|scales| !scales.is_empty()) {
            let why = "attention is supported in the middle of the VAE only";
            return Err(Error::unsupported(path, format!("attn_scales = {scales:?}"), why));
        }
        for (key, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if let Some(channels) = channels.filter(|channels| *channels != 3) {
                let why = "pictures have three channels";
                return Err(Error::unsupported(path, format!("{key} = {channels}"), why));
            }
        }
        Ok(())
    }
}

fn within(path: &Path, key: &str, value: usize, most: usize) -> Result<usize, Error> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(Error::config(path, format!("{key} is {value} and must be 1 to {most}")))
    }
}

fn extent(path: &Path, key: &str, value: usize) -> Result<usize, Error> {
    within(path, key, value, MAX_EXTENT)
}

fn layers(path: &Path, key: &str, value: usize) -> Result<usize, Error> {
    within(path, key, value, MAX_LAYERS)
}

fn epsilon(path: &Path, key: &str, value: Option<f64>) -> Result<f64, Error> {
    let value = value.unwrap_or(1e-6);
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(Error::config(path, format!("{key} is {value} and must be a finite number above 0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn from<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn path() -> &'static Path {
        Path::new("config.json")
    }

    fn text(extra: Value) -> Result<TextEncoderSpec, Error> {
        let mut config = json!({ "vocab_size": 384, "d_model": 24, "num_heads": 3, "d_kv": 8, "d_ff": 32, "num_layers": 3 });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        from::<TextEncoderConfig>(config).spec(path())
    }

    fn denoiser(config: Value) -> Result<DenoiserSpec, Error> {
        from::<DenoiserConfig>(config).spec(path())
    }

    fn vae(config: Value) -> Result<VaeSpec, Error> {
        from::<VaeConfig>(config).spec(path())
    }

    #[test]
    fn numbers_that_only_python_writes_are_quoted_outside_of_strings() {
        let text = br#"{"a": -Infinity, "b": [NaN, Infinity], "c \"NaN": "-Infinity \\", "d": NaN}"#;
        let expected =
            br#"{"a": "-Infinity", "b": ["NaN", "Infinity"], "c \"NaN": "-Infinity \\", "d": "NaN"}"#;
        assert_eq!(quote_non_finite(text), expected);
        assert!(serde_json::from_slice::<Value>(&quote_non_finite(text)).is_ok());
    }

    #[test]
    fn absent_keys_have_the_values_of_diffusers() {
        let spec = denoiser(json!({})).unwrap();
        assert_eq!((spec.width(), spec.layers, spec.feed_forward), (5120, 40, 13824));
        assert_eq!((spec.in_channels, spec.out_channels, spec.text_width), (16, 16, 4096));
        let spec = vae(json!({})).unwrap();
        assert_eq!((spec.base, spec.latent_channels, spec.residual_blocks), (96, 16, 2));
        let spec = text(json!({})).unwrap();
        assert_eq!((spec.buckets, spec.max_distance, spec.epsilon), (32, 128, 1e-6));
    }

    #[test]
    fn the_official_keys_of_the_denoiser_are_understood() {
        let spec = denoiser(json!({
            "_class_name": "WanModel", "model_type": "t2v", "dim": 1536, "num_heads": 12, "in_dim": 16,
            "out_dim": 16, "ffn_dim": 8960, "num_layers": 30, "text_len": 512,
        }))
        .unwrap();
        assert_eq!((spec.heads, spec.head_width, spec.layers), (12, 128, 30));
        assert!(denoiser(json!({ "dim": 100, "num_heads": 12 })).is_err());
    }

    #[test]
    fn settings_without_a_graph_are_refused_by_name() {
        for (config, setting) in [
            (json!({ "qk_norm": null }), "qk_norm = null"),
            (json!({ "qk_norm": "layer_norm" }), "qk_norm = layer_norm"),
            (json!({ "cross_attn_norm": false }), "cross_attn_norm = false"),
            (json!({ "image_dim": 1280 }), "image_dim = 1280"),
            (json!({ "added_kv_proj_dim": 64 }), "added_kv_proj_dim = 64"),
            (json!({ "patch_size": [2, 2, 2] }), "patch_size = [2, 2, 2]"),
            (json!({ "attention_head_dim": 7 }), "attention_head_dim = 7"),
            (json!({ "freq_dim": 255 }), "freq_dim = 255"),
        ] {
            let error = denoiser(config).unwrap_err();
            assert!(
                matches!(&error, Error::Unsupported { setting: found, .. } if found == setting),
                "{error}"
            );
        }
        for (config, setting) in [
            (json!({ "is_residual": true }), "is_residual = true"),
            (json!({ "patch_size": 2 }), "patch_size = 2"),
            (json!({ "attn_scales": [0.5] }), "attn_scales = [0.5]"),
            (json!({ "out_channels": 12 }), "out_channels = 12"),
        ] {
            let error = vae(config).unwrap_err();
            assert!(
                matches!(&error, Error::Unsupported { setting: found, .. } if found == setting),
                "{error}"
            );
        }
        assert!(matches!(text(json!({ "model_type": "t5" })), Err(Error::Unsupported { .. })));
        assert!(matches!(text(json!({ "feed_forward_proj": "relu" })), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for config in [
            json!({ "num_layers": 0 }),
            json!({ "num_layers": 1_000_000_000_000_u64 }),
            json!({ "num_attention_heads": 0 }),
            json!({ "ffn_dim": 1_u64 << 40 }),
            json!({ "eps": -1.0 }),
        ] {
            assert!(matches!(denoiser(config.clone()), Err(Error::Config { .. })), "{config}");
        }
        for config in [
            json!({ "dim_mult": [] }),
            json!({ "dim_mult": [1, 2] }),
            json!({ "dim_mult": [1, 2, 0, 4] }),
            json!({ "z_dim": 8 }),
            json!({ "z_dim": 1, "latents_mean": [0.0], "latents_std": [0.0] }),
            json!({ "scale_factor_spatial": 16 }),
            json!({ "temperal_downsample": vec![true; 70], "dim_mult": vec![1; 71] }),
        ] {
            assert!(matches!(vae(config.clone()), Err(Error::Config { .. })), "{config}");
        }
        assert!(matches!(text(json!({ "relative_attention_num_buckets": 2 })), Err(Error::Config { .. })));
        assert!(matches!(text(json!({ "relative_attention_max_distance": 8 })), Err(Error::Config { .. })));
    }

    #[test]
    fn two_experts_need_a_boundary_and_the_other_way_round() {
        let boundary = |index: Value| from::<ModelIndex>(index).boundary(path());
        let pair = json!(["diffusers", "WanTransformer3DModel"]);
        let both = json!({ "boundary_ratio": 0.875, "transformer_2": pair });
        assert_eq!(boundary(both).unwrap(), Some(875.0));
        let one = json!({ "boundary_ratio": null, "transformer_2": [null, null] });
        assert_eq!(boundary(one).unwrap(), None);
        assert_eq!(boundary(json!({})).unwrap(), None);
        for wrong in [
            json!({ "transformer_2": pair }),
            json!({ "boundary_ratio": 0.9 }),
            json!({ "boundary_ratio": 875.0, "transformer_2": pair }),
        ] {
            assert!(matches!(boundary(wrong.clone()), Err(Error::Config { .. })), "{wrong}");
        }
        for other in
            [json!({ "expand_timesteps": true }), json!({ "_class_name": "WanImageToVideoPipeline" })]
        {
            assert!(matches!(boundary(other.clone()), Err(Error::Unsupported { .. })), "{other}");
        }
    }
}
