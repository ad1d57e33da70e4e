//! Tile blocks: 32 × 32 sums that accumulate 64 bytes of K per step.
//!
//! A processor with AMX has eight tiles of sixteen rows of 64 bytes. Four hold the sums of a block, two the rows and
//! two the columns of a step. Packed weights ([`crate::packing`]) are loaded as columns without conversion: the
//! sixteen rows of a tile are sixteen steps of four bytes of one group.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through raw pointers; the drivers check the bounds"
)]

pub(crate) mod emulated;
#[cfg(target_arch = "x86_64")]
pub(crate) mod hardware;
pub(crate) mod permission;
pub(crate) mod powers;

use powers::{Powers, ScalarPowers};

/// Rows, and columns, of a block of sums.
pub(crate) const SIDE: usize = 32;
/// Rows of a tile.
pub(crate) const ROWS: usize = SIDE / 2;
/// Bytes of a tile row: the part of K that one step reads from each row and column.
pub(crate) const DEPTH: usize = 64;
/// INT8 multiply-adds of one step; bf16 has half as many.
pub(crate) const PRODUCTS: usize = SIDE * SIDE * DEPTH;
/// Bytes of a tile.
pub(crate) const TILE: usize = ROWS * DEPTH;

/// The memory from which the sums of a block are loaded, or to which they are stored: 32-bit integers or floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSums {
    pub(crate) start: *mut i32,
    /// Bytes from one row to the next.
    pub(crate) pitch: usize,
    /// Bytes to the tile on the right.
    pub(crate) right: usize,
    /// Bytes to the tile below.
    pub(crate) below: usize,
}

impl BlockSums {
    /// Sums in a row-major matrix with rows `pitch` bytes apart.
    #[inline(always)]
    pub(crate) fn rows(start: *mut i32, pitch: usize) -> Self {
        Self { start, pitch, right: DEPTH, below: ROWS * pitch }
    }

    /// Sums in four consecutive tiles.
    #[inline(always)]
    pub(crate) fn contiguous(start: *mut i32) -> Self {
        Self { start, pitch: DEPTH, right: TILE, below: 2 * TILE }
    }

    /// Initial values that are the same 32 numbers in each row. Load only.
    #[inline(always)]
    pub(crate) fn of_columns(start: *const i32) -> Self {
        Self { start: start.cast_mut(), pitch: 0, right: DEPTH, below: 0 }
    }

    /// Initial values of one number per row, stored sixteen times. Load only.
    #[inline(always)]
    pub(crate) fn of_rows(start: *const f32) -> Self {
        Self { start: start.cast_mut().cast(), pitch: DEPTH, right: 0, below: TILE }
    }
}

/// The operands of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// The first 64 bytes of the first of 32 rows.
    pub(crate) rows: *const u8,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Tiles of two groups of sixteen columns. Each tile row has four (INT8) or two (bf16) values of K for each
    /// column.
    pub(crate) columns: [*const u8; 2],
}

/// Bytes of a row that the tiles hold across products: four steps.
pub(crate) const HELD: usize = 4 * DEPTH;

/// Operands of [`Tiles::held_products`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldProducts {
    /// Initial sum of each row, stored sixteen times.
    pub(crate) begin: *const f32,
    /// Four tiles of each of two groups of sixteen columns.
    pub(crate) columns: [*const u8; 2],
    pub(crate) to: *mut f32,
    /// Bytes from one row of sums to the next.
    pub(crate) pitch: usize,
}

/// The tiles of this thread, configured until the value is dropped.
///
/// # Safety
/// For all functions: the memory of the operands is readable, and writable if it is a result.
pub(crate) trait Tiles: Sized {
    /// Computes probabilities from scores on vectors, interleaved with the tile steps.
    type Powers: Powers;

    /// Sets the sums to zero.
    unsafe fn zero(&mut self);
    /// Loads the sums.
    unsafe fn load(&mut self, from: BlockSums);
    /// Writes the sums.
    unsafe fn store(&mut self, to: BlockSums);
    /// Adds products of unsigned row bytes and signed column bytes; exact.
    unsafe fn step_int8(&mut self, step: Step);
    /// Adds products of bf16. Inputs and results below 2^-126 are flushed to zero.
    unsafe fn step_bf16(&mut self, step: Step);
    /// Loads [`HELD`] bytes of sixteen rows, which are kept until the next step. Invalidates the sums.
    unsafe fn hold(&mut self, rows: *const u8, stride: usize);
    /// Computes bf16 products of the held rows with 32 columns and stores the sums as sixteen rows of 32.
    unsafe fn held_products(&mut self, products: HeldProducts);
    /// Runs `rounds` steps of INT8 or bf16 products with fixed operands, to measure peak throughput.
    fn products(&mut self, rounds: usize, is_bf16: bool) {
        let zeros = [0; TILE];
        let step = Step { rows: zeros.as_ptr(), stride: 0, columns: [zeros.as_ptr(); 2] };
        for _ in 0..rounds {
            // SAFETY: each operand is a whole tile.
            unsafe { if is_bf16 { self.step_bf16(step) } else { self.step_int8(step) } }
        }
    }
}

/// The tiles of an instruction set without tiles: an uninhabited type, so that tile drivers compile to nothing.
#[derive(Debug)]
pub(crate) enum NoTiles {}

impl Tiles for NoTiles {
    type Powers = ScalarPowers;

    unsafe fn zero(&mut self) {
        match *self {}
    }

    unsafe fn load(&mut self, _: BlockSums) {
        match *self {}
    }

    unsafe fn store(&mut self, _: BlockSums) {
        match *self {}
    }

    unsafe fn step_int8(&mut self, _: Step) {
        match *self {}
    }

    unsafe fn step_bf16(&mut self, _: Step) {
        match *self {}
    }

    unsafe fn hold(&mut self, _: *const u8, _: usize) {
        match *self {}
    }

    unsafe fn held_products(&mut self, _: HeldProducts) {
        match *self {}
    }
}

#[cfg(test)]
mod tests;
