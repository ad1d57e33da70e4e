//! Plans the numbers of components and writes their variants into the bundle.

use crate::Error;
use bundle::layout::component_folder;
use bundle::manifest::{self, Bundle, Component, ComponentEntry};
use bundle::quantization::{ComponentNumerics, Numerics, Scheme};
use calibration::numerics::plan::{Plan, PlanOptions, Sources, plan};
use calibration::numerics::range::RangeMethod;
use calibration::numerics::weights::WeightSource;
use calibration::observe::table::{Header, Table};
use export::quantized::{BundleWeights, write_variant};
use std::collections::BTreeMap;
use std::path::Path;

/// Layers that stay in high precision, each with the reason.
pub type Kept = BTreeMap<String, String>;

/// A bundle that is being quantised.
#[derive(Debug)]
pub struct Quantizer {
    bundle: Bundle,
    scheme: Scheme,
    table: Table,
    /// What the calibration was made with.
    pub header: Header,
    weights: AllWeights,
    numerics: BTreeMap<String, ComponentNumerics>,
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
    /// Opens a bundle and its calibration.
    ///
    /// # Errors
    /// A bundle or calibration that is damaged, or one that was made for other weights.
    pub fn open(folder: &Path, calibration: &Path, scheme: Scheme) -> Result<Self, Error> {
        let bundle = Bundle::open(folder)?;
        let (table, header) = Table::read(calibration, &bundle.manifest)?;
        let mut weights = BTreeMap::new();
        for entry in &bundle.manifest.components {
            weights.insert(component_folder(&entry.component), BundleWeights::open(&bundle, entry)?);
        }
        let weights = AllWeights(weights);
        Ok(Self { bundle, scheme, table, header, weights, numerics: BTreeMap::new() })
    }

    /// The bundle as it is now.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What was observed.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The numbers of the components that were quantised.
    pub fn numerics(&self) -> &BTreeMap<String, ComponentNumerics> {
        &self.numerics
    }

    /// Where planning reads weights.
    pub fn weights(&self) -> &dyn WeightSource {
        &self.weights
    }

    /// The numbers of a component with these layers left in high precision; nothing is written.
    ///
    /// # Errors
    /// A layer that was not observed or whose weights cannot be quantised.
    pub fn plan(&self, entry: &ComponentEntry, keep: &Kept) -> Result<Plan, Error> {
        let options =
            PlanOptions { scheme: self.scheme, method: RangeMethod::LeastSquares, keep: keep.clone() };
        let sources = Sources { manifest: &self.bundle.manifest, table: &self.table, weights: &self.weights };
        Ok(plan(sources, entry, &options)?)
    }

    /// Writes the variant of a component with the given numbers and enters it into `bundle.json`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&mut self, numerics: ComponentNumerics, note: Option<String>) -> Result<(), Error> {
        let mut manifest = self.bundle.manifest.clone();
        let entry = manifest.components.iter_mut().find(|entry| entry.component == numerics.component);
        if let Some(entry) = entry {
            write_variant(&self.bundle, entry, self.scheme, &numerics, note)?;
        }
        manifest::write(&self.bundle.folder, &manifest)?;
        self.bundle.manifest = manifest;
        self.numerics.insert(component_folder(&numerics.component), numerics);
        Ok(())
    }

    /// Writes all numbers into `quantization.SCHEME.json`, from which another lowering can be made.
    ///
    /// # Errors
    /// The path that could not be written.
    pub fn write_numerics(&self) -> Result<(), Error> {
        let all = Numerics { scheme: self.scheme, components: self.numerics.values().cloned().collect() };
        let path = self.bundle.folder.join(format!("quantization.{}.json", self.scheme));
        let wrong =
            |error: serde_json::Error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() };
        let text = serde_json::to_vec(&all).map_err(wrong)?;
        Ok(bundle::atomic::write_atomic(&path, &text)?)
    }
}
