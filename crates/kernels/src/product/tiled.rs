//! Products on AMX tiles: blocks of 32 rows times 32 columns.
//!
//! A task is a range of rows times a range of columns. Its rows stay in the L2 cache while it iterates over its
//! panels of 64 columns. Every other block iterates over K backwards, so that it starts with the operands that the
//! previous block left in the L1 cache. If K is too long for that, K is split: all blocks of a task process one part
//! of K, and their sums are spilled to memory until the next part. The summation order depends only on the shape, not
//! on how rows and columns are split into tasks.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through raw pointers; the bounds are checked here"
)]

use super::branch::{BranchPanel, BranchProduct};
use super::epilogue::SumsRow;
use super::plan::Plan;
use super::tile::{Dot, OutputLines, PANEL, PanelSums, WeightTile};
use super::{Columns, Operands, Product, Values};
use crate::Kernels;
use crate::packing::GROUP;
use crate::shared::Chunks;
use crate::simd::tiles::{BlockSums, DEPTH, ROWS, SIDE, Step, TILE, Tiles};
use crate::simd::{Operation, Simd};
use crate::workers::Workers;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Prefetch distance in rows: the output lines of a row are prefetched this many rows before the row is written. A
/// larger distance would evict operands from the L1 cache.
const PREFETCH_DISTANCE: usize = 6;

impl Kernels {
    /// Computes the product on tiles. Rows are whole steps of 64 bytes, and there are at least as many as in a block.
    pub(super) fn each_tiled_task<V: Values>(self, workers: &dyn Workers, product: &Product<'_, V>) {
        let Operands { depth, rows, outputs, .. } = product.operands;
        let plan = Plan::new(rows, outputs, depth, workers.threads().get());
        let chunks = Chunks { rows, size: plan.rows };
        let across = Chunks { rows: outputs, size: plan.columns };
        // Neighbouring tasks share rows.
        workers.run(plan.tasks(rows, outputs), &|task| {
            let (chunk, part) = (task / across.count(), task % across.count());
            let (rows, columns) = (chunks.range(chunk), across.range(part));
            self.run(Task { product, rows, columns, depth: plan.depth });
        });
    }
}

/// One task: a range of rows times a range of columns.
struct Task<'a, V> {
    product: &'a Product<'a, V>,
    /// The start is a multiple of 32.
    rows: Range<usize>,
    /// The start is a multiple of 64.
    columns: Range<usize>,
    depth: usize,
}

/// The sums of a block, spilled to memory between parts of K.
#[repr(C, align(64))]
struct SpilledBlock(MaybeUninit<[u8; 4 * TILE]>);

/// The weights of one panel in one part of K.
struct Weights {
    /// First byte of the first group.
    start: *const u8,
    /// Bytes from one group of sixteen columns to the next.
    group: usize,
    groups: usize,
    /// Steps of 64 bytes of K.
    steps: usize,
    /// The same part of the next panel; `None` for the last panel.
    next: Option<*const u8>,
}

impl Weights {
    /// Returns the tiles of two groups; the last group is repeated if there is no second.
    #[inline(always)]
    fn half(&self, half: usize) -> [*const u8; 2] {
        let second = (2 * half + 1).min(self.groups - 1);
        [2 * half, second].map(|group| self.start.wrapping_add(group * self.group))
    }
}

/// Computed rows whose epilogue runs while the next block is computed.
#[derive(Clone, Copy)]
struct PendingRows {
    /// First row.
    row: usize,
    /// The row of its sums in the panel sums.
    line: usize,
    count: usize,
}

