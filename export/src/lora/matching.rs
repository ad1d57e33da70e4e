//! A LoRA file against one expert: every key is applied, skipped for a reason, or left over.

use super::layer::{Form, Layer, LayerChange, Which};
use super::modules::{Found, Module, Modules};
use super::{Lora, LoraError};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::weights::magnitudes::Magnitudes;
use crate::weights::merge::Merge;
use bundle::spec::DenoiserSpec;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Reads a weight of the expert by its canonical name, as f32 with its shape.
pub type ReadWeight<'a> = dyn Fn(&str) -> Result<(Vec<usize>, Vec<f32>), Error> + Sync + 'a;

/// An expert that a LoRA is applied to.
pub struct Target<'a> {
    /// The sizes of the model.
    pub spec: &'a DenoiserSpec,
    /// The weights of the expert, which magnitudes are computed from; none if they are not available.
    pub weights: Option<&'a ReadWeight<'a>>,
    /// Changes that are made before.
    pub earlier: &'a [Merge],
}

/// What a LoRA is for one expert.
#[derive(Debug, Default)]
pub struct Applied {
    /// The changes of weights, with the strength.
    pub merges: Vec<Merge>,
    /// Layers that change by products of factors.
    pub pairs: usize,
    /// Layers of the file with products of factors, without those that are skipped.
    pub of_pairs: usize,
    /// Weights, biases and tables that change by stored differences.
    pub deltas: usize,
    /// Layers that the model does not have, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
    /// Keys that cannot be applied, each with the reason.
    pub leftover: Vec<(String, String)>,
    /// The sum of the Frobenius norms of the changes; none if magnitudes could not be computed.
    pub change: Option<f64>,
}

/// The reason for which a change of the patch embedding is skipped.
const CHANNELS: &str = "patch embedding of other channels";

/// What becomes of one layer.
enum Outcome {
    /// Changes with their norms, and keys that are left over.
    Applied(Vec<(Form, Merge, Option<f64>)>, Vec<(String, String)>),
    Skipped(&'static str),
    Left(Vec<(String, String)>),
}

impl Lora {
    /// Matches the layers of one transformer of the file with an expert. `is_second` chooses the keys of
    /// `transformer_2`.
    ///
    /// # Errors
    /// Returns an error if a change is for another size of model, cannot be read, or is not finite.
    pub fn matched(&self, is_second: bool, strength: f32, target: &Target<'_>) -> Result<Applied, Error> {
        let modules = Modules::new(target.spec);
        let layers: Vec<&Layer> = self.layers.iter().filter(|layer| layer.is_second == is_second).collect();
        let is_official = modules.are_official(layers.iter().map(|layer| layer.module.as_str()));
        self.refuse_depth(&modules, &layers, is_official)?;
        let one =
            |layer: &&Layer| self.outcome(layer, modules.find(&layer.module, is_official), strength, target);
        let outcomes = layers.par_iter().map(one).collect::<Result<Vec<_>, _>>()?;
        let unknown = self.unknown.iter().filter(|_| !is_second);
        let why = "its end is not one of those that LoRA files have";
        let mut applied = Applied {
            leftover: unknown.map(|key| (key.clone(), why.to_owned())).collect(),
            change: Some(0.0),
            ..Applied::default()
        };
        for (layer, outcome) in layers.into_iter().zip(outcomes) {
            let has_pair = usize::from(layer.form().is_some());
            match outcome {
                Outcome::Skipped(reason) => *applied.skipped.entry(reason).or_default() += 1,
                Outcome::Left(keys) => {
                    applied.of_pairs += has_pair;
                    applied.leftover.extend(keys);
                }
                Outcome::Applied(changes, left) => {
                    applied.of_pairs += has_pair;
                    applied.pairs += usize::from(changes.iter().any(|(form, ..)| *form != Form::Delta));
                    applied.deltas += changes.iter().filter(|(form, ..)| *form == Form::Delta).count();
                    for (_, merge, change) in changes {
                        applied.change = applied.change.zip(change).map(|(sum, change)| sum + change);
                        applied.merges.push(merge);
                    }
                    applied.leftover.extend(left.into_iter().chain(layer.incomplete()));
                }
            }
        }
        if strength == 0.0 {
            applied.merges.clear();
            applied.change = Some(0.0);
        }
        Ok(applied)
    }

