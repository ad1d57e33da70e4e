//! Convolutions by tiles: blocks of 32 pixels times 32 channels.
//!
//! The rows of a padded frame are contiguous, so that a block runs over their ends: what it makes of the border
//! is not written. A run of `side·channels` bytes that is not a whole number of steps ends in one whose last weights are
//! zeros; what it reads behind the run does not matter.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through bare pointers, whose bounds are kept here"
)]

use super::{Columns, KernelShape, Panel};
use crate::packing::GROUP;
use crate::product::tile::{OutputLines, PANEL, PanelSums, WeightTile};
use crate::simd::Simd;
use crate::simd::tiles::{BlockSums, DEPTH, SIDE, Step, TILE, Tiles};
use std::ops::Range;

/// Bytes behind the frames that the last step of a run may read.
pub(super) const BEHIND: usize = DEPTH;

/// Whether a convolution is made of tiles: frames have at least a block of pixels, and what is read behind a run is there.
pub(super) fn fits(shape: KernelShape, height: usize, width: usize) -> bool {
    let is_readable = shape.side == 3 || shape.channels.is_multiple_of(DEPTH);
    is_readable && Positions::new(shape, height, width).end >= SIDE
}

/// The pixels of a frame with its border, in the order of their addresses.
#[derive(Debug, Clone, Copy)]
struct Positions {
    /// From one row to the next.
    pitch: usize,
    width: usize,
    /// Behind the last pixel.
    end: usize,
}

impl Positions {
    fn new(shape: KernelShape, height: usize, width: usize) -> Self {
        let pitch = width + shape.side - 1;
        Self { pitch, width, end: (height.max(1) - 1) * pitch + width }
    }

    /// From the first pixel of the first row to the last one of the last.
    fn of_rows(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.pitch..(rows.end - 1) * self.pitch + self.width
    }

    /// The pixel at a position; nothing on the border.
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
    /// Tiles of the ends of runs, those of a run side by side; none where runs are whole steps.
    ends: Vec<WeightTile>,
}

impl Weights {
    fn new(start: *const u8, group: usize, groups: usize, run: usize, runs: usize) -> Self {
        let rest = run % DEPTH;
        let mut ends = vec![WeightTile([0; TILE]); if rest > 0 { runs * groups } else { 0 }];
        for (index, end) in ends.iter_mut().enumerate() {
            let (of_run, of_group) = (index / groups, index % groups);
            let from = start.wrapping_add(of_group * group + ((of_run + 1) * run - rest) * GROUP);
            // SAFETY: a group has `16 × run` bytes for each run, of which these are the last.
            unsafe { std::ptr::copy_nonoverlapping(from, end.0.as_mut_ptr(), rest * GROUP) };
        }
        Self { start, group, groups, run, ends }
    }

    /// Steps of a run, the last of which may be one of [`ends`](Self::ends).
    fn steps(&self) -> usize {
        self.run.div_ceil(DEPTH)
    }

    /// The tiles of two groups, of the last one twice where there is no second, for a step of a run.
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
        let weights = Weights::new(weights, shape.matrix().inputs * GROUP, groups, side * channels, runs);
        let (halves, steps) = (groups.div_ceil(2), weights.steps());
        let mut sums = [PanelSums::new(), PanelSums::new()];
        let all = positions.of_rows(&self.rows);
        let mut writing =
            Writing { panel: self, columns, positions, count: channels_out.len(), at: 0..0, line: 0 };
        let blocks = all.len().div_ceil(SIDE);
        for block in 0..blocks {
            let first = all.start + block * SIDE;
            // The last block begins early enough to be whole; pixels before it are computed twice and written once.
            let begin = first.min(positions.end - SIDE);
            let at = first..all.end.min(first + SIDE);
            let [one, two] = &mut sums;
            let (now, before) = if block % 2 == 0 { (one, two) } else { (two, one) };
            let each = SIDE.div_ceil(halves * runs * steps);
            let mut asked = at.clone();
            for half in 0..halves {
                // Every other block goes through the runs backwards, beginning with what is near.
                let backwards = (block * halves + half) % 2 == 1;
                // SAFETY: columns have a start for each channel, and zeros beyond.
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
                        // SAFETY: the frame has these pixels with `side - 1` more of each direction, and 64 bytes
                        // behind them where a run is not whole steps; the weights are whole tiles.
                        unsafe { tiles.step_bytes(Step { rows, stride: channels, columns }) };
                        (0..each).for_each(|_| writing.next(s, before));
                        if let Some(position) = asked.next() {
                            writing.ask_for(s, position);
                        }
                    }
                }
                let to = now.0.as_mut_ptr().cast::<i32>().wrapping_add(half * SIDE);
                // SAFETY: there is room for a panel of 32 pixels.
                unsafe { tiles.store(BlockSums::rows(to, PANEL * size_of::<i32>())) };
            }
            writing.rest(s, before);
            writing.line = first - begin;
            writing.at = at;
        }
        writing.rest(s, &sums[(blocks + 1) % 2]);
    }
}

/// Pixels whose sums wait to be written, while the next are made.
struct Writing<'a, 'b, 'c> {
    panel: &'a Panel<'b, 'c>,
    columns: &'a Columns,
    positions: Positions,
    /// Channels.
    count: usize,
    at: Range<usize>,
    /// The line of the sums of the next.
    line: usize,
}

impl Writing<'_, '_, '_> {
    /// Where the channels of a position go; nowhere on the border.
    #[inline(always)]
    fn place(&self, position: usize) -> Option<usize> {
        let Panel { plan, frame, height, first, .. } = *self.panel;
        let pixel = self.positions.pixel(position)?;
        Some((frame * height * plan.width + pixel) * plan.kernel.shape.outputs + first)
    }

    #[inline(always)]
    fn next<S: Simd>(&mut self, s: S, sums: &PanelSums) {
        let Some(position) = self.at.next() else { return };
        if let Some(at) = self.place(position) {
            self.panel.write(s, self.columns, &sums.0[self.line], at, self.count);
        }
        self.line += 1;
    }

    #[inline(always)]
    fn rest<S: Simd>(&mut self, s: S, sums: &PanelSums) {
        while !self.at.is_empty() {
            self.next(s, sums);
        }
    }

    #[inline(always)]
    fn ask_for<S: Simd>(&self, s: S, position: usize) {
        let Some(at) = self.place(position) else { return };
        for line in (0..self.count * size_of::<f32>()).step_by(OutputLines::LINE) {
            s.prefetch_to_write(self.panel.plan.to.address(at).wrapping_add(line));
        }
    }
}
