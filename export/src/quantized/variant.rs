//! Writes a quantised variant of a component: weights, graphs, and entries for `bundle.json`.

use super::source::BundleWeights;
use super::values::{self, Planned};
use super::{graphs, packed_values, plain_values};
use crate::Error;
use crate::model::Lowering;
use crate::weights::PlacedWeights;
use crate::weights::merge::Merge;
use crate::weights::new_file::{Alignment, write_new};
use bundle::dtype::WeightType;
use bundle::layout;
use bundle::manifest::{Bundle, Component, ComponentEntry, GraphEntry, QuantizedVariant, WeightFile};
use bundle::quantization::{ComponentNumerics, Scheme};
use bundle::spec::DenoiserSpec;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};

/// A request to write a quantised variant of a component.
#[derive(Debug, Clone)]
pub struct VariantRequest<'a> {
    /// The scheme.
    pub scheme: Scheme,
    /// Its scales, ranges and smoothing.
    pub numerics: &'a ComponentNumerics,
    /// The targets to write graphs for. A scheme leaves out those that it has no graphs for ([`Scheme::targets`]).
    pub targets: &'a [Target],
    /// The kernels to write graphs for on the CPU, if the component and the scheme support both.
    pub kernels: &'a [KernelLibrary],
    /// Whether plain graphs are also written with arithmetic in f32, which ONNX Runtime's CPU provider computes: with the
    /// same quantised values. They are entries of a variant for the CPU, and differ from the plain graphs in the rounding
    /// of everything that is not quantised. Where the plain graphs are in f32, they are these.
    pub is_measured: bool,
    /// Changes of the exported weights, which are made in f32 before they are quantised.
    pub merges: &'a [Merge],
    /// A note for the user.
    pub note: Option<String>,
    /// Stops the work.
    pub stop: &'a Stop,
}

/// Graphs that share weights.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Form {
    kernels: KernelLibrary,
    targets: Vec<Target>,
}

impl VariantRequest<'_> {
    /// A graph as one to measure a plain graph with.
    fn measured(&self, graph: &GraphEntry, file: String) -> GraphEntry {
        let variant = Variant::cpu(self.scheme.precision(), KernelLibrary::OnnxRuntime);
        GraphEntry { variant, file, ..graph.clone() }
    }

    fn targets(&self) -> Vec<Target> {
        let has = self.scheme.targets();
        has.iter().copied().filter(|target| self.targets.contains(target)).collect()
    }

    /// Returns the graphs to write. Rushes kernels support int8 steps and decoders, and are the only ones for bf16 steps.
    fn forms(&self) -> Vec<Form> {
        let targets = self.targets();
        let on_cpu = |kernels: KernelLibrary| Form { kernels, targets: vec![Target::Cpu] };
        let is_on_cpu = targets.contains(&Target::Cpu);
        match (&self.numerics.component, self.scheme) {
            (Component::Expert(_), Scheme::Bf16) if is_on_cpu => vec![on_cpu(KernelLibrary::Rushes)],
            (_, Scheme::Int8) if !self.numerics.layers.is_empty() => {
                let with_rushes = self.numerics.component != Component::TextEncoder;
                let kernels = if with_rushes { self.kernels } else { &[KernelLibrary::OnnxRuntime] };
                let mut forms: Vec<Form> =
                    kernels.iter().filter(|_| is_on_cpu).map(|kernels| on_cpu(*kernels)).collect();
                if targets.contains(&Target::Plain) {
                    let kernels = KernelLibrary::OnnxRuntime;
                    forms.push(Form { kernels, targets: vec![Target::Plain] });
                }
                forms
            }
            _ if targets.is_empty() => Vec::new(),
            _ => vec![Form { kernels: KernelLibrary::OnnxRuntime, targets }],
        }
    }
}

