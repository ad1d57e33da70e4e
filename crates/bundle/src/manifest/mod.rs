//! `bundle.json`: the contents of a bundle.

mod batch_invariance;
mod precisions;
pub mod validate;

pub use crate::component::{Component, Part};
pub use batch_invariance::{BatchConditions, BatchInvariance};

use crate::digest::Digest;
use crate::dtype::WeightType;
use crate::file_digest::{self, FileDigest};
use crate::layout;
use crate::lora::AppliedLora;
use crate::preview::LatentToRgb;
use crate::routing::Routing;
use crate::settings::Defaults;
use crate::spec::{DenoiserSpec, TextEncoderSpec, TinyDecoderSpec, VaeSpec};
use crate::units::ByteCount;
use crate::variant::{KernelLibrary, Precision, Target, Variant};
use crate::{Error, atomic};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

/// The format version that is written.
pub const FORMAT: u32 = 2;
/// The format versions that can be read. Format 1 had `dialect` for `target`, `tensorrt` for `plain`,
/// `operators` for `kernels` with the values `stock` and `own`, `stem` for `trunk` and `rise` for `upsampler`.
pub const READ_FORMATS: std::ops::RangeInclusive<u32> = 1..=FORMAT;
/// The largest `bundle.json` that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// One graph file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphEntry {
    /// The graph of the component.
    pub part: Part,
    /// The variant that it belongs to.
    #[serde(flatten)]
    pub variant: Variant,
    /// Path relative to the bundle.
    pub file: String,
    /// Whether a step gives the same bits in a batch of two; none if it was not compared, or is no step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_invariant: Option<BatchInvariance>,
}

/// One file of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightFile {
    /// Path relative to the bundle.
    pub file: String,
    /// Length in bytes.
    pub bytes: ByteCount,
}

/// A component's graphs and weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComponentEntry {
    /// The component.
    pub component: Component,
    /// Its graphs.
    pub graphs: Vec<GraphEntry>,
    /// Weight files that its graphs read.
    pub weights: Vec<WeightFile>,
    /// The number format of the exported weights, which may differ between components.
    pub weight_type: WeightType,
    /// Digest over all its weights, as the checkpoint stores them, and over their changes other than conversions.
    pub digest: Digest,
    /// Quantised variants, each with its own weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<QuantizedVariant>,
    /// The LoRAs that its weights contain, or that its graphs add to them, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<AppliedLora>,
}

/// A quantised variant of a component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedVariant {
    /// The precision of its graphs.
    pub precision: Precision,
    /// The kernels that its graphs use.
    #[serde(default, alias = "operators", skip_serializing_if = "KernelLibrary::is_onnx_runtime")]
    pub kernels: KernelLibrary,
    /// The targets of its graphs; empty for all targets, as in bundles of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Weight files that its graphs read; none if it uses the component's weights.
    pub weights: Vec<WeightFile>,
    /// Number of quantised layers.
    pub quantized: usize,
    /// Number of layers that could be quantised but are not.
    pub kept: usize,
    /// A note for the user.
    pub note: Option<String>,
}

impl QuantizedVariant {
    /// Returns true if its graphs are for this target.
    pub fn is_for(&self, target: Target) -> bool {
        self.targets.is_empty() || self.targets.contains(&target)
    }

    /// Returns the size of its weights on disk.
    pub fn weight_bytes(&self) -> ByteCount {
        self.weights.iter().map(|file| file.bytes).sum()
    }
}

impl ComponentEntry {
    /// Returns the quantised variant of a target and a precision that has its own weights. With
    /// [`KernelLibrary::Rushes`], a variant for ONNX Runtime kernels is the fallback.
    pub fn variant(&self, variant: Variant) -> Option<&QuantizedVariant> {
        let fits = |found: &&QuantizedVariant| {
            found.precision == variant.precision && found.is_for(variant.target) && !found.weights.is_empty()
        };
        preferred(self.variants.iter().filter(fits), variant.kernels, |found| found.kernels)
    }

    /// Returns the precision of its exported graphs.
    pub fn exported_precision(&self) -> Precision {
        Precision::from(self.weight_type)
    }

    /// Returns all weight files, including those of its variants.
    pub fn weight_files(&self) -> impl Iterator<Item = &WeightFile> {
        self.weights.iter().chain(self.variants.iter().flat_map(|variant| &variant.weights))
    }

    /// Returns the size of its exported weights on disk.
    pub fn weight_bytes(&self) -> ByteCount {
        self.weights.iter().map(|file| file.bytes).sum()
    }

    /// Returns the files of the weights that the graphs of a variant read.
    pub fn weight_files_of(&self, variant: Variant) -> &[WeightFile] {
        self.variant(variant).map_or(&self.weights, |own| &own.weights)
    }

