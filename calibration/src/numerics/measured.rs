//! The measured error of a quantised linear layer, on sampled rows of its input.
//!
//! The plan estimates this error from moments, assuming independent channels. Here the sampled rows are multiplied in
//! f32 and in quantised form, with the rounding of the operators.

use super::fp8;
use super::range::round_trip;
use super::weights::{Matrix, nearest};
use bundle::quantization::{LayerNumerics, WeightScales};
use bundle::variant::KernelLibrary;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

/// Number of rows that are multiplied; more do not change the result much.
const ROWS: usize = 256;
/// Output rows per task.
const OUTPUTS: usize = 128;

/// Returns the relative error of a layer's output as a ratio of mean squares, or `None` without rows. `rows` are inputs
/// `[R,K]`.
pub fn output_error(
    weight: &Matrix,
    numbers: &LayerNumerics,
    rows: &[f32],
    kernels: KernelLibrary,
) -> Option<f64> {
    let columns = weight.columns.max(1);
    let all = rows.len() / columns;
    let step = all.div_ceil(ROWS).max(1);
    let sampled: Vec<f32> =
        rows.chunks_exact(columns).step_by(step).flat_map(|row| row.iter().copied()).collect();
    let exact = Array2::from_shape_vec((sampled.len() / columns, columns), sampled).ok()?;
    let rounded = rounded_input(&exact, numbers, kernels);
    let sums = |(block, values): (usize, &[f32])| {
        let first = block * OUTPUTS;
        let stored = stored_weights(values, columns, first, numbers);
        let outputs = values.len() / columns;
        let (Ok(plain), Ok(stored)) = (
            ArrayView2::from_shape((outputs, columns), values),
            ArrayView2::from_shape((outputs, columns), &stored),
        ) else {
            return (0.0, 0.0);
        };
        let (expected, found) = (exact.dot(&plain.t()), rounded.dot(&stored.t()));
        let mut sums = (0.0_f64, 0.0_f64);
        for ((row, output), expected) in expected.indexed_iter() {
            let found = f64::from(found[[row, output]]) + shift(numbers, kernels, first + output);
            let factor =
                numbers.row_factors.as_ref().map_or(1.0, |factors| f64::from(factors[first + output]));
            sums.0 += (found / factor - f64::from(*expected)).powi(2);
            sums.1 += f64::from(*expected).powi(2);
        }
        sums
    };
    let (error, signal) = weight
        .values
        .par_chunks(columns * OUTPUTS)
        .enumerate()
        .map(sums)
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    (signal > 0.0).then_some(error / signal)
}

/// The bias correction of an output.
fn shift(numbers: &LayerNumerics, kernels: KernelLibrary, output: usize) -> f64 {
    let correction = |shift: &Option<Vec<f32>>| shift.as_ref().map_or(0.0, |shift| f64::from(shift[output]));
    let range_shift = match kernels {
        KernelLibrary::OnnxRuntime => correction(&numbers.range_shift),
        KernelLibrary::Rushes => 0.0,
    };
    correction(&numbers.bias_shift) + range_shift
}

/// The rows as the operators read them: divided by the smoothing factors and rounded to the static range, to a range
/// per row, or not at all.
fn rounded_input(exact: &Array2<f32>, numbers: &LayerNumerics, kernels: KernelLibrary) -> Array2<f32> {
    let mut rows = exact.clone();
    if let Some(smoothing) = &numbers.smoothing {
        for mut row in rows.outer_iter_mut() {
            row.iter_mut().zip(&smoothing.divisors).for_each(|(value, divisor)| *value /= divisor);
        }
    }
    let Some(input) = numbers.input else { return rows };
    match (&numbers.weights, kernels) {
        (WeightScales::Tensor(_), _) => rows.mapv_inplace(|value| fp8::nearest(input.scale, value)),
        (_, KernelLibrary::OnnxRuntime) => rows.mapv_inplace(|value| round_trip(input, value)),
        (_, KernelLibrary::Rushes) => {
            for mut row in rows.outer_iter_mut() {
                let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
                row.mapv_inplace(|value| nearest(scale, value));
            }
        }
    }
    rows
}

