//! Attention of a block of queries of one head over all keys.
//!
//! The work is split into units of 32 queries and [`BLOCK`] keys, processed as a two-stage pipeline. While the tiles
//! multiply the probabilities and values of one unit, vectors convert the scores of the next unit to probabilities.
//! Tile and vector instructions overlap, and the intermediate values stay in the L1 cache.
#![expect(unsafe_code, reason = "tiles are read and written through raw pointers into fixed-size arrays")]

use super::prepare::Prepared;
use super::{Attention, BLOCK, MAX_HEAD_WIDTH};
use crate::packing::GROUP;
use crate::shared::{Chunks, SharedSlice};
use crate::simd::tiles::powers::{BF16_EXPONENT_BIAS, Powers, STEPS_PER_EXPONENT};
use crate::simd::tiles::{BlockSums, DEPTH, HELD, HeldProducts, ROWS, SIDE, Step, TILE, Tiles};
use crate::simd::{Operation, Simd};
use half::bf16;
use std::ops::Range;

/// Queries of one task.
pub(super) const QUERIES: usize = 128;
/// Largest magnitude of the base-2 exponents of probabilities. bf16 has 126; the rest is reserved for probabilities
/// smaller than the largest, and for sums and their products with values.
const MAX_EXPONENT: f32 = 90.0;

/// Elements of a block.
const SQUARE: usize = SIDE * SIDE;
/// Blocks of a unit.
const PARTS: usize = BLOCK / SIDE;

/// Scratch memory of one task.
#[derive(Debug, Clone, Copy)]
struct TaskScratch {
    /// Blocks of scores, each for 32 keys of a unit.
    scores: *mut f32,
    /// Probabilities of two units, in pairs of tiles.
    probabilities: *mut u16,
    /// Initial score of each query, stored sixteen times.
    starts: *mut f32,
    /// Sixteen partial sums of probabilities for each query.
    weights: *mut f32,
    /// Accumulated values: for each 32 queries, blocks of 32 channels, each stored as four consecutive tiles.
    value_sums: *mut f32,
}

/// Bytes of a [`TaskScratch`].
pub(super) const SCRATCH_BYTES: usize =
    PARTS * SQUARE * (4 + 2 * 2) + 2 * QUERIES * GROUP * 4 + QUERIES * MAX_HEAD_WIDTH * 4;

impl TaskScratch {
    fn new(bytes: &mut [u8]) -> Self {
        let start = bytes.as_mut_ptr();
        assert!(
            bytes.len() == SCRATCH_BYTES && start.addr().is_multiple_of(DEPTH),
            "the scratch has the wrong size or alignment"
        );
        let probabilities = start.wrapping_add(PARTS * SQUARE * 4);
        let starts = probabilities.wrapping_add(2 * PARTS * SQUARE * 2);
        let weights = starts.wrapping_add(QUERIES * GROUP * 4);
        Self {
            scores: start.cast(),
            probabilities: probabilities.cast(),
            starts: starts.cast(),
            weights: weights.cast(),
            value_sums: weights.wrapping_add(QUERIES * GROUP * 4).cast(),
        }
    }

    fn scores(self, part: usize) -> *mut f32 {
        self.scores.wrapping_add(part * SQUARE)
    }

    /// Probabilities of the first 32 keys of a unit; the others follow.
    fn probabilities(self, buffer: usize) -> *mut u16 {
        self.probabilities.wrapping_add(buffer * PARTS * SQUARE)
    }

    fn starts(self, query: usize) -> *mut f32 {
        self.starts.wrapping_add(query * GROUP)
    }

    fn weights(self, query: usize) -> *mut f32 {
        self.weights.wrapping_add(query * GROUP)
    }

    /// Accumulated values of 32 queries and 32 channels.
    fn value_sums(self, queries: usize, channels: usize) -> *mut f32 {
        self.value_sums.wrapping_add((queries * (MAX_HEAD_WIDTH / SIDE) + channels) * SQUARE)
    }

    /// # Safety
    /// `start` is one of [`starts`](Self::starts) or [`weights`](Self::weights).
    unsafe fn fill(start: *mut f32, value: f32) {
        // SAFETY: both have sixteen numbers for each query.
        unsafe { start.cast::<[f32; GROUP]>().write([value; GROUP]) };
    }
}

/// One task: up to [`QUERIES`] queries of one head.
pub(super) struct QueryBlock<'a, 'b, 'c> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) prepared: &'a Prepared<'b>,
    pub(super) head: usize,
    /// The start is a multiple of 32.
    pub(super) queries: Range<usize>,
    /// [`SCRATCH_BYTES`] bytes.
    pub(super) scratch: &'c mut [u8],
    /// `[L,D]`.
    pub(super) to: SharedSlice<'c, bf16>,
}

