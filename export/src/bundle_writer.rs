//! Writes a bundle: weights, graphs, and `bundle.json` last.

use crate::checkpoint::{Checkpoint, Source};
use crate::digests::{self, Known};
use crate::lora::resolved::{BaseModel, Resolved, read_expert};
use crate::model::{
    Chunk, GraphWeights, Lowering, decoder_graph, decoder_trunk_graph, decoder_upsampler_graph, step_graph,
    text_encoder_graph, tiny_decoder_graph,
};
use crate::pieces::ReadPieces;
use crate::weights::merge::Merge;
use crate::weights::scan::{Verify, scan_rest};
use crate::weights::stored_formats::StoredFormats;
use crate::weights::transform::Transforms;
use crate::weights::{
    COPY_LIMIT, Destination, PlacedWeights, Transfer, linked, located, place_converted, place_linked,
};
use crate::{Error, ExportEvent, ExportReport, ExportRequest, bindings, defaults, preview_map};
use bundle::Field;
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::graph_set::{Binding, GraphSet};
use bundle::layout;
use bundle::manifest::{self, Component, ComponentEntry, GraphEntry, Manifest, Part, WeightFile};
use bundle::routing::ExpertName;
use bundle::staging::Staging;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use graph::Model;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

/// Exports a checkpoint. The folder has its name only once it is complete; an export that fails or is stopped leaves
/// nothing.
///
/// # Errors
/// Returns an error if the checkpoint is damaged, unsupported or inconsistent; if the folder is taken, being written by
/// another run or not writable; or if a stop was requested.
pub fn export(request: &ExportRequest, on_event: &mut dyn FnMut(ExportEvent)) -> Result<ExportReport, Error> {
    let staging = Staging::create(&request.out)?;
    let report = export_into(request, &staging.folder(), on_event)?;
    request.stop.check()?;
    staging.publish(if request.graphs_only { layout::GRAPHS } else { layout::MANIFEST })?;
    Ok(ExportReport { folder: request.out.clone(), ..report })
}

/// Exports a checkpoint into the existing, empty `folder` and ignores `out` of the request.
///
/// # Errors
/// Those of [`export`]. Files already written are kept.
pub fn export_into(
    request: &ExportRequest,
    folder: &Path,
    on_event: &mut dyn FnMut(ExportEvent),
) -> Result<ExportReport, Error> {
    refuse_f16_on_accelerators(request)?;
    check_graph_set(request)?;
    let mut checkpoint = Checkpoint::open(&request.checkpoint)?;
    if let Some(path) = &request.tiny_decoder {
        checkpoint.set_tiny_decoder(path)?;
    }
    let (mut model, defaults) = defaults::resolve(&checkpoint)?;
    if let Some(layers) = request.layers {
        checkpoint.keep_layers(layers);
        model = format!("{model}, {layers} layers");
    }
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
    // Linked files are shared with the checkpoint: a change after reading is a change of the bundle.
    checkpoint.sources.iter().try_for_each(|source| source.shards.check_unchanged())?;
    let manifest = if request.graphs_only {
        let set = GraphSet { manifest, bindings: written.bindings };
        set.write(folder)?;
        set.manifest
    } else {
        manifest::write(folder, &manifest)?;
        manifest
    };
    Ok(ExportReport { folder: folder.to_owned(), manifest, linked: written.linked, written: written.written })
}

/// Refuses f16 for accelerators, whose graphs compute in the number format of their weights.
fn refuse_f16_on_accelerators(request: &ExportRequest) -> Result<(), Error> {
    let has_accelerator = request.targets.iter().any(|target| *target != Target::Cpu);
    if request.weights == Some(WeightType::F16) && has_accelerator {
        let rule = "graphs for CUDA and TensorRT compute in the number format of their weights, and values of the text \
                    encoder are out of range for f16";
        return Err(bundle::Error::value(Field::Weights, "f16", rule, "use bf16, or f32").into());
    }
    Ok(())
}

