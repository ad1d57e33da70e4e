//! Scales of weights, with clipping that minimises the error.

use super::activations::ActivationFormat;
use crate::Error;
use crate::codec::CodecError;
use crate::codec::int8::Scale;
use bundle::manifest::Component;
use rayon::prelude::*;

/// A source of a bundle's weights.
pub trait WeightSource: Sync {
    /// Returns the shape of a weight and its values as f32, row-major.
    ///
    /// # Errors
    /// The weight cannot be read.
    fn read(
        &self,
        component: &Component,
        name: &str,
    ) -> Result<(Vec<usize>, Vec<f32>), Box<dyn std::error::Error + Send + Sync>>;
}

/// A weight `[out,in]`, or `[out, in·taps]` for a convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs.
    pub columns: usize,
    /// Row-major.
    pub values: Vec<f32>,
}

impl Matrix {
    /// Reads a layer's weight.
    ///
    /// # Errors
    /// The weight cannot be read or has values that are not finite.
    pub fn read(source: &dyn WeightSource, component: &Component, layer: &str) -> Result<Self, Error> {
        let (shape, values) = source
            .read(component, &format!("{layer}.weight"))
            .map_err(|source| Error::Weights { layer: layer.to_owned(), source })?;
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(CodecError::NotFinite { index, value: *value }.into());
        }
        let rows = shape.first().copied().unwrap_or(1).max(1);
        Ok(Self { rows, columns: values.len() / rows, values })
    }

    /// Multiplies every column by its factor.
    pub fn scale_columns(&mut self, factors: &[f32]) {
        self.values.par_chunks_mut(self.columns).for_each(|row| {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        });
    }

    /// Largest magnitude per column.
    pub fn column_magnitudes(&self) -> Vec<f32> {
        let mut largest = vec![0.0_f32; self.columns];
        for row in self.values.chunks_exact(self.columns) {
            largest.iter_mut().zip(row).for_each(|(largest, value)| *largest = largest.max(value.abs()));
        }
        largest
    }

    /// Largest magnitude.
    pub fn magnitude(&self) -> f32 {
        self.values.par_iter().map(|value| value.abs()).reduce(|| 0.0, f32::max)
    }
}

/// The nearest value that INT8 with this scale can represent.
pub fn nearest(scale: f32, value: f32) -> f32 {
    (value / scale).round_ties_even().clamp(-127.0, 127.0) * scale
}

/// `Σ importance · (value − nearest)²`.
fn square_error(row: &[f32], importance: &[f32], scale: f32) -> f64 {
    let error = |(value, weight): (&f32, &f32)| {
        let error = value - nearest(scale, *value);
        f64::from(weight * error * error)
    };
    row.iter().zip(importance).map(error).sum()
}

/// The scale without clipping.
pub fn unclipped_scale(row: &[f32]) -> f32 {
    Scale::for_magnitude(row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()))).get()
}

