//! Linear layers whose values get something added before their epilogue: a branch, an addend, or both.
//!
//! A branch is the second product of a low-rank change. Its sums are made block by block beside those of the layer, and
//! are never written to memory as a whole: for a change of rank 64 that would take longer than the product itself.

use super::rows::{Line, Rows};
use super::tile::PANEL;
use super::{Bf16Values, Columns, Int8Values, Operands, QuantisedRows, Values};
use crate::packing::{Bf16Weights, GROUP, Int8Weights, MatrixShape, STEP};
use crate::simd::tiles::DEPTH;
use crate::size::{SizeError, check, check_extent, product};
use half::bf16;

/// The second product of a low-rank change: `y[l][n] += Σ rows[l][r]·weights[n][r]`.
///
/// With several parts, the outputs and the columns of the rows are cut into as many equal parts, and each part of the
/// outputs reads its own part of the rows: the weights are a block-diagonal matrix without its zeros.
#[derive(Debug, Clone, Copy)]
pub struct Branch<X, W> {
    /// `[L, parts·rank]`: the result of the first product.
    pub rows: X,
    /// `[N, rank]`. `rank` is at least 1.
    pub weights: W,
    /// The number of parts. If it is not 1, each part has a multiple of 64 outputs and a rank of a multiple of 64 bytes.
    pub parts: usize,
}

/// A linear layer on quantised activations.
#[derive(Debug, Clone, Copy)]
pub struct Int8Layer<'a> {
    /// `[L,K]`.
    pub x: QuantisedRows<'a>,
    /// `[N,K]`.
    pub weights: Int8Weights<'a>,
    /// `[N]`.
    pub bias: &'a [f32],
    /// A low-rank change of the weights.
    pub branch: Option<Branch<QuantisedRows<'a>, Int8Weights<'a>>>,
    /// `[L,N]`, added to the values.
    pub addend: Option<&'a [bf16]>,
}

impl<'a> Int8Layer<'a> {
    /// Creates a layer to whose values nothing is added.
    pub fn new(x: QuantisedRows<'a>, weights: Int8Weights<'a>, bias: &'a [f32]) -> Self {
        Self { x, weights, bias, branch: None, addend: None }
    }
}

/// A linear layer on bf16 activations.
#[derive(Debug, Clone, Copy)]
pub struct Bf16Layer<'a> {
    /// `[L,K]`.
    pub x: &'a [bf16],
    /// `[N,K]`.
    pub weights: Bf16Weights<'a>,
    /// `[N]`, multiplied with the sums of the layer; 1 without it.
    pub scales: Option<&'a [f32]>,
    /// `[N]`.
    pub bias: &'a [f32],
    /// A low-rank change of the weights.
    pub branch: Option<Branch<&'a [bf16], Bf16Weights<'a>>>,
    /// `[L,N]`, added to the values.
    pub addend: Option<&'a [bf16]>,
}

impl<'a> Bf16Layer<'a> {
    /// Creates a layer to whose values nothing is added.
    pub fn new(x: &'a [bf16], weights: Bf16Weights<'a>, bias: &'a [f32]) -> Self {
        Self { x, weights, scales: None, bias, branch: None, addend: None }
    }
}

/// A checked [`Branch`].
pub(super) struct BranchProduct<V> {
    operands: Operands,
    values: V,
    /// Outputs of each part.
    part: usize,
    /// The copy that `operands` refer to, if there is one.
    _copied: Vec<Line>,
}

/// The branch of one panel of outputs.
pub(super) struct BranchPanel<'a, V> {
    /// Its rows begin with those of the part that the panel belongs to.
    pub(super) operands: Operands,
    pub(super) values: &'a V,
    pub(super) columns: Columns,
}