/// The dequantised weights of the output rows from `first`.
fn stored_weights(values: &[f32], columns: usize, first: usize, numbers: &LayerNumerics) -> Vec<f32> {
    let mut stored = values.to_vec();
    for (index, row) in stored.chunks_exact_mut(columns).enumerate() {
        let output = first + index;
        let factor = numbers.row_factors.as_ref().map_or(1.0, |factors| factors[output]);
        for (column, value) in row.iter_mut().enumerate() {
            *value *= factor * numbers.smoothing.as_ref().map_or(1.0, |smoothing| smoothing.divisors[column]);
            *value = match &numbers.weights {
                WeightScales::Rows(scales) => nearest(scales[output], *value),
                WeightScales::Tensor(scale) => fp8::nearest(*scale, *value),
                WeightScales::Blocks { size, scales } => {
                    nearest(scales[output * columns.div_ceil(*size) + column / size], *value)
                }
            };
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::quantization::{Affine, Fold, Smoothing};

    fn wave(count: usize, pace: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * pace).sin()).collect()
    }

    #[test]
    fn representable_numbers_have_no_error_with_and_without_folding() {
        let weight = Matrix { rows: 2, columns: 3, values: vec![1.0, -2.0, 3.0, 4.0, 0.0, -6.0] };
        let rows = [8.0, -4.0, 2.0, 0.0, 6.0, -8.0];
        let mut numbers = LayerNumerics::plain(
            WeightScales::Rows(vec![1.0; 2]),
            Some(Affine { scale: 1.0, zero_point: 128 }),
        );
        assert_eq!(output_error(&weight, &numbers, &rows, KernelLibrary::OnnxRuntime), Some(0.0));
        numbers.smoothing =
            Some(Smoothing { divisors: vec![2.0, 1.0, 1.0], fold: Fold::Upstream, alpha: 0.5 });
        numbers.row_factors = Some(vec![1.0, 2.0]);
        assert_eq!(output_error(&weight, &numbers, &rows, KernelLibrary::OnnxRuntime), Some(0.0));
        numbers.bias_shift = Some(vec![1.0, 0.0]);
        assert!(output_error(&weight, &numbers, &rows, KernelLibrary::OnnxRuntime).unwrap() > 1e-4);
    }

    #[test]
    fn a_range_per_row_is_more_accurate_than_a_shared_one() {
        let weight = Matrix { rows: 8, columns: 64, values: wave(512, 0.7) };
        // One row in four is a hundred times as large.
        let mut rows = wave(64 * 64, 1.3);
        rows.chunks_mut(64).step_by(4).for_each(|row| row.iter_mut().for_each(|value| *value *= 100.0));
        rows.chunks_mut(64).skip(1).step_by(4).for_each(|row| row.fill(0.3));
        let scales = WeightScales::Rows(vec![1.0 / 127.0; 8]);
        let numbers = LayerNumerics::plain(scales, Some(Affine { scale: 200.0 / 255.0, zero_point: 128 }));
        let error = |rows: &[f32], kernels| output_error(&weight, &numbers, rows, kernels).unwrap();
        let small: Vec<f32> = rows.chunks(64).skip(1).step_by(4).flatten().copied().collect();
        assert!(error(&small, KernelLibrary::Rushes) < 1e-3);
        assert!(error(&small, KernelLibrary::OnnxRuntime) > 0.1);
        assert_eq!(output_error(&weight, &numbers, &[], KernelLibrary::Rushes), None);
    }

    #[test]
    fn weight_only_and_e4m3_formats_are_measured() {
        let weight = Matrix { rows: 4, columns: 256, values: wave(1024, 0.37) };
        let rows = wave(256 * 16, 0.11);
        let blocks = WeightScales::Blocks { size: 128, scales: vec![1.0 / 127.0; 8] };
        let int8_error =
            output_error(&weight, &LayerNumerics::plain(blocks, None), &rows, KernelLibrary::OnnxRuntime)
                .unwrap();
        let e4m3 = LayerNumerics::plain(
            WeightScales::Tensor(1.0 / 448.0),
            Some(Affine { scale: 1.0 / 448.0, zero_point: 0 }),
        );
        let e4m3_error = output_error(&weight, &e4m3, &rows, KernelLibrary::OnnxRuntime).unwrap();
        assert!(int8_error > 0.0 && int8_error < 1e-4, "{int8_error}");
        assert!(e4m3_error > int8_error && e4m3_error < 1e-2, "{e4m3_error}");
    }
}
