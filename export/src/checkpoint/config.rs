//! The config files of a checkpoint, and their conversion to specs.
//!
//! An absent key has the default of diffusers. Settings that are not supported are refused by name. Keys without
//! influence on the result are not read.

use crate::Error;
use bundle::geometry::Patch;
use bundle::spec::{DenoiserSpec, TEXT_ROWS, TextEncoderSpec, VaeSpec};
use serde::Deserialize;
use std::path::Path;

/// The largest number of layers, levels or residual blocks.
const MAX_LAYERS: usize = 1000;
/// The largest width, number of heads or number of rows.
const MAX_EXTENT: usize = 1 << 24;

/// `model_index.json`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelIndex {
    #[serde(rename = "_class_name")]
    class: Option<String>,
    boundary_ratio: Option<f64>,
    expand_timesteps: Option<bool>,
    /// Library and class; both null, or absent, if there is one expert.
    transformer_2: Option<Vec<Option<String>>>,
    /// Library and class.
    scheduler: Option<Vec<Option<String>>>,
}

impl ModelIndex {
    /// Returns the class of the scheduler.
    pub(super) fn scheduler(&self) -> Option<&str> {
        self.scheduler.as_deref()?.get(1)?.as_deref()
    }

    /// Returns the lowest timestep of the first of two experts; none if there is one expert.
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
            (true, None) => Err(Error::config(path, "there are two experts but no boundary_ratio")),
            (false, Some(ratio)) => {
                Err(Error::config(path, format!("boundary_ratio is {ratio} but there is no transformer_2")))
            }
        }
    }
}

/// `text_encoder/config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct TextEncoderConfig {
    vocab_size: usize,
    d_model: Option<usize>,
    hidden_size: Option<usize>,
    num_heads: Option<usize>,
    num_attention_heads: Option<usize>,
    d_kv: usize,
    d_ff: usize,
    num_layers: Option<usize>,
    num_hidden_layers: Option<usize>,
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
        // transformers reads both names and saves the first.
        let width = needed(path, ("d_model", self.d_model), ("hidden_size", self.hidden_size))?;
        let heads =
            needed(path, ("num_heads", self.num_heads), ("num_attention_heads", self.num_attention_heads))?;
        let depth =
            needed(path, ("num_layers", self.num_layers), ("num_hidden_layers", self.num_hidden_layers))?;
        let spec = TextEncoderSpec {
            vocabulary: extent(path, "vocab_size", self.vocab_size)?,
            width: extent(path, "d_model", width)?,
            heads: extent(path, "num_heads", heads)?,
            head_width: extent(path, "d_kv", self.d_kv)?,
            feed_forward: extent(path, "d_ff", self.d_ff)?,
            layers: layers(path, "num_layers", depth)?,
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
        // A quarter of the buckets holds exact distances, the next quarter logarithmic ranges up to the largest
        // distance.
        if !spec.buckets.is_multiple_of(4) || spec.max_distance <= spec.buckets / 4 {
            let why = format!("{} buckets do not fit distances up to {}", spec.buckets, spec.max_distance);
            return Err(Error::config(path, why));
        }
        Ok(spec)
    }
}

/// `transformer/config.json`, with the keys of diffusers or of the official code.
#[derive(Debug, Deserialize)]
pub(super) struct DenoiserConfig {
    patch_size: Option<[usize; 3]>,
    num_attention_heads: Option<usize>,
    /// Official.
    num_heads: Option<usize>,
    attention_head_dim: Option<usize>,
    /// Official: heads × head width.
    dim: Option<usize>,
    in_channels: Option<usize>,
    /// Official.
    in_dim: Option<usize>,
    out_channels: Option<usize>,
    /// Official.
    out_dim: Option<usize>,
    /// Official: rows of text for cross-attention.
    text_len: Option<usize>,
    /// Official: the range of self-attention; -1 is unlimited.
    window_size: Option<[i64; 2]>,
    text_dim: Option<usize>,
    freq_dim: Option<usize>,
    ffn_dim: Option<usize>,
    num_layers: Option<usize>,
    cross_attn_norm: Option<bool>,
    /// Null, unlike an absent key, means no normalisation.
    #[serde(default = "default_qk_norm")]
    qk_norm: Option<QkNorm>,
    eps: Option<f64>,
    /// Official: `t2v`, `i2v` and others.
    model_type: Option<String>,
    #[serde(rename = "_class_name")]
    class: Option<String>,
    image_dim: Option<usize>,
    added_kv_proj_dim: Option<usize>,
    pos_embed_seq_len: Option<usize>,
}