/// Operands of one head.
#[derive(Clone, Copy)]
struct Operands {
    /// First byte of the first query of the task.
    queries: *const u8,
    keys: *const u8,
    values: *const u8,
    /// Bytes of a query, key or value.
    row: usize,
    /// Number of keys.
    count: usize,
    /// Number of keys, padded to a multiple of 32.
    padded_keys: usize,
    /// Mask of the valid keys among the last 32, in the order of the probabilities.
    last: u32,
}

/// 32 queries and a block of keys.
#[derive(Clone, Copy)]
struct Unit {
    queries: usize,
    block: usize,
    /// Index of the probability buffer, 0 or 1.
    buffer: usize,
    /// Number of parts of 32 keys.
    parts: usize,
}

impl Operation for QueryBlock<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(mut tiles) = s.tiles() else {
            unreachable!("tile tasks run only on instruction sets with tiles")
        };
        let layout = self.prepared.layout;
        let query_blocks = self.queries.len().div_ceil(SIDE);
        let operands = self.operands::<S>(query_blocks);
        let scratch = TaskScratch::new(self.scratch);
        self.starts(s, &mut tiles, operands, scratch);
        let powers = <S::Tiles as Tiles>::Powers::new();
        let blocks = layout.blocks();
        let unit = |index: usize| {
            let (block, queries) = (index / query_blocks, index % query_blocks);
            (block < blocks).then(|| {
                let parts = layout.keys_of(block) / SIDE;
                Unit { queries, block, buffer: index % 2, parts }
            })
        };
        let pairs = layout.row_bytes() / DEPTH;
        for stage in 0..=blocks * query_blocks {
            let (now, before) = (unit(stage), stage.checked_sub(1).and_then(unit));
            for pair in 0..pairs {
                // Vectors convert rows of scores while tiles accumulate the values of the previous unit.
                let mut rows = PowerRows::empty(powers);
                if let Some(now) = now {
                    let parts = Chunks { rows: now.parts, size: PARTS.div_ceil(pairs) };
                    if pair < parts.count() {
                        scores(&mut tiles, operands, scratch, now, parts.range(pair));
                        rows = PowerRows::new(operands, scratch, now, parts.range(pair), powers);
                    }
                }
                if let Some(before) = before {
                    accumulate_values(&mut tiles, operands, scratch, before, pair, &mut rows);
                }
                rows.finish();
            }
        }
        drop(tiles);
        self.write(s, scratch);
    }
}

impl QueryBlock<'_, '_, '_> {
    fn operands<S: Simd>(&self, query_blocks: usize) -> Operands {
        let Prepared { layout, queries, keys, values, .. } = self.prepared;
        let row = layout.row_bytes();
        let valid = layout.keys - (layout.padded_keys - SIDE);
        let last = (0..SIDE).filter(|position| <S::Tiles as Tiles>::Powers::key(*position) < valid);
        // SAFETY: all tasks of the preparation have returned; the buffers are only read from here on.
        unsafe {
            let first = self.head * layout.padded_rows + self.queries.start;
            let of_head = |from: &SharedSlice<'_, u8>| {
                from.view(self.head * layout.padded_keys * row, layout.padded_keys * row).as_ptr()
            };
            Operands {
                queries: queries.view(first * row, query_blocks * SIDE * row).as_ptr(),
                keys: of_head(keys),
                values: of_head(values),
                row,
                count: layout.keys,
                padded_keys: layout.padded_keys,
                last: last.fold(0, |mask, position| mask | 1 << position),
            }
        }
    }

    /// Computes the initial scores, such that the largest probability of each query is within the range of bf16.
    #[inline(always)]
    fn starts<S: Simd>(&self, s: S, tiles: &mut S::Tiles, operands: Operands, scratch: TaskScratch) {
        let Prepared { layout, query_lengths, key_lengths, .. } = self.prepared;
        // SAFETY: all tasks of the preparation have returned; the buffers are only read from here on.
        let (lengths, longest) = unsafe {
            let of_keys = layout.padded_keys / SIDE;
            let first = self.head * layout.padded_rows + self.queries.start;
            (
                query_lengths.view(first, self.queries.len().next_multiple_of(SIDE)),
                key_lengths.view(self.head * of_keys, of_keys),
            )
        };
        let longest = longest.iter().copied().fold(0.0, f32::max);
        for (index, lengths) in lengths.chunks_exact(SIDE).enumerate() {
            // As base-2 exponents.
            let bounds: [f32; SIDE] = std::array::from_fn(|row| lengths[row] * longest / STEPS_PER_EXPONENT);
            let mut offsets = [0.0; SIDE];
            if bounds.iter().any(|bound| *bound > MAX_EXPONENT) {
                offsets = offsets_of(s, tiles, operands, scratch, index, &bounds);
            }
            for (row, offset) in offsets.into_iter().enumerate() {
                let query = index * SIDE + row;
                // SAFETY: `query` is one of the `QUERIES` queries that the scratch has room for.
                unsafe {
                    TaskScratch::fill(
                        scratch.starts(query),
                        STEPS_PER_EXPONENT * (BF16_EXPONENT_BIAS - offset),
                    );
                    TaskScratch::fill(scratch.weights(query), 0.0);
                }
            }
        }
    }

    /// Divides the accumulated values by the sums of the probabilities and writes the result.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, scratch: TaskScratch) {
        let total = self.attention.heads.total();
        let width = self.prepared.layout.width;
        for (index, query) in self.queries.clone().enumerate() {
            // SAFETY: there are sixteen sums for each query.
            let weight = unsafe { scratch.weights(index).cast::<[f32; GROUP]>().read() }.iter().sum::<f32>();
            let inverse = s.splat(if weight > 0.0 { weight.recip() } else { 0.0 });
            // SAFETY: each query and head belongs to one task.
            let to = unsafe { self.to.part(query * total + self.head * width, width) };
            let (block, row) = (index / SIDE, index % SIDE);
            for (at, to) in (0..width).step_by(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                let tile = row / ROWS * 2 + at % SIDE / GROUP;
                let within = tile * TILE / 4 + row % ROWS * GROUP + at % GROUP;
                // SAFETY: the block has the row, and a whole vector from each multiple of the lanes.
                let value_sums = unsafe { s.load_at(scratch.value_sums(block, at / SIDE).add(within)) };
                s.store_bf16(s.mul(value_sums, inverse), to);
            }
        }
    }
}

