//! Checkpoints: a folder in the layout of diffusers or of the official code, read and checked as a whole before anything
//! is exported.
//!
//! | Modules | Contents |
//! |---|---|
//! | `diffusers`, `official` | the two layouts |
//! | [`names`] | official names to canonical names |
//! | `listing`, `weight_file`, [`header`], [`torch_file`], [`shards`] | weight files |
//! | `json`, `config`, [`scheduler`], `scheduler_keys` | settings |
//! | [`inventory`] | names and shapes of weights for given settings |
//! | [`tiny_decoder`] | the tiny decoder, a single file |
//! | `tokenizer`, `hub` | tokenizer, model names |

mod config;
mod diffusers;
pub mod header;
mod hub;
pub mod inventory;
mod json;
mod listing;
pub mod names;
mod official;
#[cfg(test)]
pub(crate) mod samples;
pub mod scheduler;
mod scheduler_keys;
pub mod shards;
mod strides;
pub mod tiny_decoder;
mod tokenizer;
pub mod torch_file;
pub(crate) mod weight_file;

use crate::{Error, preview_map};
use bundle::manifest::Component;
use bundle::routing::Routing;
use bundle::settings::Recommended;
use bundle::spec::{DenoiserSpec, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
use inventory::Required;
use json::read_json;
use scheduler::Scheduler;
use serde::Serialize;
use shards::Shards;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// A model of the checkpoint: the source of a component of the bundle.
#[derive(Debug)]
pub struct Source {
    /// The component.
    pub component: Component,
    /// Its weights.
    pub shards: Shards,
    /// The weights that its graphs read. [`Shards`] may contain more, such as the encoder of the VAE.
    pub required: Vec<Required>,
}

/// A checkpoint whose configs are supported and match each other and the weights.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its name, for display: that of its folder, or `Org/Name` in the cache of a model hub.
    pub name: String,
    /// Hyper-parameters of the text encoder.
    pub text_encoder: TextEncoderSpec,
    /// Hyper-parameters of every expert.
    pub denoiser: DenoiserSpec,
    /// Hyper-parameters of the VAE.
    pub vae: VaeSpec,
    /// Hyper-parameters of the tiny decoder, if it has one.
    pub tiny_decoder: Option<TinyDecoderSpec>,
    /// The layout of its folder.
    pub layout: Layout,
    /// The expert for each noise level.
    pub routing: Routing,
    /// Content of `rushes.json`; empty if there is none.
    pub recommended: Recommended,
    /// The settings of the scheduler config, or of the official code in its layout; an error if the config is not
    /// supported and `rushes.json` replaces it.
    pub scheduler: Result<Scheduler, Error>,
    /// Path of `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Text encoder, experts in the order of the routing table, decoder, tiny decoder.
    pub sources: Vec<Source>,
}

/// Weights of checkpoints that the text encoder does not need: the decoder of umT5 and a copy of the embedding.
pub(crate) const UNUSED_BY_TEXT_ENCODER: [&str; 3] = ["decoder.", "lm_head.", "encoder.embed_tokens."];
/// The encoder of the VAE.
pub(crate) const UNUSED_BY_DECODER: [&str; 2] = ["encoder.", "quant_conv."];

impl Checkpoint {
    /// Reads every config and every header, but no weights.
    ///
    /// # Errors
    /// Returns an error if a file is missing or damaged, a setting is not supported, or configs do not match each other
    /// or the weights. It names the file and the key or weight.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut checkpoint = match Layout::of(folder)? {
            Layout::Diffusers => diffusers::open(folder)?,
            Layout::Official => official::open(folder)?,
        };
        preview_map::check(folder)?;
        if let Some(path) = tiny_decoder::find(folder) {
            checkpoint.set_tiny_decoder(&path)?;
        }
        Ok(checkpoint)
    }

    /// Uses the tiny decoder in the file `path` in place of the checkpoint's.
    ///
    /// # Errors
    /// Returns an error if the file is damaged, has another layout or is for other latents.
    pub fn set_tiny_decoder(&mut self, path: &Path) -> Result<(), Error> {
        let (spec, source) = tiny_decoder::open_for(path, &self.vae)?;
        self.tiny_decoder = Some(spec);
        self.sources.retain(|source| source.component != Component::Preview);
        self.sources.push(source);
        Ok(())
    }

    /// Keeps the first `layers` layers of the text encoder and blocks of each expert. The weights of the others are not
    /// required then.
    pub fn keep_layers(&mut self, layers: NonZeroUsize) {
        self.text_encoder.layers = self.text_encoder.layers.min(layers.get());
        self.denoiser.layers = self.denoiser.layers.min(layers.get());
        for source in &mut self.sources {
            match source.component {
                Component::TextEncoder => source.required = inventory::text_encoder(&self.text_encoder),
                Component::Expert(_) => source.required = inventory::denoiser(&self.denoiser),
                Component::ImageEncoder | Component::Decoder | Component::Preview => {}
            }
        }
    }
}

/// The layout of the folder of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// That of diffusers, with `model_index.json` and a folder for each model.
    Diffusers,
    /// That of the official code. It has no configs of the scheduler, the text encoder and the VAE.
    Official,
}

