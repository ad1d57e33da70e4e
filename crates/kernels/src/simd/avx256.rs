//! 256-bit vectors: AVX2, and VNNI on 256 bits in its two encodings.
#![expect(unsafe_code, reason = "instructions of one processor family, and reads through bare pointers")]

use super::{Operation, Simd, exp2_polynomial};
use half::bf16;
use std::arch::x86_64::{
    __m128i, __m256, __m256i, _CMP_UNORD_Q, _MM_HINT_T0, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps,
    _mm_max_ss, _mm_movehl_ps, _mm_packs_epi16, _mm_packus_epi16, _mm_prefetch, _mm_shuffle_ps,
    _mm_storel_epi64, _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256,
    _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32,
    _mm256_div_ps, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32, _mm256_extractf128_ps, _mm256_floor_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_mullo_epi32, _mm256_packs_epi32, _mm256_packus_epi16, _mm256_packus_epi32,
    _mm256_permute_ps, _mm256_permute4x64_epi64, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srai_epi16, _mm256_srli_epi16, _mm256_srli_epi32,
    _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32, _mm256_sub_ps,
};

/// The dot products of bytes are made of `vpmaddwd` on bytes widened to 16 bits, which cannot saturate.
pub(crate) const WIDENED: u8 = 0;
/// They are AVX-VNNI's, on 16 registers.
pub(crate) const AVX_VNNI: u8 = 1;
/// They are those of AVX-512 VNNI on 256 bits, with 32 registers.
pub(crate) const AVX512_VNNI: u8 = 2;

/// Proof that the processor has AVX2 and FMA, and the dot products that `DOT` names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx256<const DOT: u8>(());

impl<const DOT: u8> Avx256<DOT> {
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && match DOT {
                WIDENED => true,
                AVX_VNNI => is_x86_feature_detected!("avxvnni"),
                _ => is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni"),
            };
        has.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline(never)]
fn with_avx2<const DOT: u8, O: Operation>(s: Avx256<DOT>, operation: O) -> O::Output {
    operation.run(s)
}

#[target_feature(enable = "avx2,fma,avxvnni")]
#[inline(never)]
fn with_avx_vnni<const DOT: u8, O: Operation>(s: Avx256<DOT>, operation: O) -> O::Output {
    operation.run(s)
}

#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512vnni")]
#[inline(never)]
fn with_avx512_vnni<const DOT: u8, O: Operation>(s: Avx256<DOT>, operation: O) -> O::Output {
    operation.run(s)
}

/// An intrinsic that needs the instructions of [`Avx256`].
macro_rules! proven {
    ($call:expr) => {
        // SAFETY: an `Avx256` is only made where the processor has these instructions.
        unsafe { $call }
    };
}

impl<const DOT: u8> Simd for Avx256<DOT> {
    type F = __m256;
    type I = __m256i;

    const LANES: usize = 8;
    const ROWS: usize = if DOT == WIDENED { 4 } else { 6 };
    const COLUMNS: usize = if DOT == AVX512_VNNI { 4 } else { 2 };