    /// Returns the size of the weights that the graphs of a variant read.
    pub fn weights_of(&self, variant: Variant) -> ByteCount {
        self.weight_files_of(variant).iter().map(|file| file.bytes).sum()
    }

    /// Returns the graph of a part in a variant. With [`KernelLibrary::Rushes`], the graph for ONNX Runtime kernels is
    /// the fallback.
    ///
    /// # Errors
    /// [`Error::NoGraph`] with the available variants.
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

/// Returns the item for Rushes kernels if these are wanted and available, else the one for ONNX Runtime kernels.
fn preferred<'a, T>(
    all: impl Iterator<Item = &'a T> + Clone,
    wanted: KernelLibrary,
    kernels: impl Fn(&T) -> KernelLibrary,
) -> Option<&'a T> {
    let mut rushes =
        all.clone().filter(|one| wanted == KernelLibrary::Rushes && kernels(one) == KernelLibrary::Rushes);
    rushes.next().or_else(|| all.clone().find(|one| kernels(one) == KernelLibrary::OnnxRuntime))
}

/// The content of `bundle.json`.
///
/// ```no_run
/// use bundle::manifest::{Bundle, Component};
/// use bundle::variant::{KernelLibrary, Target};
///
/// let manifest = Bundle::read("wan.bundle".as_ref())?.manifest;
/// let decoder = manifest.component(&Component::Decoder)?;
/// println!("{}: the decoder has {} of weights", manifest.model, decoder.weight_bytes());
/// for precision in manifest.precisions(Target::Cpu, KernelLibrary::Rushes) {
///     println!("it runs in {precision} on the CPU");
/// }
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Version of the writer.
    pub rushes: String,
    /// Name of the model, for display.
    pub model: String,
    /// Text encoder.
    pub text_encoder: TextEncoderSpec,
    /// All experts.
    pub denoiser: DenoiserSpec,
    /// VAE.
    pub vae: VaeSpec,
    /// The tiny decoder for previews, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiny_decoder: Option<TinyDecoderSpec>,
    /// The expert for each noise level.
    pub routing: Routing,
    /// Resolved defaults.
    pub defaults: Defaults,
    /// Graphs and weights.
    pub components: Vec<ComponentEntry>,
    /// Digests of graphs, weights and tokenizer by path; absent from the oldest bundles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, FileDigest>,
}

impl Manifest {
    /// Returns a digest of everything that it states.
    pub fn digest(&self) -> Digest {
        let json = serde_json::to_vec(self).unwrap_or_else(|_| unreachable!("it was read from JSON"));
        Digest::of_parts([&*json])
    }

    /// Reads and checks the content of `bundle.json`. `path` is its name in errors.
    ///
    /// # Errors
    /// Returns an error if it is not JSON of this form, or has another format or values out of range.
    pub fn from_json(text: &[u8], path: &Path) -> Result<Self, Error> {
        let wrong = |why: String| Error::Manifest { path: path.to_owned(), why };
        let format = serde_json::from_slice::<serde_json::Value>(text)
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
        let manifest: Self = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        validate::check(&manifest).map_err(wrong)?;
        Ok(manifest)
    }

    /// Returns the entry of a component.
    ///
    /// # Errors
    /// Returns an error if the bundle lacks it.
    pub fn component(&self, component: &Component) -> Result<&ComponentEntry, Error> {
        self.components.iter().find(|entry| entry.component == *component).ok_or_else(|| Error::NoComponent {
            component: component.to_string(),
            available: self.components.iter().map(|entry| entry.component.to_string()).collect(),
        })
    }

    /// Returns every graph and weight file, relative to the bundle.
    pub fn files(&self) -> BTreeSet<&str> {
        let graphs = self.components.iter().flat_map(|entry| &entry.graphs).map(|graph| &graph.file);
        graphs.chain(self.weight_files().map(|weights| &weights.file)).map(String::as_str).collect()
    }

    /// Returns every weight file, including those of variants.
    pub fn weight_files(&self) -> impl Iterator<Item = &WeightFile> {
        self.components.iter().flat_map(ComponentEntry::weight_files)
    }

    /// Returns true if a component has graphs for Rushes kernels in this precision.
    pub fn has_rushes_kernels(&self, precision: Precision) -> bool {
        let uses_rushes = |graph: &GraphEntry| {
            (graph.variant.precision, graph.variant.kernels) == (precision, KernelLibrary::Rushes)
        };
        self.components.iter().flat_map(|entry| &entry.graphs).any(uses_rushes)
    }
}

