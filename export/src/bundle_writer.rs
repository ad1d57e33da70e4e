//! Writes a bundle: weights into their place, graphs over them, `bundle.json` last.

use crate::checkpoint::Checkpoint;
use crate::digests::{self, Known};
use crate::model::{
    Chunk, GraphWeights, Lowering, decoder_graph, decoder_trunk_graph, decoder_upsampler_graph, step_graph,
    text_encoder_graph, tiny_decoder_graph,
};
use crate::weights::scan::{Scan, Verify, scan};
use crate::weights::{COPY_LIMIT, Destination, Keeping, PlacedWeights, place_converted, place_linked};
use crate::{Error, defaults, preview_map};
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::layout;
use bundle::manifest::{self, Component, ComponentEntry, GraphEntry, Manifest, Part};
use bundle::staging::Staging;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use graph::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to export, and how.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// A folder in the diffusers layout.
    pub checkpoint: PathBuf,
    /// The folder to make; it must not exist, or be empty. One that is there keeps its place: it may be a link, a mount
    /// point or the working folder.
    pub out: PathBuf,
    /// What the graphs are for.
    pub targets: Vec<Target>,
    /// How weights are stored; none takes what the targets compute in, and 16 bits where they differ.
    pub weights: Option<WeightType>,
    /// Whether every weight is read, for its digest and for values that are not finite.
    pub verify: bool,
    /// A tiny decoder to take in place of the checkpoint's own.
    pub tiny_decoder: Option<PathBuf>,
    /// Whether weights are copied even where they could be linked, and however large they are.
    pub copy: bool,
    /// What may end the export.
    pub stop: Stop,
}

impl ExportRequest {
    /// A verified export for the CPU.
    pub fn new(checkpoint: &Path, out: &Path) -> Self {
        Self {
            checkpoint: checkpoint.to_owned(),
            out: out.to_owned(),
            targets: vec![Target::Cpu],
            weights: None,
            verify: true,
            tiny_decoder: None,
            copy: false,
            stop: Stop::new(),
        }
    }
}

/// What an export tells while it goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum ExportEvent {
    /// The weights of a component are being read.
    Reading {
        /// Which component.
        component: Component,
        /// Their bytes.
        bytes: ByteCount,
    },
    /// The checkpoint's preview map was fitted for another decoder and is left out.
    ForeignPreviewMap,
    /// Its weights and graphs are being written.
    Writing {
        /// Which component.
        component: Component,
    },
}

/// What an export made.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportReport {
    /// The bundle.
    pub folder: PathBuf,
    /// Its `bundle.json`.
    pub manifest: Manifest,
    /// Bytes of weights that are shared with the checkpoint by hard links.
    pub linked: ByteCount,
    /// Bytes of weights that were copied or converted.
    pub written: ByteCount,
}

/// Exports a checkpoint. The folder gets its name when it is whole; an export that fails or is stopped leaves nothing.
///
/// # Errors
/// A checkpoint that is damaged, unsupported or does not hold together; a folder that is taken, that another run makes or
/// that cannot be written; a stop.
pub fn export(request: &ExportRequest, on_event: &mut dyn FnMut(ExportEvent)) -> Result<ExportReport, Error> {
    let staging = Staging::create(&request.out)?;
    let report = export_into(request, &staging.folder(), on_event)?;
    request.stop.check()?;
    staging.publish(layout::MANIFEST)?;
    Ok(ExportReport { folder: request.out.clone(), ..report })
}

