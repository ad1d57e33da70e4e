//! Branches of the fused layers of a step graph with Rushes kernels.
//!
//! The first product of a low-rank change reads the rows of the layer as they are, in the format of the layer, and its
//! result is brought into this format again. The second product is an input of the layer's own node, which adds its sums
//! in registers. Kronecker products are computed by ONNX Runtime in f32, and are an addend of that node.

use super::branch::{self, BranchProduct, tensor_name};
use super::graph_weights::GraphWeights;
use super::kernel_step::{RowValues, Rows};
use crate::Error;
use bundle::dtype::ElementType;
use bundle::quantization::layers::FusedLayer;
use graph::{
    Activation, Added, GraphBuilder, LinearOperands, PackedBf16, PackedBranch, PackedInt8, Quantized, Tensor,
};
use kernels::GROUP;
use std::collections::BTreeMap;

/// The branches of the fused layers of a denoiser, by the name of the layer.
pub type FusedBranches = BTreeMap<String, FusedBranch>;

/// The branch of one fused layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FusedBranch {
    /// The low-rank change of all parts of the layer, if there is one.
    pub low_rank: Option<FusedRank>,
    /// The Kronecker products of each part of the layer, each with its number: tensors of the part, as for
    /// [`LayerBranch`](super::LayerBranch).
    pub products: Vec<Vec<(usize, BranchProduct)>>,
}

/// The extents of a low-rank change `up · down`, which is stored as tensors `LAYER.lora.down.…` and `LAYER.lora.up.…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusedRank {
    /// The rank of each part: `down [parts·rank,in]`, `up [out,rank]`.
    pub rank: usize,
    /// The parts of the outputs, each with its own rows of `down`; 1 if all outputs read all of them.
    pub parts: usize,
}

impl FusedBranch {
    /// Returns true if the branch reads the rows of the layer in bf16.
    pub(super) fn needs_rounded(&self) -> bool {
        self.products.iter().any(|products| !products.is_empty())
    }
}

/// What a branch adds to a layer.
#[derive(Debug, Default)]
pub(super) struct AddedTensors {
    addend: Option<Tensor>,
    low_rank: Option<(Factor, usize)>,
}

/// Rows and weights of the second product.
#[derive(Debug)]
enum Factor {
    Int8(Quantized, PackedInt8),
    Bf16(Tensor, PackedBf16),
}

impl AddedTensors {
    /// Returns them as inputs of the layer.
    pub(super) fn added(&self) -> Added<'_> {
        let branch = self.low_rank.as_ref().map(|(factor, parts)| {
            let operands = match factor {
                Factor::Int8(x, w) => LinearOperands::Int8(x, w),
                Factor::Bf16(x, w) => LinearOperands::Bf16(x, w),
            };
            PackedBranch { operands, parts: *parts }
        });
        Added { addend: self.addend.as_ref(), branch }
    }
}

/// The layer that a branch belongs to.
pub(super) struct BranchedLayer<'a> {
    pub(super) weights: GraphWeights<'a>,
    pub(super) layer: &'a FusedLayer,
    pub(super) branch: &'a FusedBranch,
}

impl BranchedLayer<'_> {
    /// Builds what the branch adds to the layer over `x`. `bias` is that of the layer.
    pub(super) fn build(&self, g: &mut GraphBuilder, x: &Rows, bias: &Tensor) -> Result<AddedTensors, Error> {
        let low_rank = match self.branch.low_rank {
            Some(rank) => Some((self.low_rank(g, x, bias, rank)?, rank.parts)),
            None => None,
        };
        let addend = match &x.rounded {
            Some(rounded) if self.branch.needs_rounded() => Some(self.products(g, rounded)?),
            _ => None,
        };
        Ok(AddedTensors { addend, low_rank })
    }

    fn low_rank(
        &self,
        g: &mut GraphBuilder,
        x: &Rows,
        bias: &Tensor,
        FusedRank { rank, parts }: FusedRank,
    ) -> Result<Factor, Error> {
        let FusedLayer { parts: layers, shape: [out, width], .. } = self.layer;
        let (middle, outputs) = (parts * rank, layers.len() * out);
        Ok(match &x.values {
            RowValues::Int8(x) => {
                let zeros = self.load(g, "down.bias", &[middle])?;
                let down = self.int8(g, "down", [middle, *width], zeros)?;
                let inner =
                    g.packed_linear(LinearOperands::Int8(x, &down), Added::default(), Activation::None)?;
                let rows = g.rows_quantized(&inner, Activation::None)?;
                Factor::Int8(rows, self.int8(g, "up", [outputs, rank], bias.clone())?)
            }
            RowValues::Bf16(x) => {
                let zeros = self.load(g, "down.bias", &[middle])?;
                let down = self.bf16(g, "down", [middle, *width], zeros)?;
                let rows =
                    g.packed_linear(LinearOperands::Bf16(x, &down), Added::default(), Activation::None)?;
                Factor::Bf16(rows, self.bf16(g, "up", [outputs, rank], bias.clone())?)
            }
        })
    }

    fn load(&self, g: &mut GraphBuilder, part: &str, shape: &[usize]) -> Result<Tensor, Error> {
        self.weights.load_stored(g, &tensor_name(&self.layer.name, part), shape, shape)
    }

    fn int8(
        &self,
        g: &mut GraphBuilder,
        factor: &str,
        [outputs, inputs]: [usize; 2],
        bias: Tensor,
    ) -> Result<PackedInt8, Error> {
        let packed = [outputs.div_ceil(GROUP), inputs.div_ceil(4), 64];
        Ok(PackedInt8 {
            packed: self.load(g, &format!("{factor}.packed"), &packed)?,
            sums: self.load(g, &format!("{factor}.sums"), &[outputs])?,
            scales: self.load(g, &format!("{factor}.scales"), &[outputs])?,
            bias,
        })
    }

    fn bf16(
        &self,
        g: &mut GraphBuilder,
        factor: &str,
        [outputs, inputs]: [usize; 2],
        bias: Tensor,
    ) -> Result<PackedBf16, Error> {
        let packed = [outputs.div_ceil(GROUP), inputs.div_ceil(2), 32];
        Ok(PackedBf16 { packed: self.load(g, &format!("{factor}.packed"), &packed)?, bias, factors: None })
    }

    /// The sums of the Kronecker products of all parts, bf16 `[B,L,N]`.
    fn products(&self, g: &mut GraphBuilder, rounded: &Tensor) -> Result<Tensor, Error> {
        let [out, width] = self.layer.shape;
        let x = g.cast(rounded, ElementType::F32);
        let mut changes = Vec::new();
        for (part, products) in self.layer.parts.iter().zip(&self.branch.products) {
            let mut sum: Option<Tensor> = None;
            for (number, product) in products {
                let change = branch::product(g, self.weights, (part, *number), (product, [out, width]), &x)?;
                sum = Some(match sum {
                    Some(sum) => g.add(&sum, &change)?,
                    None => change,
                });
            }
            changes.push(match sum {
                Some(sum) => sum,
                // Layers of several parts are square: this has the shape of a change.
                None => {
                    let zero = g.constant("no change", &[1], &[0.0])?;
                    g.multiply(&x, &zero)?
                }
            });
        }
        let changes: Vec<&Tensor> = changes.iter().collect();
        let all = match changes[..] {
            [one] => one.clone(),
            _ => g.concat(&changes, 2)?,
        };
        Ok(g.cast(&all, ElementType::Bf16))
    }
}
