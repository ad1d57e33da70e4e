//! A bundle with branches on disk.

use super::layer::NewTensor;
use super::packed::{PackedPlan, PackedSources, plan_packed};
use super::plan::{BranchPlan, Sources, plan, read};
use crate::Error;
use crate::checkpoint::names::Family;
use crate::checkpoint::shards::Shards;
use crate::digests::{self, Known};
use crate::lora::resolved::Resolved;
use crate::model::{GraphWeights, KernelLowering, Lowering, kernel_step_graph, step_graph};
use crate::weights::merge::Merge;
use crate::weights::new_file::{Alignment, write_new};
use crate::weights::{COPY_LIMIT, ExternalTensor, PlacedWeights};
use bundle::digest::Digest;
use bundle::layout;
use bundle::lora::AppliedLora;
use bundle::manifest::{self, Bundle, Component, ComponentEntry, GraphEntry, WeightFile};
use bundle::quantization::{ComponentNumerics, Numerics, Scheme};
use bundle::routing::ExpertName;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Target, Variant};
use std::collections::BTreeSet;
use std::path::Path;

/// A request to write a bundle with branches.
pub struct BranchedRequest<'a> {
    /// The base bundle.
    pub bundle: &'a Bundle,
    /// The LoRAs.
    pub loras: &'a Resolved,
    /// Stops the work.
    pub stop: &'a Stop,
}

/// The form of bundles with branches; another one for graphs that compute otherwise from the same changes.
const FORM: &str = "branches 2";

/// The digest of a bundle with branches: of the base bundle and of every change.
pub fn digest(bundle: &Bundle, loras: &Resolved) -> Digest {
    let manifest = bundle.manifest.digest().blake3;
    let merges = loras.merges.iter().flat_map(|(expert, merge)| [expert.0.clone(), merge.digest().blake3]);
    let parts: Vec<String> = [FORM.to_owned(), manifest].into_iter().chain(merges).collect();
    Digest::of_parts(parts.iter().map(String::as_bytes))
}

/// Writes the bundle into the existing, empty `folder`. Files of the base are linked; if the file system refuses links,
/// up to 1 GB is copied.
///
/// # Errors
/// Returns an error if a file cannot be linked or written, or if a change cannot be a branch.
pub fn write(request: &BranchedRequest<'_>, folder: &Path) -> Result<(), Error> {
    let base = request.bundle;
    let mut manifest = base.manifest.clone();
    let mut links = Links { base: &base.folder, folder, copied: ByteCount(0) };
    for entry in &mut manifest.components {
        request.stop.check()?;
        let weights: BTreeSet<String> = entry.weight_files().map(|weights| weights.file.clone()).collect();
        weights.iter().try_for_each(|file| links.add(file))?;
        let merges = match &entry.component {
            Component::Expert(expert) => request.loras.of_expert(expert),
            _ => Vec::new(),
        };
        if merges.is_empty() {
            let graphs: BTreeSet<String> = entry.graphs.iter().map(|graph| graph.file.clone()).collect();
            graphs.iter().try_for_each(|file| links.add(file))?;
        } else {
            *entry = Branched { request, folder, merges: &merges }.entry(entry)?;
        }
    }
    links.add(layout::TOKENIZER)?;
    if base.folder.join(layout::PREVIEW_MAP).is_file() {
        links.add(layout::PREVIEW_MAP)?;
    }
    let files: BTreeSet<String> = manifest.files().into_iter().map(str::to_owned).collect();
    manifest.digests.retain(|file, _| files.contains(file) || file == layout::TOKENIZER);
    digests::complete(folder, &mut manifest, &Known::new())?;
    Ok(manifest::write(folder, &manifest)?)
}

/// Links files of the base bundle.
struct Links<'a> {
    base: &'a Path,
    folder: &'a Path,
    copied: ByteCount,
}

