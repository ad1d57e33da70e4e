//! The layout of the official code.
//!
//! ```text
//! CHECKPOINT/high_noise_model/   config.json and weights: the high-noise expert
//!            low_noise_model/    config.json and weights: the low-noise expert
//!            config.json, diffusion_pytorch_model*.safetensors     the only expert, in place of the two folders
//!            models_t5_umt5-xxl-enc-bf16.pth     the text encoder
//!            Wan2.1_VAE.pth
//!            google/umt5-xxl/tokenizer.json
//!            rushes.json, tiny_decoder/, preview_map.json     as in the diffusers layout (optional)
//! ```
//!
//! Text encoder and VAE have no config: their hyper-parameters follow from the shapes of their weights, and the rest is
//! fixed by the code. So are boundary, sampler and the statistics of latents.

use super::config::{DenoiserConfig, StoredExtents, TextEncoderConfig, VaeConfig};
use super::inventory;
use super::json::read_json;
use super::names::Family;
use super::scheduler::Scheduler;
use super::shards::Shards;
use super::{
    Checkpoint, Layout, UNUSED_BY_DECODER, UNUSED_BY_TEXT_ENCODER, check_equal, check_widths, hub,
    read_recommended, source, tokenizer, weight_file,
};
use crate::Error;
use bundle::catalog;
use bundle::manifest::Component;
use bundle::routing::Routing;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The folders of two experts, from the noisiest down.
const EXPERTS: [&str; 2] = ["high_noise_model", "low_noise_model"];
/// The beginnings of the names of the text encoder and of the VAEs, and the published names.
const TEXT_ENCODER: [&str; 2] = ["models_t5", "models_t5_umt5-xxl-enc-bf16.pth"];
const VAE: [&str; 2] = ["Wan2.1_VAE", "Wan2.1_VAE.pth"];
const OTHER_VAE: &str = "Wan2.2_VAE";
const TOKENIZER: &str = "google/umt5-xxl";
/// The latent channels of the VAE whose statistics are known.
const LATENT_CHANNELS: usize = 16;

/// Returns true if a folder has files of this layout.
///
/// # Errors
/// Returns an error if the folder cannot be listed.
pub(super) fn is_layout_of(folder: &Path) -> Result<bool, Error> {
    let beginnings = [TEXT_ENCODER[0], VAE[0], OTHER_VAE];
    let is_of = |name: &String| beginnings.iter().any(|start| name.starts_with(start));
    Ok(EXPERTS.iter().any(|expert| folder.join(expert).is_dir()) || weight_files(folder)?.iter().any(is_of))
}

/// Opens a checkpoint, except for what both layouts have.
///
/// # Errors
/// Those of [`Checkpoint::open`].
pub(super) fn open(folder: &Path) -> Result<Checkpoint, Error> {
    let has_two = EXPERTS.iter().any(|expert| folder.join(expert).is_dir());
    let expert_folders: Vec<PathBuf> =
        if has_two { EXPERTS.map(|expert| folder.join(expert)).into() } else { vec![folder.to_owned()] };
    // Before any weight is missed: a model that is not supported has other files.
    let configs = expert_folders.iter().map(|expert| read_config(expert)).collect::<Result<Vec<_>, _>>()?;
    let routing = if has_two { Routing::pair(catalog::OFFICIAL_BOUNDARY)? } else { Routing::single() };

    let vae_path = find_vae(folder)?;
    let text_path = find_one(folder, TEXT_ENCODER)?;
    let text_shards = Shards::open_file(&text_path, Family::TextEncoder)?;
    let text_encoder = text_encoder_spec(&text_shards, &text_path)?;
    let (vae, vae_shards) = open_vae(&vae_path)?;
    let (denoiser, expert_shards) = open_experts(configs, &expert_folders)?;
    let denoiser_path = expert_folders[0].join("config.json");
    check_widths(&denoiser_path, &denoiser, &text_path, &text_encoder, &vae_path, &vae)?;
    let tokenizer = find_tokenizer(folder)?;
    tokenizer::check(&tokenizer, &text_encoder)?;

    let required = inventory::text_encoder(&text_encoder);
    let mut sources = vec![source(Component::TextEncoder, text_shards, required, &UNUSED_BY_TEXT_ENCODER)?];
    for (route, shards) in routing.routes().iter().zip(expert_shards) {
        let component = Component::Expert(route.expert.clone());
        sources.push(source(component, shards, inventory::denoiser(&denoiser), &[])?);
    }
    sources.push(source(Component::Decoder, vae_shards, inventory::decoder(&vae), &UNUSED_BY_DECODER)?);
    Ok(Checkpoint {
        name: hub::name_of(folder),
        text_encoder,
        denoiser,
        vae,
        tiny_decoder: None,
        layout: Layout::Official,
        routing,
        recommended: read_recommended(&folder.join("rushes.json"))?,
        // The default of the official code. The shift is that of the model.
        scheduler: Ok(Scheduler {
            solver: SolverKind::UniPc,
            schedule: Some(ScheduleKind::Official),
            shift: None,
        }),
        tokenizer,
        sources,
    })
}

