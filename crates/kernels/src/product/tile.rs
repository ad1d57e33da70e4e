//! The innermost loop of every product and convolution: a few rows times a few vectors of columns, with all sums in
//! registers.
//!
//! A row is one or more runs of bytes at arbitrary addresses: one for a linear layer, one for each tap and kernel row
//! for a convolution.
#![expect(
    unsafe_code,
    reason = "the innermost loop reads through raw pointers; the drivers check the bounds"
)]

use crate::packing::{GROUP, STEP};
use crate::simd::tiles::{SIDE, Step, TILE, Tiles};
use crate::simd::{Operation, Simd, unrolled};
use std::marker::PhantomData;

/// Columns of a panel of weights.
pub(crate) const PANEL: usize = 4 * GROUP;
/// Rows of the largest register tile.
pub(crate) const MAX_TILE_ROWS: usize = 6;

/// Sums of one register tile, as the bits of i32 or f32.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [[i32; PANEL]; MAX_TILE_ROWS]);

impl Sums {
    pub(crate) fn new() -> Self {
        Self([[0; PANEL]; MAX_TILE_ROWS])
    }

    pub(crate) fn rows(&mut self) -> SumRows {
        SumRows { start: self.0.as_mut_ptr().cast(), pitch: PANEL }
    }
}

/// Sums of 32 rows of a panel, written by tile blocks.
#[repr(C, align(64))]
pub(crate) struct PanelSums(pub(crate) [[i32; PANEL]; SIDE]);

impl PanelSums {
    pub(crate) fn new() -> Self {
        Self([[0; PANEL]; SIDE])
    }
}

/// A copied weight tile, padded with zeros.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct WeightTile(pub(crate) [u8; TILE]);

/// Casts the sums of a row to floats.
#[inline(always)]
pub(crate) fn floats(row: &[i32; PANEL]) -> &[f32; PANEL] {
    // SAFETY: both have the same number of 32-bit elements, and every bit pattern is a valid float.
    unsafe { &*(&raw const *row).cast() }
}

/// The dot product of one step: four bytes of activations and four bytes of weights per lane.
pub(crate) trait Dot: Copy + Send + Sync {
    type Sum<S: Simd>: Copy;

    /// Adds the products of 64 bytes of 32 rows and 32 columns to the sums in the tiles.
    ///
    /// # Safety
    /// Same as [`Tiles::step_int8`].
    unsafe fn step_tiles<T: Tiles>(tiles: &mut T, step: Step);
    fn zero<S: Simd>(s: S) -> Self::Sum<S>;
    fn step<S: Simd>(s: S, sum: Self::Sum<S>, a: S::I, w: S::I) -> Self::Sum<S>;
    /// # Safety
    /// `LANES` times 32 bits can be read at `from`.
    unsafe fn load<S: Simd>(s: S, from: *const i32) -> Self::Sum<S>;
    /// # Safety
    /// `LANES` times 32 bits can be written at `to`.
    unsafe fn store<S: Simd>(s: S, sum: Self::Sum<S>, to: *mut i32);
}

/// u8 times s8 to i32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Dot;

impl Dot for Int8Dot {
    type Sum<S: Simd> = S::I;

    #[inline(always)]
    unsafe fn step_tiles<T: Tiles>(tiles: &mut T, step: Step) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { tiles.step_int8(step) }
    }

    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::I {
        s.splat_i32(0)
    }

    #[inline(always)]
    fn step<S: Simd>(s: S, sum: S::I, a: S::I, w: S::I) -> S::I {
        s.dot_u8(sum, a, w)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const i32) -> S::I {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { s.load_bytes_at(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, sum: S::I, to: *mut i32) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { s.store_i32_at(sum, to) }
    }
}

/// bf16 times bf16 to f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16Dot;

impl Dot for Bf16Dot {
    type Sum<S: Simd> = S::F;

    #[inline(always)]
    unsafe fn step_tiles<T: Tiles>(tiles: &mut T, step: Step) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { tiles.step_bf16(step) }
    }

    #[inline(always)]
    fn zero<S: Simd>(s: S) -> S::F {
        s.splat(0.0)
    }

    #[inline(always)]
    fn step<S: Simd>(s: S, sum: S::F, a: S::I, w: S::I) -> S::F {
        s.dot_bf16(sum, a, w)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const i32) -> S::F {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { s.load_at(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, sum: S::F, to: *mut i32) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { s.store_at(sum, to.cast()) }
    }
}

/// Output cache lines that the tile writes when it is complete. They are prefetched during the product, a few at a
/// time, so that they arrive in time without delaying the stream of weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputLines {
    pub(crate) start: *const u8,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Bytes of a row.
    pub(crate) width: usize,
}

impl OutputLines {
    /// No lines to prefetch.
    pub(crate) const NONE: Self = Self { start: std::ptr::null(), stride: 0, width: 0 };

    pub(crate) const LINE: usize = 64;
    /// Steps between two pairs of prefetches.
    pub(crate) const INTERVAL: usize = 16;
}

/// Destination of the sums of a tile: rows of 32-bit integers or floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SumRows {
    pub(crate) start: *mut i32,
    /// Elements from one row to the next.
    pub(crate) pitch: usize,
}

