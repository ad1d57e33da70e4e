//! Products by tiles: blocks of 32 rows times 32 columns.
//!
//! A task is some rows times some columns. Its rows stay in the second cache while its panels of 64 columns pass, and
//! every other block goes through K backwards, so that it begins with what the one before it left in the first cache.
//! Where K is too long for that, all blocks of a task go through a part of K, and their sums wait in memory for the next.
//! The order in which a sum is made depends on the shape alone and not on how rows and columns are parted into tasks.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through bare pointers, whose bounds are kept here"
)]

use super::finish::Finish;
use super::tile::{Dot, OutputLines, PANEL, PanelSums, WeightTile};
use super::{Columns, Operands, Values};
use crate::Kernels;
use crate::packing::GROUP;
use crate::shared::Chunks;
use crate::simd::tiles::{BlockSums, DEPTH, ROWS, SIDE, Step, TILE, Tiles};
use crate::simd::{Operation, Simd};
use crate::workers::Workers;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Bytes of K that all blocks of a task go through before the next: a panel and the rows of a task have to fit the second
/// cache beside their sums.
const LONGEST: usize = 4096;
/// Bytes of rows that stay in the second cache while panels pass.
const RESIDENT: usize = 900_000;
/// Rows of a task whose sums wait in memory.
const WAITING_ROWS: usize = 256;
/// Most columns of a task: the next panel of weights is asked for while one passes, which a task can do for its own.
const MOST_COLUMNS: usize = 512;
/// How many rows before it is written the lines of a row are asked for: earlier, they would push operands out of the first
/// cache.
const AHEAD: usize = 6;
/// Fewest rows of a task: with fewer, the weights come from the third cache faster than they are used.
const FEWEST_ROWS: usize = 64;

/// How a product is parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Rows of a task: whole blocks.
    rows: usize,
    /// Columns of a task: whole panels.
    columns: usize,
    /// Bytes of K that a task goes through at once: whole steps.
    depth: usize,
}

impl Plan {
    /// For `rows` rows of `stride` bytes, with two tasks for each of `threads` threads at least, if there are enough rows
    /// and columns; with eight, where only columns have to be parted for that.
    pub(super) fn new(rows: usize, outputs: usize, stride: usize, threads: usize) -> Self {
        let parts = stride.div_ceil(LONGEST).max(1);
        let depth = stride.div_ceil(parts).next_multiple_of(DEPTH);
        let most = if parts == 1 { RESIDENT / depth.max(1) } else { WAITING_ROWS };
        let mut columns = MOST_COLUMNS.min(outputs.next_multiple_of(PANEL));
        let even = |most: usize| rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(SIDE);
        let mut size = even(most.max(FEWEST_ROWS));
        let tasks = |size: usize, columns: usize| rows.div_ceil(size) * outputs.div_ceil(columns);
        while columns > PANEL && tasks(size, columns) < 8 * threads {
            columns = (columns / 2).next_multiple_of(PANEL);
        }
        while size > FEWEST_ROWS && tasks(size, columns) < 2 * threads {
            size = even((size / 2).max(FEWEST_ROWS));
        }
        Self { rows: size, columns, depth }
    }

    /// Tasks of `rows × outputs`.
    pub(super) fn tasks(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.rows) * outputs.div_ceil(self.columns)
    }
}

impl Kernels {
    /// Does the product on tiles; rows are whole steps of 64 bytes, and at least as many as a block has.
    pub(super) fn each_tiled_task<V: Values>(
        self,
        workers: &dyn Workers,
        operands: Operands,
        values: &V,
        finish: &Finish<'_>,
    ) {
        let Operands { stride, rows, outputs, .. } = operands;
        let plan = Plan::new(rows, outputs, stride, workers.threads().get());
        let chunks = Chunks { rows, size: plan.rows };
        let across = Chunks { rows: outputs, size: plan.columns };
        // Neighbouring tasks share rows.
        workers.run(plan.tasks(rows, outputs), &|task| {
            let (chunk, part) = (task / across.count(), task % across.count());
            let (rows, columns) = (chunks.range(chunk), across.range(part));
            self.run(Task { operands, values, finish, rows, columns, depth: plan.depth });
        });
    }
}