impl<V: Values> Operation for Task<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(mut tiles) = s.tiles() else {
            unreachable!("tile tasks run only on instruction sets with tiles")
        };
        let depths = Chunks { rows: self.product.operands.depth, size: self.depth };
        let panels = self.columns.len().div_ceil(PANEL);
        let blocks = self.rows.len().div_ceil(SIDE);
        let mut spilled = Vec::<SpilledBlock>::new();
        if depths.count() > 1 {
            spilled.reserve_exact(panels * blocks * 2);
        }
        let (mut copied, mut copied_branch) = (Vec::new(), Vec::new());
        let mut sums = TaskSums { layer: [PanelSums::new(), PanelSums::new()], branch: PanelSums::new() };
        for part in 0..depths.count() {
            let depth = depths.range(part);
            for panel in 0..panels {
                let first = self.columns.start + panel * PANEL;
                let columns = first..self.columns.end.min(first + PANEL);
                let is_last = part + 1 == depths.count();
                let branch = self.product.branch.filter(|_| is_last);
                let pass = Pass {
                    task: &self,
                    weights: self.weights(&self.product.operands, first, depth.clone(), &mut copied),
                    branch: branch.map(|branch| self.branch(branch, columns.clone(), &mut copied_branch)),
                    columns,
                    from: depth.start,
                    is_first: part == 0,
                    is_last,
                    spilled: spilled.as_mut_ptr().wrapping_add(panel * blocks * 2).cast(),
                };
                pass.run(s, &mut tiles, &mut sums);
            }
        }
    }
}

impl<V: Values> Task<'_, V> {
    /// Returns the weights of a panel in one part of K; copied if they are not whole tiles aligned to cache lines.
    #[inline(always)]
    fn weights(
        &self,
        operands: &Operands,
        first: usize,
        depth: Range<usize>,
        copied: &mut Vec<WeightTile>,
    ) -> Weights {
        let group = operands.group();
        let groups = (operands.outputs.min(first + PANEL) - first).div_ceil(GROUP);
        let start = operands.weights_of(first).wrapping_add(depth.start * GROUP);
        let steps = depth.len() / DEPTH;
        if start.addr().is_multiple_of(DEPTH) && group == operands.depth * GROUP {
            let next = first + PANEL;
            let next = (next < self.columns.end).then(|| start.wrapping_add(PANEL / GROUP * group));
            return Weights { start, group, groups, steps, next };
        }
        // The tiles beyond the end of K are zero.
        let available = (group - depth.start * GROUP).min(steps * TILE);
        copied.clear();
        copied.resize(groups * steps, WeightTile([0; TILE]));
        for index in 0..groups {
            let to = copied[index * steps..].as_mut_ptr().cast::<u8>();
            // SAFETY: the constructor of the weights checked that there are `groups` groups of `group` bytes, so that the
            // group has `available` bytes from here on. Its tiles have room for them.
            unsafe { std::ptr::copy_nonoverlapping(start.wrapping_add(index * group), to, available) };
        }
        Weights { start: copied.as_ptr().cast(), group: steps * TILE, groups, steps, next: None }
    }

    /// Returns the branch of the columns of a panel.
    #[inline(always)]
    fn branch<'b>(
        &self,
        branch: &'b BranchProduct<V>,
        columns: Range<usize>,
        copied: &mut Vec<WeightTile>,
    ) -> BranchPass<'b, V> {
        let panel = branch.panel(columns.clone());
        let weights = self.weights(&panel.operands, columns.start, 0..panel.operands.depth, copied);
        BranchPass { panel, weights }
    }
}

/// The sums of the blocks that a task works on.
struct TaskSums {
    /// Of the block that is computed, and of the one before.
    layer: [PanelSums; 2],
    /// Of the branch of the block before.
    branch: PanelSums,
}

/// The branch of one panel.
struct BranchPass<'a, V> {
    panel: BranchPanel<'a, V>,
    weights: Weights,
}

