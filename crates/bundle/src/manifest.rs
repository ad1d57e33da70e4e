//! `bundle.json`: what the bundle holds.

use crate::digest::Digest;
use crate::dtype::WeightType;
use crate::file_digest::{self, FileDigest};
use crate::layout;
use crate::preview::LatentToRgb;
use crate::routing::{ExpertName, Routing};
use crate::settings::Defaults;
use crate::spec::{DenoiserSpec, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
use crate::units::ByteCount;
use crate::variant::{KernelLibrary, Precision, Target, Variant};
use crate::{Error, atomic, validate};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

/// The version of the layout of bundles that is written.
pub const FORMAT: u32 = 2;
/// The versions that are read. Format 1 had `dialect` for `target`, `tensorrt` for `plain`,
/// `operators` for `kernels` with the values `stock` and `own`, `stem` for `trunk` and `rise` for `upsampler`.
pub const READ_FORMATS: std::ops::RangeInclusive<u32> = 1..=FORMAT;
/// The longest `bundle.json` that is read.
const MAX_BYTES: u64 = 64 << 20;

/// A part of the model that has weights of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Prompt to text states.
    TextEncoder,
    /// One denoiser of the routing table.
    Expert(ExpertName),
    /// Latent to frames.
    Decoder,
    /// Latent to frames, tiny: for previews.
    Preview,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.write_str("the text encoder"),
            Self::Expert(name) => write!(f, "the {name} expert"),
            Self::Decoder => f.write_str("the decoder"),
            Self::Preview => f.write_str("the tiny decoder"),
        }
    }
}

/// Which graph of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The only one.
    Whole,
    /// The decoder's graph for the first latent frame.
    First,
    /// The decoder's graph for every later latent frame.
    Next,
    /// Of [`Part::First`], what happens at the latent's resolution: it sees the whole picture at once.
    #[serde(alias = "stem_first")]
    TrunkFirst,
    /// Of [`Part::First`], the rest: it may be run tile by tile.
    #[serde(alias = "rise_first")]
    UpsamplerFirst,
    /// Of [`Part::Next`], what happens at the latent's resolution.
    #[serde(alias = "stem_next")]
    TrunkNext,
    /// Of [`Part::Next`], the rest.
    #[serde(alias = "rise_next")]
    UpsamplerNext,
}

/// One graph file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphEntry {
    /// Which graph of the component.
    pub part: Part,
    /// The variant that it belongs to.
    #[serde(flatten)]
    pub variant: Variant,
    /// Path relative to the bundle.
    pub file: String,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightFile {
    /// Path relative to the bundle.
    pub file: String,
    /// Size.
    pub bytes: ByteCount,
}

/// A component's graphs and weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentEntry {
    /// Which component.
    pub component: Component,
    /// Its graphs.
    pub graphs: Vec<GraphEntry>,
    /// Files its graphs read.
    pub weights: Vec<WeightFile>,
    /// How the weights are stored.
    pub weight_type: WeightType,
    /// Digest over all its weights.
    pub digest: Digest,
    /// Quantised variants, each with weights of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<QuantizedVariant>,
}

/// A quantised variant of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedVariant {
    /// Which precision its graphs are found under.
    pub precision: Precision,
    /// Which kernels they are made of.
    #[serde(default, alias = "operators", skip_serializing_if = "KernelLibrary::is_onnx_runtime")]
    pub kernels: KernelLibrary,
    /// Files its graphs read; none when it runs on the component's own weights.
    pub weights: Vec<WeightFile>,
    /// Layers that are quantised.
    pub quantized: usize,
    /// Layers that could be and are not.
    pub kept: usize,
    /// What a person should know of it.
    pub note: Option<String>,
}

impl QuantizedVariant {
    /// Bytes of its weights on disk.
    pub fn weight_bytes(&self) -> ByteCount {
        self.weights.iter().map(|file| file.bytes).sum()
    }
}

impl ComponentEntry {
    /// The quantised variant of a precision that has weights of its own, for Rushes kernels, or for ONNX Runtime's where there are
    /// none; with [`KernelLibrary::OnnxRuntime`] only in these.
    pub fn variant(&self, precision: Precision, kernels: KernelLibrary) -> Option<&QuantizedVariant> {
        let fits =
            |variant: &&QuantizedVariant| variant.precision == precision && !variant.weights.is_empty();
        preferred(self.variants.iter().filter(fits), kernels, |variant| variant.kernels)
    }

    /// Files of weights, of its variants too.
    pub fn weight_files(&self) -> impl Iterator<Item = &WeightFile> {
        self.weights.iter().chain(self.variants.iter().flat_map(|variant| &variant.weights))
    }

    /// Bytes of its exported weights on disk.
    pub fn weight_bytes(&self) -> ByteCount {
        self.weights.iter().map(|file| file.bytes).sum()
    }

