//! The split of a product on tiles into tasks that suit the caches.

use super::tile::PANEL;
use crate::simd::tiles::{DEPTH, SIDE};

/// Maximum bytes of K per part: a panel and the rows of a task have to fit in the L2 cache together with their sums.
const MAX_DEPTH: usize = 4096;
/// Bytes of rows that stay in the L2 cache while a task iterates over panels.
const RESIDENT_ROW_BYTES: usize = 900_000;
/// Maximum rows of a task whose sums are spilled to memory.
const MAX_SPILLED_ROWS: usize = 256;
/// Maximum columns of a task. A task prefetches the next panel of its own weights while it computes the current one.
const MAX_COLUMNS: usize = 512;
/// Minimum rows of a task. With fewer rows, loading the weights from the L3 cache takes longer than using them.
const MIN_ROWS: usize = 64;

/// The split of a product into tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of a task: whole blocks.
    pub(super) rows: usize,
    /// Columns of a task: whole panels.
    pub(super) columns: usize,
    /// Bytes of K per part: whole steps.
    pub(super) depth: usize,
}

impl Plan {
    /// Plans a product of `rows` rows of `stride` bytes, with at least two tasks for each of `threads` threads if
    /// there are enough rows and columns, and with eight if splitting the columns is sufficient.
    pub(super) fn new(rows: usize, outputs: usize, stride: usize, threads: usize) -> Self {
        let parts = stride.div_ceil(MAX_DEPTH).max(1);
        let depth = stride.div_ceil(parts).next_multiple_of(DEPTH);
        let max_rows = if parts == 1 { RESIDENT_ROW_BYTES / depth.max(1) } else { MAX_SPILLED_ROWS };
        let mut columns = MAX_COLUMNS.min(outputs.next_multiple_of(PANEL));
        let even = |most: usize| rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(SIDE);
        let mut size = even(max_rows.max(MIN_ROWS));
        let tasks = |size: usize, columns: usize| rows.div_ceil(size) * outputs.div_ceil(columns);
        while columns > PANEL && tasks(size, columns) < threads.saturating_mul(8) {
            columns = (columns / 2).next_multiple_of(PANEL);
        }
        while size > MIN_ROWS && tasks(size, columns) < threads.saturating_mul(2) {
            size = even((size / 2).max(MIN_ROWS));
        }
        Self { rows: size, columns, depth }
    }

    /// Returns the number of tasks of `rows × outputs`.
    pub(super) fn tasks(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes of the 1.3B, 5B and 14B models: inputs and outputs.
    const SHAPES: [[usize; 2]; 9] = [
        [1536, 1536],
        [1536, 8960],
        [8960, 1536],
        [3072, 3072],
        [3072, 14336],
        [14336, 3072],
        [5120, 5120],
        [5120, 13824],
        [13824, 5120],
    ];

    #[test]
    fn ninety_six_threads_have_at_least_two_tasks_each_at_1950_rows() {
        for [inputs, outputs] in SHAPES {
            for bytes in [1, 2] {
                let plan = Plan::new(1950, outputs, inputs * bytes, 96);
                let tasks = plan.tasks(1950, outputs);
                assert!(tasks >= 2 * 96, "{inputs} -> {outputs}, {bytes} bytes: {tasks} tasks, {plan:?}");
            }
        }
    }

    #[test]
    fn tasks_are_whole_blocks_that_fit_in_the_l2_cache() {
        for [inputs, outputs] in SHAPES {
            for (bytes, threads) in [(1, 1), (2, 1), (1, 64), (2, 64)] {
                let plan = Plan::new(7800, outputs, inputs * bytes, threads);
                assert!(plan.rows.is_multiple_of(SIDE) && plan.columns.is_multiple_of(PANEL), "{plan:?}");
                assert!(plan.depth.is_multiple_of(DEPTH) && plan.depth <= MAX_DEPTH, "{plan:?}");
                let sums = if plan.depth < inputs * bytes { plan.rows * plan.columns * 4 } else { 0 };
                assert!(plan.rows * plan.depth + PANEL * plan.depth + sums < 2 << 20, "{plan:?}");
            }
        }
    }
}
