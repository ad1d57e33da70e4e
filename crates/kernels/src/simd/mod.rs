//! A vector trait: every kernel is written once and compiled for each instruction set.
//!
//! A value of a type that implements [`Simd`] proves that the processor has its instructions: only [`crate::Kernels`]
//! creates one, after checking the processor. The arithmetic is therefore safe to call. Only loads and stores through
//! raw pointers, in the innermost loops, are unsafe.

#![expect(
    unsafe_code,
    reason = "the trait loads and stores through raw pointers; the slice methods check bounds"
)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx256;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod math;
pub(crate) mod portable;
pub(crate) mod tiles;

pub(crate) use math::{SMALLEST_EXPONENT, exp2_polynomial, gelu_tanh, silu};

use half::bf16;
use tiles::Tiles;

/// Lanes of the widest vector; scratch rows are padded to it.
pub(crate) const MAX_LANES: usize = 16;

/// Code that is compiled once for each instruction set.
pub(crate) trait Operation {
    type Output;

    /// Runs the operation. Implementations are `#[inline(always)]`, so that the code is compiled for the instructions
    /// of `S`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Vectors of 32-bit floats and of 32-bit integers with the same number of lanes.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// 32-bit floats.
    type F: Copy;
    /// 32-bit integers; also four bytes or two bf16 values per lane.
    type I: Copy;
    /// Tiles, for an instruction set that has them.
    type Tiles: Tiles;

    /// Lanes of a vector: 16 or 8.
    const LANES: usize;
    /// Rows of a register tile.
    const ROWS: usize;
    /// Vectors of columns of a register tile; `ROWS × COLUMNS` accumulators stay in registers.
    const COLUMNS: usize;

    /// Runs `operation` compiled for this instruction set.
    fn vectorize<O: Operation>(self, operation: O) -> O::Output;

    /// Configures the tiles of this thread until the value is dropped; `None` without tiles.
    fn tiles(self) -> Option<Self::Tiles>;