impl<V: Values> BranchPass<'_, V> {
    /// Computes the sums of 32 rows from `begin`.
    #[inline(always)]
    fn run<T: Tiles>(&self, tiles: &mut T, begin: usize, to: &mut PanelSums) {
        let Operands { x, stride, .. } = self.panel.operands;
        let rows = x.wrapping_add(begin * stride);
        for half in 0..self.weights.groups.div_ceil(2) {
            let columns = self.weights.half(half);
            // SAFETY: there are 32 rows from `begin`, each with whole steps from `x` on. The weights are whole tiles,
            // and the sums have room for a panel of 32 rows.
            unsafe {
                tiles.zero();
                for k in 0..self.weights.steps {
                    let columns = columns.map(|column| column.wrapping_add(k * TILE));
                    V::Product::step_tiles(
                        tiles,
                        Step { rows: rows.wrapping_add(k * DEPTH), stride, columns },
                    );
                }
                let to = to.0.as_mut_ptr().cast::<i32>().wrapping_add(half * SIDE);
                tiles.store(BlockSums::rows(to, PANEL * size_of::<i32>()));
            }
        }
    }

    /// Returns a row of the sums.
    #[inline(always)]
    fn row<'s>(&'s self, sums: &'s PanelSums, line: usize) -> SumsRow<'s, V> {
        SumsRow { values: self.panel.values, columns: &self.panel.columns, sums: &sums.0[line] }
    }
}

/// All rows of a task times one panel, in one part of K.
struct Pass<'a, 'b, V> {
    task: &'a Task<'b, V>,
    columns: Range<usize>,
    weights: Weights,
    /// The branch, in the last part of K.
    branch: Option<BranchPass<'a, V>>,
    /// First byte of K.
    from: usize,
    is_first: bool,
    is_last: bool,
    /// Spilled sums between parts of K: two blocks for each 32 rows.
    spilled: *mut i32,
}

impl<V: Values> Pass<'_, '_, V> {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, tiles: &mut S::Tiles, sums: &mut TaskSums) {
        let Task { product: Product { operands, values, epilogue, .. }, rows, .. } = self.task;
        let mut columns = values.columns(self.columns.clone());
        epilogue.gate(self.columns.clone(), &mut columns.gate);
        let halves = self.weights.groups.div_ceil(2);
        let mut pending = PendingRows { row: 0, line: 0, count: 0 };
        let lines = epilogue.lines(rows.start, self.columns.start, self.columns.end);
        let mut prefetch = WeightPrefetch::new(&self.weights, rows.len().div_ceil(SIDE));
        for block in 0..rows.len().div_ceil(SIDE) {
            let row = rows.start + block * SIDE;
            // The last block begins early enough to be whole; the overlapping rows are recomputed but written once.
            let begin = row.min(operands.rows - SIDE);
            let count = SIDE.min(rows.end - row);
            let [one, two] = &mut sums.layer;
            let (now, before) = if block % 2 == 0 { (one, two) } else { (two, one) };
            self.run_branch(tiles, pending, &mut sums.branch);
            let mut interleaved = InterleavedWork {
                pass: self,
                columns: &columns,
                sums: before,
                branch_sums: &sums.branch,
                pending,
                done: 0,
                lines,
                each: SIDE.div_ceil((halves * self.weights.steps).max(1)),
            };
            for index in 0..halves {
                // Neighbouring blocks share rows or weights, and iterate over K in opposite directions.
                let is_odd = row / SIDE % 2 == 1;
                let half = if is_odd { halves - 1 - index } else { index };
                let backwards = is_odd != (half % 2 == 1);
                let spilled_block =
                    BlockSums::contiguous(self.spilled.wrapping_add((block * 2 + half) * TILE));
                // SAFETY: `is_tiled` checked that there are at least 32 rows, so there are 32 from `begin`, which `Rows`
                // has padded to whole steps. The weights are whole tiles, and the sums have room for a panel of 32 rows.
                // `spilled` has room for two blocks for each 32 rows and panel, which are written before they are read.
                unsafe {
                    if self.is_first {
                        tiles.zero()
                    } else {
                        tiles.load(spilled_block)
                    }
                    self.products(s, tiles, begin, half, backwards, &mut interleaved, &mut prefetch);
                    if self.is_last {
                        let to = now.0.as_mut_ptr().cast::<i32>().wrapping_add(half * SIDE);
                        tiles.store(BlockSums::rows(to, PANEL * size_of::<i32>()));
                    } else {
                        tiles.store(spilled_block);
                    }
                }
            }
            interleaved.finish(s);
            if self.is_last {
                pending = PendingRows { row, line: row - begin, count };
            }
        }
        self.run_branch(tiles, pending, &mut sums.branch);
        let last = &sums.layer[(rows.len().div_ceil(SIDE) + 1) % 2];
        for line in pending.line..pending.line + pending.count {
            let of_layer = SumsRow { values: *values, columns: &columns, sums: &last.0[line] };
            let of_branch = self.branch.as_ref().map(|branch| branch.row(&sums.branch, line));
            epilogue.row(s, of_layer, of_branch, pending.row + line - pending.line);
        }
    }

    /// Computes the sums of the branch for the rows whose epilogue is due.
    #[inline(always)]
    fn run_branch<T: Tiles>(&self, tiles: &mut T, pending: PendingRows, to: &mut PanelSums) {
        if let Some(branch) = self.branch.as_ref().filter(|_| pending.count > 0) {
            branch.run(tiles, pending.row - pending.line, to);
        }
    }

    /// Adds the products of a block, with other work interleaved between the steps.
    ///
    /// # Safety
    /// 32 rows from `begin` and the tiles of the half are readable.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the innermost loop and its interleaved work")]
    unsafe fn products<S: Simd>(
        &self,
        s: S,
        tiles: &mut S::Tiles,
        begin: usize,
        half: usize,
        backwards: bool,
        interleaved: &mut InterleavedWork<'_, '_, V>,
        prefetch: &mut WeightPrefetch,
    ) {
        let Operands { x, stride, .. } = self.task.product.operands;
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
            // SAFETY: guaranteed by the caller (see `# Safety`).
            unsafe { V::Product::step_tiles(tiles, step) };
            interleaved.step(s);
            prefetch.step(s);
        }
    }
}

