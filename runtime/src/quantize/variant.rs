//! Plans the numbers of components and writes their variants into the bundle.

use crate::Error;
use bundle::dtype::Operators;
use bundle::layout::component_folder;
use bundle::manifest::{self, Bundle, Component, ComponentEntry, Manifest};
use bundle::quantization::{ComponentNumerics, Numerics, Scheme};
use calibration::numerics::plan::{Plan, PlanOptions, Sources, check_observed, measured_errors, plan};
use calibration::numerics::range::RangeMethod;
use calibration::numerics::weights::WeightSource;
use calibration::observe::table::{Header, Table};
use export::quantized::{BundleWeights, VariantRequest, write_variant};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Layers that stay in high precision, each with the reason.
pub type Kept = BTreeMap<String, String>;

/// A bundle that is being quantised.
///
/// What is written becomes part of the bundle by [`Quantizer::commit`], all at once; without it the bundle stays as it was.
#[derive(Debug)]
pub struct Quantizer {
    bundle: Bundle,
    /// What `bundle.json` says.
    committed: Manifest,
    options: QuantizeOptions,
    calibration: Option<(Table, Header)>,
    weights: AllWeights,
    numerics: BTreeMap<String, ComponentNumerics>,
}

/// How a bundle is quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeOptions {
    /// The kind.
    pub scheme: Scheme,
    /// In which operators steps are written down; both make the bundle larger.
    pub operators: Vec<Operators>,
    /// Whether [`Scheme::Fp8`] is in the products of attention too.
    pub attention: bool,
    /// How the static ranges of activations are chosen.
    pub ranges: RangeMethod,
}

impl QuantizeOptions {
    /// A scheme with everything else as the command line has it by default.
    pub fn new(scheme: Scheme) -> Self {
        Self { scheme, operators: vec![Operators::Own], attention: false, ranges: RangeMethod::default() }
    }
}

/// The weights of every component.
#[derive(Debug)]
struct AllWeights(BTreeMap<String, BundleWeights>);

impl WeightSource for AllWeights {
    fn read(
        &self,
        component: &Component,
        name: &str,
    ) -> Result<(Vec<usize>, Vec<f32>), Box<dyn std::error::Error + Send + Sync>> {
        let folder = component_folder(component);
        let weights = self.0.get(&folder).ok_or_else(|| format!("the bundle has no {component}"))?;
        Ok(weights.read(name)?)
    }
}

impl Quantizer {
    /// Opens a bundle and its calibration, which [`Scheme::Bf16`] does without.
    ///
    /// # Errors
    /// A bundle or calibration that is damaged, one that was made for other weights, or one without a layer that is
    /// quantised by it.
    pub fn open(folder: &Path, calibration: &Path, options: QuantizeOptions) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        let calibration = match options.scheme {
            Scheme::Bf16 => None,
            Scheme::Int8 | Scheme::Fp8 | Scheme::Int8Weights => {
                let (table, header) = Table::read(calibration, &bundle.manifest)?;
                check_observed(&bundle.manifest, &table, options.scheme)?;
                Some((table, header))
            }
        };
        let mut weights = BTreeMap::new();
        for entry in &bundle.manifest.components {
            weights.insert(component_folder(&entry.component), BundleWeights::open(&bundle, entry)?);
        }
        let weights = AllWeights(weights);
        let committed = bundle.manifest.clone();
        Ok(Self { bundle, committed, options, calibration, weights, numerics: BTreeMap::new() })
    }

    /// The prompts that the calibration was made with.
    pub fn prompts(&self) -> Vec<String> {
        let samples = self.calibration.iter().flat_map(|(_, header)| &header.set.samples);
        samples.map(|(prompt, _)| prompt.clone()).collect()
    }

    /// The bundle with what was written so far.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The numbers of the components that were quantised.
    pub fn numerics(&self) -> &BTreeMap<String, ComponentNumerics> {
        &self.numerics
    }

    /// The numbers of a component with these layers left in high precision; nothing is written.
    ///
    /// # Errors
    /// A layer that was not observed or whose weights cannot be quantised.
    pub fn plan(&self, entry: &ComponentEntry, keep: &Kept) -> Result<Plan, Error> {
        let Some((table, _)) = &self.calibration else {
            let numerics = ComponentNumerics::empty(entry.component.clone(), entry.digest.clone());
            return Ok(Plan { numerics, errors: BTreeMap::new() });
        };
        let options = PlanOptions {
            scheme: self.options.scheme,
            method: self.options.ranges,
            keep: keep.clone(),
            attention: self.options.attention,
        };
        let sources = Sources { manifest: &self.bundle.manifest, table, weights: &self.weights };
        Ok(plan(sources, entry, &options)?)
    }

    /// What quantising each linear layer alone does to its output, measured on rows that calibration kept, in the given
    /// operators; of a decoder nothing.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn measure(
        &self,
        numerics: &ComponentNumerics,
        operators: Operators,
    ) -> Result<BTreeMap<String, f64>, Error> {
        let Some((table, _)) = &self.calibration else { return Ok(BTreeMap::new()) };
        let sources = Sources { manifest: &self.bundle.manifest, table, weights: &self.weights };
        Ok(measured_errors(sources, numerics, operators)?)
    }

    /// Writes the variant of a component with the given numbers, in place of one that was written before.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&mut self, numerics: ComponentNumerics, note: Option<String>) -> Result<(), Error> {
        let mut manifest = self.bundle.manifest.clone();
        let entry = manifest.components.iter_mut().find(|entry| entry.component == numerics.component);
        if let Some(entry) = entry {
            let QuantizeOptions { scheme, operators, .. } = &self.options;
            let request = VariantRequest { scheme: *scheme, numerics: &numerics, operators, note };
            write_variant(&self.bundle, entry, &request)?;
        }
        let before = std::mem::replace(&mut self.bundle.manifest, manifest);
        self.remove_files(&before, &[&self.bundle.manifest, &self.committed]);
        self.numerics.insert(component_folder(&numerics.component), numerics);
        Ok(())
    }

    /// Makes what was written part of the bundle, and removes what it replaces.
    ///
    /// # Errors
    /// `bundle.json` cannot be written; it is as it was then.
    pub fn commit(&mut self) -> Result<(), Error> {
        manifest::write(&self.bundle.folder, &self.bundle.manifest)?;
        let before = std::mem::replace(&mut self.committed, self.bundle.manifest.clone());
        self.remove_files(&before, &[&self.committed]);
        Ok(())
    }

    /// Removes files that `named` names and none of `kept` does. One that stays behind wastes room and harms nothing.
    fn remove_files(&self, named: &Manifest, kept: &[&Manifest]) {
        let kept: BTreeSet<&str> = kept.iter().flat_map(|manifest| manifest.files()).collect();
        for file in named.files().difference(&kept) {
            let _ = std::fs::remove_file(self.bundle.path(file));
        }
    }

    /// Writes all numbers into `quantization.SCHEME.json`, from which another lowering can be made.
    ///
    /// # Errors
    /// The path that could not be written.
    pub fn write_numerics(&self) -> Result<(), Error> {
        let all =
            Numerics { scheme: self.options.scheme, components: self.numerics.values().cloned().collect() };
        let path = self.bundle.folder.join(format!("quantization.{}.json", self.options.scheme));
        let wrong =
            |error: serde_json::Error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() };
        let text = serde_json::to_vec(&all).map_err(wrong)?;
        Ok(bundle::atomic::write_atomic(&path, &text)?)
    }
}

impl Drop for Quantizer {
    fn drop(&mut self) {
        self.remove_files(&self.bundle.manifest, &[&self.committed]);
    }
}
