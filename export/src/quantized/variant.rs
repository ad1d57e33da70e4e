//! Writes a quantised variant of a component: weights, graphs, and entries for `bundle.json`.

use super::packed_values;
use super::source::BundleWeights;
use super::values::{self, Planned};
use crate::Error;
use crate::model::{
    Chunk, GraphWeights, KernelLowering, Lowering, integer_decoder_graph, kernel_decoder_graph,
    kernel_step_graph, step_graph, text_encoder_graph,
};
use crate::weights::PlacedWeights;
use crate::weights::new_file::{Alignment, write_new};
use bundle::layout;
use bundle::manifest::{
    Bundle, Component, ComponentEntry, GraphEntry, Manifest, Part, QuantizedVariant, WeightFile,
};
use bundle::quantization::{ComponentNumerics, Scheme};
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use graph::Model;

/// A request to write a quantised variant of a component.
#[derive(Debug, Clone)]
pub struct VariantRequest<'a> {
    /// The scheme.
    pub scheme: Scheme,
    /// Its scales, ranges and smoothing.
    pub numerics: &'a ComponentNumerics,
    /// The kernels to write graphs for, if the component and the scheme support both.
    pub kernels: &'a [KernelLibrary],
    /// A note for the user.
    pub note: Option<String>,
    /// Stops the work.
    pub stop: &'a Stop,
}

impl VariantRequest<'_> {
    /// Returns the kernels to write graphs for. Rushes kernels support int8 steps and decoders, and are the only ones
    /// for bf16 steps.
    fn lowerings(&self) -> Vec<KernelLibrary> {
        match (&self.numerics.component, self.scheme) {
            (Component::Expert(_), Scheme::Bf16) => vec![KernelLibrary::Rushes],
            (Component::Expert(_) | Component::Decoder, Scheme::Int8) if !self.numerics.layers.is_empty() => {
                self.kernels.to_vec()
            }
            _ => vec![KernelLibrary::OnnxRuntime],
        }
    }
}

/// Writes the weights and graphs of a variant of `entry` and replaces the entry's variant of the same precision. The
/// caller writes `bundle.json` and removes files that are no longer listed.
///
/// A component without quantised layers uses its exported weights.
///
/// # Errors
/// Returns an error if weights cannot be read, a file cannot be written or a graph cannot be built.
pub fn write_variant(
    bundle: &Bundle,
    entry: &mut ComponentEntry,
    request: &VariantRequest<'_>,
) -> Result<(), Error> {
    remove_entries(entry, request.scheme.precision());
    for kernels in request.lowerings() {
        if kernels == KernelLibrary::OnnxRuntime && request.numerics.layers.is_empty() {
            share_exported(entry, request);
            continue;
        }
        let (graphs, weights) = lower(bundle, entry, request, kernels)?;
        entry.graphs.extend(graphs);
        entry.variants.push(variant(request, kernels, vec![weights]));
    }
    Ok(())
}

fn variant(
    request: &VariantRequest<'_>,
    kernels: KernelLibrary,
    weights: Vec<WeightFile>,
) -> QuantizedVariant {
    QuantizedVariant {
        precision: request.scheme.precision(),
        kernels,
        weights,
        quantized: request.numerics.layers.len(),
        kept: request.numerics.kept.len(),
        note: request.note.clone(),
    }
}

/// Adds the exported graphs of the scheme's targets as graphs of the variant.
fn share_exported(entry: &mut ComponentEntry, request: &VariantRequest<'_>) {
    let (precision, base) = (request.scheme.precision(), Precision::from(entry.weight_type));
    if precision != base {
        let targets = targets(request.scheme);
        let is_exported =
            |graph: &&GraphEntry| graph.variant.precision == base && targets.contains(&graph.variant.target);
        let shared: Vec<GraphEntry> = entry
            .graphs
            .iter()
            .filter(is_exported)
            .map(|graph| GraphEntry { variant: Variant { precision, ..graph.variant }, ..graph.clone() })
            .collect();
        entry.graphs.extend(shared);
    }
    entry.variants.push(variant(request, KernelLibrary::OnnxRuntime, Vec::new()));
}

