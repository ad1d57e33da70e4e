//! Shared code of the examples that compare paths: cache-line-aligned operands, and times of alternating paths.

use kernels::{CpuPath, Kernels};
use std::time::Instant;

/// Pseudo-random numbers in -1..1.
pub(crate) fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x1234_5678_u32;
    let next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Quantised values from 68 to 188.
pub(crate) fn quantised(count: usize) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 68 and 188")]
    noise(count).into_iter().map(|value| (value * 60.0 + 128.0) as u8).collect()
}

/// Numbers aligned to a cache line, as in tensors and packed files.
pub(crate) struct Aligned<T> {
    all: Vec<T>,
    first: usize,
    count: usize,
}

impl<T: Copy> Aligned<T> {
    pub(crate) fn new(values: &[T]) -> Self {
        let mut all = Vec::with_capacity(values.len() + 64);
        let first = all.spare_capacity_mut().as_ptr().align_offset(64);
        if let Some(value) = values.first() {
            all.resize(first, *value);
        }
        all.extend_from_slice(values);
        Self { all, first, count: values.len() }
    }

    pub(crate) fn get(&self) -> &[T] {
        &self.all[self.first..][..self.count]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [T] {
        &mut self.all[self.first..][..self.count]
    }
}

/// Returns the best path of this machine and the next one.
pub(crate) fn paths() -> Vec<Kernels> {
    CpuPath::ALL.into_iter().filter_map(|path| Kernels::of(path).ok()).take(2).collect()
}

/// Times of each path in seconds, in the order of the paths.
pub(crate) struct Times(Vec<Vec<f64>>);

impl Times {
    /// Runs all paths alternately for `seconds`, at least four times each.
    pub(crate) fn take(paths: &[Kernels], seconds: f64, mut work: impl FnMut(Kernels)) -> Self {
        let mut times = vec![Vec::new(); paths.len()];
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < seconds || times[0].len() < 4 {
            for (path, times) in paths.iter().zip(&mut times) {
                let began = Instant::now();
                work(*path);
                times.push(began.elapsed().as_secs_f64());
            }
        }
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        Self(times)
    }

    /// Returns the shortest time of each path.
    pub(crate) fn shortest(&self) -> Vec<f64> {
        self.0.iter().map(|times| times[0]).collect()
    }

    /// Returns the median time of each path.
    pub(crate) fn median(&self) -> Vec<f64> {
        self.0.iter().map(|times| times[times.len() / 2]).collect()
    }
}

/// Formats one line: shortest (and median) times, the speed-up of the first path over the last, and its share of the
/// peak.
pub(crate) fn line(name: &str, shortest: &[f64], median: &[f64], operations: f64, peak: f64) -> String {
    let times = shortest.iter().zip(median);
    let times: String = times.map(|(a, b)| format!("{:9.2} ({:8.2}) ms", a * 1e3, b * 1e3)).collect();
    let ratio = |times: &[f64]| times[times.len() - 1] / times[0];
    let rate = operations / shortest[0];
    format!(
        "{name:<40}{times}{:6.2} x ({:4.2}){:8.0} G/s{:6.1} %",
        ratio(shortest),
        ratio(median),
        rate / 1e9,
        rate / peak * 100.0
    )
}