/// Some rows times some columns.
struct Task<'a, V> {
    operands: Operands,
    values: &'a V,
    finish: &'a Finish<'a>,
    /// From a whole block on.
    rows: Range<usize>,
    /// From a whole panel on.
    columns: Range<usize>,
    depth: usize,
}

/// Sums of a block that wait in memory.
#[repr(C, align(64))]
struct Image(MaybeUninit<[u8; 4 * TILE]>);

/// The part of one panel of weights that a pass over all rows of a task reads.
struct Weights {
    /// First byte of the first group.
    start: *const u8,
    /// Bytes from one group of sixteen columns to the next.
    group: usize,
    groups: usize,
    /// Steps of 64 bytes of K.
    steps: usize,
    /// The same part of the next panel, which comes next; nothing after the last.
    next: Option<*const u8>,
}

impl Weights {
    /// The tiles of two groups; of the last one twice where there is no second.
    #[inline(always)]
    fn half(&self, half: usize) -> [*const u8; 2] {
        let second = (2 * half + 1).min(self.groups - 1);
        [2 * half, second].map(|group| self.start.wrapping_add(group * self.group))
    }
}

/// Rows whose sums wait to be written, while the next are made.
#[derive(Clone, Copy)]
struct Waiting {
    /// First row.
    row: usize,
    /// The line of its sums.
    line: usize,
    count: usize,
}

impl<V: Values> Operation for Task<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(mut tiles) = s.tiles() else { unreachable!("only sets with tiles are given such tasks") };
        let stride = self.operands.stride;
        let depths = Chunks { rows: stride, size: self.depth };
        let panels = self.columns.len().div_ceil(PANEL);
        let blocks = self.rows.len().div_ceil(SIDE);
        let mut images = Vec::<Image>::new();
        if depths.count() > 1 {
            images.reserve_exact(panels * blocks * 2);
        }
        let mut copied = Vec::new();
        let mut sums = [PanelSums::new(), PanelSums::new()];
        for part in 0..depths.count() {
            let depth = depths.range(part);
            for panel in 0..panels {
                let first = self.columns.start + panel * PANEL;
                let pass = Pass {
                    task: &self,
                    columns: first..self.columns.end.min(first + PANEL),
                    weights: self.weights(first, depth.clone(), &mut copied),
                    from: depth.start,
                    is_first: part == 0,
                    is_last: part + 1 == depths.count(),
                    images: images.as_mut_ptr().wrapping_add(panel * blocks * 2).cast(),
                };
                pass.run(s, &mut tiles, &mut sums);
            }
        }
    }
}

impl<V: Values> Task<'_, V> {
    /// The weights of a panel in a part of K; copied where they are not whole tiles at cache line boundaries.
    #[inline(always)]
    fn weights(&self, first: usize, depth: Range<usize>, copied: &mut Vec<WeightTile>) -> Weights {
        let Operands { stride, weights, outputs, steps, .. } = self.operands;
        let group = steps * crate::packing::STEP * GROUP;
        let groups = (outputs.min(first + PANEL) - first).div_ceil(GROUP);
        let start = weights.wrapping_add(first / GROUP * group + depth.start * GROUP);
        let steps = depth.len() / DEPTH;
        if start.addr().is_multiple_of(DEPTH) && group == stride * GROUP {
            let next = first + PANEL;
            let next = (next < self.columns.end).then(|| start.wrapping_add(PANEL / GROUP * group));
            return Weights { start, group, groups, steps, next };
        }
        // What is beyond the end of K is zero.
        let there = (group - depth.start * GROUP).min(steps * TILE);
        copied.clear();
        copied.resize(groups * steps, WeightTile([0; TILE]));
        for index in 0..groups {
            let to = copied[index * steps..].as_mut_ptr().cast::<u8>();
            // SAFETY: the group has `there` bytes from here on, and its tiles have room for them.
            unsafe { std::ptr::copy_nonoverlapping(start.wrapping_add(index * group), to, there) };
        }
        Weights { start: copied.as_ptr().cast(), group: steps * TILE, groups, steps, next: None }
    }
}