    /// The graph of a part in a variant. Where a part has no graph for Rushes kernels, the one for ONNX Runtime's serves;
    /// with [`KernelLibrary::OnnxRuntime`] there is no such choice.
    ///
    /// # Errors
    /// Lists the variants that there are if this is not one of them.
    pub fn graph(&self, part: Part, variant: Variant) -> Result<&GraphEntry, Error> {
        let fits = |graph: &&GraphEntry| {
            graph.part == part
                && (graph.variant.target, graph.variant.precision) == (variant.target, variant.precision)
        };
        let found =
            preferred(self.graphs.iter().filter(fits), variant.kernels, |graph| graph.variant.kernels);
        found.ok_or_else(|| {
            let mut available: Vec<_> = self.graphs.iter().map(|graph| graph.variant.to_string()).collect();
            available.dedup();
            Error::NoGraph {
                component: self.component.to_string(),
                asked: format!("{} {}", variant.target, variant.precision),
                available,
            }
        })
    }
}

/// The one for Rushes kernels if they are wanted and there is one, else the one for ONNX Runtime's.
fn preferred<'a, T>(
    all: impl Iterator<Item = &'a T> + Clone,
    wanted: KernelLibrary,
    kernels: impl Fn(&T) -> KernelLibrary,
) -> Option<&'a T> {
    let mut own =
        all.clone().filter(|one| wanted == KernelLibrary::Rushes && kernels(one) == KernelLibrary::Rushes);
    own.next().or_else(|| all.clone().find(|one| kernels(one) == KernelLibrary::OnnxRuntime))
}

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Version of the writer.
    pub rushes: String,
    /// Name of the model, for people.
    pub model: String,
    /// Text encoder.
    pub text_encoder: TextEncoderSpec,
    /// All experts.
    pub denoiser: DenoiserSpec,
    /// VAE.
    pub vae: VaeSpec,
    /// The tiny decoder of previews, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiny_decoder: Option<TinyDecoderSpec>,
    /// Which expert at which noise level.
    pub routing: Routing,
    /// Resolved defaults.
    pub defaults: Defaults,
    /// Graphs and weights.
    pub components: Vec<ComponentEntry>,
    /// Digests of graphs, weights and tokenizer by their paths; none in bundles of before there were any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, FileDigest>,
}

impl Manifest {
    /// The entry of a component.
    ///
    /// # Errors
    /// When the bundle lacks it.
    pub fn component(&self, component: &Component) -> Result<&ComponentEntry, Error> {
        self.components.iter().find(|entry| entry.component == *component).ok_or_else(|| Error::NoGraph {
            component: component.to_string(),
            asked: "any".into(),
            available: self.components.iter().map(|entry| entry.component.to_string()).collect(),
        })
    }

    /// Precisions for which every component has graphs for `target` and `kernels`, as [`ComponentEntry::graph`] finds
    /// them; previews are never quantised and do not count.
    pub fn precisions(&self, target: Target, kernels: KernelLibrary) -> Vec<Precision> {
        let fits = |graph: &GraphEntry, precision: Precision| {
            (graph.variant.target, graph.variant.precision) == (target, precision)
                && graph.variant.kernels <= kernels
        };
        Precision::ALL
            .into_iter()
            .filter(|precision| {
                let mut models = self.components.iter().filter(|entry| entry.component != Component::Preview);
                models.all(|entry| entry.graphs.iter().any(|graph| fits(graph, *precision)))
            })
            .collect()
    }

    /// Every file of graphs and weights that it names, relative to the bundle.
    pub fn files(&self) -> BTreeSet<&str> {
        let graphs = self.components.iter().flat_map(|entry| &entry.graphs).map(|graph| &graph.file);
        graphs.chain(self.weight_files().map(|weights| &weights.file)).map(String::as_str).collect()
    }

    /// Every file of weights, of variants too.
    pub fn weight_files(&self) -> impl Iterator<Item = &WeightFile> {
        self.components.iter().flat_map(ComponentEntry::weight_files)
    }

    /// Whether a component has graphs of Rushes kernels in that precision.
    pub fn has_rushes_kernels(&self, precision: Precision) -> bool {
        let is_own = |graph: &GraphEntry| {
            (graph.variant.precision, graph.variant.kernels) == (precision, KernelLibrary::Rushes)
        };
        self.components.iter().flat_map(|entry| &entry.graphs).any(is_own)
    }
}

/// A bundle on disk.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its folder.
    pub folder: PathBuf,
    /// Its `bundle.json`.
    pub manifest: Manifest,
}

