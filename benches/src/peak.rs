//! What the cores can do at most: f32 multiply-adds that touch nothing but registers.

use std::hint::black_box;
use std::time::Instant;

/// Independent accumulators of one core; enough to hide the latency of a multiply-add on any core there is.
const LANES: usize = 16 * 12;

/// Floating-point operations per second of `threads` cores, f32, the best of several tries.
pub fn f32_peak(threads: usize) -> f64 {
    (0..5).map(|_| once(threads)).fold(0.0, f64::max)
}

fn once(threads: usize) -> f64 {
    const ROUNDS: usize = 4_000_000;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| black_box(multiply_add(ROUNDS)));
        }
    });
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let operations = (2 * LANES * ROUNDS * threads) as f64;
    operations / began.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
fn multiply_add(rounds: usize) -> f32 {
    if std::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512F, which was asked just above.
        #[expect(unsafe_code, reason = "a function compiled for one instruction set")]
        return unsafe { with_avx512(rounds) };
    }
    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA, which were asked just above.
        #[expect(unsafe_code, reason = "a function compiled for one instruction set")]
        return unsafe { with_avx2(rounds) };
    }
    accumulate(rounds)
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(rounds: usize) -> f32 {
    accumulate(rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512(rounds: usize) -> f32 {
    accumulate(rounds)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(rounds: usize) -> f32 {
    accumulate(rounds)
}

#[inline(always)]
fn accumulate(rounds: usize) -> f32 {
    let (factor, term) = (black_box(0.999_999_f32), black_box(1e-9_f32));
    let mut lanes = [1.0_f32; LANES];
    for _ in 0..rounds {
        for lane in &mut lanes {
            *lane = lane.mul_add(factor, term);
        }
    }
    lanes.iter().sum()
}