/// All rows of a task times one panel, in a part of K.
struct Pass<'a, 'b, V> {
    task: &'a Task<'b, V>,
    columns: Range<usize>,
    weights: Weights,
    /// First byte of K.
    from: usize,
    is_first: bool,
    is_last: bool,
    /// Where the sums wait between parts of K: two blocks for each 32 rows.
    images: *mut i32,
}

impl<V: Values> Pass<'_, '_, V> {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, tiles: &mut S::Tiles, sums: &mut [PanelSums; 2]) {
        let Task { operands, values, finish, rows, .. } = self.task;
        let mut columns = values.columns(self.columns.clone());
        finish.gate(self.columns.clone(), &mut columns.gate);
        let halves = self.weights.groups.div_ceil(2);
        let mut waiting = Waiting { row: 0, line: 0, count: 0 };
        let lines = finish.lines(rows.start, self.columns.start, self.columns.end);
        let mut coming = Coming::new(&self.weights, rows.len().div_ceil(SIDE));
        for block in 0..rows.len().div_ceil(SIDE) {
            let row = rows.start + block * SIDE;
            // The last block begins early enough to be whole; rows before it are computed again and written once.
            let begin = row.min(operands.rows - SIDE);
            let count = SIDE.min(rows.end - row);
            let [one, two] = &mut *sums;
            let (now, before) = if block % 2 == 0 { (one, two) } else { (two, one) };
            let mut beside = Beside {
                pass: self,
                columns: &columns,
                sums: before,
                waiting,
                done: 0,
                lines,
                each: SIDE.div_ceil((halves * self.weights.steps).max(1)),
            };
            for index in 0..halves {
                // Neighbours share rows or weights, and go through K in opposite directions.
                let is_odd = row / SIDE % 2 == 1;
                let half = if is_odd { halves - 1 - index } else { index };
                let backwards = is_odd != (half % 2 == 1);
                let image = BlockSums::images(self.images.wrapping_add((block * 2 + half) * TILE));
                // SAFETY: there are 32 rows from `begin`, the weights have whole tiles, and the sums have room for a
                // panel of 32 rows; images are read after they were written.
                unsafe {
                    if self.is_first {
                        tiles.zero()
                    } else {
                        tiles.load(image)
                    }
                    self.products(s, tiles, begin, half, backwards, &mut beside, &mut coming);
                    if self.is_last {
                        let to = now.0.as_mut_ptr().cast::<i32>().wrapping_add(half * SIDE);
                        tiles.store(BlockSums::rows(to, PANEL * size_of::<i32>()));
                    } else {
                        tiles.store(image);
                    }
                }
            }
            beside.rest(s);
            if self.is_last {
                waiting = Waiting { row, line: row - begin, count };
            }
        }
        let last = &sums[(rows.len().div_ceil(SIDE) + 1) % 2];
        for index in 0..waiting.count {
            finish.row(s, *values, &columns, &last.0[waiting.line + index], waiting.row + index);
        }
    }

    /// Adds the products of a block, with other work between its steps.
    ///
    /// # Safety
    /// 32 rows from `begin` and the tiles of the half can be read.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the innermost loop, with what goes on beside it")]
    unsafe fn products<S: Simd>(
        &self,
        s: S,
        tiles: &mut S::Tiles,
        begin: usize,
        half: usize,
        backwards: bool,
        beside: &mut Beside<'_, '_, V>,
        coming: &mut Coming,
    ) {
        let Operands { x, stride, .. } = self.task.operands;
        let columns = self.weights.half(half);
        let rows = x.wrapping_add(begin * stride + self.from);
        let steps = self.weights.steps;
        for index in 0..steps {
            let k = if backwards { steps - 1 - index } else { index };
            let step = Step {
                rows: rows.wrapping_add(k * DEPTH),
                stride,
                columns: columns.map(|column| column.wrapping_add(k * TILE)),
            };
            // SAFETY: the caller's.
            unsafe { V::Product::step_tiles(tiles, step) };
            beside.step(s);
            coming.step(s);
        }
    }
}