impl Bundle {
    /// Reads `bundle.json` and makes sure that every file it names can be used: it is there and may be read, ONNX Runtime
    /// will take it, it is as long as `bundle.json` says and has the sampled digest. The last reads at most 128 KiB of each.
    ///
    /// # Errors
    /// A folder without `bundle.json`, one of another format or with values out of range, or the first file that cannot be
    /// used.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let bundle = Self::read(folder)?;
        bundle.files().into_iter().try_for_each(|file| bundle.check_file(file))?;
        Ok(bundle)
    }

    /// Reads `bundle.json` alone and checks what it says.
    ///
    /// # Errors
    /// A folder without `bundle.json`, one of another format or with values out of range.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(layout::MANIFEST);
        let wrong = |why: String| Error::Manifest { path: path.clone(), why };
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_file() => return Err(wrong("it is no file".into())),
            Ok(found) if found.len() > MAX_BYTES => {
                let why = format!(
                    "it has {} and at most {} are read",
                    ByteCount(found.len()),
                    ByteCount(MAX_BYTES)
                );
                return Err(wrong(why));
            }
            Ok(_) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotABundle { path: folder.to_owned() });
            }
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let format = serde_json::from_slice::<serde_json::Value>(&text)
            .map_err(|error| wrong(error.to_string()))?
            .get("format")
            .and_then(serde_json::Value::as_u64);
        if !format
            .and_then(|format| u32::try_from(format).ok())
            .is_some_and(|format| READ_FORMATS.contains(&format))
        {
            let found = format.map_or("none".into(), |format| format.to_string());
            return Err(wrong(format!("its format is {found} and this version reads formats 1 to {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        validate::check(&manifest).map_err(wrong)?;
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Every file that the bundle needs, relative to it: graphs, weights and the tokenizer.
    pub fn files(&self) -> BTreeSet<&str> {
        let mut files = self.manifest.files();
        files.insert(layout::TOKENIZER);
        files
    }

    /// Makes sure that one of [`Self::files`] can be used, as [`Self::open`] does.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_file(&self, file: &str) -> Result<(), Error> {
        let path = self.path(file);
        let found = self.check_length(file)?;
        self.check_place(file)?;
        let opened = File::open(&path).map_err(Error::file("read", &path))?;
        let Some(digest) = self.manifest.digests.get(file) else { return Ok(()) };
        let sampled = file_digest::sampled(&opened, found.len()).map_err(Error::file("read", &path))?;
        if sampled == digest.sampled {
            Ok(())
        } else {
            Err(Error::damaged(&path, "its bytes are not those that were written"))
        }
    }

    /// Makes sure that a file is there and as long as it was written. Reads nothing of it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_length(&self, file: &str) -> Result<Metadata, Error> {
        let path = self.path(file);
        let found = std::fs::metadata(&path).map_err(Error::file("read", &path))?;
        // Opening a pipe would wait for a writer.
        if !found.is_file() {
            return Err(Error::damaged(&path, "it is no file"));
        }
        let stated = self.manifest.weight_files().find(|weights| weights.file == file);
        let stated = stated.map(|weights| weights.bytes);
        match stated.or_else(|| self.manifest.digests.get(file).map(|digest| digest.bytes)) {
            Some(bytes) if bytes.0 != found.len() => Err(Error::damaged(
                &path,
                format!("it has {} bytes and should have {}", found.len(), bytes.0),
            )),
            _ => Ok(found),
        }
    }

    /// Makes sure that weights lie in the folder of their graphs, links followed: ONNX Runtime takes no others.
    fn check_place(&self, file: &str) -> Result<(), Error> {
        let mut components = self.manifest.components.iter();
        let owner = components.find(|entry| entry.weight_files().any(|weights| weights.file == file));
        let Some(owner) = owner else { return Ok(()) };
        let (path, folder) = (self.path(file), self.path(&layout::component_folder(&owner.component)));
        let real = |path: &Path| std::fs::canonicalize(path).map_err(Error::file("read", path));
        let (real_path, real_folder) = (real(&path)?, real(&folder)?);
        if real_path.starts_with(&real_folder) {
            return Ok(());
        }
        Err(Error::OutsideWeights { path, found: real_path, folder })
    }

    /// Absolute or working-directory path of a file that `bundle.json` names.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// The linear map of previews; none where it was not fitted for this bundle's decoder.
    ///
    /// # Errors
    /// A map that is damaged.
    pub fn preview_map(&self) -> Result<Option<LatentToRgb>, Error> {
        let path = self.path(layout::PREVIEW_MAP);
        if !path.is_file() {
            return Ok(None);
        }
        let decoder = &self.manifest.component(&Component::Decoder)?.digest;
        let channels = self.manifest.vae.latent_channels;
        Ok(Some(LatentToRgb::read(&path)?).filter(|map| map.imitates(decoder, channels)))
    }

    /// Path of the tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.folder.join(layout::TOKENIZER)
    }
}

/// Writes `bundle.json` into `folder`; the last file of an export, so that a folder that has it is whole.
///
/// # Errors
/// The path that could not be written.
pub fn write(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = folder.join(layout::MANIFEST);
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Error::Manifest { path: path.clone(), why: error.to_string() })?;
    text.push(b'\n');
    atomic::write_atomic(&path, &text)
}
