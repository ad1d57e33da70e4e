//! Branches of linear layers: changes that are computed beside a layer whose weights stay as they are.
//!
//! With a branch, the layer `y = W·x + b` becomes `y = o∘(W·(i∘x) + b) + s + Σ ΔW·x`, where the vectors `o` (outputs),
//! `i` (inputs) and `s` (shift) exist for decomposed weights only.

use super::graph_weights::GraphWeights;
use crate::Error;
use graph::{Dim, GraphBuilder, Tensor};
use std::collections::BTreeMap;

/// The branches of the layers of a component, by the canonical name of the layer.
pub type Branches = BTreeMap<String, LayerBranch>;

/// The branch of one layer. Its tensors are weights `LAYER.lora.…`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerBranch {
    /// The products, each with its number.
    pub products: Vec<BranchProduct>,
    /// True if the output of the layer is multiplied by `LAYER.lora.outputs [out]`, and `LAYER.lora.shift [out]` is added.
    pub scales_outputs: bool,
    /// True if the input of the layer is multiplied by `LAYER.lora.inputs [in]`.
    pub scales_inputs: bool,
}

/// A product of a branch, with the tensors `LAYER.lora.NUMBER.…`.
#[derive(Debug, Clone, PartialEq)]
pub enum BranchProduct {
    /// `up [out,rank] · down [rank,in]`.
    LowRank {
        /// The rank.
        rank: usize,
    },
    /// `left [a,b] ⊗ right [c,d]`, with vectors for its inputs and outputs.
    Kronecker {
        /// Rows and columns of `left`.
        left: [usize; 2],
        /// Rows and columns of `right`.
        right: [usize; 2],
        /// True if its input is multiplied by `before [in]`.
        has_before: bool,
        /// True if its output is multiplied by `after [out]`.
        has_after: bool,
    },
}

/// Returns the name of a tensor of a branch.
pub(crate) fn tensor_name(layer: &str, part: &str) -> String {
    format!("{layer}.lora.{part}")
}

/// Returns the input of a layer that has a branch.
pub(super) fn input(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    (name, branch): (&str, &LayerBranch),
    x: &Tensor,
    width: usize,
) -> Result<Tensor, Error> {
    if !branch.scales_inputs {
        return Ok(x.clone());
    }
    let factors = weights.load(g, &tensor_name(name, "inputs"), &[width])?;
    Ok(g.multiply(x, &factors)?)
}

/// Adds the branch to the output `y` of a layer over `x`.
pub(super) fn output(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    (name, branch): (&str, &LayerBranch),
    [x, y]: [&Tensor; 2],
    [out, width]: [usize; 2],
) -> Result<Tensor, Error> {
    let mut y = y.clone();
    if branch.scales_outputs {
        let factors = weights.load(g, &tensor_name(name, "outputs"), &[out])?;
        let shift = weights.load(g, &tensor_name(name, "shift"), &[out])?;
        let scaled = g.multiply(&y, &factors)?;
        y = g.add(&scaled, &shift)?;
    }
    for (number, change) in branch.products.iter().enumerate() {
        let change = product(g, weights, (name, number), (change, [out, width]), x)?;
        y = g.add(&y, &change)?;
    }
    Ok(y)
}

/// Builds the product `number` of a layer `[out,in]` over `x`.
pub(super) fn product(
    g: &mut GraphBuilder,
    weights: GraphWeights<'_>,
    (layer, number): (&str, usize),
    (product, [out, width]): (&BranchProduct, [usize; 2]),
    x: &Tensor,
) -> Result<Tensor, Error> {
    let part = |part: &str| tensor_name(layer, &format!("{number}.{part}"));
    match product {
        BranchProduct::LowRank { rank } => {
            let down = weights.load(g, &part("down"), &[*rank, width])?;
            let up = weights.load(g, &part("up"), &[out, *rank])?;
            let inner = g.linear(x, &down, None)?;
            Ok(g.linear(&inner, &up, None)?)
        }
        BranchProduct::Kronecker { left, right, has_before, has_after } => {
            let mut x = x.clone();
            if *has_before {
                let factors = weights.load(g, &part("before"), &[width])?;
                x = g.multiply(&x, &factors)?;
            }
            let left_weight = weights.load(g, &part("left"), left)?;
            let right_weight = weights.load(g, &part("right"), right)?;
            let mut change = kronecker(g, &x, (&left_weight, *left), (&right_weight, *right))?;
            if *has_after {
                let factors = weights.load(g, &part("after"), &[out])?;
                change = g.multiply(&change, &factors)?;
            }
            Ok(change)
        }
    }
}

/// `(left ⊗ right)·x` over the last axis of `x`: as a matrix `X [b,d]`, it is `left · X · rightᵀ`.
fn kronecker(
    g: &mut GraphBuilder,
    x: &Tensor,
    (left, [a, b]): (&Tensor, [usize; 2]),
    (right, [c, d]): (&Tensor, [usize; 2]),
) -> Result<Tensor, Error> {
    let rows = Dim::product(&x.shape()[..x.rank() - 1]);
    let matrices = g.reshape(x, &[rows.clone(), b.into(), d.into()])?;
    let right = g.linear(&matrices, right, None)?;
    let turned = g.transpose(&right, &[0, 2, 1])?;
    let left = g.linear(&turned, left, None)?;
    let product = g.transpose(&left, &[0, 2, 1])?;
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = (a * c).into();
    Ok(g.reshape(&product, &shape)?)
}