/// Returns the score offsets of 32 queries whose bound is too large for offset zero. The offset is derived from the
/// bound if some score is close enough to it, and from the largest score otherwise.
#[inline(always)]
fn offsets_of<S: Simd>(
    s: S,
    tiles: &mut S::Tiles,
    operands: Operands,
    scratch: TaskScratch,
    queries: usize,
    bounds: &[f32; SIDE],
) -> [f32; SIDE] {
    let mut largest = [f32::NEG_INFINITY; SIDE];
    for query in queries * SIDE..(queries + 1) * SIDE {
        // SAFETY: `query` is a query of this task.
        unsafe { TaskScratch::fill(scratch.starts(query), 0.0) };
    }
    for part in 0..operands.padded_keys / SIDE {
        let unit = Unit { queries, block: part / PARTS, buffer: 0, parts: PARTS };
        scores(tiles, operands, scratch, unit, part % PARTS..part % PARTS + 1);
        let valid = SIDE.min(operands.count - part * SIDE);
        // SAFETY: the block of scores was just written.
        let scores = unsafe { scratch.scores(0).cast::<[[f32; SIDE]; SIDE]>().read() };
        for (largest, scores) in largest.iter_mut().zip(&scores) {
            let of_part = scores[..valid].chunks(S::LANES).map(|scores| {
                if scores.len() == S::LANES {
                    s.largest(s.load(scores))
                } else {
                    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                }
            });
            *largest = of_part.fold(*largest, |largest, score| largest.max(score / STEPS_PER_EXPONENT));
        }
        let is_near = |(bound, largest): (&f32, &f32)| bound - largest <= 2.0 * MAX_EXPONENT;
        if bounds.iter().zip(&largest).all(is_near) {
            break;
        }
    }
    std::array::from_fn(|row| {
        let (bound, largest) = (bounds[row], largest[row]);
        if bound <= MAX_EXPONENT {
            0.0
        } else if bound - largest <= 2.0 * MAX_EXPONENT {
            bound - MAX_EXPONENT
        } else {
            largest
        }
    })
}