impl Links<'_> {
    fn add(&mut self, file: &str) -> Result<(), Error> {
        let (from, to) = (self.base.join(file), self.folder.join(file));
        if to.exists() {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        // A hard link must refer to the file itself.
        let original = std::fs::canonicalize(&from).map_err(Error::file("read", &from))?;
        let Err(source) = std::fs::hard_link(&original, &to) else { return Ok(()) };
        let bytes = std::fs::metadata(&original).map_err(Error::file("read", &original))?.len();
        self.copied = self.copied + ByteCount(bytes);
        if self.copied > COPY_LIMIT {
            let (bytes, limit) = (self.copied, COPY_LIMIT);
            return Err(Error::CopyRefused {
                path: from,
                target: self.folder.to_owned(),
                bytes,
                limit,
                source,
            });
        }
        std::fs::copy(&original, &to).map(drop).map_err(Error::file("write", &to))
    }
}

/// Writes the branches of one expert.
struct Branched<'a> {
    request: &'a BranchedRequest<'a>,
    folder: &'a Path,
    merges: &'a [Merge],
}

impl Branched<'_> {
    fn entry(&self, entry: &ComponentEntry) -> Result<ComponentEntry, Error> {
        let parts = std::iter::once(entry.digest.clone()).chain(self.merges.iter().map(Merge::digest));
        let parts: Vec<Digest> = parts.collect();
        let digest = Digest {
            whole: entry.digest.whole,
            ..Digest::of_parts(parts.iter().map(|part| part.blake3.as_bytes()))
        };
        let mut changed = ComponentEntry { graphs: Vec::new(), digest, ..entry.clone() };
        if let Component::Expert(expert) = &entry.component {
            changed.loras.extend(self.records(expert));
        }
        for graph in &entry.graphs {
            self.request.stop.check()?;
            let (file, weights) = self.graph(entry, &changed, graph)?;
            changed.graphs.push(GraphEntry { file, batch_invariant: None, ..graph.clone() });
            let variant = graph.variant;
            let own = changed.variants.iter_mut().find(|own| {
                (own.precision, own.kernels) == (variant.precision, variant.kernels)
                    && own.is_for(variant.target)
                    && !own.weights.is_empty()
            });
            let files = own.map_or(&mut changed.weights, |own| &mut own.weights);
            if !files.contains(&weights) {
                files.push(weights);
            }
        }
        Ok(changed)
    }

    fn records(&self, expert: &ExpertName) -> impl Iterator<Item = AppliedLora> {
        self.request.loras.proofs.iter().filter_map(|proof| proof.applied(expert, true))
    }

    /// Writes the tensors and the graph of a variant. Returns the graph's file and that of the tensors.
    fn graph(
        &self,
        entry: &ComponentEntry,
        changed: &ComponentEntry,
        graph: &GraphEntry,
    ) -> Result<(String, WeightFile), Error> {
        let bundle = self.request.bundle;
        let component_folder = layout::component_folder(&entry.component);
        let open = |files: &[WeightFile]| {
            let files = files.iter().map(|file| self.folder.join(&file.file)).collect();
            Shards::of_files(&self.folder.join(&component_folder), files, Family::Denoiser)
        };
        let quantised = entry.variant(graph.variant);
        let numerics = quantised.map(|_| numerics(bundle, entry, graph)).transpose()?;
        let (exported, variant) = (open(&entry.weights)?, open(entry.weight_files_of(graph.variant))?);
        // Graphs that read the same weights share the tensors.
        let target = match quantised.map(|own| &own.targets[..]) {
            Some([Target::Plain]) => Target::Plain,
            _ => Target::Cpu,
        };
        let name = Variant { target, ..graph.variant }.name();
        let location = format!("{}/lora.{name}.{}.safetensors", layout::WEIGHTS, changed.digest.short());
        let write = |tensors: &[NewTensor]| -> Result<(PlacedWeights, u64), Error> {
            let path = self.folder.join(&component_folder).join(&location);
            let (own, bytes) = write_tensors(&path, &location, tensors)?;
            let mut placed = placed(&variant, &self.folder.join(&component_folder))?;
            placed.tensors.extend(own);
            Ok((placed, bytes))
        };
        let (merges, spec) = (self.merges, &bundle.manifest.denoiser);
        let (model, bytes) = match graph.variant.kernels {
            KernelLibrary::OnnxRuntime => {
                let sources = Sources { variant: &variant, exported: &exported, numerics: numerics.as_ref() };
                let BranchPlan { branches, tensors } = plan(merges, &sources)?;
                let (placed, bytes) = write(&tensors)?;
                let lowering = Lowering::new(graph.variant.target, entry.weight_type);
                let weights = match &numerics {
                    Some(numerics) => GraphWeights::quantized(&placed, numerics),
                    None => GraphWeights::new(&placed),
                };
                (step_graph(spec, weights.lowered(lowering).branched(&branches))?, bytes)
            }
            KernelLibrary::Rushes => {
                let sources = PackedSources {
                    variant: &|name| read(&variant, name),
                    exported: &|name| read(&exported, name),
                    numerics: numerics.as_ref(),
                };
                let PackedPlan { branches, tensors } = plan_packed(merges, spec, &sources)?;
                let (placed, bytes) = write(&tensors)?;
                let weights = GraphWeights::new(&placed);
                let lowering = KernelLowering { weights, values_as_bytes: true, branches: Some(&branches) };
                (kernel_step_graph(spec, lowering)?, bytes)
            }
        };
        let file = layout::graph_file(&entry.component, graph.part, graph.variant, &changed.digest);
        model.write(&self.folder.join(&file))?;
        let weights = WeightFile { file: format!("{component_folder}/{location}"), bytes: ByteCount(bytes) };
        Ok((file, weights))
    }
}

