//! Convolutions on AMX tiles: blocks of 32 pixels times 32 channels.
//!
//! The rows of a padded frame are contiguous, and a block may span several rows; results for border positions are not
//! written. If a run of `side·channels` bytes is not a whole number of steps, the weights of its last step are padded
//! with zeros, and the bytes that the step reads after the run have no effect.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through raw pointers; the bounds are checked here"
)]

use super::{Columns, KernelShape, Panel};
use crate::packing::GROUP;
use crate::product::tile::{OutputLines, PANEL, PanelSums, WeightTile};
use crate::simd::Simd;
use crate::simd::tiles::{BlockSums, DEPTH, SIDE, Step, TILE, Tiles};
use std::ops::Range;

/// Bytes after the frames that the last step of a run may read.
pub(super) const TAIL_BYTES: usize = DEPTH;

/// Returns true if the convolution can run on tiles: frames have at least a block of pixels, and the bytes after each
/// run are readable.
pub(super) fn fits(shape: KernelShape, height: usize, width: usize) -> bool {
    let is_readable = shape.side == 3 || shape.channels.is_multiple_of(DEPTH);
    is_readable && Positions::new(shape, height, width).end >= SIDE
}

/// The pixels of a frame with its border, in address order.
#[derive(Debug, Clone, Copy)]
struct Positions {
    /// Positions from one row to the next.
    pitch: usize,
    width: usize,
    /// The position after the last pixel.
    end: usize,
}

impl Positions {
    fn new(shape: KernelShape, height: usize, width: usize) -> Self {
        let pitch = width + shape.side - 1;
        Self { pitch, width, end: (height.max(1) - 1) * pitch + width }
    }

    /// Returns the positions from the first pixel of the first row to the last pixel of the last.
    fn of_rows(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.pitch..(rows.end - 1) * self.pitch + self.width
    }

    /// Returns the pixel at a position, or `None` on the border.
    #[inline(always)]
    fn pixel(self, position: usize) -> Option<usize> {
        let (row, column) = (position / self.pitch, position % self.pitch);
        (column < self.width).then_some(row * self.width + column)
    }
}

/// The weights of a panel.
struct Weights {
    /// First byte of the first group.
    start: *const u8,
    /// Bytes from one group to the next.
    group: usize,
    groups: usize,
    /// Bytes of a run.
    run: usize,
    /// Tiles of the ends of runs, with the groups of a run adjacent; empty if runs are whole steps.
    ends: Vec<WeightTile>,
}

impl Weights {
    fn new(start: *const u8, group: usize, groups: usize, run: usize, runs: usize) -> Self {
        let rest = run % DEPTH;
        let mut ends = vec![WeightTile([0; TILE]); if rest > 0 { runs * groups } else { 0 }];
        for (index, end) in ends.iter_mut().enumerate() {
            let (of_run, of_group) = (index / groups, index % groups);
            let from = start.wrapping_add(of_group * group + ((of_run + 1) * run - rest) * GROUP);
            // SAFETY: `KernelView::new` checked that a group has `16 × run` bytes for each run; this copies the last
            // `16 × rest` of them, fewer than a tile has.
            unsafe { std::ptr::copy_nonoverlapping(from, end.0.as_mut_ptr(), rest * GROUP) };
        }
        Self { start, group, groups, run, ends }
    }

    /// Returns the number of steps of a run. The last step may use [`ends`](Self::ends).
    fn steps(&self) -> usize {
        self.run.div_ceil(DEPTH)
    }

    /// Returns the tiles of two groups for a step of a run; the last group is repeated if there is no second.
    #[inline(always)]
    fn half(&self, half: usize, run: usize, step: usize) -> [*const u8; 2] {
        let groups = [2 * half, (2 * half + 1).min(self.groups - 1)];
        if (step + 1) * DEPTH <= self.run {
            let at = (run * self.run + step * DEPTH) * GROUP;
            groups.map(|group| self.start.wrapping_add(group * self.group + at))
        } else {
            groups.map(|group| self.ends[run * self.groups + group].0.as_ptr())
        }
    }
}