/// Computes the scores of 32 queries and of some 32-key parts of a unit.
#[inline(always)]
fn scores<T: Tiles>(
    tiles: &mut T,
    operands: Operands,
    scratch: TaskScratch,
    unit: Unit,
    parts: Range<usize>,
) {
    let row = operands.row;
    let queries = operands.queries.wrapping_add(unit.queries * SIDE * row);
    let starts = scratch.starts(unit.queries * SIDE);
    let pitch = SIDE * size_of::<f32>();
    let columns = |part: usize| {
        let first = operands.keys.wrapping_add((unit.block * BLOCK + part * SIDE) * row);
        [first, first.wrapping_add(GROUP * row)]
    };
    // SAFETY: `Layout` pads queries and keys to whole blocks of 32, and `operands` checked that the buffers have them;
    // a row is whole steps, because `fits` checked that the width is a multiple of 32. `TaskScratch::new` checked the
    // size of the scratch: sixteen numbers for each query in `starts`, and 32 × 32 in a block of scores.
    unsafe {
        if row == HELD {
            for half in 0..2 {
                tiles.hold(queries.wrapping_add(half * ROWS * row), row);
                for (index, part) in parts.clone().enumerate() {
                    tiles.held_products(HeldProducts {
                        begin: starts.wrapping_add(half * ROWS * GROUP),
                        columns: columns(part),
                        to: scratch.scores(index).wrapping_add(half * ROWS * SIDE),
                        pitch,
                    });
                }
            }
            return;
        }
        for (index, part) in parts.enumerate() {
            tiles.load(BlockSums::of_rows(starts));
            for step in 0..row / DEPTH {
                tiles.step_bf16(Step {
                    rows: queries.wrapping_add(step * DEPTH),
                    stride: row,
                    columns: columns(part).map(|column| column.wrapping_add(step * TILE)),
                });
            }
            tiles.store(BlockSums::rows(scratch.scores(index).cast(), pitch));
        }
    }
}

/// Accumulates the values of 32 channels of a unit, weighted by their probabilities.
#[inline(always)]
fn accumulate_values<T: Tiles>(
    tiles: &mut T,
    operands: Operands,
    scratch: TaskScratch,
    unit: Unit,
    pair: usize,
    rows: &mut PowerRows<T::Powers>,
) {
    let Operands { row, values, .. } = operands;
    let probabilities = scratch.probabilities(unit.buffer).cast::<u8>();
    let values = values.wrapping_add(unit.block * BLOCK * row);
    // Bytes of the values of sixteen channels.
    let group = unit.parts * TILE;
    let sums = BlockSums::contiguous(scratch.value_sums(unit.queries, pair).cast());
    let columns = [2 * pair, 2 * pair + 1].map(|index| values.wrapping_add(index * group));
    let each = SIDE.div_ceil(unit.parts);
    // SAFETY: `TaskScratch::new` checked the size of the scratch: the probabilities are pairs of tiles for each 32 keys,
    // and `sums` is a block of sums. `operands` checked that the values of 32 channels are pairs of tiles likewise.
    unsafe {
        if unit.block == 0 {
            tiles.zero()
        } else {
            tiles.load(sums)
        }
        for part in 0..unit.parts {
            tiles.step_bf16(Step {
                rows: probabilities.wrapping_add(part * 2 * TILE),
                stride: DEPTH,
                columns: columns.map(|column| column.wrapping_add(part * TILE)),
            });
            (0..each).for_each(|_| rows.next());
        }
        tiles.store(sums);
    }
}

/// Rows of scores that are converted to probabilities between tile steps.
struct PowerRows<P> {
    powers: P,
    scores: *const f32,
    to: *mut u16,
    weights: *mut f32,
    parts: usize,
    last: u32,
    row: usize,
    count: usize,
}

impl<P: Powers> PowerRows<P> {
    #[inline(always)]
    fn empty(powers: P) -> Self {
        let (scores, to, weights) = (std::ptr::null(), std::ptr::null_mut(), std::ptr::null_mut());
        Self { powers, scores, to, weights, parts: 0, last: 0, row: 0, count: 0 }
    }

    /// Creates the rows of some parts of a unit, whose scores were just computed.
    #[inline(always)]
    fn new(operands: Operands, scratch: TaskScratch, unit: Unit, parts: Range<usize>, powers: P) -> Self {
        let is_last = unit.block * BLOCK + parts.end * SIDE == operands.padded_keys;
        Self {
            powers,
            scores: scratch.scores(0),
            to: scratch.probabilities(unit.buffer).wrapping_add(parts.start * SQUARE),
            weights: scratch.weights(unit.queries * SIDE),
            parts: parts.len(),
            last: if is_last { operands.last } else { u32::MAX },
            row: 0,
            count: SIDE,
        }
    }

    #[inline(always)]
    fn finish(&mut self) {
        while self.row < self.count {
            self.next();
        }
    }

    #[inline(always)]
    fn next(&mut self) {
        if self.row < self.count {
            let (scores, to) =
                (self.scores.wrapping_add(self.row * SIDE), self.to.wrapping_add(self.row * SIDE));
            let weights = self.weights.wrapping_add(self.row * GROUP);
            // SAFETY: the buffers have this row in each of the parts, and `weights` has sixteen sums for it.
            unsafe { self.powers.row(scores, to, self.parts, self.last, weights) };
            self.row += 1;
        }
    }
}