/// The names of the weight files in a folder, without hidden files.
fn weight_files(folder: &Path) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let name = entry.map_err(Error::file("list", folder))?.file_name().into_string();
        names.extend(
            name.ok().filter(|name| !name.starts_with('.') && weight_file::is_named(Path::new(name))),
        );
    }
    Ok(names)
}

/// Returns the only weight file whose name begins with `start`. `published` is its usual name, for errors.
fn find_one(folder: &Path, [start, published]: [&str; 2]) -> Result<PathBuf, Error> {
    let names = weight_files(folder)?;
    let found: Vec<&str> = names.iter().map(String::as_str).filter(|name| name.starts_with(start)).collect();
    match found.as_slice() {
        [name] => Ok(folder.join(name)),
        [] => Err(Error::file("read", &folder.join(published))(ErrorKind::NotFound.into())),
        several => Err(Error::SeveralFiles { folder: folder.to_owned(), files: several.join(", ") }),
    }
}

fn find_vae(folder: &Path) -> Result<PathBuf, Error> {
    let names = weight_files(folder)?;
    let other = names.iter().find(|name| name.starts_with(OTHER_VAE));
    match other {
        Some(other) if !names.iter().any(|name| name.starts_with(VAE[0])) => {
            Err(other_vae(&folder.join(other), "the Wan2.2 VAE".into()))
        }
        _ => find_one(folder, VAE),
    }
}

fn other_vae(path: &Path, found: String) -> Error {
    Error::unsupported(path, found, "only the Wan2.1 VAE is supported; TI2V-5B has another one")
}

fn find_tokenizer(folder: &Path) -> Result<PathBuf, Error> {
    let folder = folder.join(TOKENIZER);
    let path = folder.join("tokenizer.json");
    if !path.exists() && folder.join("spiece.model").exists() {
        return Err(Error::Tokenizer {
            path,
            why: "it is missing, and spiece.model is not read in its place".into(),
        });
    }
    Ok(path)
}

fn read_config(expert: &Path) -> Result<(PathBuf, DenoiserConfig), Error> {
    let path = expert.join("config.json");
    let config = read_json::<DenoiserConfig>(&path)?;
    config.check_official(&path)?;
    Ok((path, config))
}

/// Opens the weights of all experts, whose hyper-parameters must be equal.
fn open_experts(
    configs: Vec<(PathBuf, DenoiserConfig)>,
    folders: &[PathBuf],
) -> Result<(DenoiserSpec, Vec<Shards>), Error> {
    let mut first: Option<(PathBuf, DenoiserSpec)> = None;
    let mut all = Vec::with_capacity(folders.len());
    for ((path, config), folder) in configs.into_iter().zip(folders) {
        let shards = Shards::open(folder, Family::Denoiser)?;
        let spec = config.official_spec(&path, stored_extents(&shards))?;
        match &first {
            None => first = Some((path, spec)),
            Some((first_path, first_spec)) => check_equal(first_path, first_spec, &path, &spec)?,
        }
        all.push(shards);
    }
    let (_, spec) = first.ok_or_else(|| Error::NotACheckpoint { folder: PathBuf::new() })?;
    Ok((spec, all))
}

