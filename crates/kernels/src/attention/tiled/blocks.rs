//! Some queries of one head against all keys.
//!
//! The work is parted into units of 32 queries and [`BLOCK`] keys, and two of them are under way at once: some scores of
//! one are made, and become probabilities on vectors while tiles mix some values of the one before. Vectors and tiles do
//! not get into each other's way, and what waits between them stays in the first cache.
#![expect(unsafe_code, reason = "tiles are read and written through bare pointers into fixed arrays")]

use super::prepare::Prepared;
use super::{Attention, BLOCK, WIDEST_HEAD};
use crate::packing::GROUP;
use crate::shared::{Chunks, Shared};
use crate::simd::tiles::powers::{LOG2_ONE, Powers, STEPS_OF_LOG2};
use crate::simd::tiles::{BlockSums, DEPTH, HELD, HeldProducts, ROWS, SIDE, Step, TILE, Tiles};
use crate::simd::{Operation, Simd};
use half::bf16;
use std::ops::Range;

/// Queries of one task.
pub(super) const QUERIES: usize = 128;
/// Powers of two above and below one that probabilities may have: bf16 has 126, of which some are for smaller
/// probabilities beside the largest, or for sums of many and their products with values.
const ROOM: f32 = 90.0;

/// Numbers of a block.
const SQUARE: usize = SIDE * SIDE;
/// Blocks of a unit.
const PARTS: usize = BLOCK / SIDE;

/// Memory of one task at a time.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Blocks of scores, for some 32 keys of a unit.
    scores: *mut f32,
    /// Probabilities of two units, in pairs of tiles.
    probabilities: *mut u16,
    /// What the scores of a query start from, sixteen times.
    starts: *mut f32,
    /// Sums of the probabilities of a query, sixteen.
    weights: *mut f32,
    /// For each 32 queries, images of blocks of 32 channels of mixed values.
    mixed: *mut f32,
}

/// Bytes of a [`Work`].
pub(super) const WORK: usize =
    PARTS * SQUARE * (4 + 2 * 2) + 2 * QUERIES * GROUP * 4 + QUERIES * WIDEST_HEAD * 4;

impl Work {
    fn new(bytes: &mut [u8]) -> Self {
        let start = bytes.as_mut_ptr();
        assert!(bytes.len() == WORK && start.addr().is_multiple_of(DEPTH), "memory that is no work");
        let probabilities = start.wrapping_add(PARTS * SQUARE * 4);
        let starts = probabilities.wrapping_add(2 * PARTS * SQUARE * 2);
        let weights = starts.wrapping_add(QUERIES * GROUP * 4);
        Self {
            scores: start.cast(),
            probabilities: probabilities.cast(),
            starts: starts.cast(),
            weights: weights.cast(),
            mixed: weights.wrapping_add(QUERIES * GROUP * 4).cast(),
        }
    }

    fn scores(self, part: usize) -> *mut f32 {
        self.scores.wrapping_add(part * SQUARE)
    }

    /// Probabilities of the first 32 keys of a unit; those of the others follow.
    fn probabilities(self, buffer: usize) -> *mut u16 {
        self.probabilities.wrapping_add(buffer * PARTS * SQUARE)
    }

    fn starts(self, query: usize) -> *mut f32 {
        self.starts.wrapping_add(query * GROUP)
    }

    fn weights(self, query: usize) -> *mut f32 {
        self.weights.wrapping_add(query * GROUP)
    }

    /// Mixed values of 32 queries and 32 channels.
    fn mixed(self, queries: usize, channels: usize) -> *mut f32 {
        self.mixed.wrapping_add((queries * (WIDEST_HEAD / SIDE) + channels) * SQUARE)
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
    /// From a whole block on.
    pub(super) queries: Range<usize>,
    /// [`WORK`] bytes.
    pub(super) work: &'c mut [u8],
    /// `[L,D]`.
    pub(super) to: Shared<'c, bf16>,
}

/// What one head reads.
#[derive(Clone, Copy)]
struct Operands {
    /// First byte of the first query of the task.
    queries: *const u8,
    keys: *const u8,
    values: *const u8,
    /// Bytes of a query, key or value.
    row: usize,
    /// Keys.
    count: usize,
    /// Keys with those that fill the last 32.
    padded_keys: usize,
    /// Which of the last 32 keys are there, in the order of the probabilities.
    last: u32,
}

/// 32 queries and a block of keys.
#[derive(Clone, Copy)]
struct Unit {
    queries: usize,
    block: usize,
    /// Which of the two buffers of probabilities.
    buffer: usize,
    /// Parts of 32 keys.
    parts: usize,
}

impl Operation for QueryBlock<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Some(mut tiles) = s.tiles() else { unreachable!("only sets with tiles are given such tasks") };
        let layout = self.prepared.layout;
        let query_blocks = self.queries.len().div_ceil(SIDE);
        let operands = self.operands::<S>(query_blocks);
        let work = Work::new(self.work);
        self.starts(s, &mut tiles, operands, work);
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
        for turn in 0..=blocks * query_blocks {
            let (now, before) = (unit(turn), turn.checked_sub(1).and_then(unit));
            for pair in 0..pairs {
                // Rows of some keys pass through vectors while the values of the unit before are mixed.
                let mut rows = PowerRows::none(powers);
                if let Some(now) = now {
                    let parts = Chunks { rows: now.parts, size: PARTS.div_ceil(pairs) };
                    if pair < parts.count() {
                        scores(&mut tiles, operands, work, now, parts.range(pair));
                        rows = PowerRows::new(operands, work, now, parts.range(pair), powers);
                    }
                }
                if let Some(before) = before {
                    mix(&mut tiles, operands, work, before, pair, &mut rows);
                }
                rows.rest();
            }
        }
        drop(tiles);
        self.write(s, work);
    }
}