/// Exports a checkpoint into `folder`, which is there and empty; `out` of the request is not looked at.
///
/// # Errors
/// As [`export`]; what was written stays then.
pub fn export_into(
    request: &ExportRequest,
    folder: &Path,
    on_event: &mut dyn FnMut(ExportEvent),
) -> Result<ExportReport, Error> {
    refuse_f16_on_accelerators(request)?;
    let mut checkpoint = Checkpoint::open(&request.checkpoint)?;
    if let Some(path) = &request.tiny_decoder {
        checkpoint.take_tiny_decoder(path)?;
    }
    let (model, defaults) = defaults::resolve(&checkpoint)?;
    let written = write_components(request, &checkpoint, folder, on_event)?;
    if let Some(decoder) = written.entries.iter().find(|entry| entry.component == Component::Decoder) {
        let channels = checkpoint.vae.latent_channels;
        if preview_map::place(&request.checkpoint, folder, &decoder.digest, channels)? {
            on_event(ExportEvent::ForeignPreviewMap);
        }
    }
    let tokenizer = folder.join(layout::TOKENIZER);
    std::fs::copy(&checkpoint.tokenizer, &tokenizer).map_err(Error::file("write", &tokenizer))?;
    let mut manifest = Manifest {
        format: manifest::FORMAT,
        rushes: env!("CARGO_PKG_VERSION").into(),
        model,
        text_encoder: checkpoint.text_encoder.clone(),
        denoiser: checkpoint.denoiser.clone(),
        vae: checkpoint.vae.clone(),
        tiny_decoder: checkpoint.tiny_decoder.clone(),
        routing: checkpoint.routing.clone(),
        defaults,
        components: written.entries,
        digests: BTreeMap::new(),
    };
    digests::complete(folder, &mut manifest, &written.known)?;
    // What is linked is the checkpoint's own file: a change after it was read is a change of the bundle.
    checkpoint.sources.iter().try_for_each(|source| source.shards.check_unchanged())?;
    manifest::write(folder, &manifest)?;
    Ok(ExportReport { folder: folder.to_owned(), manifest, linked: written.linked, written: written.written })
}

/// Graphs for accelerators compute in the number format of their weights.
fn refuse_f16_on_accelerators(request: &ExportRequest) -> Result<(), Error> {
    let is_for_one = request.targets.iter().any(|target| *target != Target::Cpu);
    if request.weights == Some(WeightType::F16) && is_for_one {
        let rule = "graphs for CUDA and TensorRT compute in what their weights are stored in, and values of the text encoder are \
                    too large for f16";
        return Err(bundle::Error::value("--weights", "f16", rule, "use bf16, or f32").into());
    }
    Ok(())
}

#[derive(Default)]
struct Written {
    entries: Vec<ComponentEntry>,
    /// Digests of files that were read already.
    known: Known,
    linked: ByteCount,
    written: ByteCount,
}

fn write_components(
    request: &ExportRequest,
    checkpoint: &Checkpoint,
    folder: &Path,
    on_event: &mut dyn FnMut(ExportEvent),
) -> Result<Written, Error> {
    let mut all = Written::default();
    let weight_type = request.weights.unwrap_or_else(|| weights_for(&request.targets));
    let verify = if request.verify { Verify::Whole } else { Verify::Beginnings };
    let keeping = if request.copy { Keeping::Copy } else { Keeping::Link { copy_limit: Some(COPY_LIMIT) } };
    let destination =
        |component| Destination { bundle: folder, component, keeping, stop: Some(&request.stop) };
    // Whether files may be linked is known before the long work, and said.
    let mut linked = Vec::with_capacity(checkpoint.sources.len());
    for source in &checkpoint.sources {
        linked.push(place_linked(source, weight_type, destination(&source.component))?);
    }
    for (source, linked) in checkpoint.sources.iter().zip(linked) {
        let component = &source.component;
        let bytes = source.shards.files().iter().map(|file| ByteCount(file.bytes())).sum();
        on_event(ExportEvent::Reading { component: component.clone(), bytes });
        let Scan { digest, files: scanned } = scan(&source.shards, verify, &request.stop)?;
        on_event(ExportEvent::Writing { component: component.clone() });
        let as_they_are = linked.is_some();
        let placed = match linked {
            Some(placed) => placed,
            None => place_converted(source, weight_type, destination(component))?,
        };
        source.shards.check_unchanged()?;
        for (index, file) in placed.files.iter().enumerate() {
            if as_they_are {
                // Without verification nobody reads what is linked.
                all.known.insert(file.file.clone(), scanned.get(index).cloned());
            }
            if is_linked(&folder.join(&file.file))? {
                all.linked = all.linked + file.bytes;
            } else {
                all.written = all.written + file.bytes;
            }
        }
        let writer = GraphWriter {
            checkpoint,
            component,
            placed: &placed,
            weight_type,
            digest: &digest,
            folder,
            stop: &request.stop,
        };
        let graphs =
            request.targets.iter().map(|target| writer.write(*target)).collect::<Result<Vec<_>, _>>()?;
        all.entries.push(ComponentEntry {
            component: component.clone(),
            graphs: graphs.into_iter().flatten().collect(),
            weights: placed.files,
            weight_type,
            digest,
            variants: Vec::new(),
        });
    }
    Ok(all)
}