/// The numerics of a quantised graph, which `rushes quantize` stored beside it: in the file of the scheme, or in the one
/// for plain graphs alone.
fn numerics(bundle: &Bundle, entry: &ComponentEntry, graph: &GraphEntry) -> Result<ComponentNumerics, Error> {
    let scheme = Scheme::ALL.into_iter().find(|scheme| scheme.precision() == graph.variant.precision);
    let names = scheme.map(|scheme| [scheme.to_string(), scheme.name_for(&[Target::Plain])]);
    let files = names.iter().flatten().map(|name| bundle.folder.join(format!("quantization.{name}.json")));
    for path in files.filter(|path| path.is_file()) {
        let text = std::fs::read(&path).map_err(Error::file("read", &path))?;
        let all: Numerics =
            serde_json::from_slice(&text).map_err(|error| Error::config(&path, error.to_string()))?;
        let own = all.components.into_iter().find(|numerics| numerics.component == entry.component);
        if let Some(own) = own.filter(|own| graph.file.contains(own.fingerprint().short())) {
            return Ok(own);
        }
    }
    let why = "no quantization.SCHEME.json of the bundle has its numbers; quantise the bundle again";
    Err(Error::config(&bundle.path(&graph.file), why.to_owned()))
}

pub(super) fn write_tensors(
    path: &Path,
    location: &str,
    tensors: &[NewTensor],
) -> Result<(std::collections::BTreeMap<String, ExternalTensor>, u64), Error> {
    let stored: Vec<_> = tensors.iter().map(|tensor| tensor.stored.clone()).collect();
    let written = write_new(path, location, &stored, Alignment::LargeAtPages, |file| {
        tensors.iter().enumerate().try_for_each(|(index, tensor)| file.write(index, 0, &tensor.bytes))
    })?;
    Ok((written.tensors, written.bytes))
}

/// The weights of a component as external data of its graphs.
fn placed(shards: &Shards, folder: &Path) -> Result<PlacedWeights, Error> {
    let mut tensors = std::collections::BTreeMap::new();
    for tensor in shards.tensors() {
        let relative = tensor.file.path().strip_prefix(folder).unwrap_or(tensor.file.path());
        let external = ExternalTensor {
            location: relative.to_string_lossy().into_owned(),
            offset: tensor.offset,
            length: tensor.length as u64,
            element: tensor.element,
            shape: tensor.shape.to_vec(),
        };
        tensors.insert(tensor.name.to_owned(), external);
    }
    Ok(PlacedWeights { tensors, files: Vec::new(), from: folder.to_owned() })
}
