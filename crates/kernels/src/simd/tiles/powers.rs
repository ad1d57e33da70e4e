//! Powers of two by arithmetic on 16-bit numbers: what the rows of scores pass through between the steps of tiles.
#![expect(
    unsafe_code,
    reason = "rows of scores are read and written through bare pointers, in the innermost loop"
)]

use super::SIDE;
use std::sync::LazyLock;

/// Steps of a score for each power of two: those of a bf16 number.
pub(crate) const STEPS_OF_LOG2: f32 = 128.0;
/// The exponent of one, as bf16 has it.
pub(crate) const LOG2_ONE: f32 = 127.0;
/// Adjacent scores of a row.
const PART: usize = SIDE;

/// By how many 128ths `1 + f` is above `2^f`, for 64 steps of `f` from zero to one.
#[repr(C, align(64))]
struct Table([u8; 64]);

static ABOVE: LazyLock<Table> = LazyLock::new(|| {
    Table(std::array::from_fn(|index| {
        // In the middle of the two fractions that share an entry.
        #[expect(clippy::cast_precision_loss, reason = "an index of a table")]
        let fraction = (2.0 * index as f64 + 0.5) / 128.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 11")]
        let above = ((fraction - (fraction.exp2() - 1.0)) * 128.0).round() as u8;
        above
    }))
});

/// Probabilities of one row of scores after another.
///
/// Scores are stored in blocks of 32 × 32 floats, probabilities in pairs of tiles of 16 × 32 bf16: the keys of each 32 in the
/// order of [`key`](Self::key).
pub(crate) trait Powers: Copy {
    /// What the rows need.
    fn new() -> Self;

    /// The key of each 32 at a position of the probabilities: vectors of 128 bits are packed side by side.
    fn key(position: usize) -> usize {
        let (quarter, within) = (position / 8, position % 8);
        if within < 4 { 4 * quarter + within } else { SIDE / 2 + 4 * quarter + within - 4 }
    }

    /// `2^(score/128 - 127)` for a row of `parts` parts, without what `last` leaves out of the last, as bf16; adds them to
    /// the sixteen sums.
    ///
    /// # Safety
    /// Each block of scores and pair of tiles has the row, `sums` sixteen floats, and the processor the instructions.
    unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32);
}

/// From a row of a block to the same row of the next.
const SCORES: usize = SIDE * SIDE;

/// Plain arithmetic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainPowers;

impl Powers for PlainPowers {
    fn new() -> Self {
        Self
    }

    unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32) {
        for part in 0..parts {
            for position in 0..PART {
                // SAFETY: the caller's.
                let score = unsafe { scores.add(part * SCORES + Self::key(position)).read() };
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "clamped to 16 bits"
                )]
                let steps = score.round_ties_even().clamp(0.0, 65535.0) as u16;
                let mut power = steps.saturating_sub(u16::from(ABOVE.0[usize::from(steps >> 1) % 64]));
                if part + 1 == parts && last >> position & 1 == 0 {
                    power = 0;
                }
                // SAFETY: the caller's.
                unsafe {
                    to.add(part * SCORES + position).write(power);
                    let sum = sums.add(position / 2);
                    let value = f32::from_bits(u32::from(power) << 16);
                    sum.write(sum.read() + if value.is_normal() { value } else { 0.0 });
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use wide::WidePowers;

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{ABOVE, Powers, SCORES};
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_cvtps_epi32, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps,
        _mm512_maskz_mov_epi16, _mm512_maskz_permutexvar_epi8, _mm512_packus_epi32, _mm512_set1_epi16,
        _mm512_srli_epi16, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_subs_epu16,
    };
    use std::mem::transmute;

    /// Six instructions for 32 probabilities, of AVX-512 with VBMI and BF16.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct WidePowers {
        above: __m512i,
    }

    impl Powers for WidePowers {
        #[inline(always)]
        fn new() -> Self {
            // SAFETY: the table is a vector at a whole cache line; whoever comes here has AVX-512.
            Self { above: unsafe { _mm512_load_si512(ABOVE.0.as_ptr().cast()) } }
        }

        #[inline(always)]
        unsafe fn row(self, scores: *const f32, to: *mut u16, parts: usize, last: u32, sums: *mut f32) {
            // The low byte of each 16 bits.
            const LOW: u64 = 0x5555_5555_5555_5555;
            // SAFETY: the caller's; both types are 512 plain bits.
            unsafe {
                let ones: __m512bh = transmute(_mm512_set1_epi16(0x3F80));
                let mut sum = _mm512_loadu_ps(sums);
                for part in 0..parts {
                    let scores = scores.add(part * SCORES);
                    let first = _mm512_cvtps_epi32(_mm512_loadu_ps(scores));
                    let second = _mm512_cvtps_epi32(_mm512_loadu_ps(scores.add(16)));
                    // Saturates below zero, where the probability is none.
                    let steps = _mm512_packus_epi32(first, second);
                    let above = _mm512_maskz_permutexvar_epi8(LOW, _mm512_srli_epi16::<1>(steps), self.above);
                    let mut powers = _mm512_subs_epu16(steps, above);
                    if part + 1 == parts {
                        powers = _mm512_maskz_mov_epi16(last, powers);
                    }
                    _mm512_storeu_si512(to.add(part * SCORES).cast(), powers);
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

    /// A row of one block, with scores in the order of the keys.
    fn row<P: Powers>(powers: P, scores: &[f32; PART], last: u32) -> ([u16; PART], f32) {
        let (mut to, mut sums) = ([u16::MAX; PART], [0.0; 16]);
        // SAFETY: one row of one part.
        unsafe { powers.row(scores.as_ptr(), to.as_mut_ptr(), 1, last, sums.as_mut_ptr()) };
        (to, sums.iter().sum())
    }

    #[test]
    fn powers_are_within_a_step_of_bf16_and_small_ones_are_none() {
        for first in (-40..40).map(|first| first as f32) {
            let scores: [f32; PART] =
                std::array::from_fn(|key| STEPS_OF_LOG2 * (LOG2_ONE + first + key as f32 / 31.0));
            let (found, sum) = row(PlainPowers, &scores, u32::MAX);
            let mut exact_sum = 0.0;
            for (position, found) in found.into_iter().enumerate() {
                let exact = (first + PlainPowers::key(position) as f32 / 31.0).exp2();
                exact_sum += exact;
                let found = bf16::from_bits(found).to_f32();
                assert!((found / exact - 1.0).abs() < 0.0085, "2^{first}: {found} {exact}");
            }
            assert!((sum / exact_sum - 1.0).abs() < 0.004, "2^{first}: {sum} {exact_sum}");
        }
        assert_eq!(row(PlainPowers, &[-3e9; PART], u32::MAX), ([0; PART], 0.0));
    }

    #[test]
    fn keys_that_are_not_there_have_no_probability() {
        let (found, sum) = row(PlainPowers, &[STEPS_OF_LOG2 * LOG2_ONE; PART], 0b1011);
        assert_eq!((found[..5].to_vec(), sum), (vec![0x3F80, 0x3F80, 0, 0x3F80, 0], 3.0));
    }

    #[test]
    fn each_key_has_one_position() {
        let mut keys: Vec<usize> = (0..PART).map(PlainPowers::key).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..PART).collect::<Vec<_>>());
    }
}
