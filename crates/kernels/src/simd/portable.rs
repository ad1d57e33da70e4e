//! Plain arithmetic on arrays: the reference, and what processors without the other instruction sets run.
#![expect(unsafe_code, reason = "reads and writes through bare pointers, as the trait has them")]

use super::{Operation, Simd, exp2_polynomial};
use half::bf16;
use std::array::from_fn;

/// Eight lanes of plain Rust, which the compiler may vectorise as it likes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const COLUMNS: usize = 2;

    #[inline(always)]
    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        operation.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> Self::F {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, value: Self::F, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::F>().write_unaligned(value) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }

    // Rounded twice: a fused one is a library call where the processor has none.
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i].min(b[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i].max(b[i]))
    }

    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn reciprocal(self, a: Self::F) -> Self::F {
        a.map(|a| 1.0 / a)
    }

    #[inline(always)]
    fn exp2(self, a: Self::F) -> Self::F {
        let a = a.map(|a| a.clamp(-127.0, 127.0));
        let whole = a.map(f32::floor);
        let mantissa = exp2_polynomial(self, self.sub(a, whole));
        // 2^whole by its exponent; -127 gives the bits of 0.
        let power: Self::F = from_fn(|i| f32::from_bits((truncated(whole[i]) + 127).cast_unsigned() << 23));
        self.mul(mantissa, power)
    }

    #[inline(always)]
    fn sum(self, [a, b, c, d, e, f, g, h]: Self::F) -> f32 {
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn swap_pairs(self, a: Self::F) -> Self::F {
        from_fn(|i| a[i ^ 1])
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, from: *const bf16) -> Self::F {
        // SAFETY: the caller's.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(half) << 16))
    }

    #[inline(always)]
    unsafe fn store_bf16_at(self, value: Self::F, to: *mut bf16) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(value.map(bf16::from_f32)) }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Self::I {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, from: *const u8) -> Self::I {
        // SAFETY: the caller's.
        unsafe { from.cast::<Self::I>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn broadcast_bytes_at(self, from: *const u8) -> Self::I {
        // SAFETY: the caller's.
        [unsafe { from.cast::<i32>().read_unaligned() }; LANES]
    }

    #[inline(always)]
    unsafe fn store_i32_at(self, value: Self::I, to: *mut i32) {
        // SAFETY: the caller's.
        unsafe { to.cast::<Self::I>().write_unaligned(value) }
    }

    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        #[expect(clippy::cast_precision_loss, reason = "rounding is what the conversion is for")]
        a.map(|a| a as f32)
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        a.map(|a| truncated(a.round_ties_even()))
    }

    #[inline(always)]
    unsafe fn store_u8_at(self, value: Self::I, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(value.map(to_u8)) }
    }

    #[inline(always)]
    unsafe fn store_i8_at(self, value: Self::I, to: *mut i8) {
        // SAFETY: the caller's.
        unsafe {
            to.cast::<[i8; LANES]>()
                .write_unaligned(value.map(|v| to_u8(v.clamp(-128, 127) & 0xFF).cast_signed()))
        }
    }

    #[inline(always)]
    unsafe fn store_u8_quads_at(self, values: [Self::I; 4], to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[[u8; LANES]; 4]>().write_unaligned(values.map(|value| value.map(to_u8))) }
    }

    #[inline(always)]
    fn quad_order(position: usize) -> usize {
        position
    }

    #[inline(always)]
    fn dot_u8(self, acc: Self::I, a: Self::I, w: Self::I) -> Self::I {
        from_fn(|i| {
            let (a, w) = (a[i].to_ne_bytes(), w[i].to_ne_bytes());
            let products: i32 = (0..4).map(|j| i32::from(a[j]) * i32::from(w[j].cast_signed())).sum();
            acc[i].wrapping_add(products)
        })
    }

    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::I, w: Self::I) -> Self::F {
        let low = |v: i32| f32::from_bits(v.cast_unsigned() << 16);
        let high = |v: i32| f32::from_bits(v.cast_unsigned() & 0xFFFF_0000);
        from_fn(|i| acc[i] + low(a[i]) * low(w[i]) + high(a[i]) * high(w[i]))
    }

    #[inline(always)]
    fn prefetch_to_write(self, _at: *const u8) {}
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and the callers' values are whole and small")]
#[inline(always)]
fn truncated(value: f32) -> i32 {
    value as i32
}

#[expect(clippy::cast_sign_loss, reason = "clamped to what a byte holds")]
#[inline(always)]
fn to_u8(value: i32) -> u8 {
    value.clamp(0, 255) as u8
}
