//! Tiles in plain Rust: the tile drivers run with them on any processor, and under tools without AMX support.
#![expect(unsafe_code, reason = "the trait reads and writes tiles through raw pointers")]

use super::powers::ScalarPowers;
use super::{BlockSums, DEPTH, HeldProducts, ROWS, Step, TILE, Tiles};

/// 32-bit values in a tile row.
const LANES: usize = DEPTH / 4;

/// Emulates the tile instructions in the same order; integer sums are bit-identical.
#[derive(Debug, Default)]
pub(crate) struct Emulated {
    /// The bits of four tiles of sums: upper left, upper right, lower left, lower right.
    sums: [[[u32; LANES]; ROWS]; 4],
    /// Four steps of sixteen rows.
    held: [[[[u8; 4]; LANES]; ROWS]; 4],
}

/// Loads a tile whose rows are `stride` bytes apart.
///
/// # Safety
/// 64 bytes are readable in each of sixteen rows.
unsafe fn tile(from: *const u8, stride: usize) -> [[[u8; 4]; LANES]; ROWS] {
    // SAFETY: guaranteed by the caller (see `# Safety`).
    std::array::from_fn(|row| unsafe { from.add(row * stride).cast::<[[u8; 4]; LANES]>().read_unaligned() })
}

impl Emulated {
    /// Calls `add` for each sum of the four products of a step, with its operands.
    ///
    /// # Safety
    /// Same as [`Tiles::step_int8`].
    unsafe fn accumulate(
        &mut self,
        step: Step,
        add: impl Fn(u32, [[u8; 4]; LANES], [[u8; 4]; LANES]) -> u32,
    ) {
        let Step { rows, stride, columns } = step;
        for (index, sums) in self.sums.iter_mut().enumerate() {
            // SAFETY: guaranteed by the caller (see `# Safety`).
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

    fn tile_addresses(at: BlockSums) -> [*mut i32; 4] {
        let BlockSums { start, right, below, .. } = at;
        [0, right, below, below + right].map(|offset| start.wrapping_byte_add(offset))
    }
}

/// Returns the columns of a weight tile, whose rows are steps of four bytes of sixteen columns.
fn columns_of(tile: [[[u8; 4]; LANES]; ROWS]) -> [[[u8; 4]; LANES]; ROWS] {
    std::array::from_fn(|column| tile.map(|quads| quads[column]))
}

fn bf16_pair(quad: [u8; 4]) -> [f32; 2] {
    let bits = |low, high| f32::from_bits(u32::from_le_bytes([0, 0, low, high]));
    [normal(bits(quad[0], quad[1])), normal(bits(quad[2], quad[3]))]
}

/// Adds the products of a bf16 row and column to an f32 sum. The first and the second elements of the pairs are
/// summed separately.
fn add_bf16(sum: u32, a: [[u8; 4]; LANES], b: [[u8; 4]; LANES]) -> u32 {
    let mut sums = [0.0_f32; 2];
    for (a, b) in a.into_iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(bf16_pair(a)).zip(bf16_pair(b)) {
            *sum = normal(a.mul_add(b, *sum));
        }
    }
    normal(normal(f32::from_bits(sum)) + normal(sums[0] + sums[1])).to_bits()
}

/// Flushes subnormal numbers to zero.
fn normal(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

impl Tiles for Emulated {
    type Powers = ScalarPowers;

    unsafe fn zero(&mut self) {
        self.sums = [[[0; LANES]; ROWS]; 4];
    }

    unsafe fn load(&mut self, from: BlockSums) {
        for (sums, at) in self.sums.iter_mut().zip(Self::tile_addresses(from)) {
            // SAFETY: guaranteed by the caller (see `# Safety`).
            let bytes = unsafe { tile(at.cast(), from.pitch) };
            *sums = bytes.map(|row| row.map(u32::from_le_bytes));
        }
    }

    unsafe fn store(&mut self, to: BlockSums) {
        for (sums, at) in self.sums.iter().zip(Self::tile_addresses(to)) {
            for (row, sums) in sums.iter().enumerate() {
                // SAFETY: guaranteed by the caller (see `# Safety`).
                unsafe { at.wrapping_byte_add(row * to.pitch).cast::<[u32; LANES]>().write_unaligned(*sums) };
            }
        }
    }

    unsafe fn step_int8(&mut self, step: Step) {
        let add = |sum: u32, a: [[u8; 4]; LANES], b: [[u8; 4]; LANES]| {
            let products = a.as_flattened().iter().zip(b.as_flattened());
            let products = products.map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed()));
            sum.wrapping_add(products.sum::<i32>().cast_unsigned())
        };
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { self.accumulate(step, add) };
    }

    unsafe fn step_bf16(&mut self, step: Step) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        unsafe { self.accumulate(step, add_bf16) };
    }

    unsafe fn hold(&mut self, rows: *const u8, stride: usize) {
        // SAFETY: guaranteed by the caller (see `# Safety`).
        self.held = std::array::from_fn(|step| unsafe { tile(rows.add(step * DEPTH), stride) });
    }

    unsafe fn held_products(&mut self, products: HeldProducts) {
        let HeldProducts { begin, columns, to, pitch } = products;
        for (index, columns) in columns.into_iter().enumerate() {
            // SAFETY: guaranteed by the caller (see `# Safety`).
            unsafe {
                let mut sums = tile(begin.cast(), DEPTH).map(|row| row.map(u32::from_le_bytes));
                for (step, held) in self.held.iter().enumerate() {
                    let columns = columns_of(tile(columns.add(step * TILE), DEPTH));
                    for (sums, a) in sums.iter_mut().zip(held) {
                        for (sum, column) in sums.iter_mut().zip(columns) {
                            *sum = add_bf16(*sum, *a, column);
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

/// The other modules copy tiles of this size.
const _: () = assert!(TILE == size_of::<[[u32; LANES]; ROWS]>());
