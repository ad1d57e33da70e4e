//! The branch of one linear layer: the changes of its weight as tensors of a graph.

use crate::lora::LoraError;
use crate::model::{BranchProduct, LayerBranch, branch_tensor_name};
use crate::weights::delta::{Delta, Factor};
use crate::weights::magnitudes::Magnitudes;
use crate::weights::merge::Merge;
use crate::weights::new_file::Stored;
use bundle::dtype::ElementType;
use bundle::quantization::{Fold, LayerNumerics};

/// A tensor of a branch, or a private copy of a weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Private {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// A tensor to write, in any number format.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewTensor {
    pub(super) stored: Stored,
    pub(super) bytes: Vec<u8>,
}

impl From<Private> for NewTensor {
    fn from(Private { name, shape, values }: Private) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { stored: Stored { name, element: ElementType::F32, shape }, bytes }
    }
}

/// One product of a branch.
#[derive(Debug, Clone)]
pub(super) enum Product {
    LowRank { up: Matrix, down: Matrix },
    Kronecker { left: Matrix, right: Matrix, before: Option<Vec<f32>>, after: Option<Vec<f32>> },
}

/// A matrix that is scaled in place.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) shape: [usize; 2],
    pub(super) values: Vec<f32>,
}

impl Matrix {
    fn of(factor: &Factor) -> Self {
        Self { shape: factor.shape, values: factor.values.to_vec() }
    }

    fn scale(&mut self, scale: f32) {
        self.values.iter_mut().for_each(|value| *value *= scale);
    }

    fn scale_rows(&mut self, factors: &[f32]) {
        for (row, factor) in self.values.chunks_mut(self.shape[1]).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }

    fn scale_columns(&mut self, factors: &[f32]) {
        for row in self.values.chunks_mut(self.shape[1]) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
    }
}

impl Product {
    /// The product of a change, times a scale.
    ///
    /// The product, element by element, of two low-rank matrices is a low-rank matrix whose columns are the products of
    /// all pairs of columns (Khatri-Rao).
    fn of(delta: &Delta, scale: f32) -> Option<Self> {
        Some(match delta {
            Delta::LowRank { up, down } => {
                let mut up = Matrix::of(up);
                up.scale(scale);
                Self::LowRank { up, down: Matrix::of(down) }
            }
            Delta::Hadamard { first: [a, b], second: [c, d] } => {
                let ranks = [b.shape[0], d.shape[0]];
                let up = (0..a.shape[0]).flat_map(|row| {
                    a.row(row)
                        .iter()
                        .flat_map(move |one| c.row(row).iter().map(move |other| scale * one * other))
                });
                let down = (0..ranks[0]).flat_map(|first| (0..ranks[1]).map(move |second| (first, second)));
                let down = down.flat_map(|(first, second)| {
                    b.row(first).iter().zip(d.row(second)).map(|(one, other)| one * other)
                });
                let rank = ranks[0] * ranks[1];
                Self::LowRank {
                    up: Matrix { shape: [a.shape[0], rank], values: up.collect() },
                    down: Matrix { shape: [rank, b.shape[1]], values: down.collect() },
                }
            }
            Delta::Kronecker { left, right } => {
                let mut left = Matrix::of(left);
                left.scale(scale);
                Self::Kronecker { left, right: Matrix::of(right), before: None, after: None }
            }
            Delta::Dense { .. } => return None,
        })
    }

    fn scale_outputs(&mut self, factors: &[f32]) {
        match self {
            Self::LowRank { up, .. } => up.scale_rows(factors),
            Self::Kronecker { after, .. } => multiply(after, factors),
        }
    }

    fn scale_inputs(&mut self, factors: &[f32]) {
        match self {
            Self::LowRank { down, .. } => down.scale_columns(factors),
            Self::Kronecker { before, .. } => multiply(before, factors),
        }
    }
}

fn multiply(vector: &mut Option<Vec<f32>>, factors: &[f32]) {
    match vector {
        None => *vector = Some(factors.to_vec()),
        Some(vector) => vector.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor),
    }
}

/// The branch of a layer, as its changes are added.
#[derive(Debug, Clone, Default)]
pub(super) struct Building {
    pub(super) products: Vec<Product>,
    /// Factors of the outputs of the layer.
    pub(super) outputs: Option<Vec<f32>>,
    /// Factors of its inputs.
    pub(super) inputs: Option<Vec<f32>>,
}

impl Building {
    /// Adds a change of the weight of the layer.
    ///
    /// # Errors
    /// Returns an error for a change of every element.
    pub(super) fn add(&mut self, merge: &Merge) -> Result<(), LoraError> {
        let mut product = Product::of(merge.delta(), merge.scale()).ok_or_else(|| LoraError::NoBranch {
            weight: merge.weight().to_owned(),
            why: "the file changes every element of the weight, which no small product can do".into(),
        })?;
        // W' = (1-s+s·m)∘W + s·m∘ΔW, where W has the changes that were added before.
        if let Some(Magnitudes { of_rows, factors, strength, .. }) = merge.magnitudes() {
            let kept: Vec<f32> = factors.iter().map(|factor| 1.0 - strength + strength * factor).collect();
            let added: Vec<f32> = factors.iter().map(|factor| strength * factor).collect();
            if *of_rows {
                self.products.iter_mut().for_each(|product| product.scale_outputs(&kept));
                multiply(&mut self.outputs, &kept);
                product.scale_outputs(&added);
            } else {
                self.products.iter_mut().for_each(|product| product.scale_inputs(&kept));
                multiply(&mut self.inputs, &kept);
                product.scale_inputs(&added);
            }
        }
        self.products.push(product);
        Ok(())
    }

