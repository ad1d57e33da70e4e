//! Attention on AMX tiles: scores and value products in bf16, probabilities by 16-bit integer arithmetic.
//!
//! The product yields a score as `128·(log2 p + 127)`. Its integer value is the bit pattern of the bf16 number `p`,
//! except for the fraction, which a table of 64 bytes corrects ([`crate::simd::tiles::powers`]). The scores of a
//! query are bounded by `|q|·max|k|` (Cauchy–Schwarz). If the bound is small enough, no largest score is computed:
//! the exponent range of bf16 and f32 is sufficient for `2^score` and its sums, and nothing is rescaled. Otherwise,
//! some or all scores are computed twice.

mod blocks;
mod prepare;

use super::scratch::Scratch;
use super::{Attention, MAX_HEAD_WIDTH};
use crate::Kernels;
use crate::shared::SharedSlice;
use crate::simd::tiles::SIDE;
use crate::size::{SizeError, product};
use crate::workers::{TaskCounter, Workers};
use blocks::{QUERIES, QueryBlock, SCRATCH_BYTES};
use half::bf16;
use prepare::{Prepare, Prepared};

/// Keys per block.
const BLOCK: usize = 256;

/// Returns true if the attention can run on tiles: the head width is a multiple of 32, there are at least 64 queries
/// and keys, and there is no key bias. Attention with a bias (over a text) runs on vectors.
pub(super) fn fits(attention: &Attention<'_>) -> bool {
    attention.key_bias.is_none()
        && attention.heads.width.is_multiple_of(SIDE)
        && attention.queries.rows >= 2 * SIDE
        && attention.keys.rows >= 2 * SIDE
}

/// Tasks per head.
fn query_blocks(rows: usize) -> usize {
    rows.div_ceil(QUERIES)
}

impl Kernels {
    /// Runs the attention on tiles; the lengths were checked.
    ///
    /// # Errors
    /// Returns an error if no memory could hold the scratch.
    pub(super) fn tiled_attention(
        self,
        workers: &dyn Workers,
        scratch: &mut Scratch,
        attention: &Attention<'_>,
        to: SharedSlice<'_, bf16>,
    ) -> Result<(), SizeError> {
        let rows = attention.queries.rows;
        let blocks = query_blocks(rows);
        let tasks = attention.heads.count * blocks;
        // Each worker runs tasks in its own scratch until none are left.
        let worker_count = workers.threads().get().min(tasks);
        let of_workers = product("scratch of the attention", &[worker_count, SCRATCH_BYTES])?;
        let (prepared, worker_scratch) = Prepared::new(scratch, attention, of_workers)?;
        workers.run(prepared.tasks(), &|task| {
            self.run(Prepare { attention, prepared: &prepared, task });
        });
        let counter = TaskCounter::new(tasks);
        workers.run(worker_count, &|worker| {
            counter.work(&|task| {
                // Neighbouring tasks share the keys and values of a head.
                let (head, block) = (task / blocks, task % blocks);
                let queries = block * QUERIES..rows.min((block + 1) * QUERIES);
                // SAFETY: each worker is one task of `workers`, has its own scratch, and runs its tasks one by one.
                #[expect(unsafe_code, reason = "disjoint parts of one scratch on several threads")]
                let scratch = unsafe { worker_scratch.part(worker * SCRATCH_BYTES, SCRATCH_BYTES) };
                self.run(QueryBlock { attention, prepared: &prepared, head, queries, scratch, to });
            });
        });
        Ok(())
    }
}

/// Extents of the prepared operands.
#[derive(Debug, Clone, Copy)]
struct Layout {
    rows: usize,
    keys: usize,
    /// Width of a head.
    width: usize,
    /// Number of queries, padded to a multiple of 32.
    padded_rows: usize,
    /// Number of keys, padded to a multiple of 32.
    padded_keys: usize,
}

impl Layout {
    fn new(attention: &Attention<'_>) -> Self {
        let (rows, keys, width) = (attention.queries.rows, attention.keys.rows, attention.heads.width);
        debug_assert!(width <= MAX_HEAD_WIDTH, "`Heads::new` checks the width");
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

    /// Returns the number of keys of a block, including the padding.
    fn keys_of(self, block: usize) -> usize {
        (self.padded_keys - block * BLOCK).min(BLOCK)
    }

    /// Bytes of a query, key or value of one head.
    fn row_bytes(self) -> usize {
        self.width * size_of::<bf16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_six_threads_have_at_least_two_tasks_each_at_1950_rows() {
        // The model with the fewest heads has twelve.
        assert!(12 * query_blocks(1950) >= 2 * 96);
    }
}