const QK_NORM: &str = "rms_norm_across_heads";

/// The normalisation of queries and keys: a name in diffusers, a boolean in the official code.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum QkNorm {
    Is(bool),
    Named(String),
}

fn default_qk_norm() -> Option<QkNorm> {
    Some(QkNorm::Is(true))
}

/// Extents that the official config does not state, from the shapes of weights.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoredExtents {
    pub(super) text_width: Option<usize>,
    /// Time, height, width.
    pub(super) patch: Option<[usize; 3]>,
}

impl DenoiserConfig {
    /// Refuses the config of another model than a text-to-video model of the official code.
    pub(super) fn check_official(&self, path: &Path) -> Result<(), Error> {
        if let Some(class) = self.class.as_deref().filter(|class| *class != "WanModel") {
            let why = "only text-to-video models (WanModel) are supported";
            return Err(Error::unsupported(path, format!("_class_name = {class}"), why));
        }
        self.check_supported(path)?;
        for (key, value) in [
            ("dim", self.dim),
            ("num_heads", self.num_heads),
            ("ffn_dim", self.ffn_dim),
            ("num_layers", self.num_layers),
        ] {
            if value.is_none() {
                return Err(Error::config(path, format!("it has no {key}")));
            }
        }
        Ok(())
    }

    /// [`Self::spec`] of the config of the official code, which leaves out some extents.
    pub(super) fn official_spec(mut self, path: &Path, stored: StoredExtents) -> Result<DenoiserSpec, Error> {
        self.text_dim = self.text_dim.or(stored.text_width);
        self.patch_size = self.patch_size.or(stored.patch);
        self.spec(path)
    }

