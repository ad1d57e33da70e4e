//! Blockwise attention with 8-bit queries and keys. No buffer has the size queries × keys.
//!
//! Queries and keys pass through RMS norm over the full width and an optional rotary embedding, and are then
//! quantised with one scale per row and head. Each block of 96 queries iterates over the keys in blocks of 256. The
//! probabilities of a block are relative to the largest score of the block and are rescaled when they are added to
//! the running sum (online softmax). A long tail of small probabilities is therefore not rounded away, for any number
//! of keys.

mod blocks;
mod prepare;
pub(crate) mod scratch;
mod tiled;

pub use scratch::Scratch;

use crate::Kernels;
use crate::packing::GROUP;
use crate::shared::SharedSlice;
use crate::size::{SizeError, check, check_extent, product};
use crate::workers::Workers;
use blocks::QueryBlock;
use half::bf16;
use prepare::{Prepare, Prepared};

/// Keys per block: they share a largest score, and their values share a scale.
pub(crate) const KEY_BLOCK: usize = 256;
/// Keys per matrix product of scores.
pub(crate) const KEY_CHUNK: usize = 64;
/// Queries per task: a multiple of the rows of every register tile.
pub(crate) const QUERY_BLOCK: usize = 96;
/// Largest supported head width.
const MAX_HEAD_WIDTH: usize = 256;

/// The split of the model width into heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    count: usize,
    width: usize,
}

impl Heads {
    /// Creates `count` heads of `width` channels.
    ///
    /// # Errors
    /// Returns an error if the width is not a multiple of 16 up to 256, or if no memory could hold a row.
    pub fn new(count: usize, width: usize) -> Result<Self, SizeError> {
        check_extent("width of a head", width, "a multiple of 16, up to 256", Self::fits(width))?;
        product("row of all heads", &[count, width, size_of::<f32>()])?;
        Ok(Self { count, width })
    }

    /// Number of heads.
    pub fn count(self) -> usize {
        self.count
    }

    /// Width of one head: a multiple of 16, up to 256.
    pub fn width(self) -> usize {
        self.width
    }

    /// Returns true if the kernels support heads of this width.
    pub fn fits(width: usize) -> bool {
        width.is_multiple_of(GROUP) && (GROUP..=MAX_HEAD_WIDTH).contains(&width)
    }

    /// Returns the total width of all heads.
    pub fn total(self) -> usize {
        // `new` checked the product.
        self.count * self.width
    }
}

/// Number format of the product of probabilities and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueProduct {
    /// INT8: probabilities relative to the largest of their block, values with one scale per block and channel.
    Int8,
    /// bf16, for prompts and for sensitive layers.
    Bf16,
}

/// A range of columns of a bf16 tensor.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    tensor: &'a [bf16],
    /// Elements from one row to the next.
    stride: usize,
    /// First column.
    first: usize,
    width: usize,
    rows: usize,
}

impl<'a> Columns<'a> {
    /// Selects the columns `first` to `first + width` of rows of `stride` elements.
    ///
    /// # Errors
    /// Returns an error if the tensor is not a whole number of rows or the columns exceed the row.
    pub fn new(tensor: &'a [bf16], stride: usize, first: usize, width: usize) -> Result<Self, SizeError> {
        let rows = tensor.len().checked_div(stride).unwrap_or(0);
        check("projection", tensor.len(), rows * stride)?;
        let end =
            first.checked_add(width).ok_or(SizeError::TooLarge { what: "columns of the projection" })?;
        check("columns of the projection", stride.max(end), stride)?;
        Ok(Self { tensor, stride, first, width, rows })
    }

    /// Returns row `index`.
    #[inline(always)]
    pub(crate) fn row(self, index: usize) -> &'a [bf16] {
        &self.tensor[index * self.stride + self.first..][..self.width]
    }
}

/// Rotary embedding over interleaved pairs: `cos` and `sin` are `[L, width/2]`, shared by all heads.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// The operands of one attention operator.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Number and width of the heads.
    pub heads: Heads,
    /// Queries `[L,D]`, before the norm.
    pub queries: Columns<'a>,
    /// Keys `[S,D]`, before the norm.
    pub keys: Columns<'a>,
    /// Values `[S,D]`.
    pub values: Columns<'a>,
    /// Gains of the RMS norms of queries and keys, `[D]`.
    pub gains: [&'a [f32]; 2],
    /// Added to the mean square.
    pub epsilon: f32,
    /// Rotary embedding of queries and keys; requires as many keys as queries.
    pub rotary: Option<Rotary<'a>>,
    /// Bias added to the scores of each key, `[S]`: the logarithm of the number of equal keys that the key
    /// represents, or minus infinity for a masked key.
    pub key_bias: Option<&'a [f32]>,
    /// Number format of the product of probabilities and values.
    pub product: ValueProduct,
}

impl Attention<'_> {
    fn check(&self, to: usize) -> Result<(), SizeError> {
        let (width, total) = (self.heads.width, self.heads.total());
        check("width of the queries", self.queries.width, total)?;
        check("width of the keys", self.keys.width, total)?;
        check("width of the values", self.values.width, total)?;
        check("rows of the values", self.values.rows, self.keys.rows)?;
        check_extent("number of keys", self.keys.rows, "at least 1", self.keys.rows > 0)?;
        check("gain of the queries", self.gains[0].len(), total)?;
        check("gain of the keys", self.gains[1].len(), total)?;
        check("attention", to, product("attention", &[self.queries.rows, total])?)?;
        if let Some(Rotary { cos, sin }) = self.rotary {
            check("rows of the keys", self.keys.rows, self.queries.rows)?;
            check("cosines", cos.len(), product("cosines", &[self.queries.rows, width / 2])?)?;
            check("sines", sin.len(), cos.len())?;
        }
        if let Some(bias) = self.key_bias {
            check("bias of the keys", bias.len(), self.keys.rows)?;
        }
        Ok(())
    }
}

impl Kernels {
    /// Computes `softmax(q·kᵀ/√width + bias)·v` for each head, `[L,D]`.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match, or if the head width is not supported.
    pub fn attention(
        self,
        workers: &dyn Workers,
        scratch: &mut Scratch,
        attention: &Attention<'_>,
        to: &mut [bf16],
    ) -> Result<(), SizeError> {
        attention.check(to.len())?;
        if self.has_tiles() && tiled::fits(attention) {
            return self.tiled_attention(workers, scratch, attention, SharedSlice::new(to));
        }
        let prepared = Prepared::new(scratch, attention)?;
        workers.run(prepared.tasks(), &|task| {
            self.run(Prepare { attention, prepared: &prepared, task });
        });
        let rows = attention.queries.rows;
        let blocks = rows.div_ceil(QUERY_BLOCK);
        let to = SharedSlice::new(to);
        // Neighbouring tasks share the keys and values of a head.
        workers.run(attention.heads.count * blocks, &|task| {
            let (head, block) = (task / blocks, task % blocks);
            let queries = block * QUERY_BLOCK..rows.min((block + 1) * QUERY_BLOCK);
            self.run(QueryBlock { attention, prepared: &prepared, head, queries, to });
        });
        Ok(())
    }
}

#[cfg(test)]
#[path = "../attention_tests.rs"]
mod tests;