/// Refuses to bind graphs to weights that are not read or that would be changed.
fn check_graph_set(request: &ExportRequest) -> Result<(), Error> {
    if request.graphs_only && !request.verify {
        let rule = "graphs without weights are bound to the digest of every byte";
        return Err(bundle::Error::value(Field::GraphsOnly, "used", rule, "read every weight").into());
    }
    if let Some(lora) = request.loras.first().filter(|_| request.graphs_only) {
        let rule =
            "graphs without weights are for weights as they are stored, and a merged LoRA changes them";
        let fix =
            "leave it out, or export a bundle; `generate` applies a LoRA to a bundle without merging it";
        return Err(bundle::Error::value(Field::Lora, format!("`{lora}`"), rule.to_owned(), fix).into());
    }
    Ok(())
}

#[derive(Default)]
struct Written {
    entries: Vec<ComponentEntry>,
    /// The weights of each entry, for a graph set.
    bindings: Vec<Binding>,
    /// Digests of files that were already read.
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
    let Resolved { merges: of_loras, proofs } = resolve_loras(request, checkpoint)?;
    proofs.iter().for_each(|proof| on_event(ExportEvent::Lora(proof.clone())));
    let merges = checked_merges(request, of_loras, checkpoint)?;
    let mut all = Written::default();
    let mut formats = Vec::with_capacity(checkpoint.sources.len());
    for source in &checkpoint.sources {
        let has_merges = merges.iter().any(|(component, _)| *component == source.component);
        formats.push(weight_format(request, source, has_merges, on_event)?);
    }
    let verify = if request.verify { Verify::Whole } else { Verify::Beginnings };
    let transfer =
        if request.copy { Transfer::Copy } else { Transfer::Link { copy_limit: Some(COPY_LIMIT) } };
    let destination =
        |component| Destination { bundle: folder, component, transfer, stop: Some(&request.stop) };
    let transforms = all_transforms(checkpoint, &formats, &merges);
    // Refused links, and weights that cannot be left out, are reported before the long work.
    let mut linked = Vec::with_capacity(checkpoint.sources.len());
    for ((source, transforms), format) in checkpoint.sources.iter().zip(&transforms).zip(&formats) {
        linked.push(if request.graphs_only {
            let located = located(source, transforms)?;
            Some(located.ok_or_else(|| needs_conversion(source, *format))?)
        } else {
            place_linked(source, transforms, destination(&source.component))?
        });
    }
    let sources = checkpoint.sources.iter().zip(&transforms).zip(formats);
    for (((source, transforms), weight_type), linked) in sources.zip(linked) {
        let component = &source.component;
        let bytes = source.shards.files().iter().map(|file| ByteCount(file.bytes())).sum();
        let is_unchanged = linked.is_some();
        on_event(ExportEvent::Reading { component: component.clone(), bytes, converts: !is_unchanged });
        let (placed, read) = match linked {
            Some(placed) => (placed, ReadPieces::default()),
            None => {
                let converted = place_converted(source, transforms, destination(component), verify)?;
                all.known.extend(converted.known());
                (converted.placed, converted.read)
            }
        };
        let scanned = scan_rest(&source.shards, verify, &read, &request.stop)?;
        let digest = cut_digest(component, transforms.digest(&scanned.digest), request.layers);
        on_event(ExportEvent::Writing { component: component.clone() });
        source.shards.check_unchanged()?;
        if request.graphs_only {
            all.bindings.push(bindings::bind(source, &scanned, &request.stop)?);
            let component_folder = folder.join(layout::component_folder(component));
            std::fs::create_dir_all(&component_folder).map_err(Error::file("create", &component_folder))?;
        }
        let weights: &[WeightFile] = if request.graphs_only { &[] } else { &placed.files };
        for (index, file) in weights.iter().enumerate() {
            if is_unchanged {
                // Without verification, linked files are not read.
                all.known.insert(file.file.clone(), scanned.files.get(index).cloned());
            }
            if linked::is_linked(&folder.join(&file.file))? {
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
            weights: weights.to_vec(),
            weight_type,
            digest,
            variants: Vec::new(),
            loras: match component {
                Component::Expert(expert) => {
                    proofs.iter().filter_map(|proof| proof.applied(expert, false)).collect()
                }
                _ => Vec::new(),
            },
        });
    }
    Ok(all)
}

