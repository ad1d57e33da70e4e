//! The branch of one linear layer: the changes of its weight as tensors of a graph.

use crate::lora::LoraError;
use crate::model::{BranchProduct, LayerBranch, branch_tensor_name};
use crate::weights::delta::{Delta, Factor};
use crate::weights::magnitudes::Magnitudes;
use crate::weights::merge::Merge;
use bundle::quantization::{Fold, LayerNumerics};

/// A tensor of a branch, or a private copy of a weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Private {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// One product of a branch.
#[derive(Debug, Clone)]
enum Product {
    LowRank { up: Matrix, down: Matrix },
    Kronecker { left: Matrix, right: Matrix, before: Option<Vec<f32>>, after: Option<Vec<f32>> },
}

/// A matrix that is scaled in place.
#[derive(Debug, Clone)]
struct Matrix {
    shape: [usize; 2],
    values: Vec<f32>,
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
    products: Vec<Product>,
    outputs: Option<Vec<f32>>,
    inputs: Option<Vec<f32>>,
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

    /// The branch and its tensors. `bias` is that of the layer with its changes, without quantisation.
    ///
    /// A quantised layer may expect divided inputs and return multiplied outputs. The products undo the former and do the
    /// latter.
    ///
    /// # Errors
    /// Returns an error if inputs of a quantised layer would have to be scaled.
    pub(super) fn finish(
        mut self,
        layer: &str,
        numbers: Option<&LayerNumerics>,
        bias: &[f32],
    ) -> Result<(LayerBranch, Vec<Private>), LoraError> {
        if self.inputs.is_some() && numbers.is_some() {
            let why = "the file scales inputs of a quantised layer, whose range is fixed";
            return Err(LoraError::NoBranch { weight: format!("{layer}.weight"), why: why.into() });
        }
        let divided = numbers.and_then(|numbers| numbers.smoothing.as_ref());
        let divided = divided.filter(|smoothing| smoothing.fold == Fold::Upstream);
        let rows = numbers.and_then(|numbers| numbers.row_factors.as_ref());
        for product in &mut self.products {
            if let Some(smoothing) = divided {
                product.scale_inputs(&smoothing.divisors);
            }
            if let Some(rows) = rows {
                product.scale_outputs(rows);
            }
        }
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
            let part = |part: &str| format!("{number}.{part}");
            match product {
                Product::LowRank { up, down } => {
                    put(&part("up"), &up.shape, up.values);
                    put(&part("down"), &down.shape, down.values);
                }
                Product::Kronecker { left, right, before, after } => {
                    put(&part("left"), &left.shape, left.values);
                    put(&part("right"), &right.shape, right.values);
                    before.into_iter().for_each(|vector| put(&part("before"), &[vector.len()], vector));
                    after.into_iter().for_each(|vector| put(&part("after"), &[vector.len()], vector));
                }
            }
        }
        Ok((branch, all))
    }
}

impl Product {
    fn shape(&self) -> BranchProduct {
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
