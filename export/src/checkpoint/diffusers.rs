//! The layout of diffusers.
//!
//! ```text
//! CHECKPOINT/model_index.json, rushes.json (recommended settings; optional)
//!            scheduler/scheduler_config.json
//!            tokenizer/tokenizer.json
//!            text_encoder/   config.json and weights
//!            transformer/    config.json and weights: the only expert, or the high-noise expert
//!            transformer_2/  config.json and weights: the low-noise expert
//!            vae/            config.json and weights
//!            tiny_decoder/   taew2_1.safetensors or taew2_2.safetensors (optional)
//!            preview_map.json  the linear map of previews (optional)
//! ```

use super::config::{DenoiserConfig, ModelIndex, TextEncoderConfig, VaeConfig};
use super::inventory::{self, Required};
use super::json::read_json;
use super::names::Family;
use super::scheduler::{self, Scheduler};
use super::shards::Shards;
use super::{
    Checkpoint, Layout, Source, UNUSED_BY_DECODER, UNUSED_BY_TEXT_ENCODER, check_equal, check_widths, hub,
    read_recommended, source, tokenizer,
};
use crate::Error;
use bundle::manifest::Component;
use bundle::routing::Routing;
use bundle::spec::{DenoiserSpec, TextEncoderSpec};
use bundle::units::Timestep;
use std::path::{Path, PathBuf};

/// Opens a checkpoint, except for what both layouts have.
///
/// # Errors
/// Those of [`Checkpoint::open`].
pub(super) fn open(folder: &Path) -> Result<Checkpoint, Error> {
    let index_path = folder.join("model_index.json");
    let index = read_json::<ModelIndex>(&index_path)?;
    let boundary = index.boundary(&index_path)?;
    let routing = match boundary {
        None => Routing::single(),
        #[expect(clippy::cast_possible_truncation, reason = "timesteps are compared in f32")]
        Some(boundary) => Routing::pair(Timestep(boundary as f32))?,
    };
    let recommended = read_recommended(&folder.join("rushes.json"))?;
    let has_grid = recommended.sampler.is_some() && recommended.shift.is_some();
    let replaces_scheduler = has_grid || recommended.timesteps.is_some();
    let scheduler = match read_scheduler(folder, (&index_path, index.scheduler())) {
        Err(error @ Error::Scheduler { .. }) if replaces_scheduler => Err(error),
        scheduler => Ok(scheduler?),
    };
    let text_path = folder.join("text_encoder/config.json");
    let text_encoder = read_json::<TextEncoderConfig>(&text_path)?.spec(&text_path)?;
    let vae_path = folder.join("vae/config.json");
    let vae = read_json::<VaeConfig>(&vae_path)?.spec(&vae_path)?;
    let expert_folders = &["transformer", "transformer_2"][..routing.routes().len()];
    let denoiser = read_denoisers(folder, expert_folders)?;
    check_widths(
        &folder.join("transformer/config.json"),
        &denoiser,
        &text_path,
        &text_encoder,
        &vae_path,
        &vae,
    )?;

    let mut checkpoint = Checkpoint {
        name: hub::name_of(folder),
        tokenizer: find_tokenizer(folder, &text_encoder)?,
        text_encoder,
        denoiser,
        vae,
        tiny_decoder: None,
        layout: Layout::Diffusers,
        routing,
        recommended,
        scheduler,
        sources: Vec::new(),
    };
    checkpoint.sources = open_weights(&checkpoint, folder, expert_folders)?;
    Ok(checkpoint)
}

fn open_weights(
    checkpoint: &Checkpoint,
    folder: &Path,
    expert_folders: &[&str],
) -> Result<Vec<Source>, Error> {
    let open = |component, part: &str, family, required: Vec<Required>, unused: &[&str]| {
        source(component, Shards::open(&folder.join(part), family)?, required, unused)
    };
    let required = inventory::text_encoder(&checkpoint.text_encoder);
    let text_encoder =
        open(Component::TextEncoder, "text_encoder", Family::TextEncoder, required, &UNUSED_BY_TEXT_ENCODER)?;
    let mut sources = vec![text_encoder];
    for (route, part) in checkpoint.routing.routes().iter().zip(expert_folders) {
        let required = inventory::denoiser(&checkpoint.denoiser);
        let component = Component::Expert(route.expert.clone());
        sources.push(open(component, part, Family::Denoiser, required, &[])?);
    }
    let family = Family::Vae { residual_blocks: checkpoint.vae.residual_blocks };
    let required = inventory::decoder(&checkpoint.vae);
    sources.push(open(Component::Decoder, "vae", family, required, &UNUSED_BY_DECODER)?);
    Ok(sources)
}

/// Reads the configs of all experts, which must be equal.
fn read_denoisers(folder: &Path, parts: &[&str]) -> Result<DenoiserSpec, Error> {
    let mut first: Option<(PathBuf, DenoiserSpec)> = None;
    for part in parts {
        let path = folder.join(part).join("config.json");
        let spec = read_json::<DenoiserConfig>(&path)?.spec(&path)?;
        match &first {
            None => first = Some((path, spec)),
            Some((first_path, first_spec)) => check_equal(first_path, first_spec, &path, &spec)?,
        }
    }
    first
        .map(|(_, spec)| spec)
        .ok_or_else(|| Error::config(&folder.join("model_index.json"), "it lists no denoiser"))
}

fn read_scheduler(folder: &Path, index: (&Path, Option<&str>)) -> Result<Scheduler, Error> {
    let path = folder.join("scheduler/scheduler_config.json");
    scheduler::of_config(&read_json(&path)?, scheduler::Names { config: &path, index })
}

fn find_tokenizer(folder: &Path, text_encoder: &TextEncoderSpec) -> Result<PathBuf, Error> {
    let path = folder.join("tokenizer/tokenizer.json");
    tokenizer::check(&path, text_encoder)?;
    Ok(path)
}