/// The lines of the next panel of weights, asked for into the second cache while this one passes: they come from memory or
/// from the third cache, and a block would wait for them.
struct Coming {
    line: *const u8,
    /// Lines that are left of this group.
    in_group: usize,
    lines: usize,
    /// From the end of this part of a group to the next.
    skip: usize,
    /// Lines that are left.
    count: usize,
    /// Lines after each step.
    each: usize,
}

impl Coming {
    fn new(weights: &Weights, blocks: usize) -> Self {
        let lines = weights.steps * TILE / OutputLines::LINE;
        let count = if weights.next.is_some() { lines * weights.groups } else { 0 };
        let steps = blocks * weights.groups.div_ceil(2) * weights.steps;
        Self {
            line: weights.next.unwrap_or(weights.start),
            in_group: lines,
            lines,
            skip: weights.group.saturating_sub(weights.steps * TILE),
            count,
            each: count.div_ceil(steps.max(1)),
        }
    }

    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S) {
        for _ in 0..self.each.min(self.count) {
            s.prefetch_to_second_cache(self.line);
            self.line = self.line.wrapping_add(OutputLines::LINE);
            self.in_group -= 1;
            if self.in_group == 0 {
                self.line = self.line.wrapping_add(self.skip);
                self.in_group = self.lines;
            }
            self.count -= 1;
        }
    }
}

/// What vectors do between the steps of tiles: they write the rows before, and ask for the lines of those that come next.
struct Beside<'a, 'b, V> {
    pass: &'a Pass<'a, 'b, V>,
    columns: &'a Columns,
    sums: &'a PanelSums,
    waiting: Waiting,
    done: usize,
    /// Of the first row of the task.
    lines: OutputLines,
    /// Rows after each step.
    each: usize,
}

impl<V: Values> Beside<'_, '_, V> {
    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S) {
        for _ in 0..self.each {
            self.row(s);
        }
    }

    #[inline(always)]
    fn rest<S: Simd>(&mut self, s: S) {
        while self.done < self.waiting.count {
            self.row(s);
        }
    }

    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S) {
        let Waiting { row, line, count } = self.waiting;
        if self.done < count {
            let Task { values, finish, rows, .. } = self.pass.task;
            let ahead = row + self.done + AHEAD;
            if ahead < rows.end {
                let OutputLines { start, stride, width } = self.lines;
                let start = start.wrapping_add((ahead - rows.start) * stride);
                for at in (0..width.min(PANEL * size_of::<f32>())).step_by(OutputLines::LINE) {
                    s.prefetch_to_write(start.wrapping_add(at));
                }
            }
            finish.row(s, *values, self.columns, &self.sums.0[line + self.done], row + self.done);
            self.done += 1;
        }
    }
}

const _: () = assert!(SIDE == 2 * ROWS && PANEL == 2 * SIDE);

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
    fn ninety_six_threads_have_two_tasks_each_at_1950_rows() {
        for [inputs, outputs] in SHAPES {
            for bytes in [1, 2] {
                let plan = Plan::new(1950, outputs, inputs * bytes, 96);
                let tasks = plan.tasks(1950, outputs);
                assert!(tasks >= 2 * 96, "{inputs} -> {outputs}, {bytes} bytes: {tasks} tasks, {plan:?}");
            }
        }
    }

    #[test]
    fn tasks_are_whole_blocks_that_fit_the_second_cache() {
        for [inputs, outputs] in SHAPES {
            for (bytes, threads) in [(1, 1), (2, 1), (1, 64), (2, 64)] {
                let plan = Plan::new(7800, outputs, inputs * bytes, threads);
                assert!(plan.rows.is_multiple_of(SIDE) && plan.columns.is_multiple_of(PANEL), "{plan:?}");
                assert!(plan.depth.is_multiple_of(DEPTH) && plan.depth <= LONGEST, "{plan:?}");
                let sums = if plan.depth < inputs * bytes { plan.rows * plan.columns * 4 } else { 0 };
                assert!(plan.rows * plan.depth + PANEL * plan.depth + sums < 2 << 20, "{plan:?}");
            }
        }
    }
}
