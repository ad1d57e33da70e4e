//! AVX-512 with VNNI, with BF16 if `BF16`, and with AMX tiles if `TILES`.
#![expect(unsafe_code, reason = "intrinsics of one processor family and loads through raw pointers")]

use super::tiles::{hardware::Hardware, permission};
use super::{Operation, SMALLEST_EXPONENT, Simd, exp2_polynomial};
use half::bf16;
use std::arch::x86_64::{
    __m128i, __m256bh, __m256i, __m512, __m512bh, __m512i, _CMP_NLT_UQ, _CMP_UNORD_Q, _MM_HINT_ET0,
    _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_abs_ps,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtneps_pbh, _mm512_cvtps_epi32, _mm512_cvtsepi32_epi8, _mm512_dpbf16_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_epi32, _mm512_maskz_scalef_ps,
    _mm512_max_epi32, _mm512_max_ps, _mm512_min_epi32, _mm512_min_ps, _mm512_mul_ps, _mm512_mullo_epi32,
    _mm512_or_si512, _mm512_packs_epi32, _mm512_packus_epi16, _mm512_permute_ps, _mm512_rcp14_ps,
    _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_reduce_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi32,
    _mm512_sub_ps,
};
use std::mem::transmute;

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, BF16 if `BF16`, and VBMI and permitted tiles if
/// `TILES`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const TILES: bool = false>(());

impl Avx512<false> {
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        has.then_some(Self(()))
    }
}

impl Avx512<true> {
    pub(crate) fn detect() -> Option<Self> {
        let has = Avx512::<false>::detect().is_some() && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self(()))
    }
}

