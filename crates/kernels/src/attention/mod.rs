//! Attention in blocks, with 8-bit queries and keys: nothing as large as queries × keys is ever held.
//!
//! Queries and keys get RMS norm over the full width, rotary embedding where there is one, and then one scale for each
//! row and head. For a block of 96 queries the keys pass in blocks of 256; the probabilities of a block are relative to
//! its own largest, and join the running sum with the factor that the largest so far asks for. So a long tail is not
//! rounded away, however many keys there are.

mod blocks;
mod prepare;
pub(crate) mod scratch;
mod tiled;

pub use scratch::Scratch;

use crate::Kernels;
use crate::packing::{GROUP, SizeError, check};
use crate::workers::Workers;
use blocks::QueryBlock;
use half::bf16;
use prepare::{Prepare, Prepared};

/// Keys that share a largest score, and values that share a scale.
pub(crate) const KEY_BLOCK: usize = 256;
/// Keys of one product of scores.
pub(crate) const KEY_CHUNK: usize = 64;
/// Queries of one task: a multiple of the rows of every tile.
pub(crate) const QUERY_BLOCK: usize = 96;
/// The widest head there is room for.
const WIDEST_HEAD: usize = 256;

/// How the heads divide the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Width of one: a multiple of 16 up to 256.
    pub width: usize,
}

impl Heads {
    /// Whether there are kernels for heads so wide.
    pub fn fits(width: usize) -> bool {
        width.is_multiple_of(GROUP) && (GROUP..=WIDEST_HEAD).contains(&width)
    }

    /// Width of all heads.
    pub fn total(self) -> usize {
        self.count * self.width
    }
}

/// In what the probabilities are multiplied with the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueProduct {
    /// Bytes: probabilities relative to the largest of their block, values with a scale for each block and channel.
    Int8,
    /// bf16, for prompts and for layers that are sensitive.
    Bf16,
}

/// Rows inside a wider tensor of bf16.
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
    /// The columns `first` to `first + width` of rows of `stride` elements.
    ///
    /// # Errors
    /// A tensor that is not a whole number of rows, or columns beyond the end of the row.
    pub fn new(tensor: &'a [bf16], stride: usize, first: usize, width: usize) -> Result<Self, SizeError> {
        let rows = tensor.len().checked_div(stride).unwrap_or(0);
        check("projection", tensor.len(), rows * stride)?;
        check("columns of the projection", stride.max(first + width), stride)?;
        Ok(Self { tensor, stride, first, width, rows })
    }

    /// Row `index`.
    #[inline(always)]
    pub(crate) fn row(self, index: usize) -> &'a [bf16] {
        &self.tensor[index * self.stride + self.first..][..self.width]
    }
}

/// Rotary embedding over interleaved pairs: angles of `cos` and `sin [L, width/2]`, the same for all heads.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

/// One attention over one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// How the width is divided.
    pub heads: Heads,
    /// Queries `[L,D]` before their norm.
    pub queries: Columns<'a>,
    /// Keys `[S,D]` before their norm.
    pub keys: Columns<'a>,
    /// Values `[S,D]`.
    pub values: Columns<'a>,
    /// Gains of the RMS norms of queries and keys, `[D]`.
    pub gains: [&'a [f32]; 2],
    /// Added to the mean square.
    pub epsilon: f32,
    /// Rotary embedding of queries and keys, which are then as many.
    pub rotary: Option<Rotary<'a>>,
    /// Added to the scores of each key `[S]`: the logarithm of how many equal keys it represents, or minus infinity for one
    /// that is not there.
    pub key_bias: Option<&'a [f32]>,
    /// In what probabilities meet values.
    pub product: ValueProduct,
}

impl Attention<'_> {
    fn check(&self, to: usize) -> Result<(), SizeError> {
        let Heads { width, .. } = self.heads;
        let total = self.heads.total();
        check(
            "width of a head, a multiple of 16",
            width,
            width.next_multiple_of(GROUP).clamp(GROUP, WIDEST_HEAD),
        )?;
        check("width of the queries", self.queries.width, total)?;
        check("width of the keys", self.keys.width, total)?;
        check("width of the values", self.values.width, total)?;
        check("rows of the values", self.values.rows, self.keys.rows)?;
        check("rows of the keys", self.keys.rows, self.keys.rows.max(1))?;
        check("gain of the queries", self.gains[0].len(), total)?;
        check("gain of the keys", self.gains[1].len(), total)?;
        check("attention", to, self.queries.rows * total)?;
        if let Some(Rotary { cos, sin }) = self.rotary {
            check("rows of the keys", self.keys.rows, self.queries.rows)?;
            check("cosines", cos.len(), self.queries.rows * width / 2)?;
            check("sines", sin.len(), cos.len())?;
        }
        if let Some(bias) = self.key_bias {
            check("bias of the keys", bias.len(), self.keys.rows)?;
        }
        Ok(())
    }
}

impl Kernels {
    /// `softmax(q·kᵀ/√width + bias)·v` for each head, `[L,D]`.
    ///
    /// # Errors
    /// Lengths that do not fit together, or a width of heads that the kernels are not made for.
    pub fn attention(
        self,
        workers: &dyn Workers,
        scratch: &mut Scratch,
        attention: &Attention<'_>,
        to: &mut [bf16],
    ) -> Result<(), SizeError> {
        attention.check(to.len())?;
        if self.has_tiles() && tiled::fits(attention) {
            self.tiled_attention(workers, scratch, attention, crate::shared::Shared::new(to));
            return Ok(());
        }
        let prepared = Prepared::new(scratch, attention);
        workers.run(prepared.tasks(), &|task| {
            self.run(Prepare { attention, prepared: &prepared, task });
        });
        let rows = attention.queries.rows;
        let blocks = rows.div_ceil(QUERY_BLOCK);
        let to = crate::shared::Shared::new(to);
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
