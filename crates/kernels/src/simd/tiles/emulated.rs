//! Tiles in plain Rust: the same drivers run with them on any processor, and under tools that know no AMX.
#![expect(unsafe_code, reason = "tiles are read and written through bare pointers, as the trait has them")]

use super::powers::PlainPowers;
use super::{BlockSums, DEPTH, HeldProducts, ROWS, Step, TILE, Tiles};

/// Values of 32 bits in a row of a tile.
const LANES: usize = DEPTH / 4;

/// What a processor does with tiles, in the same order: sums of bytes are equal to the last bit.
#[derive(Debug, Default)]
pub(crate) struct Emulated {
    /// The bits of four tiles of sums: upper left and right, lower left and right.
    sums: [[[u32; LANES]; ROWS]; 4],
    /// Four steps of sixteen rows.
    held: [[[[u8; 4]; LANES]; ROWS]; 4],
}

/// A tile as the processor loads it: rows `stride` bytes apart.
///
/// # Safety
/// 64 bytes can be read in each of sixteen rows.
unsafe fn tile(from: *const u8, stride: usize) -> [[[u8; 4]; LANES]; ROWS] {
    // SAFETY: the caller's.
    std::array::from_fn(|row| unsafe { from.add(row * stride).cast::<[[u8; 4]; LANES]>().read_unaligned() })
}

impl Emulated {
    /// The operands of the four products of a step, with their sums.
    ///
    /// # Safety
    /// As [`Tiles::step_bytes`].
    unsafe fn each(&mut self, step: Step, add: impl Fn(u32, [[u8; 4]; LANES], [[u8; 4]; LANES]) -> u32) {
        let Step { rows, stride, columns } = step;
        for (index, sums) in self.sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let (a, b) = unsafe {
                (tile(rows.wrapping_add(index / 2 * ROWS * stride), stride), tile(columns[index % 2], DEPTH))
            };
            let columns = columns_of(b);
            for (sums, a) in sums.iter_mut().zip(a) {
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = add(*sum, a, column);
                }
            }
        }
    }

    fn places(at: BlockSums) -> [*mut i32; 4] {
        let BlockSums { start, right, below, .. } = at;
        [0, right, below, below + right].map(|offset| start.wrapping_byte_add(offset))
    }
}

/// The columns of a tile of weights, whose rows are steps of four bytes of sixteen columns.
fn columns_of(tile: [[[u8; 4]; LANES]; ROWS]) -> [[[u8; 4]; LANES]; ROWS] {
    std::array::from_fn(|column| tile.map(|quads| quads[column]))
}

fn bf16_pair(quad: [u8; 4]) -> [f32; 2] {
    let bits = |low, high| f32::from_bits(u32::from_le_bytes([0, 0, low, high]));
    [normal(bits(quad[0], quad[1])), normal(bits(quad[2], quad[3]))]
}

/// A sum of f32 with the products of a row and a column of bf16: those of the first and of the second of each pair are summed
/// apart.
fn add_halves(sum: u32, a: [[u8; 4]; LANES], b: [[u8; 4]; LANES]) -> u32 {
    let mut sums = [0.0_f32; 2];
    for (a, b) in a.into_iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(bf16_pair(a)).zip(bf16_pair(b)) {
            *sum = normal(a.mul_add(b, *sum));
        }
    }
    normal(normal(f32::from_bits(sum)) + normal(sums[0] + sums[1])).to_bits()
}

/// Zero for what is too small to be a normal number.
fn normal(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

impl Tiles for Emulated {
    type Powers = PlainPowers;

    unsafe fn zero(&mut self) {
        self.sums = [[[0; LANES]; ROWS]; 4];
    }

    unsafe fn load(&mut self, from: BlockSums) {
        for (sums, at) in self.sums.iter_mut().zip(Self::places(from)) {
            // SAFETY: the caller's.
            let bytes = unsafe { tile(at.cast(), from.pitch) };
            *sums = bytes.map(|row| row.map(u32::from_le_bytes));
        }
    }

    unsafe fn store(&mut self, to: BlockSums) {
        for (sums, at) in self.sums.iter().zip(Self::places(to)) {
            for (row, sums) in sums.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { at.wrapping_byte_add(row * to.pitch).cast::<[u32; LANES]>().write_unaligned(*sums) };
            }
        }
    }

    unsafe fn step_bytes(&mut self, step: Step) {
        let add = |sum: u32, a: [[u8; 4]; LANES], b: [[u8; 4]; LANES]| {
            let products = a.as_flattened().iter().zip(b.as_flattened());
            let products = products.map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed()));
            sum.wrapping_add(products.sum::<i32>().cast_unsigned())
        };
        // SAFETY: the caller's.
        unsafe { self.each(step, add) };
    }

    unsafe fn step_halves(&mut self, step: Step) {
        // SAFETY: the caller's.
        unsafe { self.each(step, add_halves) };
    }

    unsafe fn hold(&mut self, rows: *const u8, stride: usize) {
        // SAFETY: the caller's.
        self.held = std::array::from_fn(|step| unsafe { tile(rows.add(step * DEPTH), stride) });
    }

    unsafe fn held_products(&mut self, products: HeldProducts) {
        let HeldProducts { begin, columns, to, pitch } = products;
        for (index, columns) in columns.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe {
                let mut sums = tile(begin.cast(), DEPTH).map(|row| row.map(u32::from_le_bytes));
                for (step, held) in self.held.iter().enumerate() {
                    let columns = columns_of(tile(columns.add(step * TILE), DEPTH));
                    for (sums, a) in sums.iter_mut().zip(held) {
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = add_halves(*sum, *a, column);
                        }
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let to = to.wrapping_byte_add(row * pitch + index * DEPTH);
                    to.cast::<[u32; LANES]>().write_unaligned(sums);
                }
            }
        }
    }
}

/// A tile of this size is what the other modules copy.
const _: () = assert!(TILE == size_of::<[[u32; LANES]; ROWS]>());