impl QueryBlock<'_, '_, '_> {
    fn operands<S: Simd>(&self, query_blocks: usize) -> Operands {
        let Prepared { layout, queries, keys, values, .. } = self.prepared;
        let row = layout.row_bytes();
        let there = layout.keys - (layout.padded_keys - SIDE);
        let last = (0..SIDE).filter(|position| <S::Tiles as Tiles>::Powers::key(*position) < there);
        // SAFETY: all preparing is done, and nobody writes any more.
        unsafe {
            let first = self.head * layout.padded_rows + self.queries.start;
            let of_head = |from: &Shared<'_, u8>| {
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

    /// What the scores start from: such that the largest probability of each query is neither too large nor too small.
    #[inline(always)]
    fn starts<S: Simd>(&self, s: S, tiles: &mut S::Tiles, operands: Operands, work: Work) {
        let Prepared { layout, query_lengths, key_lengths, .. } = self.prepared;
        // SAFETY: all preparing is done, and nobody writes any more.
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
            // In powers of two.
            let bounds: [f32; SIDE] = std::array::from_fn(|row| lengths[row] * longest / STEPS_OF_LOG2);
            let mut offsets = [0.0; SIDE];
            if bounds.iter().any(|bound| *bound > ROOM) {
                offsets = offsets_of(s, tiles, operands, work, index, &bounds);
            }
            for (row, offset) in offsets.into_iter().enumerate() {
                let query = index * SIDE + row;
                // SAFETY: the task has this query.
                unsafe {
                    Work::fill(work.starts(query), STEPS_OF_LOG2 * (LOG2_ONE - offset));
                    Work::fill(work.weights(query), 0.0);
                }
            }
        }
    }

    /// Sums of values over sums of probabilities.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, work: Work) {
        let total = self.attention.heads.total();
        let width = self.prepared.layout.width;
        for (index, query) in self.queries.clone().enumerate() {
            // SAFETY: there are sixteen sums for each query.
            let weight = unsafe { work.weights(index).cast::<[f32; GROUP]>().read() }.iter().sum::<f32>();
            let inverse = s.splat(if weight > 0.0 { weight.recip() } else { 0.0 });
            // SAFETY: each query and head is in one task.
            let to = unsafe { self.to.part(query * total + self.head * width, width) };
            let (block, row) = (index / SIDE, index % SIDE);
            for (at, to) in (0..width).step_by(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
                let tile = row / ROWS * 2 + at % SIDE / GROUP;
                let within = tile * TILE / 4 + row % ROWS * GROUP + at % GROUP;
                // SAFETY: an image has the row, and a whole vector from each multiple of the lanes.
                let mixed = unsafe { s.load_at(work.mixed(block, at / SIDE).add(within)) };
                s.store_bf16(s.mul(mixed, inverse), to);
            }
        }
    }
}

/// Offsets of the scores of 32 queries whose bound is too large to do without: from the bound where a score that was met
/// is near enough to it, and else from the largest of all scores.
#[inline(always)]
fn offsets_of<S: Simd>(
    s: S,
    tiles: &mut S::Tiles,
    operands: Operands,
    work: Work,
    queries: usize,
    bounds: &[f32; SIDE],
) -> [f32; SIDE] {
    let mut largest = [f32::NEG_INFINITY; SIDE];
    for query in queries * SIDE..(queries + 1) * SIDE {
        // SAFETY: the task has this query.
        unsafe { Work::fill(work.starts(query), 0.0) };
    }
    for part in 0..operands.padded_keys / SIDE {
        let unit = Unit { queries, block: part / PARTS, buffer: 0, parts: PARTS };
        scores(tiles, operands, work, unit, part % PARTS..part % PARTS + 1);
        let there = SIDE.min(operands.count - part * SIDE);
        // SAFETY: a block of scores that was just made.
        let scores = unsafe { work.scores(0).cast::<[[f32; SIDE]; SIDE]>().read() };
        for (largest, scores) in largest.iter_mut().zip(&scores) {
            let of_part = scores[..there].chunks(S::LANES).map(|scores| {
                if scores.len() == S::LANES {
                    s.largest(s.load(scores))
                } else {
                    scores.iter().copied().fold(f32::NEG_INFINITY, f32::max)
                }
            });
            *largest = of_part.fold(*largest, |largest, score| largest.max(score / STEPS_OF_LOG2));
        }
        let is_near = |(bound, largest): (&f32, &f32)| bound - largest <= 2.0 * ROOM;
        if bounds.iter().zip(&largest).all(is_near) {
            break;
        }
    }
    std::array::from_fn(|row| {
        let (bound, largest) = (bounds[row], largest[row]);
        if bound <= ROOM {
            0.0
        } else if bound - largest <= 2.0 * ROOM {
            bound - ROOM
        } else {
            largest
        }
    })
}