/// Writes weights and graphs for one kernel library.
fn lower(
    bundle: &Bundle,
    entry: &ComponentEntry,
    request: &VariantRequest<'_>,
    kernels: KernelLibrary,
) -> Result<(Vec<GraphEntry>, WeightFile), Error> {
    let (numerics, precision) = (request.numerics, request.scheme.precision());
    let source = BundleWeights::open(bundle, entry)?;
    let planned = match kernels {
        KernelLibrary::OnnxRuntime => values::plan(&source, numerics)?,
        KernelLibrary::Rushes if numerics.component == Component::Decoder => {
            packed_values::plan_decoder(&source, numerics)
        }
        KernelLibrary::Rushes => packed_values::plan_expert(&source, numerics, &bundle.manifest.denoiser)?,
    };
    let digest = numerics.fingerprint();
    let name = Variant::cpu(precision, kernels).weights_name();
    let location = format!("{}/{name}.{}.safetensors", layout::WEIGHTS, digest.short());
    let (placed, bytes) = write_weights(&source, request, &planned, &location)?;
    let folder = layout::component_folder(&entry.component);
    let mut graphs = Vec::new();
    for target in targets(request.scheme) {
        let lowering = Lowering::new(*target, target.weights());
        for (part, model) in build(&bundle.manifest, numerics, &placed, (kernels, lowering))? {
            let variant = Variant { target: *target, precision, kernels };
            let file = layout::graph_file(&entry.component, part, variant, &digest);
            model.write(&bundle.folder.join(&file))?;
            graphs.push(GraphEntry { part, variant, file, batch_invariant: None });
        }
    }
    Ok((graphs, WeightFile { file: format!("{folder}/{location}"), bytes: ByteCount(bytes) }))
}

/// Removes the entries of a variant.
fn remove_entries(entry: &mut ComponentEntry, precision: Precision) {
    let base = Precision::from(entry.weight_type);
    entry.graphs.retain(|graph| {
        let Variant { precision: found, kernels, .. } = graph.variant;
        found != precision || (precision == base && kernels == KernelLibrary::OnnxRuntime)
    });
    entry.variants.retain(|variant| variant.precision != precision);
}

/// Writes the weights. Returns their locations and the length of the file.
fn write_weights(
    source: &BundleWeights,
    request: &VariantRequest<'_>,
    planned: &[Planned],
    location: &str,
) -> Result<(PlacedWeights, u64), Error> {
    let stored: Vec<_> = planned.iter().flat_map(|planned| planned.stored.clone()).collect();
    let path = source.folder.join(location);
    let written = write_new(&path, location, &stored, Alignment::LargeAtPages, |file| {
        let mut index = 0;
        for planned in planned {
            request.stop.check()?;
            for bytes in planned.bytes(source, request.numerics)? {
                file.write(index, 0, &bytes)?;
                index += 1;
            }
        }
        Ok(())
    })?;
    let placed = PlacedWeights { tensors: written.tensors, files: Vec::new(), from: source.folder.clone() };
    Ok((placed, written.bytes))
}

/// Returns the targets of a scheme: E4M3 is for TensorRT, and for the CPU, which computes the same in f32.
fn targets(scheme: Scheme) -> &'static [Target] {
    match scheme {
        Scheme::Fp8 => &[Target::Cpu, Target::Plain],
        Scheme::Int8 | Scheme::Int8Weights | Scheme::Bf16 => &[Target::Cpu],
    }
}

/// Builds the graphs of a component over quantised weights.
fn build(
    manifest: &Manifest,
    numerics: &ComponentNumerics,
    placed: &PlacedWeights,
    (kernels, lowering): (KernelLibrary, Lowering),
) -> Result<Vec<(Part, Model)>, Error> {
    let weights = GraphWeights::quantized(placed, numerics).lowered(lowering);
    Ok(match (&numerics.component, kernels) {
        (Component::TextEncoder, _) => {
            vec![(Part::Whole, text_encoder_graph(&manifest.text_encoder, weights)?)]
        }
        (Component::Expert(_), KernelLibrary::OnnxRuntime) => {
            vec![(Part::Whole, step_graph(&manifest.denoiser, weights)?)]
        }
        (Component::Expert(_), KernelLibrary::Rushes) => {
            let lowering = KernelLowering { weights: GraphWeights::new(placed), values_as_bytes: true };
            vec![(Part::Whole, kernel_step_graph(&manifest.denoiser, lowering)?)]
        }
        (Component::Decoder, kernels) => {
            let build = match kernels {
                KernelLibrary::OnnxRuntime => integer_decoder_graph,
                KernelLibrary::Rushes => kernel_decoder_graph,
            };
            [(Part::First, Chunk::First), (Part::Next, Chunk::Next)]
                .into_iter()
                .map(|(part, chunk)| Ok((part, build(&manifest.vae, chunk, weights)?)))
                .collect::<Result<_, Error>>()?
        }
        (Component::ImageEncoder | Component::Preview, _) => Vec::new(),
    })
}
