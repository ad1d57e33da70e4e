//! Powers of two by 16-bit integer arithmetic: converts rows of scores to probabilities between tile steps.
#![expect(
    unsafe_code,
    reason = "rows of scores are read and written through raw pointers, in the innermost loop"
)]

use super::SIDE;
use std::sync::LazyLock;

/// Steps of a score per power of two: the number of bf16 values between two powers.
pub(crate) const STEPS_PER_EXPONENT: f32 = 128.0;
/// The exponent bias of bf16.
pub(crate) const BF16_EXPONENT_BIAS: f32 = 127.0;
/// Scores of a row that are adjacent in memory.
const PART: usize = SIDE;

/// The amount by which `1 + f` exceeds `2^f`, in 128ths, for 64 values of `f` from 0 to 1.
#[repr(C, align(64))]
struct Table([u8; 64]);

static EXCESS: LazyLock<Table> = LazyLock::new(|| {
    Table(std::array::from_fn(|index| {
        // The midpoint of the two fractions that share an entry.
        #[expect(clippy::cast_precision_loss, reason = "an index of a table")]
        let fraction = (2.0 * index as f64 + 0.5) / 128.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 11")]
        let excess = ((fraction - (fraction.exp2() - 1.0)) * 128.0).round() as u8;
        excess
    }))
});

/// Converts rows of scores to probabilities.
///
/// Scores are stored in blocks of 32 × 32 floats, probabilities in pairs of tiles of 16 × 32 bf16, with each 32 keys
/// in the order of [`key`](Self::key).
pub(crate) trait Powers: Copy {
    /// Loads the constants that [`row`](Self::row) needs.
    fn new() -> Self;

    /// Returns the key, among 32, at a position of the probabilities. The order results from packing 128-bit lanes.
    fn key(position: usize) -> usize {
        let (quarter, within) = (position / 8, position % 8);
        if within < 4 { 4 * quarter + within } else { SIDE / 2 + 4 * quarter + within - 4 }
    }

    /// Writes `2^(score/128 - 127)` as bf16 for a row of `parts` parts of 32 keys and adds the results to the sixteen
    /// sums. `last` is the bit mask of the valid keys of the last part; masked keys get probability zero.
    ///
    /// # Safety
    /// The row exists in each block of scores and each pair of tiles, `sums` has sixteen floats, and the processor
    /// has the instructions.
    unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32);
}

/// Elements from a row of a block to the same row of the next block.
const BLOCK_STRIDE: usize = SIDE * SIDE;

/// Scalar arithmetic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScalarPowers;

impl Powers for ScalarPowers {
    fn new() -> Self {
        Self
    }

    unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32) {
        for part in 0..parts {
            for position in 0..PART {
                // SAFETY: guaranteed by the caller (see `# Safety`).
                let score = unsafe { scores.add(part * BLOCK_STRIDE + Self::key(position)).read() };
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to 16 bits"
                )]
                let steps = score.round_ties_even().clamp(0.0, 65535.0) as u16;
                let mut power = steps.saturating_sub(u16::from(EXCESS.0[usize::from(steps >> 1) % 64]));
                if part + 1 == parts && last >> position & 1 == 0 {
                    power = 0;
                }
                // SAFETY: guaranteed by the caller (see `# Safety`).
                unsafe {
                    to.add(part * BLOCK_STRIDE + position).write(power);
                    let sum = sums.add(position / 2);
                    let value = f32::from_bits(u32::from(power) << 16);
                    sum.write(sum.read() + if value.is_normal() { value } else { 0.0 });
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512Powers;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{BLOCK_STRIDE, EXCESS, Powers};
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_cvtps_epi32, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps,
        _mm512_maskz_mov_epi16, _mm512_maskz_permutexvar_epi8, _mm512_packus_epi32, _mm512_set1_epi16,
        _mm512_srli_epi16, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_subs_epu16,
    };
    use std::mem::transmute;

    /// Six instructions per 32 probabilities, with AVX-512 VBMI and BF16.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Avx512Powers {
        excess: __m512i,
    }

    impl Powers for Avx512Powers {
        #[inline(always)]
        fn new() -> Self {
            // SAFETY: the table is one aligned vector; this type is used only on processors with AVX-512.
            Self { excess: unsafe { _mm512_load_si512(EXCESS.0.as_ptr().cast()) } }
        }

        #[inline(always)]
        unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32) {
            // The low byte of each 16-bit element.
            const LOW: u64 = 0x5555_5555_5555_5555;
            // SAFETY: guaranteed by the caller (see `# Safety`); both types are 512 bits without invalid patterns.
            unsafe {
                let ones: __m512bh = transmute(_mm512_set1_epi16(0x3F80));
                let mut sum = _mm512_loadu_ps(sums);
                for part in 0..parts {
                    let scores = scores.add(part * BLOCK_STRIDE);
                    let first = _mm512_cvtps_epi32(_mm512_loadu_ps(scores));
                    let second = _mm512_cvtps_epi32(_mm512_loadu_ps(scores.add(16)));
                    // Saturates at zero, which is probability zero.
                    let steps = _mm512_packus_epi32(first, second);
                    let excess =
                        _mm512_maskz_permutexvar_epi8(LOW, _mm512_srli_epi16::<1>(steps), self.excess);
                    let mut powers = _mm512_subs_epu16(steps, excess);
                    if part + 1 == parts {
                        powers = _mm512_maskz_mov_epi16(last, powers);
                    }
                    _mm512_storeu_si512(to.add(part * BLOCK_STRIDE).cast(), powers);
                    sum = _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(powers), ones);
                }
                _mm512_storeu_ps(sums, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Converts a row of one block; the scores are in the order of the keys.
    fn row<P: Powers>(powers: P, scores: &[f32; PART], last: u32) -> ([u16; PART], f32) {
        let (mut to, mut sums) = ([u16::MAX; PART], [0.0; 16]);
        // SAFETY: the arrays are one row of one part.
        unsafe { powers.row(scores.as_ptr(), to.as_mut_ptr(), 1, last, sums.as_mut_ptr()) };
        (to, sums.iter().sum())
    }

    #[test]
    fn powers_are_accurate_to_one_bf16_step_and_underflow_to_zero() {
        for first in (-40..40).map(|first| first as f32) {
            let scores: [f32; PART] = std::array::from_fn(|key| {
                STEPS_PER_EXPONENT * (BF16_EXPONENT_BIAS + first + key as f32 / 31.0)
            });
            let (found, sum) = row(ScalarPowers, &scores, u32::MAX);
            let mut exact_sum = 0.0;
            for (position, found) in found.into_iter().enumerate() {
                let exact = (first + ScalarPowers::key(position) as f32 / 31.0).exp2();
                exact_sum += exact;
                let found = bf16::from_bits(found).to_f32();
                assert!((found / exact - 1.0).abs() < 0.0085, "2^{first}: {found} {exact}");
            }
            assert!((sum / exact_sum - 1.0).abs() < 0.004, "2^{first}: {sum} {exact_sum}");
        }
        assert_eq!(row(ScalarPowers, &[-3e9; PART], u32::MAX), ([0; PART], 0.0));
    }

    #[test]
    fn masked_keys_have_probability_zero() {
        let (found, sum) = row(ScalarPowers, &[STEPS_PER_EXPONENT * BF16_EXPONENT_BIAS; PART], 0b1011);
        assert_eq!((found[..5].to_vec(), sum), (vec![0x3F80, 0x3F80, 0, 0x3F80, 0], 3.0));
    }

    #[test]
    fn each_key_has_exactly_one_position() {
        let mut keys: Vec<usize> = (0..PART).map(ScalarPowers::key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..PART).collect::<Vec<_>>());
    }
}
