//! Attention on tiles: scores and mixes in bf16, probabilities by integer arithmetic on 16-bit numbers.
//!
//! A score comes out of its product as `128·(log2 p + 127)`, which is the bf16 number `p` but for its fraction, and a table
//! of 64 bytes makes the fraction right ([`crate::simd::tiles::powers`]). No largest score is looked for where `|q|·max|k|`, which bounds the
//! scores of a query (Cauchy–Schwarz), is small enough: bf16 and f32 have exponents enough for `2^score` and for its sums
//! from the first key to the last, so that nothing is ever rescaled. Where it is not, some or all scores are made twice.

mod blocks;
mod prepare;

use super::scratch::Scratch;
use super::{Attention, WIDEST_HEAD};
use crate::Kernels;
use crate::shared::Shared;
use crate::simd::tiles::SIDE;
use crate::workers::{TaskCounter, Workers};
use blocks::{QUERIES, QueryBlock, WORK};
use half::bf16;
use prepare::{Prepare, Prepared};

/// Keys that pass at once.
const BLOCK: usize = 256;

/// Whether an attention is made of tiles: whole steps of a head, and as many queries and keys as fill some blocks. A bias
/// of the keys, which belongs to attention over a text, is for vectors.
pub(super) fn fits(attention: &Attention<'_>) -> bool {
    attention.key_bias.is_none()
        && attention.heads.width.is_multiple_of(SIDE)
        && attention.queries.rows >= 2 * SIDE
        && attention.keys.rows >= 2 * SIDE
}

/// Tasks of each head.
fn query_blocks(rows: usize) -> usize {
    rows.div_ceil(QUERIES)
}

impl Kernels {
    /// The attention, whose lengths were checked.
    pub(super) fn tiled_attention(
        self,
        workers: &dyn Workers,
        scratch: &mut Scratch,
        attention: &Attention<'_>,
        to: Shared<'_, bf16>,
    ) {
        let rows = attention.queries.rows;
        let blocks = query_blocks(rows);
        let tasks = attention.heads.count * blocks;
        // Each of these does tasks in memory of its own until there are none left.
        let hands = workers.threads().get().min(tasks);
        let (prepared, work) = Prepared::new(scratch, attention, hands * WORK);
        workers.run(prepared.tasks(), &|task| {
            self.run(Prepare { attention, prepared: &prepared, task });
        });
        let counter = TaskCounter::new(tasks);
        workers.run(hands, &|hand| {
            counter.work(&|task| {
                // Neighbouring tasks share the keys and values of a head.
                let (head, block) = (task / blocks, task % blocks);
                let queries = block * QUERIES..rows.min((block + 1) * QUERIES);
                // SAFETY: each hand is one task of the workers, and has a work of its own.
                #[expect(unsafe_code, reason = "parts of one scratch on several threads")]
                let work = unsafe { work.part(hand * WORK, WORK) };
                self.run(QueryBlock { attention, prepared: &prepared, head, queries, work, to });
            });
        });
    }
}

/// The extents of what is prepared.
#[derive(Debug, Clone, Copy)]
struct Layout {
    rows: usize,
    keys: usize,
    /// Width of a head.
    width: usize,
    /// Rows with those that fill the last 32.
    padded_rows: usize,
    /// Keys with those that fill the last 32.
    padded_keys: usize,
}

impl Layout {
    fn new(attention: &Attention<'_>) -> Self {
        let (rows, keys, width) = (attention.queries.rows, attention.keys.rows, attention.heads.width);
        assert!(width <= WIDEST_HEAD, "a head that was not checked");
        Self {
            rows,
            keys,
            width,
            padded_rows: rows.next_multiple_of(SIDE),
            padded_keys: keys.next_multiple_of(SIDE),
        }
    }

    fn blocks(self) -> usize {
        self.padded_keys.div_ceil(BLOCK)
    }

    /// Keys of a block with those that fill its last 32.
    fn keys_of(self, block: usize) -> usize {
        (self.padded_keys - block * BLOCK).min(BLOCK)
    }

    /// Bytes of a query, a key or a value of one head.
    fn row_bytes(self) -> usize {
        self.width * size_of::<bf16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_six_threads_have_two_tasks_each_at_1950_rows() {
        // The model with the fewest heads has twelve.
        assert!(12 * query_blocks(1950) >= 2 * 96);
    }
}