    pub(super) fn spec(self, path: &Path) -> Result<DenoiserSpec, Error> {
        self.check_supported(path)?;
        let heads =
            one(path, ("num_attention_heads", self.num_attention_heads), ("num_heads", self.num_heads))?;
        let heads = extent(path, "num_attention_heads", heads.unwrap_or(40))?;
        let head_width = match (self.attention_head_dim, self.dim) {
            (Some(width), Some(dim)) if heads.checked_mul(width) != Some(dim) => {
                let why = format!(
                    "dim is {dim}, but {heads} heads (num_attention_heads) of width {width} (attention_head_dim) have \
                     another width"
                );
                return Err(Error::config(path, why));
            }
            (Some(width), _) => width,
            (None, Some(dim)) if dim % heads == 0 => dim / heads,
            (None, Some(dim)) => {
                return Err(Error::config(
                    path,
                    format!("dim is {dim}, which is not a multiple of {heads} heads"),
                ));
            }
            (None, None) => 128,
        };
        if head_width % 2 != 0 {
            let why = "rotary embedding rotates pairs, so the width of a head must be even";
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
        let in_channels = one(path, ("in_channels", self.in_channels), ("in_dim", self.in_dim))?;
        let in_channels = extent(path, "in_channels", in_channels.unwrap_or(16))?;
        let out_channels = one(path, ("out_channels", self.out_channels), ("out_dim", self.out_dim))?;
        Ok(DenoiserSpec {
            heads,
            head_width: extent(path, "attention_head_dim", head_width)?,
            layers: layers(path, "num_layers", self.num_layers.unwrap_or(40))?,
            feed_forward: extent(path, "ffn_dim", self.ffn_dim.unwrap_or(13824))?,
            in_channels,
            out_channels: extent(path, "out_channels", out_channels.unwrap_or(in_channels))?,
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
        let found = match &self.qk_norm {
            Some(QkNorm::Is(true)) => QK_NORM,
            Some(QkNorm::Is(false)) => "false",
            Some(QkNorm::Named(name)) => name.as_str(),
            None => "null",
        };
        if found != QK_NORM {
            let why = format!("queries and keys are normalised with {QK_NORM}");
            return Err(Error::unsupported(path, format!("qk_norm = {found}"), why));
        }
        if let Some(kind) = self.model_type.as_deref().filter(|kind| *kind != "t2v") {
            let why = match kind {
                "i2v" | "flf2v" => "image-to-video models, such as Wan2.2-I2V-A14B, are not supported",
                "ti2v" => {
                    "Wan2.2-TI2V-5B is not supported: it has one timestep for each token, and another VAE"
                }
                _ => "only text-to-video models (t2v) are supported",
            };
            return Err(Error::unsupported(path, format!("model_type = {kind}"), why));
        }
        if self.cross_attn_norm == Some(false) {
            let why = "the supported models have a norm before cross-attention";
            return Err(Error::unsupported(path, "cross_attn_norm = false", why));
        }
        if let Some(rows) = self.text_len.filter(|rows| *rows != TEXT_ROWS) {
            let why = format!("a prompt has {TEXT_ROWS} rows");
            return Err(Error::unsupported(path, format!("text_len = {rows}"), why));
        }
        if let Some([before, after]) = self.window_size.filter(|window| *window != [-1, -1]) {
            let why = "only full attention is supported";
            return Err(Error::unsupported(path, format!("window_size = [{before}, {after}]"), why));
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
    /// The spelling of every published file.
    temperal_downsample: Option<Vec<bool>>,
    temporal_downsample: Option<Vec<bool>>,
    latents_mean: Option<Vec<f32>>,
    latents_std: Option<Vec<f32>>,
    is_residual: Option<bool>,
    in_channels: Option<usize>,
    out_channels: Option<usize>,
    patch_size: Option<usize>,
    scale_factor_temporal: Option<usize>,
    scale_factor_spatial: Option<usize>,
}

/// Latent statistics of the Wan2.1 VAE, the default.
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
        let temporal = one(
            path,
            ("temperal_downsample", self.temperal_downsample),
            ("temporal_downsample", self.temporal_downsample),
        )?;
        let base = self.decoder_base_dim.or(self.base_dim).unwrap_or(96);
        let spec = VaeSpec {
            base: extent(path, "base_dim", base)?,
            latent_channels: extent(path, "z_dim", self.z_dim.unwrap_or(16))?,
            multipliers: self.dim_mult.unwrap_or_else(|| vec![1, 2, 4, 4]),
            residual_blocks: layers(path, "num_res_blocks", self.num_res_blocks.unwrap_or(2))?,
            temporal_downsample: temporal.unwrap_or_else(|| vec![false, true, true]),
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
                let why = format!("{key} must have {channels} finite numbers and has {}", values.len());
                return Err(Error::config(path, why));
            }
        }
        if spec.latents_std.iter().any(|deviation| *deviation <= 0.0) {
            return Err(Error::config(path, "latents_std must be above 0"));
        }
        let stride = spec.stride();
        for (key, given, derived) in [
            ("scale_factor_temporal", self.scale_factor_temporal, stride.time),
            ("scale_factor_spatial", self.scale_factor_spatial, stride.space),
        ] {
            if let Some(given) = given.filter(|given| *given != derived) {
                let why = format!("{key} is {given}, but the levels scale by {derived}");
                return Err(Error::config(path, why));
            }
        }
        Ok(spec)
    }

    fn check_supported(&self, path: &Path) -> Result<(), Error> {
        if self.is_residual == Some(true) {
            let why = "only the Wan2.1 VAE is supported; TI2V-5B has another one";
            return Err(Error::unsupported(path, "is_residual = true", why));
        }
        if let Some(patch) = self.patch_size {
            let why = "only a VAE on single pixels is supported";
            return Err(Error::unsupported(path, format!("patch_size = {patch}"), why));
        }
        if let Some(scales) = self.attn_scales.as_ref().filter(|scales| !scales.is_empty()) {
            let why = "attention is supported in the mid block only";
            return Err(Error::unsupported(path, format!("attn_scales = {scales:?}"), why));
        }
        for (key, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if let Some(channels) = channels.filter(|channels| *channels != 3) {
                let why = "frames have three channels";
                return Err(Error::unsupported(path, format!("{key} = {channels}"), why));
            }
        }
        Ok(())
    }
}

/// Returns the value of a setting with two names, which must agree if both are present.
fn one<T: PartialEq + std::fmt::Debug>(
    path: &Path,
    (key, value): (&str, Option<T>),
    (other_key, other): (&str, Option<T>),
) -> Result<Option<T>, Error> {
    match (value, other) {
        (Some(value), Some(other)) if value != other => {
            let why = format!("{key} is {value:?}, but {other_key}, another name for it, is {other:?}");
            Err(Error::config(path, why))
        }
        (value, other) => Ok(value.or(other)),
    }
}

/// [`one`] for a required setting.
fn needed(path: &Path, first: (&str, Option<usize>), second: (&str, Option<usize>)) -> Result<usize, Error> {
    let key = first.0;
    one(path, first, second)?.ok_or_else(|| Error::config(path, format!("it has no {key}")))
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
#[path = "config_tests.rs"]
mod tests;
