//! What a LoRA file contains, without a model.

use super::key::Part;
use super::{Form, Lora, Naming};
use crate::Error;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// How modules are named.
    pub naming: Vec<&'static str>,
    /// The forms of changes, and the number of modules with each; `DoRA` counts the modules with magnitudes.
    pub forms: BTreeMap<&'static str, usize>,
    /// The number formats, and the number of tensors in each.
    pub formats: BTreeMap<String, usize>,
    /// The ranks, and the number of modules with each.
    pub ranks: BTreeMap<usize, usize>,
    /// The factors that alphas give, and the number of modules with each; `1` where a pair has no alpha.
    pub factors: BTreeMap<String, usize>,
    /// The sum of the Frobenius norms of the changes at strength 1; none if it needs the weights of a model.
    pub change: Option<f64>,
    /// True if the keys name two transformers.
    pub both_experts: bool,
    /// Keys that are not understood, whatever the model is.
    pub unknown: Vec<String>,
}

impl Lora {
    /// Reads every tensor and lists what the file contains.
    ///
    /// # Errors
    /// Returns an error if a tensor cannot be read, or if tensors of a module do not fit each other.
    pub fn summary(&self) -> Result<Summary, Error> {
        let naming: BTreeSet<Naming> = self.layers.iter().map(|layer| layer.naming).collect();
        let mut summary = Summary {
            naming: naming.into_iter().map(Naming::name).collect(),
            forms: BTreeMap::new(),
            formats: self.file.formats(),
            ranks: BTreeMap::new(),
            factors: BTreeMap::new(),
            change: Some(0.0),
            both_experts: self.has_both_experts(),
            unknown: self.unknown.clone(),
        };
        for layer in &self.layers {
            summary.unknown.extend(layer.incomplete().into_iter().map(|(key, _)| key));
            if layer.has(Part::Magnitudes) {
                *summary.forms.entry("DoRA").or_default() += 1;
            }
            let mut forms = BTreeSet::new();
            for change in layer.changes(&self.file, &layer.module)? {
                forms.insert(change.form);
                let norm = || change.scale.abs() * change.delta.norm();
                summary.change =
                    summary.change.filter(|_| change.magnitudes.is_none()).map(|sum| sum + norm());
                if change.form != Form::Delta {
                    *summary.factors.entry(format!("{}", change.scale as f32)).or_default() += 1;
                    if let Some(rank) = change.delta.rank() {
                        *summary.ranks.entry(rank).or_default() += 1;
                    }
                }
            }
            for form in forms {
                *summary.forms.entry(form.name()).or_default() += 1;
            }
        }
        Ok(summary)
    }
}