    #[inline(always)]
    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        match DOT {
            WIDENED => proven!(with_avx2(self, operation)),
            AVX_VNNI => proven!(with_avx_vnni(self, operation)),
            _ => proven!(with_avx512_vnni(self, operation)),
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        proven!(_mm256_set1_ps(value))
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m256 {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, value: __m256, to: *mut f32) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        proven!(_mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFF_FFFF))))
    }

    #[inline(always)]
    fn reciprocal(self, a: __m256) -> __m256 {
        proven!(_mm256_div_ps(_mm256_set1_ps(1.0), a))
    }

    #[inline(always)]
    fn exp2(self, a: __m256) -> __m256 {
        proven!({
            let a = _mm256_max_ps(_mm256_min_ps(a, _mm256_set1_ps(127.0)), _mm256_set1_ps(-127.0));
            let whole = _mm256_floor_ps(a);
            let mantissa = exp2_polynomial(self, _mm256_sub_ps(a, whole));
            // 2^whole by its exponent; -127 gives the bits of 0.
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
            _mm256_mul_ps(mantissa, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        let mut lanes = [0.0_f32; 8];
        // SAFETY: the array has eight floats.
        unsafe { self.store_at(a, lanes.as_mut_ptr()) };
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        proven!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn swap_pairs(self, a: __m256) -> __m256 {
        proven!(_mm256_permute_ps::<0b10_11_00_01>(a))
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, from: *const bf16) -> __m256 {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast::<__m128i>()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_at(self, value: __m256, to: *mut bf16) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
            let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
            let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC0_0000));
            let kept = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), nan, is_nan));
            let halves = _mm256_srli_epi32::<16>(kept);
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(halves, halves));
            _mm_storeu_si128(to.cast::<__m128i>(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m256i {
        proven!(_mm256_set1_epi32(value))
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, from: *const u8) -> __m256i {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe { _mm256_loadu_si256(from.cast::<__m256i>()) }
    }

    #[inline(always)]
    unsafe fn broadcast_bytes_at(self, from: *const u8) -> __m256i {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn store_i32_at(self, value: __m256i, to: *mut i32) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe { _mm256_storeu_si256(to.cast::<__m256i>(), value) }
    }

    #[inline(always)]
    fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: __m256i, b: __m256i) -> __m256i {
        proven!(_mm256_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        proven!(_mm256_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn to_i32(self, a: __m256) -> __m256i {
        proven!(_mm256_cvtps_epi32(a))
    }

    #[inline(always)]
    unsafe fn store_u8_at(self, value: __m256i, to: *mut u8) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(value, value));
            let words = _mm256_castsi256_si128(words);
            _mm_storel_epi64(to.cast::<__m128i>(), _mm_packus_epi16(words, words));
        }
    }

    #[inline(always)]
    unsafe fn store_i8_at(self, value: __m256i, to: *mut i8) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(value, value));
            let words = _mm256_castsi256_si128(words);
            _mm_storel_epi64(to.cast::<__m128i>(), _mm_packs_epi16(words, words));
        }
    }

    #[inline(always)]
    unsafe fn store_u8_quads_at(self, [a, b, c, d]: [__m256i; 4], to: *mut u8) {
        // SAFETY: the caller's, and `Avx256`'s.
        unsafe {
            let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            _mm256_storeu_si256(to.cast::<__m256i>(), bytes);
        }
    }

    #[inline(always)]
    fn quad_order(position: usize) -> usize {
        // Each 128-bit lane holds one quad of each of the four vectors.
        position % 4 * 2 + position / 4
    }

    #[inline(always)]
    fn dot_u8(self, acc: __m256i, a: __m256i, w: __m256i) -> __m256i {
        match DOT {
            AVX_VNNI => proven!(_mm256_dpbusd_avx_epi32(acc, a, w)),
            AVX512_VNNI => proven!(_mm256_dpbusd_epi32(acc, a, w)),
            _ => proven!({
                // Bytes 0 and 2, then bytes 1 and 3, each as 16 bits: products of two fit 32 bits exactly. The
                // compiler shares the widening among the rows and columns of a tile.
                let low = _mm256_set1_epi16(0xFF);
                let (a_even, a_odd) = (_mm256_and_si256(a, low), _mm256_srli_epi16::<8>(a));
                let w_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
                let w_odd = _mm256_srai_epi16::<8>(w);
                let even = _mm256_madd_epi16(a_even, w_even);
                _mm256_add_epi32(_mm256_add_epi32(acc, even), _mm256_madd_epi16(a_odd, w_odd))
            }),
        }
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m256, a: __m256i, w: __m256i) -> __m256 {
        proven!({
            let second = _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed());
            let low = _mm256_fmadd_ps(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)),
                acc,
            );
            _mm256_fmadd_ps(
                _mm256_castsi256_ps(_mm256_and_si256(a, second)),
                _mm256_castsi256_ps(_mm256_and_si256(w, second)),
                low,
            )
        })
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *const u8) {
        // SAFETY: a prefetch reads nothing that could fault; this hint is SSE's, which every x86-64 has.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>()) }
    }
}