/// Prefetches the next panel of weights into the L2 cache while the current panel is computed. Otherwise a block
/// would wait for memory or the L3 cache.
struct WeightPrefetch {
    line: *const u8,
    /// Remaining lines of this group.
    in_group: usize,
    lines: usize,
    /// Bytes from the end of this part of a group to the next group.
    skip: usize,
    /// Remaining lines.
    count: usize,
    /// Lines per step.
    each: usize,
}

impl WeightPrefetch {
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
            s.prefetch_to_l2(self.line);
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

/// Vector work between tile steps: the epilogue of the previous block, and prefetches of the output lines of the next
/// rows.
struct InterleavedWork<'a, 'b, V> {
    pass: &'a Pass<'a, 'b, V>,
    columns: &'a Columns,
    sums: &'a PanelSums,
    branch_sums: &'a PanelSums,
    pending: PendingRows,
    done: usize,
    /// The output lines of the first row of the task.
    lines: OutputLines,
    /// Rows per step.
    each: usize,
}

impl<V: Values> InterleavedWork<'_, '_, V> {
    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S) {
        for _ in 0..self.each {
            self.row(s);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S) {
        while self.done < self.pending.count {
            self.row(s);
        }
    }

    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S) {
        let PendingRows { row, line, count } = self.pending;
        if self.done < count {
            let Task { product: Product { values, epilogue, .. }, rows, .. } = self.pass.task;
            let ahead = row + self.done + PREFETCH_DISTANCE;
            if ahead < rows.end {
                let OutputLines { start, stride, width } = self.lines;
                let start = start.wrapping_add((ahead - rows.start) * stride);
                for at in (0..width.min(PANEL * size_of::<f32>())).step_by(OutputLines::LINE) {
                    s.prefetch_to_write(start.wrapping_add(at));
                }
            }
            let line = line + self.done;
            let of_layer = SumsRow { values: *values, columns: self.columns, sums: &self.sums.0[line] };
            let of_branch = self.pass.branch.as_ref().map(|branch| branch.row(self.branch_sums, line));
            epilogue.row(s, of_layer, of_branch, row + self.done);
            self.done += 1;
        }
    }
}

const _: () = assert!(SIDE == 2 * ROWS && PANEL == 2 * SIDE);
