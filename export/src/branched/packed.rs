//! Branches and private copies of an expert whose layers are fused and packed for Rushes kernels.

use super::factors::{Factors, PartProducts, floats};
use super::folder::write_tensors;
use super::layer::{Building, NewTensor, Private, Product};
use crate::Error;
use crate::lora::LoraError;
use crate::model::{FusedBranch, FusedBranches};
use crate::weights::merge::Merge;
use crate::weights::number_format::widen;
use crate::weights::packed::PackedFormat;
use crate::weights::{PlacedWeights, location};
use bundle::layout;
use bundle::quantization::layers::{FusedLayer, fused};
use bundle::quantization::{ComponentNumerics, LayerNumerics};
use bundle::spec::DenoiserSpec;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Returns the shape and the values of a weight.
pub(super) type Read<'a> = &'a dyn Fn(&str) -> Result<(Vec<usize>, Vec<f32>), Error>;

/// The weights of a packed variant, and those of the export.
pub(super) struct PackedSources<'a> {
    pub(super) variant: Read<'a>,
    pub(super) exported: Read<'a>,
    /// The quantisation of the variant, if it is quantised.
    pub(super) numerics: Option<&'a ComponentNumerics>,
}

/// The branches of the fused layers, and the tensors that the graph reads instead of or besides those of the bundle.
#[derive(Debug, Default)]
pub(super) struct PackedPlan {
    pub(super) branches: FusedBranches,
    pub(super) tensors: Vec<NewTensor>,
}

/// Plans the branches of an expert. The other weights that change are copied: no layer outside the blocks is quantised.
///
/// # Errors
/// Returns an error if a weight cannot be read, or if a change needs a copy of a large weight.
pub(super) fn plan_packed(
    merges: &[Merge],
    spec: &DenoiserSpec,
    sources: &PackedSources<'_>,
) -> Result<PackedPlan, Error> {
    let layers = fused(spec);
    let parts: BTreeMap<&str, usize> = layers
        .iter()
        .enumerate()
        .flat_map(|(index, layer)| layer.parts.iter().map(move |part| (part.as_str(), index)))
        .collect();
    let mut of_layers: BTreeMap<usize, Vec<&Merge>> = BTreeMap::new();
    let mut copies: BTreeMap<&str, Private> = BTreeMap::new();
    for merge in merges {
        let (layer, _) = merge.weight().rsplit_once('.').unwrap_or((merge.weight(), ""));
        if let Some(index) = parts.get(layer) {
            of_layers.entry(*index).or_default().push(merge);
            continue;
        }
        let mut copy = match copies.remove(merge.weight()) {
            Some(copy) => copy,
            None => {
                let (shape, values) = (sources.variant)(merge.weight())?;
                Private { name: merge.weight().to_owned(), shape, values }
            }
        };
        merge.add(&copy.shape, 0, &mut copy.values)?;
        copies.insert(merge.weight(), copy);
    }
    let mut plan = PackedPlan::default();
    for (index, merges) in of_layers {
        PackedLayer { layer: &layers[index], sources }.add(&merges, &mut plan)?;
    }
    plan.tensors.extend(copies.into_values().map(NewTensor::from));
    Ok(plan)
}

/// A fused layer that changes.
struct PackedLayer<'a> {
    layer: &'a FusedLayer,
    sources: &'a PackedSources<'a>,
}