    /// Refuses a file for a model with more blocks.
    fn refuse_depth(&self, modules: &Modules, layers: &[&Layer], is_official: bool) -> Result<(), Error> {
        let deeper = layers.iter().filter_map(|layer| match modules.find(&layer.module, is_official) {
            Found::Deeper(blocks) => Some((blocks, layer)),
            _ => None,
        });
        let Some((found, layer)) = deeper.max_by_key(|(blocks, _)| *blocks) else { return Ok(()) };
        let key = layer.keys().next().unwrap_or_default().to_owned();
        let path = self.file.path().to_owned();
        Err(LoraError::Depth { path, key, found, expected: modules.layers() }.into())
    }

    fn outcome(
        &self,
        layer: &Layer,
        found: Found<'_>,
        strength: f32,
        target: &Target<'_>,
    ) -> Result<Outcome, Error> {
        let module = match found {
            Found::Module(module) => module,
            Found::Absent(reason) => return Ok(Outcome::Skipped(reason)),
            Found::Deeper(_) | Found::Unknown => {
                let why = "the model has no layer of this name";
                return Ok(Outcome::Left(layer.keys().map(|key| (key.to_owned(), why.to_owned())).collect()));
            }
        };
        let mut merges = Vec::new();
        let mut left = Vec::new();
        for change in layer.changes(&self.file, &module.name)? {
            let Some(weight) = changed(module, change.which) else {
                left.push((change.key, "the layer has no such weight".to_owned()));
                continue;
            };
            if !change.delta.fits(&weight.shape) {
                if module.name == "patch_embedding" && is_of_other_channels(&change, weight) {
                    return Ok(Outcome::Skipped(CHANNELS));
                }
                return Err(self.wrong_size(change, weight));
            }
            let (form, key) = (change.form, change.key.clone());
            let merge = merge_of(change, weight, strength, target);
            let (merge, norm) = merge.map_err(|error| self.wrong_change(key, error))?;
            merges.push((form, merge, norm));
        }
        Ok(Outcome::Applied(merges, left))
    }

    fn wrong_size(&self, change: LayerChange, weight: &Required) -> Error {
        let path = self.file.path().to_owned();
        let (found, expected) = (change.delta.shape(), weight.shape.clone());
        LoraError::Size { path, key: change.key, found, expected }.into()
    }

    fn wrong_change(&self, key: String, error: Error) -> Error {
        match error {
            Error::Merge { why, .. } => {
                LoraError::Change { path: self.file.path().to_owned(), key, why }.into()
            }
            other => other,
        }
    }
}

/// The weight of a module that a change is for.
fn changed(module: &Module, which: Which) -> Option<&Required> {
    match which {
        Which::Weight => module.weight.as_ref(),
        Which::Bias => module.bias.as_ref(),
        Which::Table => module.table.as_ref(),
    }
}

/// True if only the number of input channels differs.
fn is_of_other_channels(change: &LayerChange, weight: &Required) -> bool {
    let shape = change.delta.shape();
    let positions: usize = weight.shape.iter().skip(2).product();
    let inputs: usize = shape.iter().skip(1).product();
    shape.len() > 1 && shape.first() == weight.shape.first() && inputs.is_multiple_of(positions.max(1))
}

/// A change with the strength, and the norm of what it changes.
fn merge_of(
    change: LayerChange,
    weight: &Required,
    strength: f32,
    target: &Target<'_>,
) -> Result<(Merge, Option<f64>), Error> {
    let LayerChange { scale, delta, magnitudes, .. } = change;
    let Some((of_rows, trained)) = magnitudes else {
        let merge = Merge::of(&weight.name, (scale * f64::from(strength)) as f32, delta)?;
        let change = merge.change();
        return Ok((merge, Some(change)));
    };
    let scale = scale as f32;
    let Some(read) = target.weights else {
        return Ok((Merge::of(&weight.name, scale, delta)?, None));
    };
    let (shape, mut values) = read(&weight.name)?;
    for earlier in target.earlier.iter().filter(|earlier| earlier.weight() == weight.name) {
        earlier.add(&shape, 0, &mut values)?;
    }
    let base = (shape.as_slice(), values.as_slice());
    let magnitudes = Magnitudes::new(&weight.name, base, (scale, &delta), (of_rows, &trained), strength)?;
    let change = magnitudes.change;
    Ok((Merge::of(&weight.name, scale, delta)?.with_magnitudes(magnitudes), Some(change)))
}