/// Operands of [`multiply`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileInput<'a> {
    /// First byte of each run of the first row of activations.
    pub(crate) runs: &'a [*const u8],
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// First byte of the weights of the first run of the first group; the weights of the next run follow.
    pub(crate) weights: *const u8,
    /// Bytes from one group of sixteen columns to the next.
    pub(crate) group: usize,
    /// Steps of four bytes of each run.
    pub(crate) steps: usize,
    /// Initial sums of the columns; null for zero.
    pub(crate) begin: *const i32,
    pub(crate) lines: OutputLines,
}

struct Tile<'a, D, const R: usize, const C: usize> {
    input: TileInput<'a>,
    /// Bytes from the first row of the input to the first row of the tile.
    offset: usize,
    to: SumRows,
    dot: PhantomData<D>,
}

impl<D: Dot, const R: usize, const C: usize> Operation for Tile<'_, D, R, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TileInput { runs, stride, mut weights, group, steps, begin, lines } = self.input;
        let mut sums = [[D::zero(s); C]; R];
        if !begin.is_null() {
            unrolled!(c < C, {
                // SAFETY: the caller of `multiply` guarantees an initial sum for each column.
                let first = unsafe { D::load(s, begin.add(c * S::LANES)) };
                unrolled!(r < R, {
                    sums[r][c] = first;
                });
            });
        }
        let (mut row, mut line) = (0, 0);
        for start in runs {
            let mut x = start.wrapping_add(self.offset);
            // A macro, because a closure may be compiled separately, without the instructions of `S`.
            macro_rules! step {
                () => {
                    // SAFETY: the caller of `multiply` guarantees `steps` steps of each run, row and group.
                    unsafe {
                        let mut w = [s.splat_i32(0); C];
                        unrolled!(c < C, {
                            let (of_group, in_group) = (c * S::LANES / GROUP, c * S::LANES % GROUP);
                            w[c] = s.load_bytes_at(weights.add(of_group * group + in_group * STEP));
                        });
                        unrolled!(r < R, {
                            let a = s.broadcast_bytes_at(x.add(r * stride));
                            unrolled!(c < C, {
                                sums[r][c] = D::step(s, sums[r][c], a, w[c]);
                            });
                        });
                        x = x.add(STEP);
                        weights = weights.add(GROUP * STEP);
                    }
                };
            }
            for _ in 0..steps / OutputLines::INTERVAL {
                for _ in 0..OutputLines::INTERVAL {
                    step!();
                }
                for _ in 0..2 {
                    if row < R && lines.width > 0 {
                        s.prefetch_to_write(lines.start.wrapping_add(row * lines.stride + line));
                        line += OutputLines::LINE;
                        if line >= lines.width {
                            (row, line) = (row + 1, 0);
                        }
                    }
                }
            }
            for _ in 0..steps % OutputLines::INTERVAL {
                step!();
            }
        }
        unrolled!(r < R, {
            unrolled!(c < C, {
                // SAFETY: the caller of `multiply` guarantees room for each row and column.
                unsafe { D::store(s, sums[r][c], self.to.start.add(r * self.to.pitch + c * S::LANES)) };
            });
        });
    }
}

/// Multiplies `rows` (at most [`MAX_TILE_ROWS`]) rows of activations and `groups` groups of columns.
///
/// # Safety
/// `steps` steps are readable from each run for each of `rows` rows, and the same number of weight steps for each run
/// and each of `groups` groups. `begin` is null or has an integer for each column. `to` has room for `rows` rows of
/// all columns.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, D: Dot>(
    s: S,
    input: TileInput<'_>,
    rows: usize,
    groups: usize,
    to: SumRows,
) {
    if rows == S::ROWS {
        if S::ROWS == MAX_TILE_ROWS {
            tiles::<S, D, MAX_TILE_ROWS>(s, input, 0, groups, to);
        } else {
            tiles::<S, D, 4>(s, input, 0, groups, to);
        }
        return;
    }
    for row in 0..rows {
        let lines =
            OutputLines { start: input.lines.start.wrapping_add(row * input.lines.stride), ..input.lines };
        let to = SumRows { start: to.start.wrapping_add(row * to.pitch), ..to };
        tiles::<S, D, 1>(s, TileInput { lines, ..input }, row * input.stride, groups, to);
    }
}

/// Computes all columns of one tile of rows, which begins `offset` bytes after the rows of the input.
#[inline(always)]
fn tiles<S: Simd, D: Dot, const R: usize>(
    s: S,
    input: TileInput<'_>,
    offset: usize,
    groups: usize,
    to: SumRows,
) {
    let columns = groups * GROUP;
    let mut column = 0;
    while column < columns {
        let begin = if input.begin.is_null() { input.begin } else { input.begin.wrapping_add(column) };
        let input = TileInput {
            weights: input.weights.wrapping_add(column / GROUP * input.group),
            lines: OutputLines { width: if column == 0 { input.lines.width } else { 0 }, ..input.lines },
            begin,
            ..input
        };
        let to = SumRows { start: to.start.wrapping_add(column), ..to };
        let left = columns - column;
        if S::COLUMNS == 4 && left >= 4 * S::LANES {
            s.vectorize(Tile::<D, R, 4> { input, offset, to, dot: PhantomData });
            column += 4 * S::LANES;
        } else if left >= 2 * S::LANES {
            s.vectorize(Tile::<D, R, 2> { input, offset, to, dot: PhantomData });
            column += 2 * S::LANES;
        } else {
            s.vectorize(Tile::<D, R, 1> { input, offset, to, dot: PhantomData });
            column += S::LANES;
        }
    }
}