/// How weights are stored for all of these targets: the CPU widens what is narrow.
fn weights_for(targets: &[Target]) -> WeightType {
    let wanted = targets.iter().map(|target| target.weights());
    wanted.min_by_key(|weights| weights.element().bytes()).unwrap_or(WeightType::F32)
}

/// Whether a file in the bundle shares its bytes with the checkpoint.
fn is_linked(path: &Path) -> Result<bool, Error> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(Error::file("read", path))?;
    Ok(metadata.nlink() > 1)
}

/// Writes the graphs of one component.
struct GraphWriter<'a> {
    checkpoint: &'a Checkpoint,
    component: &'a Component,
    placed: &'a PlacedWeights,
    weight_type: WeightType,
    digest: &'a Digest,
    folder: &'a Path,
    stop: &'a Stop,
}

impl GraphWriter<'_> {
    fn write(&self, target: Target) -> Result<Vec<GraphEntry>, Error> {
        self.stop.check()?;
        let precision = Precision::from(self.weight_type);
        let variant = Variant { target, precision, kernels: KernelLibrary::OnnxRuntime };
        self.graphs(target)?
            .into_iter()
            .map(|(part, model)| {
                let file = layout::graph_file(self.component, part, variant, self.digest);
                model.write(&self.folder.join(&file))?;
                Ok(GraphEntry { part, variant, file })
            })
            .collect()
    }

    fn graphs(&self, target: Target) -> Result<Vec<(Part, Model)>, Error> {
        let lowering = Lowering::new(target, self.weight_type);
        let weights = GraphWeights::new(self.placed).lowered(lowering);
        let Checkpoint { text_encoder, denoiser, vae, tiny_decoder, .. } = self.checkpoint;
        Ok(match self.component {
            Component::TextEncoder => vec![(Part::Whole, text_encoder_graph(text_encoder, weights)?)],
            Component::Expert(_) => vec![(Part::Whole, step_graph(denoiser, weights)?)],
            Component::Decoder => vec![
                (Part::First, decoder_graph(vae, Chunk::First, weights)?),
                (Part::Next, decoder_graph(vae, Chunk::Next, weights)?),
                (Part::TrunkFirst, decoder_trunk_graph(vae, Chunk::First, weights)?),
                (Part::UpsamplerFirst, decoder_upsampler_graph(vae, Chunk::First, weights)?),
                (Part::TrunkNext, decoder_trunk_graph(vae, Chunk::Next, weights)?),
                (Part::UpsamplerNext, decoder_upsampler_graph(vae, Chunk::Next, weights)?),
            ],
            // A megabyte of weights: nothing is won by computing in less than f32.
            Component::Preview => match tiny_decoder {
                None => Vec::new(),
                Some(spec) => vec![
                    (Part::First, tiny_decoder_graph(spec, Chunk::First, weights.in_f32())?),
                    (Part::Next, tiny_decoder_graph(spec, Chunk::Next, weights.in_f32())?),
                ],
            },
        })
    }
}