impl Panel<'_, '_> {
    #[inline(always)]
    pub(super) fn run_tiles<S: Simd>(
        &self,
        s: S,
        tiles: &mut S::Tiles,
        columns: &Columns,
        weights: *const u8,
        channels_out: Range<usize>,
    ) {
        let plan = self.plan;
        let shape = plan.kernel.shape;
        let KernelShape { channels, side, .. } = shape;
        let positions = Positions::new(shape, self.height, plan.width);
        let runs = plan.used_taps * side;
        let groups = channels_out.len().div_ceil(GROUP);
        let weights = Weights::new(weights, shape.matrix().inputs() * GROUP, groups, side * channels, runs);
        let (halves, steps) = (groups.div_ceil(2), weights.steps());
        let mut sums = [PanelSums::new(), PanelSums::new()];
        let all = positions.of_rows(&self.rows);
        let mut pending =
            PendingPixels { panel: self, columns, positions, count: channels_out.len(), at: 0..0, line: 0 };
        let blocks = all.len().div_ceil(SIDE);
        for block in 0..blocks {
            let first = all.start + block * SIDE;
            // The last block begins early enough to be whole; the overlapping pixels are recomputed but written once.
            let begin = first.min(positions.end - SIDE);
            let at = first..all.end.min(first + SIDE);
            let [one, two] = &mut sums;
            let (now, before) = if block % 2 == 0 { (one, two) } else { (two, one) };
            let each = SIDE.div_ceil(halves * runs * steps);
            let mut to_prefetch = at.clone();
            for half in 0..halves {
                // Every other block iterates over the runs backwards, to start with data that is in the cache.
                let backwards = (block * halves + half) % 2 == 1;
                // SAFETY: columns have an initial sum for each channel, padded with zeros.
                unsafe {
                    tiles.load(BlockSums::of_columns(columns.starts.as_ptr().wrapping_add(half * SIDE)))
                };
                for index in 0..runs {
                    let run = if backwards { runs - 1 - index } else { index };
                    let frame = plan.starts.0[self.frame + run / side];
                    let rows = frame.wrapping_add(run % side * plan.row + begin * channels);
                    for step in 0..steps {
                        let columns = weights.half(half, run, step);
                        let rows = rows.wrapping_add(step * DEPTH);
                        // SAFETY: `fits` checked that a frame has 32 positions from `begin`. The frame has these
                        // pixels, `side - 1` more in each direction, and `TAIL_BYTES` after them if a run is not whole
                        // steps; the weights are whole tiles.
                        unsafe { tiles.step_int8(Step { rows, stride: channels, columns }) };
                        (0..each).for_each(|_| pending.next(s, before));
                        if let Some(position) = to_prefetch.next() {
                            pending.prefetch(s, position);
                        }
                    }
                }
                let to = now.0.as_mut_ptr().cast::<i32>().wrapping_add(half * SIDE);
                // SAFETY: there is room for a panel of 32 pixels.
                unsafe { tiles.store(BlockSums::rows(to, PANEL * size_of::<i32>())) };
            }
            pending.finish(s, before);
            pending.line = first - begin;
            pending.at = at;
        }
        pending.finish(s, &sums[(blocks + 1) % 2]);
    }
}

/// Computed pixels that are written while the next block is computed.
struct PendingPixels<'a, 'b, 'c> {
    panel: &'a Panel<'b, 'c>,
    columns: &'a Columns,
    positions: Positions,
    /// Number of channels.
    count: usize,
    at: Range<usize>,
    /// The row of the sums of the next pixel.
    line: usize,
}

impl PendingPixels<'_, '_, '_> {
    /// Returns the offset of the channels of a position in the result, or `None` on the border.
    #[inline(always)]
    fn offset_of(&self, position: usize) -> Option<usize> {
        let Panel { plan, frame, height, first, .. } = *self.panel;
        let pixel = self.positions.pixel(position)?;
        Some((frame * height * plan.width + pixel) * plan.kernel.shape.outputs + first)
    }

    #[inline(always)]
    fn next<S: Simd>(&mut self, s: S, sums: &PanelSums) {
        let Some(position) = self.at.next() else { return };
        if let Some(at) = self.offset_of(position) {
            self.panel.write(s, self.columns, &sums.0[self.line], at, self.count);
        }
        self.line += 1;
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, sums: &PanelSums) {
        while !self.at.is_empty() {
            self.next(s, sums);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, position: usize) {
        let Some(at) = self.offset_of(position) else { return };
        for line in (0..self.count * size_of::<f32>()).step_by(OutputLines::LINE) {
            s.prefetch_to_write(self.panel.plan.to.address(at).wrapping_add(line));
        }
    }
}