fn stored_extents(shards: &Shards) -> StoredExtents {
    let shape = |name: &str| shards.tensor(name).map_or(&[][..], |tensor| tensor.shape);
    let text_width = match shape("condition_embedder.text_embedder.linear_1.weight") {
        [_, text_width] => Some(*text_width),
        _ => None,
    };
    let patch = match shape("patch_embedding.weight") {
        [_, _, time, height, width] => Some([*time, *height, *width]),
        _ => None,
    };
    StoredExtents { text_width, patch }
}

/// Returns the extents of a weight.
fn extents<const N: usize>(shards: &Shards, path: &Path, name: &str) -> Result<[usize; N], Error> {
    let shape = shards.tensor(name)?.shape;
    <[usize; N]>::try_from(shape)
        .ok()
        .ok_or_else(|| Error::header(path, format!("{name} has the shape {shape:?}, but needs {N} extents")))
}

/// The number of consecutive numbers from 0 on for which `name` is a weight.
fn count(shards: &Shards, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|number| shards.tensor(&name(*number)).is_ok()).count()
}

/// Reads the hyper-parameters of a umT5 encoder from its shapes. Norms and the largest distance are those of umT5.
fn text_encoder_spec(shards: &Shards, path: &Path) -> Result<TextEncoderSpec, Error> {
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let [vocabulary, width] = extents(shards, path, "shared.weight")?;
    let [buckets, heads] = extents(shards, path, &format!("{attention}.relative_attention_bias.weight"))?;
    let [all_heads, _] = extents(shards, path, &format!("{attention}.q.weight"))?;
    let [feed_forward, _] = extents(shards, path, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?;
    let head_width = all_heads.checked_div(heads).filter(|width| width * heads == all_heads);
    let head_width = head_width.ok_or_else(|| {
        Error::header(path, format!("{all_heads} queries cannot be divided among {heads} heads"))
    })?;
    let config = json!({
        "vocab_size": vocabulary, "d_model": width, "num_heads": heads, "d_kv": head_width, "d_ff": feed_forward,
        "num_layers": count(shards, |layer| format!("encoder.block.{layer}.layer.0.layer_norm.weight")),
        "relative_attention_num_buckets": buckets,
    });
    let config: TextEncoderConfig =
        serde_json::from_value(config).map_err(|error| Error::header(path, error.to_string()))?;
    config.spec(path)
}

/// Opens the VAE and reads its hyper-parameters from its names and shapes. The statistics of latents are those of Wan2.1.
fn open_vae(path: &Path) -> Result<(VaeSpec, Shards), Error> {
    let names = Shards::stored_names(path)?;
    let family = Family::Vae { residual_blocks: Family::residual_blocks(names.iter().map(String::as_str)) };
    let shards = Shards::open_file(path, family)?;
    let [channels, ..] = extents::<5>(&shards, path, "post_quant_conv.weight")?;
    if channels != LATENT_CHANNELS {
        return Err(other_vae(path, format!("{channels} latent channels")));
    }
    let level = |level: usize| format!("decoder.up_blocks.{level}");
    let levels = count(&shards, |number| format!("{}.resnets.0.conv1.weight", level(number)));
    let mut widths = Vec::with_capacity(levels);
    for number in 0..levels {
        let [width, ..] = extents::<5>(&shards, path, &format!("{}.resnets.0.conv1.weight", level(number)))?;
        widths.push(width);
    }
    let base = widths.last().copied().unwrap_or(0);
    let is_temporal =
        |number: &usize| shards.tensor(&format!("{}.upsamplers.0.time_conv.weight", level(*number))).is_ok();
    let blocks = count(&shards, |block| format!("{}.resnets.{block}.conv1.weight", level(0)));
    // From full resolution down, unlike the blocks of the decoder.
    let config = json!({
        "base_dim": base, "z_dim": channels, "num_res_blocks": blocks.saturating_sub(1),
        "dim_mult": widths.iter().rev().map(|width| width.checked_div(base).unwrap_or(0)).collect::<Vec<_>>(),
        "temperal_downsample": (0..levels.saturating_sub(1)).rev().map(|number| is_temporal(&number)).collect::<Vec<_>>(),
    });
    let config: VaeConfig =
        serde_json::from_value(config).map_err(|error| Error::header(path, error.to_string()))?;
    Ok((config.spec(path)?, shards))
}
