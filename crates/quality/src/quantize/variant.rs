//! Plans the quantisation parameters of components and writes their variants into the bundle.

use super::leftovers;
use crate::Error;
use bundle::Field;
use bundle::digest::Digest;
use bundle::layout::component_folder;
use bundle::lock;
use bundle::lora::AppliedLora;
use bundle::manifest::{self, Bundle, Component, ComponentEntry, GraphEntry, Manifest, QuantizedVariant};
use bundle::quantization::{ComponentKind, ComponentNumerics, Numerics, Scheme};
use bundle::staging::WriteLock;
use bundle::stop::Stop;
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use calibration::numerics::plan::{
    Plan, PlanOptions, Sources, check_observed, groups, measured_errors, plan,
};
use calibration::numerics::range::RangeMethod;
use calibration::numerics::weights::WeightSource;
use calibration::observe::table::{Header, Table};
use export::digests::Known;
use export::lora::resolved::Resolved;
use export::quantized::{BundleWeights, VariantRequest, write_variant};
use export::weights::merge::Merge;
use kernels::Heads;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Layers that are not quantised, each with the reason.
pub type UnquantizedLayers = BTreeMap<String, String>;

/// Adds quantised variants to a bundle.
///
/// Written variants become part of the bundle with [`Quantizer::commit`], all together. Without it the bundle is
/// unchanged.
///
/// # Examples
/// ```no_run
/// use bundle::manifest::Component;
/// use bundle::quantization::Scheme;
/// use quality::quantize::variant::UnquantizedLayers;
/// use quality::quantize::{QuantizeOptions, Quantizer};
/// use std::path::Path;
///
/// # fn main() -> Result<(), quality::Error> {
/// let calibration = Path::new("bundle/calibration/calibration.json");
/// let options = QuantizeOptions::new(Scheme::Int8);
/// let mut quantizer = Quantizer::open(Path::new("bundle"), calibration, options)?;
/// let encoder = quantizer.bundle().manifest.component(&Component::TextEncoder)?.clone();
/// let plan = quantizer.plan(&encoder, &UnquantizedLayers::new())?;
/// quantizer.write(plan.numerics, None)?;
/// quantizer.commit()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Quantizer {
    bundle: Bundle,
    /// The manifest in `bundle.json`.
    committed: Manifest,
    options: QuantizeOptions,
    calibration: Option<(Table, Header)>,
    weights: AllWeights,
    numerics: BTreeMap<String, ComponentNumerics>,
    /// Graphs that compute plain ones on the CPU, by folder of the component. `bundle.json` does not name them.
    measured: BTreeMap<String, Vec<GraphEntry>>,
    /// The changes of the weights of components, and what is noted of them, by folder.
    merges: BTreeMap<String, (Vec<Merge>, String)>,
    stop: Stop,
    /// Keeps other processes from changing the bundle.
    _writing: WriteLock,
}

/// Options of quantisation.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeOptions {
    /// The quantisation scheme.
    pub scheme: Scheme,
    /// The targets for which graphs are written. [`Scheme::Int8`] has other numbers for each: activations are signed
    /// around 0 in plain graphs.
    pub targets: Vec<Target>,
    /// The components that are quantised. The others stay as they were exported.
    pub components: Vec<ComponentKind>,
    /// The kernels for which step graphs for the CPU are written. Both together make the bundle larger.
    pub kernels: Vec<KernelLibrary>,
    /// Whether [`Scheme::Fp8`] includes the products of attention.
    pub attention: bool,
    /// The method for choosing static ranges of activations.
    pub ranges: RangeMethod,
}

impl QuantizeOptions {
    /// Creates options with the defaults of the command line, for the CPU.
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            targets: vec![Target::Cpu],
            components: scheme.components().to_vec(),
            kernels: vec![KernelLibrary::Rushes],
            attention: false,
            ranges: RangeMethod::default(),
        }
    }
}

impl QuantizeOptions {
    /// True if only plain graphs are written.
    pub fn is_plain(&self) -> bool {
        self.targets == [Target::Plain]
    }

    /// The name of the quantisation in files and reports.
    pub fn name(&self) -> String {
        self.scheme.name_for(&self.targets)
    }