/// A bundle on disk.
///
/// ```no_run
/// use bundle::manifest::Bundle;
///
/// let bundle = Bundle::open("wan.bundle".as_ref())?;
/// println!("{} of {}", bundle.manifest.defaults.size.value, bundle.manifest.model);
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its folder.
    pub folder: PathBuf,
    /// Its `bundle.json`.
    pub manifest: Manifest,
}

impl Bundle {
    /// Reads `bundle.json` and checks every file of the bundle: it exists and is readable, ONNX Runtime accepts its
    /// path, and it has the recorded length and sampled digest. At most 128 KiB of each file are read.
    ///
    /// # Errors
    /// Returns an error if `bundle.json` is missing, has another format or values out of range, or for the first
    /// unusable file.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let bundle = Self::read(folder)?;
        bundle.files().into_iter().try_for_each(|file| bundle.check_file(file))?;
        Ok(bundle)
    }

    /// Reads and checks `bundle.json` only.
    ///
    /// # Errors
    /// Returns an error if `bundle.json` is missing, has another format or values out of range.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(layout::MANIFEST);
        let wrong = |why: String| Error::Manifest { path: path.clone(), why };
        match std::fs::metadata(&path) {
            Ok(found) if !found.is_file() => return Err(wrong("it is not a regular file".into())),
            Ok(found) if found.len() > MAX_BYTES => {
                let why =
                    format!("it has {}; the maximum is {}", ByteCount(found.len()), ByteCount(MAX_BYTES));
                return Err(wrong(why));
            }
            Ok(_) => {}
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
                let path = folder.to_owned();
                return Err(match folder.join(layout::GRAPHS).is_file() {
                    true => Error::WithoutWeights { path },
                    false => Error::NotABundle { path },
                });
            }
            Err(source) => return Err(Error::File { action: "read", path, source }),
        }
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        Ok(Self { folder: folder.to_owned(), manifest: Manifest::from_json(&text, &path)? })
    }

    /// Returns every file of the bundle, relative to it: graphs, weights and the tokenizer.
    pub fn files(&self) -> BTreeSet<&str> {
        let mut files = self.manifest.files();
        files.insert(layout::TOKENIZER);
        files
    }

    /// Checks one of [`Self::files`] like [`Self::open`].
    ///
    /// # Errors
    /// Returns an error if it cannot be used.
    pub fn check_file(&self, file: &str) -> Result<(), Error> {
        let path = self.path(file);
        let found = self.check_length(file)?;
        self.check_location(file)?;
        let opened = File::open(&path).map_err(Error::file("read", &path))?;
        let Some(digest) = self.manifest.digests.get(file) else { return Ok(()) };
        let sampled = file_digest::sampled(&opened, found.len()).map_err(Error::file("read", &path))?;
        if sampled == digest.sampled {
            Ok(())
        } else {
            Err(Error::damaged(&path, "its content differs from what was written"))
        }
    }

    /// Checks that a file exists and has the recorded length. Does not read it.
    ///
    /// # Errors
    /// Returns an error if it does not.
    pub fn check_length(&self, file: &str) -> Result<Metadata, Error> {
        let path = self.path(file);
        let found = std::fs::metadata(&path).map_err(Error::file("read", &path))?;
        // Opening a pipe would block until a writer opens it.
        if !found.is_file() {
            return Err(Error::damaged(&path, "it is not a regular file"));
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

    /// Checks that weights are in the folder of their graphs after following links. ONNX Runtime refuses others.
    fn check_location(&self, file: &str) -> Result<(), Error> {
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

    /// Returns the path of a file of the bundle, in its folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Reads the linear map of previews. Returns none if no map was fitted for this bundle's decoder.
    ///
    /// # Errors
    /// Returns an error if the map is damaged.
    pub fn preview_map(&self) -> Result<Option<LatentToRgb>, Error> {
        let path = self.path(layout::PREVIEW_MAP);
        if !path.is_file() {
            return Ok(None);
        }
        let decoder = &self.manifest.component(&Component::Decoder)?.digest;
        let channels = self.manifest.vae.latent_channels;
        Ok(Some(LatentToRgb::read(&path)?).filter(|map| map.approximates(decoder, channels)))
    }

    /// Returns the path of the tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.folder.join(layout::TOKENIZER)
    }
}

/// Writes `bundle.json` into `folder`. It is the last file of an export, so a folder that has it is complete.
///
/// # Errors
/// I/O errors, with the path.
pub fn write(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = folder.join(layout::MANIFEST);
    // A manifest of an earlier format is written in the words of this one.
    let manifest = Manifest { format: FORMAT, ..manifest.clone() };
    let mut text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| Error::Manifest { path: path.clone(), why: error.to_string() })?;
    text.push(b'\n');
    atomic::write_atomic(&path, &text)
}