/// Scores of 32 queries and of some parts of 32 keys of a unit.
#[inline(always)]
fn scores<T: Tiles>(tiles: &mut T, operands: Operands, work: Work, unit: Unit, parts: Range<usize>) {
    let row = operands.row;
    let queries = operands.queries.wrapping_add(unit.queries * SIDE * row);
    let starts = work.starts(unit.queries * SIDE);
    let pitch = SIDE * size_of::<f32>();
    let columns = |part: usize| {
        let first = operands.keys.wrapping_add((unit.block * BLOCK + part * SIDE) * row);
        [first, first.wrapping_add(GROUP * row)]
    };
    // SAFETY: queries and keys are padded to whole blocks, `starts` has sixteen numbers for each query, and a block of
    // scores is 32 × 32.
    unsafe {
        if row == HELD {
            for half in 0..2 {
                tiles.hold(queries.wrapping_add(half * ROWS * row), row);
                for (index, part) in parts.clone().enumerate() {
                    tiles.held_products(HeldProducts {
                        begin: starts.wrapping_add(half * ROWS * GROUP),
                        columns: columns(part),
                        to: work.scores(index).wrapping_add(half * ROWS * SIDE),
                        pitch,
                    });
                }
            }
            return;
        }
        for (index, part) in parts.enumerate() {
            tiles.load(BlockSums::of_rows(starts));
            for step in 0..row / DEPTH {
                tiles.step_halves(Step {
                    rows: queries.wrapping_add(step * DEPTH),
                    stride: row,
                    columns: columns(part).map(|column| column.wrapping_add(step * TILE)),
                });
            }
            tiles.store(BlockSums::rows(work.scores(index).cast(), pitch));
        }
    }
}

/// Adds the values of 32 channels of a unit, each times its probability.
#[inline(always)]
fn mix<T: Tiles>(
    tiles: &mut T,
    operands: Operands,
    work: Work,
    unit: Unit,
    pair: usize,
    rows: &mut PowerRows<T::Powers>,
) {
    let Operands { row, values, .. } = operands;
    let probabilities = work.probabilities(unit.buffer).cast::<u8>();
    let values = values.wrapping_add(unit.block * BLOCK * row);
    // Bytes of the values of sixteen channels.
    let group = unit.parts * TILE;
    let image = BlockSums::images(work.mixed(unit.queries, pair).cast());
    let columns = [2 * pair, 2 * pair + 1].map(|index| values.wrapping_add(index * group));
    let each = SIDE.div_ceil(unit.parts);
    // SAFETY: probabilities are pairs of tiles for each 32 keys, and so are the values of 32 channels; an image is a block
    // of sums.
    unsafe {
        if unit.block == 0 {
            tiles.zero()
        } else {
            tiles.load(image)
        }
        for part in 0..unit.parts {
            tiles.step_halves(Step {
                rows: probabilities.wrapping_add(part * 2 * TILE),
                stride: DEPTH,
                columns: columns.map(|column| column.wrapping_add(part * TILE)),
            });
            (0..each).for_each(|_| rows.one());
        }
        tiles.store(image);
    }
}

/// The rows of scores that become probabilities beside the tiles.
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
    fn none(powers: P) -> Self {
        let (scores, to, weights) = (std::ptr::null(), std::ptr::null_mut(), std::ptr::null_mut());
        Self { powers, scores, to, weights, parts: 0, last: 0, row: 0, count: 0 }
    }

    /// Those of some parts of a unit, whose scores were just made.
    #[inline(always)]
    fn new(operands: Operands, work: Work, unit: Unit, parts: Range<usize>, powers: P) -> Self {
        let is_last = unit.block * BLOCK + parts.end * SIDE == operands.padded_keys;
        Self {
            powers,
            scores: work.scores(0),
            to: work.probabilities(unit.buffer).wrapping_add(parts.start * SQUARE),
            weights: work.weights(unit.queries * SIDE),
            parts: parts.len(),
            last: if is_last { operands.last } else { u32::MAX },
            row: 0,
            count: SIDE,
        }
    }

    #[inline(always)]
    fn rest(&mut self) {
        while self.row < self.count {
            self.one();
        }
    }

    #[inline(always)]
    fn one(&mut self) {
        if self.row < self.count {
            let (scores, to) =
                (self.scores.wrapping_add(self.row * SIDE), self.to.wrapping_add(self.row * SIDE));
            let weights = self.weights.wrapping_add(self.row * GROUP);
            // SAFETY: the buffers have this row in each of the parts, and the weights sixteen sums for it.
            unsafe { self.powers.row(scores, to, self.parts, self.last, weights) };
            self.row += 1;
        }
    }
}