    /// Checks that a bundle can be quantised with these options.
    ///
    /// # Errors
    /// The scheme has no graphs for a target, the bundle has none to replace, or the kernels do not support the model.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Error> {
        check_targets(manifest, self)?;
        check_heads(manifest, self)
    }

    fn quantizes(&self, component: &Component) -> bool {
        ComponentKind::of(component).is_some_and(|kind| self.components.contains(&kind))
    }
}

/// The weights of every component.
#[derive(Debug)]
struct AllWeights {
    components: BTreeMap<String, BundleWeights>,
    stop: Stop,
}

impl WeightSource for AllWeights {
    fn read(
        &self,
        component: &Component,
        name: &str,
    ) -> Result<(Vec<usize>, Vec<f32>), Box<dyn std::error::Error + Send + Sync>> {
        // Every layer is planned from its weights, so this check stops planning between layers.
        self.stop.check()?;
        let folder = component_folder(component);
        let weights = self.components.get(&folder).ok_or_else(|| format!("the bundle has no {component}"))?;
        Ok(weights.read(name)?)
    }
}

impl Quantizer {
    /// Opens a bundle and its calibration. [`Scheme::Bf16`] needs no calibration.
    ///
    /// # Errors
    /// The bundle or calibration is damaged, the calibration was made for other weights or has no statistics of a
    /// layer, or the kernels do not support the model.
    pub fn open(folder: &Path, calibration: &Path, options: QuantizeOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        options.check(&bundle.manifest)?;
        let writing = WriteLock::acquire(&bundle.folder)?;
        leftovers::clear(&bundle);
        let calibration = match options.scheme {
            Scheme::Bf16 => None,
            Scheme::Int8 | Scheme::Fp8 | Scheme::Int8Weights => {
                let (table, header) = Table::read(calibration, &bundle.manifest)?;
                check_observed(&bundle.manifest, &table, options.scheme, &options.components)?;
                Some((table, header))
            }
        };
        let mut weights = BTreeMap::new();
        for entry in &bundle.manifest.components {
            weights.insert(component_folder(&entry.component), BundleWeights::open(&bundle, entry)?);
        }
        let weights = AllWeights { components: weights, stop: Stop::new() };
        let committed = bundle.manifest.clone();
        let stop = Stop::new();
        Ok(Self {
            bundle,
            committed,
            options,
            calibration,
            weights,
            numerics: BTreeMap::new(),
            merges: BTreeMap::new(),
            measured: BTreeMap::new(),
            stop,
            _writing: writing,
        })
    }

    /// Merges LoRAs into the weights of the experts, in f32, before they are planned and quantised. The ranges of
    /// activations stay those of the calibration.
    ///
    /// # Errors
    /// The bundle lacks an expert.
    pub fn with_loras(mut self, loras: &Resolved) -> Result<Self, Error> {
        for route in self.bundle.manifest.routing.routes() {
            let merges = loras.of_expert(&route.expert);
            if merges.is_empty() {
                continue;
            }
            let component = Component::Expert(route.expert.clone());
            let entry = self.bundle.manifest.component(&component)?;
            let folder = component_folder(&component);
            let weights = BundleWeights::open(&self.bundle, entry)?.with_merges(merges.clone());
            self.weights.components.insert(folder.clone(), weights);
            let notes = loras.proofs.iter().filter_map(|proof| {
                let AppliedLora { name, digest, strength, pairs, deltas, change, .. } =
                    proof.applied(&route.expert, false)?;
                let digest = digest.get(..12).unwrap_or_default();
                Some(format!(
                    "LoRA {name}@{strength} ({digest}): {pairs} pairs, {deltas} deltas, Σ|ΔW| {change:.4}"
                ))
            });
            let note = notes.collect::<Vec<_>>().join("; ");
            self.merges.insert(folder, (merges, note));
        }
        Ok(self)
    }

    /// Returns the numbers with the digest of the weights that they belong to, which depends on merged LoRAs.
    fn of_merged(&self, mut numerics: ComponentNumerics) -> ComponentNumerics {
        if let Some((merges, _)) = self.merges.get(&component_folder(&numerics.component)) {
            let changes: Vec<Digest> = merges.iter().map(Merge::digest).collect();
            let parts = std::iter::once(&numerics.digest).chain(&changes);
            let digest = Digest::of_parts(parts.map(|digest| digest.blake3.as_bytes()));
            numerics.digest = Digest { whole: numerics.digest.whole, ..digest };
        }
        numerics
    }