/// The scale with the smallest weighted error, from no clipping to clipping at half of the largest magnitude.
pub fn best_scale(row: &[f32], importance: &[f32]) -> f32 {
    let whole = unclipped_scale(row);
    let candidates = (10_u8..=20).rev().map(|step| (whole * f32::from(step) / 20.0).max(f32::MIN_POSITIVE));
    let mut best = (f64::INFINITY, whole);
    for scale in candidates {
        let error = square_error(row, importance, scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// The best scale per row, exact in graphs for these activations.
pub fn row_scales(weight: &Matrix, importance: &[f32], format: ActivationFormat) -> Vec<f32> {
    weight.values.par_chunks(weight.columns).map(|row| format.scale(best_scale(row, importance))).collect()
}

/// The best scale per block of `size` values of every row.
pub fn block_scales(weight: &Matrix, importance: &[f32], size: usize) -> Vec<f32> {
    weight
        .values
        .par_chunks(weight.columns)
        .flat_map_iter(|row| {
            row.chunks(size).zip(importance.chunks(size)).map(|(row, weight)| best_scale(row, weight))
        })
        .collect()
}

/// The relative error of the outputs from rounding, as a ratio of mean squares summed over rows.
///
/// `importance` is the mean square of each input, `input_error` the mean square of its rounding error. Inputs are
/// assumed to be independent.
pub fn relative_error(weight: &Matrix, scales: &[f32], importance: &[f32], input_error: &[f32]) -> f64 {
    let (error, signal) = weight
        .values
        .par_chunks(weight.columns)
        .zip(scales)
        .map(|(row, scale)| {
            let mut sums = (0.0_f64, 0.0_f64);
            for ((value, importance), input_error) in row.iter().zip(importance).zip(input_error) {
                let rounding = value - nearest(*scale, *value);
                sums.0 += f64::from(importance * rounding * rounding + input_error * value * value);
                sums.1 += f64::from(importance * value * value);
            }
            sums
        })
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    if signal > 0.0 { error / signal } else { 0.0 }
}

/// The relative error of the outputs from `rounding` of the weights only. Every block of `size` values of a row has a
/// scale.
pub fn block_error(
    weight: &Matrix,
    scales: &[f32],
    importance: &[f32],
    size: usize,
    rounding: impl Fn(f32, f32) -> f32 + Sync,
) -> f64 {
    let blocks = weight.columns.div_ceil(size).max(1);
    let (error, signal) = weight
        .values
        .par_chunks(weight.columns)
        .zip(scales.par_chunks(blocks))
        .map(|(row, scales)| {
            let mut sums = (0.0_f64, 0.0_f64);
            for (index, (value, importance)) in row.iter().zip(importance).enumerate() {
                let error = rounding(*value, scales[index / size]);
                sums.0 += f64::from(importance * error * error);
                sums.1 += f64::from(importance * value * value);
            }
            sums
        })
        .reduce(|| (0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
    if signal > 0.0 { error / signal } else { 0.0 }
}

/// The correction of the bias for the change that rounding makes to the mean of each output.
///
/// `mean` is the mean of each input, `input_shift` the mean of its rounding error.
pub fn bias_shift(weight: &Matrix, scales: &[f32], mean: &[f32], input_shift: &[f32]) -> Vec<f32> {
    weight
        .values
        .par_chunks(weight.columns)
        .zip(scales)
        .map(|(row, scale)| {
            let mut shift = 0.0_f64;
            for ((value, mean), input_shift) in row.iter().zip(mean).zip(input_shift) {
                let stored = nearest(*scale, *value);
                shift += f64::from((value - stored) * mean - stored * input_shift);
            }
            #[expect(clippy::cast_possible_truncation, reason = "biases are f32")]
            let shift = shift as f32;
            shift
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, values: &[f32]) -> Matrix {
        Matrix { rows, columns, values: values.to_vec() }
    }

    #[test]
    fn an_unimportant_outlier_is_clipped_and_an_important_one_is_not() {
        let mut row = vec![0.1_f32; 64];
        row.iter_mut().enumerate().for_each(|(i, value)| *value *= (i as f32).sin());
        row[5] = 1.0;
        let mut importance = vec![1.0; 64];
        assert!(best_scale(&row, &importance) > 0.9 / 127.0);
        importance[5] = 1e-6;
        assert!(best_scale(&row, &importance) < 0.6 / 127.0);
    }

    #[test]
    fn rows_of_zeros_and_denormals_have_a_normal_scale() {
        let format = ActivationFormat::Unsigned;
        assert_eq!(row_scales(&matrix(2, 2, &[0.0, -0.0, 127.0, 0.0]), &[1.0, 1.0], format)[0], 1.0);
        let tiny = f32::from_bits(3);
        assert!(row_scales(&matrix(1, 2, &[tiny, -tiny]), &[1.0, 1.0], format)[0].is_normal());
    }

    #[test]
    fn the_bias_shift_restores_the_mean_of_the_output() {
        let weight = matrix(1, 2, &[0.3, 0.7]);
        let scales = [0.5];
        let mean = [2.0, 3.0];
        let shift = bias_shift(&weight, &scales, &mean, &[0.0, 0.0])[0];
        // 0.3 and 0.7 both become 0.5.
        let lost = (0.3 * 2.0 + 0.7 * 3.0) - (0.5 * 2.0 + 0.5 * 3.0);
        assert!((shift - lost).abs() < 1e-6, "{shift} {lost}");
    }
}
