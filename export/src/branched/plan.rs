//! The branches and the private copies of one expert in one variant.

use super::layer::{Building, NewTensor, Private};
use crate::Error;
use crate::checkpoint::shards::Shards;
use crate::model::Branches;
use crate::weights::merge::Merge;
use crate::weights::number_format::widen;
use bundle::dtype::ElementType;
use bundle::quantization::ComponentNumerics;
use std::collections::BTreeMap;

/// The weights that a variant reads, and those of the export.
pub(super) struct Sources<'a> {
    pub(super) variant: &'a Shards,
    pub(super) exported: &'a Shards,
    /// The quantisation of the variant, if it is quantised.
    pub(super) numerics: Option<&'a ComponentNumerics>,
}

/// The branches of an expert, and the tensors that its graph reads instead of or besides those of the bundle.
#[derive(Debug, Default)]
pub(super) struct BranchPlan {
    pub(super) branches: Branches,
    pub(super) tensors: Vec<NewTensor>,
}

/// Plans the branches of an expert. Linear layers of blocks, and quantised layers, get branches; all other weights that
/// change are copied.
///
/// # Errors
/// Returns an error if a weight cannot be read, or if a change needs a copy of a large weight.
pub(super) fn plan(merges: &[Merge], sources: &Sources<'_>) -> Result<BranchPlan, Error> {
    let mut building: BTreeMap<String, Building> = BTreeMap::new();
    let mut copies: BTreeMap<String, Private> = BTreeMap::new();
    for merge in merges {
        let (layer, part) = merge.weight().rsplit_once('.').unwrap_or((merge.weight(), ""));
        let numbers = sources.numerics.and_then(|numerics| numerics.layers.get(layer));
        let is_linear = part == "weight" && merge.delta().shape().len() == 2;
        if is_linear && (layer.starts_with("blocks.") || numbers.is_some()) {
            building.entry(layer.to_owned()).or_default().add(merge)?;
            continue;
        }
        let copy = match copies.remove(merge.weight()) {
            Some(copy) => copy,
            None => {
                let (shape, values) = read(sources.variant, merge.weight())?;
                Private { name: merge.weight().to_owned(), shape, values }
            }
        };
        let copy = match numbers.and_then(|numbers| numbers.row_factors.as_ref()) {
            // The rows of the layer are multiplied, and so is the change of its bias.
            Some(rows) => {
                let mut change = vec![0.0; copy.values.len()];
                merge.add(&copy.shape, 0, &mut change)?;
                let changed = copy.values.iter().zip(&change).zip(rows);
                let values = changed.map(|((value, change), row)| value + row * change).collect();
                Private { values, ..copy }
            }
            None => {
                let mut copy = copy;
                merge.add(&copy.shape, 0, &mut copy.values)?;
                copy
            }
        };
        copies.insert(copy.name.clone(), copy);
    }
    let mut plan = BranchPlan::default();
    for (layer, building) in building {
        let numbers = sources.numerics.and_then(|numerics| numerics.layers.get(&layer));
        let name = format!("{layer}.bias");
        let (shape, mut bias) = read(sources.exported, &name)?;
        for merge in merges.iter().filter(|merge| merge.weight() == name) {
            merge.add(&shape, 0, &mut bias)?;
        }
        let (branch, tensors) = building.finish(&layer, numbers, &bias)?;
        plan.branches.insert(layer, branch);
        plan.tensors.extend(tensors.into_iter().map(NewTensor::from));
    }
    plan.tensors.extend(copies.into_values().map(NewTensor::from));
    Ok(plan)
}

/// Reads a weight that is stored in a floating-point format.
pub(super) fn read(shards: &Shards, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
    let tensor = shards.tensor(name)?;
    if !matches!(tensor.element, ElementType::F32 | ElementType::F16 | ElementType::Bf16) {
        return Err(Error::WrongType { name: name.to_owned(), found: tensor.element });
    }
    let mut values = vec![0.0; tensor.length / tensor.element.bytes()];
    widen(tensor.element, &tensor.read()?, &mut values);
    Ok((tensor.shape.to_vec(), values))
}