    /// Sets the request that stops planning and writing.
    #[must_use]
    pub fn stopped_by(mut self, stop: &Stop) -> Self {
        self.weights.stop = stop.clone();
        self.stop = stop.clone();
        self
    }

    /// The prompts of the calibration.
    pub fn prompts(&self) -> Vec<String> {
        let samples = self.calibration.iter().flat_map(|(_, header)| &header.set.samples);
        samples.map(|(prompt, _)| prompt.clone()).collect()
    }

    /// The bundle with the variants written so far.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The options.
    pub fn options(&self) -> &QuantizeOptions {
        &self.options
    }

    /// The bundle with the variants written so far, to measure them on the CPU. If only plain graphs are written, its
    /// variant for the CPU computes them in f32.
    pub fn measured(&self) -> Bundle {
        let mut bundle = self.bundle.clone();
        if !self.options.is_plain() {
            return bundle;
        }
        let precision = self.options.scheme.precision();
        for entry in &mut bundle.manifest.components {
            let Some(graphs) = self.measured.get(&component_folder(&entry.component)) else { continue };
            let base = Variant::cpu(entry.exported_precision(), KernelLibrary::OnnxRuntime);
            entry.graphs.retain(|graph| {
                let Variant { target, precision: found, .. } = graph.variant;
                graph.variant == base || (target, found) != (Target::Cpu, precision)
            });
            entry.graphs.extend(graphs.iter().cloned());
            entry.variants.retain(|variant| variant.precision != precision || variant.is_for(Target::Plain));
            for variant in entry.variants.iter_mut().filter(|variant| variant.precision == precision) {
                variant.targets = vec![Target::Cpu];
            }
        }
        bundle
    }

    /// The parameters of the components quantised so far.
    pub fn numerics(&self) -> &BTreeMap<String, ComponentNumerics> {
        &self.numerics
    }

    /// Plans the parameters of a component, without quantising the layers in `keep`. Writes nothing.
    ///
    /// # Errors
    /// A layer was not observed, or its weights cannot be quantised.
    pub fn plan(&self, entry: &ComponentEntry, keep: &UnquantizedLayers) -> Result<Plan, Error> {
        let mut empty = ComponentNumerics::empty(entry.component.clone(), entry.digest.clone());
        if !self.options.quantizes(&entry.component) {
            let layers =
                groups(&self.bundle.manifest, &entry.component).into_iter().flat_map(|group| group.layers);
            empty.kept.extend(layers.map(|layer| (layer, "not among the components to quantise".to_owned())));
            return Ok(Plan { numerics: self.of_merged(empty), errors: BTreeMap::new() });
        }
        let Some((table, _)) = &self.calibration else {
            return Ok(Plan { numerics: self.of_merged(empty), errors: BTreeMap::new() });
        };
        let options = PlanOptions {
            scheme: self.options.scheme,
            method: self.options.ranges,
            is_plain: self.options.is_plain(),
            keep: keep.clone(),
            attention: self.options.attention,
        };
        let sources = Sources { manifest: &self.bundle.manifest, table, weights: &self.weights };
        let Plan { numerics, errors } =
            plan(sources, entry, &options).map_err(|error| self.or_stopped(error))?;
        Ok(Plan { numerics: self.of_merged(numerics), errors })
    }

    /// Measures the relative error of each linear layer's output if only that layer is quantised, on the rows sampled
    /// by calibration and with the rounding of `kernels`. The result is empty for a decoder.
    ///
    /// # Errors
    /// Weights cannot be read.
    pub fn measure(
        &self,
        numerics: &ComponentNumerics,
        kernels: KernelLibrary,
    ) -> Result<BTreeMap<String, f64>, Error> {
        let Some((table, _)) = &self.calibration else { return Ok(BTreeMap::new()) };
        let sources = Sources { manifest: &self.bundle.manifest, table, weights: &self.weights };
        measured_errors(sources, numerics, kernels).map_err(|error| self.or_stopped(error))
    }