impl Layout {
    /// Recognises the layout by the names in the folder.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`], or an error if the folder cannot be listed.
    fn of(folder: &Path) -> Result<Self, Error> {
        if folder.join("model_index.json").exists() {
            Ok(Self::Diffusers)
        } else if official::is_layout_of(folder)? {
            Ok(Self::Official)
        } else {
            Err(Error::NotACheckpoint { folder: folder.to_owned() })
        }
    }
}

/// Opens the weights of a model and checks that they are the required ones, apart from `unused`.
fn source(
    component: Component,
    shards: Shards,
    required: Vec<Required>,
    unused: &[&str],
) -> Result<Source, Error> {
    shards.check(&required, unused)?;
    Ok(Source { component, shards, required })
}

fn check_equal(
    first_path: &Path,
    first: &DenoiserSpec,
    path: &Path,
    spec: &DenoiserSpec,
) -> Result<(), Error> {
    let fields = |spec: &DenoiserSpec| serde_json::to_value(spec).unwrap_or_default();
    let (left, right) = (fields(first), fields(spec));
    let differing =
        left.as_object().into_iter().flatten().find(|(key, value)| right.get(key) != Some(*value));
    match differing {
        None => Ok(()),
        Some((key, value)) => Err(differ(key, (first_path, value), (path, right.get(key)))),
    }
}

/// Checks that the widths of latents and text states match between models.
fn check_widths(
    denoiser_path: &Path,
    denoiser: &DenoiserSpec,
    text_path: &Path,
    text: &TextEncoderSpec,
    vae_path: &Path,
    vae: &VaeSpec,
) -> Result<(), Error> {
    if denoiser.text_width != text.width {
        return Err(differ("text_dim", (denoiser_path, denoiser.text_width), (text_path, text.width)));
    }
    if denoiser.out_channels != vae.latent_channels {
        let latent = (vae_path, vae.latent_channels);
        return Err(differ("out_channels", (denoiser_path, denoiser.out_channels), latent));
    }
    if denoiser.in_channels != denoiser.out_channels {
        let setting = format!("in_channels = {}", denoiser.in_channels);
        let why = format!(
            "a latent has {} channels; conditioning channels (image to video) are not supported",
            denoiser.out_channels
        );
        return Err(Error::unsupported(denoiser_path, setting, why));
    }
    Ok(())
}

fn differ(key: &str, first: (&Path, impl Serialize), second: (&Path, impl Serialize)) -> Error {
    let show = |value: Result<serde_json::Value, _>| value.unwrap_or_default().to_string();
    Error::ConfigsDiffer {
        key: key.to_owned(),
        first: (first.0.to_owned(), show(serde_json::to_value(first.1))),
        second: (second.0.to_owned(), show(serde_json::to_value(second.1))),
    }
}