impl PackedLayer<'_> {
    fn add(&self, merges: &[&Merge], plan: &mut PackedPlan) -> Result<(), Error> {
        let FusedLayer { name, parts, shape: [outputs, _] } = self.layer;
        let scales = match (self.sources.variant)(&format!("{name}.scales")) {
            Ok((_, scales)) => Some(scales),
            // A layer in bf16 has none.
            Err(Error::MissingTensor { .. }) => None,
            Err(error) => return Err(error),
        };
        let format = if scales.is_some() { PackedFormat::Int8 } else { PackedFormat::Bf16 };
        let bias_name = format!("{name}.bias");
        let (_, mut bias) = (self.sources.variant)(&bias_name)?;
        let mut factors = vec![1.0_f32; parts.len() * outputs];
        let mut branch = FusedBranch::default();
        let mut low_rank: PartProducts = Vec::new();
        let vectors = bias.chunks_mut(*outputs).zip(factors.chunks_mut(*outputs));
        for (part, (bias, factors)) in parts.iter().zip(vectors) {
            let building = self.part((part, merges), bias, factors)?;
            let (mut of_part, mut products) = (Vec::new(), Vec::new());
            for (number, product) in building.products.into_iter().enumerate() {
                match product {
                    Product::LowRank { up, down } => of_part.push([up, down]),
                    product @ Product::Kronecker { .. } => {
                        products.push((number, product.shape()));
                        plan.tensors.extend(product.tensors(part, number).into_iter().map(NewTensor::from));
                    }
                }
            }
            low_rank.push(of_part);
            branch.products.push(products);
        }
        if let Some(joined) = Factors::new(self.layer, format, low_rank) {
            branch.low_rank = Some(joined.rank);
            plan.tensors.extend(joined.tensors(self.layer, format)?);
        }
        let copy = |name: String, values: Vec<f32>| Private { name, shape: vec![values.len()], values };
        plan.tensors.push(copy(bias_name, bias).into());
        if factors.iter().any(|factor| *factor != 1.0) {
            plan.tensors.push(match scales {
                Some(scales) => {
                    let scales = scales.iter().zip(&factors).map(|(scale, factor)| scale * factor);
                    copy(format!("{name}.scales"), scales.collect()).into()
                }
                None => floats(self.layer, "outputs", &factors),
            });
        }
        if branch.low_rank.is_some() || branch.products.iter().any(|products| !products.is_empty()) {
            plan.branches.insert(name.clone(), branch);
        }
        Ok(())
    }

    /// The products of one part. Changes its stored bias, and the factors of its outputs.
    fn part(
        &self,
        (part, merges): (&str, &[&Merge]),
        bias: &mut [f32],
        factors: &mut [f32],
    ) -> Result<Building, Error> {
        let numbers = self.sources.numerics.and_then(|numerics| numerics.layers.get(part));
        let row_factors = numbers.and_then(|numbers| numbers.row_factors.as_deref());
        let row = |index: usize| row_factors.map_or(1.0, |rows| rows[index]);
        let (weight_name, bias_name) = (format!("{part}.weight"), format!("{part}.bias"));
        let mut building = Building::default();
        let mut change = vec![0.0; bias.len()];
        for merge in merges {
            if merge.weight() == weight_name {
                building.add(merge)?;
            } else if merge.weight() == bias_name {
                merge.add(&[bias.len()], 0, &mut change)?;
            }
        }
        for (index, (bias, change)) in bias.iter_mut().zip(&change).enumerate() {
            *bias += row(index) * change;
        }
        if building.inputs.is_some() {
            let why = "the file scales inputs of a layer for Rushes kernels, which have no factors for them";
            return Err(LoraError::NoBranch { weight: weight_name, why: why.into() }.into());
        }
        // Rows are divided before every smoothed layer, wherever the division is made.
        let divisors =
            |numbers: &LayerNumerics| numbers.smoothing.clone().map(|smoothing| smoothing.divisors);
        building.adjust(numbers.and_then(divisors).as_deref(), row_factors);
        if let Some(outputs) = &building.outputs {
            // Only the weight is decomposed: the bias stays, with its change.
            let (_, exported) = (self.sources.exported)(&bias_name)?;
            let whole = exported.iter().zip(&change).map(|(bias, change)| bias + change);
            for (index, (bias, (whole, factor))) in bias.iter_mut().zip(whole.zip(outputs)).enumerate() {
                *bias = factor * *bias + (1.0 - factor) * row(index) * whole;
            }
            factors.copy_from_slice(outputs);
        }
        Ok(building)
    }
}

/// Writes the branches of `merges` into the new file `name`, next to the weights in `folder`, the component's folder, of
/// an expert whose fused layers are packed and not smoothed. Returns the weights of `placed` with those of the branches,
/// and the branches.
///
/// # Errors
/// Returns an error if a weight cannot be read, if a change cannot be a branch, or if the file cannot be written.
pub fn pack(
    folder: &Path,
    placed: &PlacedWeights,
    spec: &DenoiserSpec,
    merges: &[Merge],
    name: &str,
) -> Result<(PlacedWeights, FusedBranches), Error> {
    let read = |name: &str| read(folder, placed, name);
    let sources = PackedSources { variant: &read, exported: &read, numerics: None };
    let PackedPlan { branches, tensors } = plan_packed(merges, spec, &sources)?;
    let path = folder.join(layout::WEIGHTS).join(name);
    let (written, _) = write_tensors(&path, &location(name), &tensors)?;
    let mut all = placed.clone();
    all.tensors.extend(written);
    Ok((all, branches))
}

/// Reads a weight as f32.
fn read(folder: &Path, placed: &PlacedWeights, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
    let missing = || Error::MissingTensor { name: name.to_owned(), folder: placed.from.clone() };
    let weight = placed.tensors.get(name).ok_or_else(missing)?;
    let path = folder.join(&weight.location);
    let file = File::open(&path).map_err(Error::file("read", &path))?;
    let count = weight.shape.iter().product::<usize>();
    let mut bytes = vec![0; count * weight.element.bytes()];
    file.read_exact_at(&mut bytes, weight.offset).map_err(Error::file("read", &path))?;
    let mut values = vec![0.0; count];
    widen(weight.element, &bytes, &mut values);
    Ok((weight.shape.clone(), values))
}