    /// Writes the variant of a component with the given parameters, replacing an earlier one.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&mut self, numerics: ComponentNumerics, note: Option<String>) -> Result<(), Error> {
        let mut manifest = self.bundle.manifest.clone();
        let entry = manifest.components.iter_mut().find(|entry| entry.component == numerics.component);
        let mut measured = Vec::new();
        if let Some(entry) = entry {
            let QuantizeOptions { scheme, kernels, targets, .. } = &self.options;
            let merged = self.merges.get(&component_folder(&numerics.component));
            let (merges, of_loras) =
                merged.map_or((&[][..], None), |(merges, note)| (&**merges, Some(note.clone())));
            let notes: Vec<String> = note.into_iter().chain(of_loras).collect();
            let request = VariantRequest {
                scheme: *scheme,
                numerics: &numerics,
                targets,
                kernels,
                merges,
                is_measured: self.options.is_plain(),
                note: (!notes.is_empty()).then(|| notes.join("; ")),
                stop: &self.stop,
            };
            measured = write_variant(&self.bundle, entry, &request)?;
            // A rewritten file may have the name of an earlier one.
            for file in files_of(entry, scheme.precision(), targets) {
                manifest.digests.remove(&file);
            }
        }
        let before = std::mem::replace(&mut self.bundle.manifest, manifest);
        self.remove_files(&before, &[&self.bundle.manifest, &self.committed]);
        let folder = component_folder(&numerics.component);
        let files: Vec<String> = measured.iter().map(|graph| graph.file.clone()).collect();
        let before = self.measured.insert(folder.clone(), measured).unwrap_or_default();
        self.remove_measured(before.iter().filter(|graph| !files.contains(&graph.file)));
        self.numerics.insert(folder, numerics);
        Ok(())
    }

    /// Makes the written variants part of the bundle and removes the files that they replace.
    ///
    /// # Errors
    /// A written file cannot be read back, or `bundle.json` cannot be written. It is unchanged in that case.
    pub fn commit(&mut self) -> Result<(), Error> {
        export::digests::complete(&self.bundle.folder, &mut self.bundle.manifest, &Known::new())?;
        manifest::write(&self.bundle.folder, &self.bundle.manifest)?;
        let before = std::mem::replace(&mut self.committed, self.bundle.manifest.clone());
        // Another process that has opened the bundle may still open its old files; a later run of this command removes
        // them.
        if !lock::is_being_read(&self.bundle.folder) {
            self.remove_files(&before, &[&self.committed]);
        }
        Ok(())
    }

    /// Returns the stop request as error if there was one, otherwise `error`.
    fn or_stopped(&self, error: calibration::Error) -> Error {
        self.stop.check().map_or_else(Error::from, |()| error.into())
    }

    /// Removes files in `named` that are not in `kept`. A file that cannot be removed wastes disk space and is
    /// harmless.
    fn remove_files(&self, named: &Manifest, kept: &[&Manifest]) {
        let kept: BTreeSet<&str> = kept.iter().flat_map(|manifest| manifest.files()).collect();
        for file in named.files().difference(&kept) {
            let _ = std::fs::remove_file(self.bundle.path(file));
        }
    }

    /// Removes graphs of [`Self::measured`], unless they are those of the bundle.
    fn remove_measured<'a>(&self, graphs: impl Iterator<Item = &'a GraphEntry>) {
        let (named, committed) = (self.bundle.manifest.files(), self.committed.files());
        for GraphEntry { file, .. } in graphs {
            if !named.contains(file.as_str()) && !committed.contains(file.as_str()) {
                let _ = std::fs::remove_file(self.bundle.path(file));
            }
        }
    }

    /// Writes all parameters to `quantization.NAME.json`, for other lowerings, with [`QuantizeOptions::name`].
    ///
    /// # Errors
    /// I/O errors.
    pub fn write_numerics(&self) -> Result<(), Error> {
        let all =
            Numerics { scheme: self.options.scheme, components: self.numerics.values().cloned().collect() };
        let path = self.bundle.folder.join(format!("quantization.{}.json", self.options.name()));
        let wrong =
            |error: serde_json::Error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() };
        let text = serde_json::to_vec(&all).map_err(wrong)?;
        if self.options.targets.contains(&Target::Plain) && !self.options.is_plain() {
            // Those for plain graphs alone are replaced. A file that cannot be removed wastes disk space.
            let name = self.options.scheme.name_for(&[Target::Plain]);
            let _ = std::fs::remove_file(self.bundle.folder.join(format!("quantization.{name}.json")));
        }
        Ok(bundle::atomic::write_atomic(&path, &text)?)
    }
}