impl Avx512<true, true> {
    /// Also requests permission for the tiles, once per process.
    pub(crate) fn detect() -> Option<Self> {
        let has = Avx512::<true>::detect().is_some() && is_x86_feature_detected!("avx512vbmi");
        (has && permission::tiles().is_ok()).then_some(Self(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn with_vnni<S: Simd, O: Operation>(s: S, operation: O) -> O::Output {
    operation.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
#[inline(never)]
fn with_bf16<S: Simd, O: Operation>(s: S, operation: O) -> O::Output {
    operation.run(s)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi")]
#[inline(never)]
fn with_tiles<S: Simd, O: Operation>(s: S, operation: O) -> O::Output {
    operation.run(s)
}

/// Calls an intrinsic that needs the instructions of [`Avx512`].
macro_rules! proven {
    ($call:expr) => {
        // SAFETY: an `Avx512` is created only if the processor has these instructions.
        unsafe { $call }
    };
}

impl<const BF16: bool, const TILES: bool> Simd for Avx512<BF16, TILES> {
    type F = __m512;
    type I = __m512i;
    type Tiles = Hardware;

    const LANES: usize = 16;
    const ROWS: usize = 6;
    const COLUMNS: usize = 4;

    #[inline(always)]
    fn vectorize<O: Operation>(self, operation: O) -> O::Output {
        match (TILES, BF16) {
            (true, _) => proven!(with_tiles(self, operation)),
            (false, true) => proven!(with_bf16(self, operation)),
            (false, false) => proven!(with_vnni(self, operation)),
        }
    }

    #[inline(always)]
    fn tiles(self) -> Option<Hardware> {
        // SAFETY: an `Avx512<_, true>` is created only if tiles are permitted.
        TILES.then(|| unsafe { Hardware::configured() })
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        proven!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    unsafe fn load_at(self, from: *const f32) -> __m512 {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_at(self, value: __m512, to: *mut f32) {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        proven!(_mm512_abs_ps(a))
    }

    #[inline(always)]
    fn reciprocal(self, a: __m512) -> __m512 {
        proven!(_mm512_rcp14_ps(a))
    }

    #[inline(always)]
    fn exp2(self, a: __m512) -> __m512 {
        // The immediate selects the remainder after rounding down to an integer, which is the rounding of `scalef`.
        let fraction = proven!(_mm512_reduce_ps::<0b1001>(a));
        // A result below 2^-126 would cost a microcode assist of about 94 ns on Intel: those lanes are masked to
        // zero. NaN stays NaN.
        let is_normal = proven!(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, _mm512_set1_ps(SMALLEST_EXPONENT)));
        proven!(_mm512_maskz_scalef_ps(is_normal, exp2_polynomial(self, fraction), a))
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        proven!(_mm512_reduce_add_ps(a))
    }

    #[inline(always)]
    fn largest(self, a: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(a))
    }

    #[inline(always)]
    fn swap_pairs(self, a: __m512) -> __m512 {
        proven!(_mm512_permute_ps::<0b10_11_00_01>(a))
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, from: *const bf16) -> __m512 {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast::<__m256i>()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_at(self, value: __m512, to: *mut bf16) {
        let rounded: __m256i = if BF16 {
            // SAFETY: `Avx512<true>` proves that the instruction exists; both types are 16 bf16 values.
            unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(value)) }
        } else {
            proven!(rounded_to_bf16(value))
        };
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm256_storeu_si256(to.cast::<__m256i>(), rounded) }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m512i {
        proven!(_mm512_set1_epi32(value))
    }

    #[inline(always)]
    unsafe fn load_bytes_at(self, from: *const u8) -> __m512i {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm512_loadu_si512(from.cast::<__m512i>()) }
    }

    #[inline(always)]
    unsafe fn broadcast_bytes_at(self, from: *const u8) -> __m512i {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn store_i32_at(self, value: __m512i, to: *mut i32) {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm512_storeu_si512(to.cast::<__m512i>(), value) }
    }

    #[inline(always)]
    fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn mul_i32(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_mullo_epi32(a, b))
    }

    #[inline(always)]
    fn to_f32(self, a: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn to_i32(self, a: __m512) -> __m512i {
        proven!(_mm512_cvtps_epi32(a))
    }

    #[inline(always)]
    unsafe fn store_u8_at(self, value: __m512i, to: *mut u8) {
        let clamped = proven!(_mm512_max_epi32(value, _mm512_set1_epi32(0)));
        let clamped = proven!(_mm512_min_epi32(clamped, _mm512_set1_epi32(255)));
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm_storeu_si128(to.cast::<__m128i>(), _mm512_cvtepi32_epi8(clamped)) }
    }

    #[inline(always)]
    unsafe fn store_i8_at(self, value: __m512i, to: *mut i8) {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe { _mm_storeu_si128(to.cast::<__m128i>(), _mm512_cvtsepi32_epi8(value)) }
    }

    #[inline(always)]
    unsafe fn store_bytes_of_lanes_at(self, [a, b, c, d]: [__m512i; 4], to: *mut u8) {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe {
            let low = _mm512_set1_epi32(0xFF);
            let first =
                _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<8>(_mm512_and_si512(b, low)));
            let second = _mm512_or_si512(
                _mm512_slli_epi32::<16>(_mm512_and_si512(c, low)),
                _mm512_slli_epi32::<24>(d),
            );
            _mm512_storeu_si512(to.cast::<__m512i>(), _mm512_or_si512(first, second));
        }
    }

    #[inline(always)]
    unsafe fn store_u8_quads_at(self, [a, b, c, d]: [__m512i; 4], to: *mut u8) {
        // SAFETY: guaranteed by the caller (see `# Safety`); `Avx512` proves that the instructions exist.
        unsafe {
            let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_storeu_si512(to.cast::<__m512i>(), bytes);
        }
    }

    #[inline(always)]
    fn quad_order(position: usize) -> usize {
        // Each 128-bit lane holds one quad of each of the four vectors.
        position % 4 * 4 + position / 4
    }

    #[inline(always)]
    fn dot_u8(self, acc: __m512i, a: __m512i, w: __m512i) -> __m512i {
        proven!(_mm512_dpbusd_epi32(acc, a, w))
    }

    #[inline(always)]
    fn dot_bf16(self, acc: __m512, a: __m512i, w: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: `Avx512<true>` proves that the instruction exists; both types are 32 bf16 values.
            unsafe {
                _mm512_dpbf16_ps(acc, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(w))
            }
        } else {
            let second = proven!(_mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            let low = |v| proven!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)));
            let high = |v| proven!(_mm512_castsi512_ps(_mm512_and_si512(v, second)));
            self.mul_add(high(a), high(w), self.mul_add(low(a), low(w), acc))
        }
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast::<i8>()) }
    }

    #[inline(always)]
    fn prefetch_to_l2(self, at: *const u8) {
        // SAFETY: a prefetch cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast::<i8>()) }
    }
}

/// Rounds to nearest even with integer arithmetic, for processors without the instruction. NaN stays NaN.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn rounded_to_bf16(value: __m512) -> __m256i {
    // SAFETY: both types are 512 bits without invalid patterns.
    let bits: __m512i = unsafe { transmute(value) };
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
    let selected = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7FC0_0000));
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(selected))
}