/// Writes the weights and graphs of a variant of `entry` and replaces the entry's variant of the same precision for the
/// same targets. The caller writes `bundle.json` and removes files that are no longer listed.
///
/// A component without quantised layers uses its exported weights.
///
/// Returns the graphs of [`VariantRequest::is_measured`], which are not among those of the entry.
///
/// # Errors
/// Returns an error if weights cannot be read, a file cannot be written or a graph cannot be built.
pub fn write_variant(
    bundle: &Bundle,
    entry: &mut ComponentEntry,
    request: &VariantRequest<'_>,
) -> Result<Vec<GraphEntry>, Error> {
    remove_entries(entry, request.scheme.precision(), &request.targets());
    let mut measured = Vec::new();
    for form in request.forms() {
        let is_as_exported = request.numerics.layers.is_empty() && request.merges.is_empty();
        if form.kernels == KernelLibrary::OnnxRuntime && is_as_exported {
            measured.extend(share_exported(entry, request, &form));
            continue;
        }
        let (lowered, weights) = lower(bundle, entry, request, &form)?;
        entry.graphs.extend(lowered.graphs);
        entry.variants.push(variant(request, form, vec![weights]));
        measured.extend(lowered.measured);
    }
    Ok(measured)
}

fn variant(request: &VariantRequest<'_>, form: Form, weights: Vec<WeightFile>) -> QuantizedVariant {
    QuantizedVariant {
        precision: request.scheme.precision(),
        kernels: form.kernels,
        targets: form.targets,
        weights,
        quantized: request.numerics.layers.len(),
        kept: request.numerics.kept.len(),
        note: request.note.clone(),
    }
}

/// Adds the exported graphs of the targets as graphs of the variant. Returns the graphs to measure plain ones with.
fn share_exported(entry: &mut ComponentEntry, request: &VariantRequest<'_>, form: &Form) -> Vec<GraphEntry> {
    let (precision, base) = (request.scheme.precision(), Precision::from(entry.weight_type));
    if precision != base {
        let is_exported = |graph: &&GraphEntry| {
            graph.variant.precision == base && form.targets.contains(&graph.variant.target)
        };
        let shared: Vec<GraphEntry> = entry
            .graphs
            .iter()
            .filter(is_exported)
            .map(|graph| GraphEntry { variant: Variant { precision, ..graph.variant }, ..graph.clone() })
            .collect();
        entry.graphs.extend(shared);
    }
    entry.variants.push(variant(request, form.clone(), Vec::new()));
    if !(request.is_measured && form.targets.contains(&Target::Plain)) {
        return Vec::new();
    }
    let exported = Variant::cpu(base, KernelLibrary::OnnxRuntime);
    let on_cpu = entry.graphs.iter().filter(|graph| graph.variant == exported);
    on_cpu.map(|graph| request.measured(graph, graph.file.clone())).collect()
}

/// Returns the tensors of a form. Plain graphs need weights in their own number format; graphs for the CPU widen them
/// when they are opened.
fn tensors(
    source: &BundleWeights,
    request: &VariantRequest<'_>,
    form: &Form,
    (spec, exported): (&DenoiserSpec, WeightType),
) -> Result<Vec<Planned>, Error> {
    let numerics = request.numerics;
    let is_decoder = numerics.component == Component::Decoder;
    // A decoder in E4M3 has the same layout on the CPU.
    let is_plain = form.targets.contains(&Target::Plain) || (is_decoder && request.scheme == Scheme::Fp8);
    match form.kernels {
        KernelLibrary::OnnxRuntime if is_plain => plain_values::plan(source, numerics, exported),
        KernelLibrary::OnnxRuntime => values::plan(source, numerics),
        KernelLibrary::Rushes if is_decoder => Ok(packed_values::plan_decoder(source, numerics)),
        KernelLibrary::Rushes => packed_values::plan_expert(source, numerics, spec),
    }
}

/// The graphs of a form.
struct Lowered {
    graphs: Vec<GraphEntry>,
    measured: Vec<GraphEntry>,
}