impl<V: Values> BranchProduct<V> {
    /// Checks the extents of a branch of `parts` parts, with the weights `shape`, for a result `[rows, outputs]`.
    /// `elements` is the number of elements of its rows, of type `T`.
    fn check<T>(
        (shape, parts): (MatrixShape, usize),
        elements: usize,
        [rows, outputs]: [usize; 2],
    ) -> Result<(), SizeError> {
        const ROWS: &str = "rows of the branch";
        check("outputs of the branch", shape.outputs(), outputs)?;
        check_extent("rank of the branch", shape.inputs(), "at least 1", shape.inputs() > 0)?;
        check(ROWS, elements, product(ROWS, &[rows, parts, shape.inputs()])?)?;
        let is_aligned = parts == 1
            || (parts > 1
                && outputs.is_multiple_of(product(ROWS, &[parts, PANEL])?)
                && product(ROWS, &[shape.inputs(), size_of::<T>()])?.is_multiple_of(DEPTH));
        let expected = "1, or one that cuts outputs and rank into parts of 64 outputs and 64 bytes";
        check_extent("number of parts of the branch", parts, expected, is_aligned)
    }

    fn new<T>(
        values: V,
        rows: Rows,
        weights: *const u8,
        size: [usize; 2],
        shape: (MatrixShape, usize),
    ) -> Self {
        let ([rows_count, outputs], (shape, parts)) = (size, shape);
        let depth = if parts == 1 { rows.stride() } else { shape.inputs() * size_of::<T>() };
        let steps = (shape.inputs() * size_of::<T>()).div_ceil(STEP);
        let stride = rows.stride();
        let operands = Operands { x: rows.start(), stride, depth, weights, steps, rows: rows_count, outputs };
        Self { operands, values, part: (outputs / parts).max(1), _copied: rows.into_copy() }
    }

    /// The branch of the outputs `range`, which are in one part.
    pub(super) fn panel(&self, range: std::ops::Range<usize>) -> BranchPanel<'_, V> {
        let x = self.operands.x.wrapping_add(range.start / self.part * self.operands.depth);
        let operands = Operands { x, ..self.operands };
        BranchPanel { operands, values: &self.values, columns: self.values.columns(range) }
    }
}

impl<'a> BranchProduct<Int8Values<'a>> {
    pub(super) fn int8(
        branch: Branch<QuantisedRows<'a>, Int8Weights<'a>>,
        size: [usize; 2],
        for_tiles: bool,
    ) -> Result<Self, SizeError> {
        let Branch { rows: QuantisedRows { quantised, scales }, weights, parts } = branch;
        let shape = (weights.shape(), parts);
        check("scales of the rows of the branch", scales.len(), size[0])?;
        Self::check::<u8>(shape, quantised.len(), size)?;
        let rows = Rows::new(quantised, parts * shape.0.inputs(), for_tiles)?;
        let values = Int8Values { scales, weights, bias: None };
        Ok(Self::new::<u8>(values, rows, weights.packed().as_ptr().cast(), size, shape))
    }
}

impl<'a> BranchProduct<Bf16Values<'a>> {
    pub(super) fn bf16(
        branch: Branch<&'a [bf16], Bf16Weights<'a>>,
        size: [usize; 2],
        for_tiles: bool,
    ) -> Result<Self, SizeError> {
        let Branch { rows, weights, parts } = branch;
        let shape = (weights.shape(), parts);
        Self::check::<bf16>(shape, rows.len(), size)?;
        let rows = Rows::new(rows, parts * shape.0.inputs(), for_tiles)?;
        let values = Bf16Values { scales: None, bias: None };
        Ok(Self::new::<bf16>(values, rows, weights.packed().as_ptr().cast(), size, shape))
    }
}

impl Operands {
    /// The weights of the outputs from `first` on, a multiple of 16.
    pub(super) fn weights_of(&self, first: usize) -> *const u8 {
        self.weights.wrapping_add(first / GROUP * self.group())
    }

    /// Bytes of the weights of sixteen outputs.
    pub(super) fn group(&self) -> usize {
        self.steps * STEP * GROUP
    }
}