    fn splat(self, value: f32) -> Self::F;
    /// # Safety
    /// `LANES` floats can be read at `from`.
    unsafe fn load_at(self, from: *const f32) -> Self::F;
    /// # Safety
    /// `LANES` floats can be written at `to`.
    unsafe fn store_at(self, value: Self::F, to: *mut f32);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a·b + c`.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// `1/a` to at least 14 bits.
    fn reciprocal(self, a: Self::F) -> Self::F;
    /// `2^a` with a relative error of at most 1.1e-4; 0 for `a` below [`SMALLEST_EXPONENT`], infinity or a huge
    /// number far above 127.
    fn exp2(self, a: Self::F) -> Self::F;
    fn sum(self, a: Self::F) -> f32;
    fn largest(self, a: Self::F) -> f32;
    /// Swaps neighbours: lanes 1, 0, 3, 2, ….
    fn swap_pairs(self, a: Self::F) -> Self::F;

    /// # Safety
    /// `LANES` values can be read at `from`.
    unsafe fn load_bf16_at(self, from: *const bf16) -> Self::F;
    /// Rounds to nearest even.
    ///
    /// # Safety
    /// `LANES` values can be written at `to`.
    unsafe fn store_bf16_at(self, value: Self::F, to: *mut bf16);

    fn splat_i32(self, value: i32) -> Self::I;
    /// # Safety
    /// `4·LANES` bytes can be read at `from`.
    unsafe fn load_bytes_at(self, from: *const u8) -> Self::I;
    /// The four bytes at `from`, broadcast to every lane.
    ///
    /// # Safety
    /// Four bytes can be read at `from`.
    unsafe fn broadcast_bytes_at(self, from: *const u8) -> Self::I;
    /// # Safety
    /// `LANES` integers can be written at `to`.
    unsafe fn store_i32_at(self, value: Self::I, to: *mut i32);
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn to_f32(self, a: Self::I) -> Self::F;
    /// Rounds to nearest even.
    fn to_i32(self, a: Self::F) -> Self::I;
    /// Stores the low byte of each lane, clamped to 0..=255.
    ///
    /// # Safety
    /// `LANES` bytes can be written at `to`.
    unsafe fn store_u8_at(self, value: Self::I, to: *mut u8);
    /// Stores the low byte of each lane, clamped to -128..=127.
    ///
    /// # Safety
    /// `LANES` bytes can be written at `to`.
    unsafe fn store_i8_at(self, value: Self::I, to: *mut i8);
    /// Stores the low bytes of four vectors, the four bytes of a lane adjacent.
    ///
    /// # Safety
    /// `4·LANES` bytes can be written at `to`.
    unsafe fn store_bytes_of_lanes_at(self, values: [Self::I; 4], to: *mut u8);
    /// Stores four vectors clamped to 0..=255, in the order of [`quad_order`](Self::quad_order).
    ///
    /// # Safety
    /// `4·LANES` bytes can be written at `to`.
    unsafe fn store_u8_quads_at(self, values: [Self::I; 4], to: *mut u8);
    /// The quad of the `4·LANES` elements that [`store_u8_quads_at`](Self::store_u8_quads_at) stores at a position.
    fn quad_order(position: usize) -> usize;

    /// `acc + Σ a[j]·w[j]` over the four bytes of each lane, `a` unsigned and `w` signed; exact.
    fn dot_u8(self, acc: Self::I, a: Self::I, w: Self::I) -> Self::I;
    /// `acc + a[0]·w[0] + a[1]·w[1]` over the two bf16 values of each lane.
    fn dot_bf16(self, acc: Self::F, a: Self::I, w: Self::I) -> Self::F;
    /// Prefetches the cache line at `at` for writing. Any address is allowed.
    fn prefetch_to_write(self, at: *const u8);
    /// Prefetches the cache line at `at` into the L2 cache for reading. Any address is allowed.
    fn prefetch_to_l2(self, at: *const u8);

    /// Loads up to `LANES` elements of `from`; missing lanes are zero.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F {
        if from.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            return unsafe { self.load_at(from.as_ptr()) };
        }
        let mut whole = [0.0; MAX_LANES];
        whole[..from.len()].copy_from_slice(from);
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.load_at(whole.as_ptr()) }
    }

    /// Loads up to `LANES` elements of `from`; missing lanes are zero.
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::F {
        if from.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            return unsafe { self.load_bf16_at(from.as_ptr()) };
        }
        let mut whole = [bf16::ZERO; MAX_LANES];
        whole[..from.len()].copy_from_slice(from);
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.load_bf16_at(whole.as_ptr()) }
    }

    /// Stores as many lanes as fit in `to`.
    #[inline(always)]
    fn store_i32(self, value: Self::I, to: &mut [i32]) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            unsafe { self.store_i32_at(value, to.as_mut_ptr()) };
            return;
        }
        let mut whole = [0; MAX_LANES];
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.store_i32_at(value, whole.as_mut_ptr()) };
        to.copy_from_slice(&whole[..to.len()]);
    }

    /// Stores as many lanes as fit in `to`.
    #[inline(always)]
    fn store(self, value: Self::F, to: &mut [f32]) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            unsafe { self.store_at(value, to.as_mut_ptr()) };
            return;
        }
        let mut whole = [0.0; MAX_LANES];
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.store_at(value, whole.as_mut_ptr()) };
        to.copy_from_slice(&whole[..to.len()]);
    }

    /// Stores as many lanes as fit in `to`, rounded to nearest even.
    #[inline(always)]
    fn store_bf16(self, value: Self::F, to: &mut [bf16]) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            unsafe { self.store_bf16_at(value, to.as_mut_ptr()) };
            return;
        }
        let mut whole = [bf16::ZERO; MAX_LANES];
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.store_bf16_at(value, whole.as_mut_ptr()) };
        to.copy_from_slice(&whole[..to.len()]);
    }

    /// Stores as many lanes as fit in `to`, clamped to 0..=255.
    #[inline(always)]
    fn store_u8(self, value: Self::I, to: &mut [u8]) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice has at least `LANES` elements.
            unsafe { self.store_u8_at(value, to.as_mut_ptr()) };
            return;
        }
        let mut whole = [0; MAX_LANES];
        // SAFETY: the array has `MAX_LANES` elements, and no vector has more lanes.
        unsafe { self.store_u8_at(value, whole.as_mut_ptr()) };
        to.copy_from_slice(&whole[..to.len()]);
    }
}

/// Unrolls a block for `$index` = 0, 1, … below a constant of at most 6. Arrays of accumulators that are indexed only
/// by constants stay in registers.
macro_rules! unrolled {
    ($index:ident < $count:expr, $body:block) => {
        $crate::simd::unrolled!(@ $index $count, $body; 0 1 2 3 4 5)
    };
    (@ $index:ident $count:expr, $body:block; $($value:literal)*) => {
        $(if $value < $count {
            let $index: usize = $value;
            $body
        })*
    };
}
pub(crate) use unrolled;