fn read_recommended(path: &Path) -> Result<Recommended, Error> {
    match std::fs::exists(path) {
        Ok(false) => Ok(Recommended::default()),
        _ => read_json(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::settings::SolverKind;
    use serde_json::{Value, json};

    /// A sample checkpoint with one value of a JSON file replaced.
    fn changed(file: &str, key: &str, value: Value) -> Result<Checkpoint, Error> {
        let folder = tempfile::tempdir().unwrap();
        samples::write_checkpoint(folder.path());
        let path = folder.path().join(file);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        Checkpoint::open(folder.path())
    }

    #[test]
    fn a_checkpoint_is_read_as_a_whole() {
        let (_folder, checkpoint) = samples::checkpoint();
        assert_eq!(checkpoint.denoiser.width(), 12);
        assert_eq!(checkpoint.vae.stride().space, 2);
        assert_eq!(checkpoint.recommended.steps, Some(4));
        let scheduler = Scheduler { solver: SolverKind::UniPc, schedule: None, shift: Some(3.0) };
        assert_eq!(checkpoint.scheduler.unwrap(), scheduler);
        let routes: Vec<_> = checkpoint
            .routing
            .routes()
            .iter()
            .map(|route| (route.expert.0.as_str(), route.from_timestep))
            .collect();
        assert_eq!(routes, [("high_noise", 900.0), ("low_noise", 0.0)]);
        let components: Vec<_> =
            checkpoint.sources.iter().map(|source| source.component.to_string()).collect();
        assert_eq!(
            components,
            ["the text encoder", "the high_noise expert", "the low_noise expert", "the decoder"]
        );
    }

    #[test]
    fn experts_of_different_sizes_are_refused() {
        let error = changed("transformer_2/config.json", "num_layers", json!(3)).unwrap_err();
        match error {
            Error::ConfigsDiffer { key, first, second } => {
                assert_eq!((key.as_str(), first.1.as_str(), second.1.as_str()), ("layers", "2", "3"));
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_config_that_does_not_match_its_weights_is_refused() {
        let missing = changed("text_encoder/config.json", "num_layers", json!(2)).unwrap_err();
        assert!(
            matches!(&missing, Error::Inventory { missing, extra, .. }
                if missing.len() == 10 && extra.is_empty() && missing[0].starts_with("encoder.block.1.")),
            "{missing}"
        );
        let shape = changed("text_encoder/config.json", "d_ff", json!(13)).unwrap_err();
        assert!(matches!(&shape, Error::WrongShape { .. }), "{shape}");
        let folder = tempfile::tempdir().unwrap();
        samples::write_checkpoint(folder.path());
        for part in ["transformer", "transformer_2"] {
            let path = folder.path().join(part).join("config.json");
            let config = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, config.replace("\"num_layers\":2", "\"num_layers\":1")).unwrap();
        }
        let extra = Checkpoint::open(folder.path()).unwrap_err();
        assert!(
            matches!(&extra, Error::Inventory { missing, extra, .. }
                if missing.is_empty() && extra.len() == 27 && extra[0].starts_with("blocks.1.")),
            "{extra}"
        );
    }

    #[test]
    fn models_that_do_not_match_each_other_are_refused() {
        let text = changed("text_encoder/config.json", "d_model", json!(10)).unwrap_err();
        assert!(matches!(&text, Error::ConfigsDiffer { key, .. } if key == "text_dim"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        samples::write_checkpoint(folder.path());
        for part in ["transformer", "transformer_2"] {
            let path = folder.path().join(part).join("config.json");
            let config = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, config.replace("\"in_channels\":4", "\"in_channels\":9")).unwrap();
        }
        let image = Checkpoint::open(folder.path()).unwrap_err();
        assert!(
            matches!(&image, Error::Unsupported { setting, .. } if setting == "in_channels = 9"),
            "{image}"
        );
    }

    #[test]
    fn unknown_recommendations_are_refused_and_rushes_json_is_optional() {
        let error = changed("rushes.json", "stepz", json!(4)).unwrap_err();
        assert!(matches!(&error, Error::Config { why, .. } if why.contains("stepz")), "{error}");
        let (folder, _) = samples::checkpoint();
        std::fs::remove_file(folder.path().join("rushes.json")).unwrap();
        assert_eq!(Checkpoint::open(folder.path()).unwrap().recommended, Recommended::default());
    }

    #[test]
    fn an_unsupported_scheduler_is_refused_unless_rushes_json_replaces_it() {
        let (folder, _) = samples::checkpoint();
        let path = folder.path().join("scheduler/scheduler_config.json");
        std::fs::write(&path, json!({ "_class_name": "LCMScheduler" }).to_string()).unwrap();
        assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Scheduler { .. })));
        let recommend = |value: Value| {
            std::fs::write(folder.path().join("rushes.json"), value.to_string()).unwrap();
            Checkpoint::open(folder.path())
        };
        assert!(recommend(json!({ "sampler": "euler" })).is_err());
        assert!(recommend(json!({ "shift": 5.0 })).is_err());
        let replaced = recommend(json!({ "sampler": "euler", "shift": 5.0 })).unwrap();
        assert!(matches!(replaced.scheduler, Err(Error::Scheduler { .. })));
    }

    #[test]
    fn every_file_that_is_a_pointer_is_reported() {
        for file in [
            "model_index.json",
            "rushes.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer.json",
            "text_encoder/config.json",
            "text_encoder/diffusion_pytorch_model.safetensors",
            "transformer_2/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "tiny_decoder/taew2_1.safetensors",
            "preview_map.json",
        ] {
            let (folder, _) = samples::checkpoint();
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
                .unwrap();
            let error = Checkpoint::open(folder.path()).unwrap_err();
            assert!(matches!(&error, Error::LfsPointer { path: found, .. } if *found == path), "{error}");
        }
    }

    #[test]
    fn a_tokenizer_that_does_not_match_the_text_encoder_is_refused() {
        let small = changed("text_encoder/config.json", "vocab_size", json!(5)).unwrap_err();
        assert!(matches!(&small, Error::Tokenizer { why, .. } if why.contains("5 rows")), "{small}");
        for (broken, reason) in [
            (samples::tokenizer().to_string()[..150].to_owned(), "EOF"),
            (String::new(), "empty"),
            ("{}".into(), ""),
            (samples::tokenizer().to_string().replace("</s>", "<end>"), "</s>"),
        ] {
            let (folder, _) = samples::checkpoint();
            std::fs::write(folder.path().join("tokenizer/tokenizer.json"), &broken).unwrap();
            let error = Checkpoint::open(folder.path()).err();
            let is_named = matches!(&error, Some(Error::Tokenizer { why, .. }) if why.contains(reason));
            assert!(is_named, "{broken}: {error:?}");
        }
    }

    #[test]
    fn a_missing_file_is_reported() {
        let (folder, _) = samples::checkpoint();
        std::fs::remove_file(folder.path().join("model_index.json")).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::NotACheckpoint { .. }), "{error}");
        for file in [
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "transformer_2/config.json",
            "vae/config.json",
            "tokenizer/tokenizer.json",
        ] {
            let (folder, _) = samples::checkpoint();
            let path = folder.path().join(file);
            std::fs::remove_file(&path).unwrap();
            let error = Checkpoint::open(folder.path()).unwrap_err();
            assert!(matches!(&error, Error::File { path: found, .. } if *found == path), "{error}");
        }
    }
}
