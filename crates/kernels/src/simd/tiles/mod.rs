//! Tiles: blocks of 32 × 32 sums that grow by 64 bytes of K in each step.
//!
//! A processor with AMX has eight tiles of sixteen rows of 64 bytes. Four of them hold the sums of a block here, two the
//! rows and two the columns of a step. Packed weights ([`crate::packing`]) are the columns as they are: sixteen rows of
//! a tile are sixteen steps of four bytes of one group.
#![expect(
    unsafe_code,
    reason = "tiles are read and written through bare pointers, whose bounds the drivers keep"
)]

pub(crate) mod emulated;
#[cfg(target_arch = "x86_64")]
pub(crate) mod hardware;
pub(crate) mod permission;
pub(crate) mod powers;

use powers::{PlainPowers, Powers};

/// Rows, and columns, of a block of sums.
pub(crate) const SIDE: usize = 32;
/// Rows of a tile.
pub(crate) const ROWS: usize = SIDE / 2;
/// Bytes of a row of a tile: what one step takes of each row and column.
pub(crate) const DEPTH: usize = 64;
/// Multiply-adds of bytes in one step; of bf16 there are half as many.
pub(crate) const PRODUCTS: usize = SIDE * SIDE * DEPTH;
/// Bytes of a tile.
pub(crate) const TILE: usize = ROWS * DEPTH;

/// Where the sums of a block are stored, or their initial values: 32-bit integers or floats.
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
    /// Rows of a matrix, `pitch` bytes apart.
    #[inline(always)]
    pub(crate) fn rows(start: *mut i32, pitch: usize) -> Self {
        Self { start, pitch, right: DEPTH, below: ROWS * pitch }
    }

    /// Four whole tiles one behind another.
    #[inline(always)]
    pub(crate) fn images(start: *mut i32) -> Self {
        Self { start, pitch: DEPTH, right: TILE, below: 2 * TILE }
    }

    /// The same 32 numbers in each row; only to start from.
    #[inline(always)]
    pub(crate) fn of_columns(start: *const i32) -> Self {
        Self { start: start.cast_mut(), pitch: 0, right: DEPTH, below: 0 }
    }

    /// A number for each row, sixteen times; only to start from.
    #[inline(always)]
    pub(crate) fn of_rows(start: *const f32) -> Self {
        Self { start: start.cast_mut().cast(), pitch: DEPTH, right: 0, below: TILE }
    }
}

/// The operands of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// 64 bytes of the first of 32 rows.
    pub(crate) rows: *const u8,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Tiles of two groups of sixteen columns: 64 bytes of four (bytes) or two (bf16) values of K for each column.
    pub(crate) columns: [*const u8; 2],
}

/// Bytes of a row that tiles can hold: four steps.
pub(crate) const HELD: usize = 4 * DEPTH;

/// Operands of [`Tiles::held_products`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldProducts {
    /// What the sums of each row start from, sixteen times.
    pub(crate) begin: *const f32,
    /// Four tiles of each of two groups of sixteen columns.
    pub(crate) columns: [*const u8; 2],
    pub(crate) to: *mut f32,
    /// Bytes from one row of sums to the next.
    pub(crate) pitch: usize,
}

/// The tiles of this thread, from when they are asked for until this is dropped.
///
/// # Safety
/// Of all functions: what the operands point to can be read, or written where it is a result.
pub(crate) trait Tiles: Sized {
    /// What makes probabilities of scores beside them.
    type Powers: Powers;

    /// The sums become zero.
    unsafe fn zero(&mut self);
    /// Loads the sums.
    unsafe fn load(&mut self, from: BlockSums);
    /// Writes the sums.
    unsafe fn store(&mut self, to: BlockSums);
    /// Adds products of unsigned bytes of rows with signed ones of columns; exact.
    unsafe fn step_bytes(&mut self, step: Step);
    /// Adds products of bf16; numbers below 2^-126 are zero, before and after.
    unsafe fn step_halves(&mut self, step: Step);
    /// Takes [`HELD`] bytes of sixteen rows, which stay until the next step: no sums are left.
    unsafe fn hold(&mut self, rows: *const u8, stride: usize);
    /// Products of bf16 of the rows that are held with 32 columns, whose sums are stored as sixteen rows of 32.
    unsafe fn held_products(&mut self, products: HeldProducts);
    /// The products of `rounds` steps of bytes or of bf16 and nothing else, with operands that stay where they are: what
    /// there can be at most.
    fn products(&mut self, rounds: usize, halves: bool) {
        let zeros = [0; TILE];
        let step = Step { rows: zeros.as_ptr(), stride: 0, columns: [zeros.as_ptr(); 2] };
        for _ in 0..rounds {
            // SAFETY: the operands are a tile.
            unsafe { if halves { self.step_halves(step) } else { self.step_bytes(step) } }
        }
    }
}

/// Of an instruction set without tiles: there is none, and drivers of tiles are compiled to nothing.
#[derive(Debug)]
pub(crate) enum NoTiles {}

impl Tiles for NoTiles {
    type Powers = PlainPowers;

    unsafe fn zero(&mut self) {
        match *self {}
    }

    unsafe fn load(&mut self, _: BlockSums) {
        match *self {}
    }

    unsafe fn store(&mut self, _: BlockSums) {
        match *self {}
    }

    unsafe fn step_bytes(&mut self, _: Step) {
        match *self {}
    }

    unsafe fn step_halves(&mut self, _: Step) {
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