/// Writes weights and graphs of a form.
fn lower(
    bundle: &Bundle,
    entry: &ComponentEntry,
    request: &VariantRequest<'_>,
    form: &Form,
) -> Result<(Lowered, WeightFile), Error> {
    let Form { kernels, targets } = form;
    let (numerics, precision) = (request.numerics, request.scheme.precision());
    let source = BundleWeights::open(bundle, entry)?.with_merges(request.merges.to_vec());
    let planned = tensors(&source, request, form, (&bundle.manifest.denoiser, entry.weight_type))?;
    let digest = numerics.fingerprint();
    let name = match targets[..] {
        [Target::Plain] => Variant { target: Target::Plain, precision, kernels: *kernels }.name(),
        _ => Variant::cpu(precision, *kernels).weights_name(),
    };
    let location = format!("{}/{name}.{}.safetensors", layout::WEIGHTS, digest.short());
    let (placed, bytes) = write_weights(&source, request, &planned, &location)?;
    let build = |weights| graphs::build(&bundle.manifest, numerics, &placed, (*kernels, weights));
    let mut lowered = Lowered { graphs: Vec::new(), measured: Vec::new() };
    for target in targets {
        let variant = Variant { target: *target, precision, kernels: *kernels };
        let file_of = |part| layout::graph_file(&entry.component, part, variant, &digest);
        for (part, model) in build(Lowering::new(*target, entry.weight_type))? {
            let file = file_of(part);
            model.write(&bundle.folder.join(&file))?;
            let graph = GraphEntry { part, variant, file, batch_invariant: None };
            if request.is_measured && *target == Target::Plain && entry.weight_type == WeightType::F32 {
                lowered.measured.push(request.measured(&graph, graph.file.clone()));
            }
            lowered.graphs.push(graph);
        }
        if request.is_measured && *target == Target::Plain && entry.weight_type != WeightType::F32 {
            for (part, model) in build(Lowering::new(*target, WeightType::F32))? {
                // Named like a graph of a variant, so that a file that is left over is removed.
                let file = file_of(part).replacen(&variant.name(), &format!("{}-f32", variant.name()), 1);
                model.write(&bundle.folder.join(&file))?;
                let graph = GraphEntry { part, variant, file: file.clone(), batch_invariant: None };
                lowered.measured.push(request.measured(&graph, file));
            }
        }
    }
    let folder = layout::component_folder(&entry.component);
    Ok((lowered, WeightFile { file: format!("{folder}/{location}"), bytes: ByteCount(bytes) }))
}

/// Removes the entries of a variant for these targets.
fn remove_entries(entry: &mut ComponentEntry, precision: Precision, targets: &[Target]) {
    let base = Precision::from(entry.weight_type);
    entry.graphs.retain(|graph| {
        let Variant { precision: found, kernels, target } = graph.variant;
        found != precision
            || !targets.contains(&target)
            || (precision == base && kernels == KernelLibrary::OnnxRuntime)
    });
    let left = |kernels: KernelLibrary| {
        let graphs = entry.graphs.iter().map(|graph| graph.variant);
        let of_variant = graphs.filter(|found| (found.precision, found.kernels) == (precision, kernels));
        of_variant.map(|found| found.target).collect::<Vec<_>>()
    };
    let with_graphs = [KernelLibrary::OnnxRuntime, KernelLibrary::Rushes].map(left);
    entry.variants.retain_mut(|variant| {
        if variant.precision != precision {
            return true;
        }
        let [onnx_runtime, rushes] = &with_graphs;
        let left = if variant.kernels.is_onnx_runtime() { onnx_runtime } else { rushes };
        let mut still: Vec<Target> = Target::ALL
            .into_iter()
            .filter(|target| variant.is_for(*target) && left.contains(target))
            .collect();
        still.retain(|target| !targets.contains(target));
        variant.targets = still;
        !variant.targets.is_empty()
    });
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