    /// Adjusts the products to inputs that are divided, and to outputs that are multiplied.
    pub(super) fn adjust(&mut self, divisors: Option<&[f32]>, rows: Option<&[f32]>) {
        for product in &mut self.products {
            divisors.inspect(|divisors| product.scale_inputs(divisors));
            rows.inspect(|rows| product.scale_outputs(rows));
        }
    }

    /// The branch and its tensors. `bias` is that of the layer with its changes, without quantisation.
    ///
    /// A quantised layer may expect divided inputs and return multiplied outputs. The products undo the former and do the
    /// latter.
    ///
    /// # Errors
    /// Returns an error if inputs would have to be scaled that are quantised with a fixed range.
    pub(super) fn finish(
        mut self,
        layer: &str,
        numbers: Option<&LayerNumerics>,
        bias: &[f32],
    ) -> Result<(LayerBranch, Vec<Private>), LoraError> {
        if self.inputs.is_some() && numbers.is_some_and(|numbers| numbers.input.is_some()) {
            let why = "the file scales inputs of a quantised layer, whose range is fixed";
            return Err(LoraError::NoBranch { weight: format!("{layer}.weight"), why: why.into() });
        }
        let divided = numbers.and_then(|numbers| numbers.smoothing.as_ref());
        let divided = divided.filter(|smoothing| smoothing.fold == Fold::Upstream);
        let rows = numbers.and_then(|numbers| numbers.row_factors.as_deref());
        self.adjust(divided.map(|smoothing| &smoothing.divisors[..]), rows);
        let mut all = Vec::new();
        let mut put = |part: &str, shape: &[usize], values: Vec<f32>| {
            let name = branch_tensor_name(layer, part);
            all.push(Private { name, shape: shape.to_vec(), values });
        };
        let branch = LayerBranch {
            scales_outputs: self.outputs.is_some(),
            scales_inputs: self.inputs.is_some(),
            products: self.products.iter().map(Product::shape).collect(),
        };
        if let Some(outputs) = self.outputs {
            let row = |index: usize| rows.map_or(1.0, |rows| rows[index]);
            let shift = outputs.iter().zip(bias).enumerate();
            let shift = shift.map(|(index, (output, bias))| (1.0 - output) * row(index) * bias).collect();
            put("shift", &[bias.len()], shift);
            put("outputs", &[outputs.len()], outputs);
        }
        if let Some(inputs) = self.inputs {
            put("inputs", &[inputs.len()], inputs);
        }
        for (number, product) in self.products.into_iter().enumerate() {
            all.extend(product.tensors(layer, number));
        }
        Ok((branch, all))
    }
}

impl Product {
    /// Its tensors, as product `number` of a layer.
    pub(super) fn tensors(self, layer: &str, number: usize) -> Vec<Private> {
        let named = |part: &str, shape: &[usize], values: Vec<f32>| Private {
            name: branch_tensor_name(layer, &format!("{number}.{part}")),
            shape: shape.to_vec(),
            values,
        };
        match self {
            Self::LowRank { up, down } => {
                vec![named("up", &up.shape, up.values), named("down", &down.shape, down.values)]
            }
            Self::Kronecker { left, right, before, after } => {
                let vectors = [("before", before), ("after", after)].into_iter();
                let vectors = vectors.filter_map(|(part, vector)| Some((part, vector?)));
                [named("left", &left.shape, left.values), named("right", &right.shape, right.values)]
                    .into_iter()
                    .chain(vectors.map(|(part, vector)| named(part, &[vector.len()], vector)))
                    .collect()
            }
        }
    }

    pub(super) fn shape(&self) -> BranchProduct {
        match self {
            Self::LowRank { down, .. } => BranchProduct::LowRank { rank: down.shape[0] },
            Self::Kronecker { left, right, before, after } => BranchProduct::Kronecker {
                left: left.shape,
                right: right.shape,
                has_before: before.is_some(),
                has_after: after.is_some(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::quantization::{Affine, WeightScales};

    #[test]
    fn inputs_are_scaled_unless_their_range_is_fixed() {
        let factor = |shape: [usize; 2]| Factor { shape, values: vec![1.0; shape[0] * shape[1]].into() };
        let magnitudes =
            Magnitudes { of_rows: false, factors: vec![2.0, 0.5].into(), strength: 1.0, change: 1.0 };
        let merge = Merge::new("layer.weight", 1.0, factor([3, 1]), factor([1, 2])).unwrap();
        let mut building = Building::default();
        building.add(&merge.with_magnitudes(magnitudes)).unwrap();
        let finish = |input: Option<Affine>| {
            let weights = WeightScales::Blocks { size: 2, scales: vec![1.0; 3] };
            let numbers = LayerNumerics::plain(weights, input);
            building.clone().finish("layer", Some(&numbers), &[0.0; 3])
        };
        let (branch, tensors) = finish(None).unwrap();
        assert!(branch.scales_inputs);
        let inputs = tensors.iter().find(|tensor| tensor.name == "layer.lora.inputs").unwrap();
        assert_eq!(inputs.values, [2.0, 0.5]);
        let refused = finish(Some(Affine { scale: 0.1, zero_point: 128 })).unwrap_err().to_string();
        assert!(refused.contains("layer.weight") && refused.contains("range is fixed"), "{refused}");
    }
}