/// Returns the changes of each component's weights.
fn all_transforms(
    checkpoint: &Checkpoint,
    formats: &[WeightType],
    merges: &[(Component, Merge)],
) -> Vec<Transforms> {
    let of_source = |(source, format): (&Source, &WeightType)| {
        let merges = merges.iter().filter(|(component, _)| *component == source.component);
        Transforms::conversion(*format).after(merges.map(|(_, merge)| merge.clone()))
    };
    checkpoint.sources.iter().zip(formats).map(of_source).collect()
}

/// Returns the digest of a component of which only so many layers are kept.
fn cut_digest(component: &Component, digest: Digest, layers: Option<NonZeroUsize>) -> Digest {
    let is_cut = matches!(component, Component::TextEncoder | Component::Expert(_));
    match layers.filter(|_| is_cut) {
        None => digest,
        Some(layers) => {
            let parts = [digest.blake3.as_bytes(), b"layers", &layers.get().to_le_bytes()[..]];
            Digest { whole: digest.whole, ..Digest::of_parts(parts) }
        }
    }
}

/// The error for weights that graphs cannot be bound to as they are stored.
fn needs_conversion(source: &Source, format: WeightType) -> Error {
    let stored = StoredFormats::of(source).map(|stored| stored.formats().to_vec()).unwrap_or_default();
    Error::NeedsConversion { component: source.component.clone(), stored, weights: format }
}

/// Reads the LoRA files of the request and matches them with the experts.
fn resolve_loras(request: &ExportRequest, checkpoint: &Checkpoint) -> Result<Resolved, Error> {
    let read = |expert: &ExpertName, name: &str| read_expert(checkpoint, expert, name);
    let model = BaseModel { spec: &checkpoint.denoiser, routing: &checkpoint.routing, weights: Some(&read) };
    Resolved::new(&request.loras, request.lora_lenient, &model)
}

/// Returns all changes, those of LoRAs last. Every merge is into a weight that the checkpoint has, and fits its shape.
fn checked_merges(
    request: &ExportRequest,
    of_loras: Vec<(ExpertName, Merge)>,
    checkpoint: &Checkpoint,
) -> Result<Vec<(Component, Merge)>, Error> {
    let of_loras = of_loras.into_iter().map(|(expert, merge)| (Component::Expert(expert), merge));
    let merges: Vec<(Component, Merge)> = request.merges.iter().cloned().chain(of_loras).collect();
    for (component, merge) in &merges {
        let refused = |why: String| Error::Merge { weight: merge.weight().to_owned(), why };
        let mut sources = checkpoint.sources.iter();
        let source = sources
            .find(|source| source.component == *component)
            .ok_or_else(|| refused(format!("the checkpoint does not have {component}")))?;
        let mut required = source.required.iter();
        let weight = required
            .find(|required| required.name == merge.weight())
            .ok_or_else(|| refused(format!("{component} does not have this weight")))?;
        merge.check(&weight.shape)?;
    }
    Ok(merges)
}

/// Returns the number format of a component's weights in the bundle.
fn weight_format(
    request: &ExportRequest,
    source: &Source,
    has_merges: bool,
    on_event: &mut dyn FnMut(ExportEvent),
) -> Result<WeightType, Error> {
    let asked = request.weights.or_else(|| accelerator_format(&request.targets));
    if let Some(format) = asked {
        return Ok(format);
    }
    // A sum needs more digits than its parts.
    if has_merges {
        return Ok(WeightType::F32);
    }
    let stored = StoredFormats::of(source)?;
    let weights = stored.common();
    if let formats @ [_, _, ..] = stored.formats() {
        let (component, stored) = (source.component.clone(), formats.to_vec());
        on_event(ExportEvent::MixedFormats { component, stored, weights });
    }
    Ok(weights)
}

/// Returns the number format in which accelerators compute, if one is a target. The targets share their weights; the
/// CPU widens them.
fn accelerator_format(targets: &[Target]) -> Option<WeightType> {
    let accelerators = targets.iter().filter(|target| **target != Target::Cpu);
    accelerators.map(|target| target.weights()).min_by_key(|weights| weights.element().bytes())
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
                Ok(GraphEntry { part, variant, file, batch_invariant: None })
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
            // No checkpoint with an image encoder is supported.
            Component::ImageEncoder => Vec::new(),
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