/// Checks that the scheme has graphs for the targets, and that the bundle has exported ones for them.
fn check_targets(manifest: &Manifest, options: &QuantizeOptions) -> Result<(), Error> {
    let QuantizeOptions { scheme, targets, .. } = options;
    let has = scheme.targets();
    if let Some(target) = targets.iter().find(|target| !has.contains(target)) {
        let names: Vec<String> = has.iter().map(ToString::to_string).collect();
        let rule = format!("the scheme {scheme} has graphs for {} only", names.join(" and "));
        let fix = "use another `scheme`, or another `target`";
        return Err(bundle::Error::value(Field::Target, target, rule, fix).into());
    }
    if *scheme == Scheme::Int8 && targets.len() > 1 {
        let rule = "int8 has other numbers for each target";
        return Err(
            bundle::Error::value(Field::Target, "cpu,plain", rule, "quantise for one at a time").into()
        );
    }
    for target in targets {
        let lacks = |entry: &&ComponentEntry| {
            let wanted = Variant {
                target: *target,
                precision: entry.exported_precision(),
                kernels: KernelLibrary::OnnxRuntime,
            };
            entry.component.is_quantizable() && entry.graphs.iter().all(|graph| graph.variant != wanted)
        };
        if let Some(entry) = manifest.components.iter().find(lacks) {
            let rule = format!("the bundle has no {target} graph of {}", entry.component);
            let fix = "export the checkpoint again: run `rushes export` with `target` cpu and `target` plain";
            return Err(bundle::Error::value(Field::Target, target, rule, fix).into());
        }
    }
    Ok(())
}

/// Checks that Rushes kernels support the head width of the experts, if they are used for them.
fn check_heads(manifest: &Manifest, options: &QuantizeOptions) -> Result<(), Error> {
    let width = manifest.denoiser.head_width;
    let has_experts = manifest.components.iter().any(|entry| matches!(entry.component, Component::Expert(_)));
    let rule = || {
        format!(
            "Rushes kernels need a head width that is a multiple of 16 up to 256, and this model's is {width}"
        )
    };
    let refused = match options.scheme {
        _ if Heads::fits(width) || !has_experts || options.is_plain() => return Ok(()),
        Scheme::Bf16 => bundle::Error::value(
            Field::Scheme,
            Scheme::Bf16,
            rule(),
            "use `scheme` int8 with `kernels` onnxruntime, or the exported variant",
        ),
        Scheme::Int8 if options.kernels.contains(&KernelLibrary::Rushes) => {
            bundle::Error::value(Field::Kernels, KernelLibrary::Rushes, rule(), "use `kernels` onnxruntime")
        }
        Scheme::Int8 | Scheme::Fp8 | Scheme::Int8Weights => return Ok(()),
    };
    Err(refused.into())
}

/// Returns the files of a component's variant for these targets.
fn files_of(entry: &ComponentEntry, precision: Precision, targets: &[Target]) -> Vec<String> {
    let is_of = |variant: &Variant| variant.precision == precision && targets.contains(&variant.target);
    let graphs = entry.graphs.iter().filter(|graph| is_of(&graph.variant)).map(|graph| &graph.file);
    let is_for = |variant: &&QuantizedVariant| {
        variant.precision == precision && targets.iter().any(|target| variant.is_for(*target))
    };
    let variants = entry.variants.iter().filter(is_for);
    let weights = variants.flat_map(|variant| &variant.weights).map(|weights| &weights.file);
    graphs.chain(weights).cloned().collect()
}

impl Drop for Quantizer {
    fn drop(&mut self) {
        self.remove_measured(self.measured.values().flatten());
        self.remove_files(&self.bundle.manifest, &[&self.committed]);
    }
}
