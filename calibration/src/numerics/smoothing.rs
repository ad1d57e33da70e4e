//! SmoothQuant: divides input channels and multiplies the weights by the same factors.
//!
//! Source: arXiv 2211.10438. `d = max|x|^α / max|w|^(1−α)`; α is searched per group of layers.

use super::activations::ActivationFormat;
use super::range::{Histogram, Ranges, round_trip};
use super::weights::{Matrix, relative_error, unclipped_scale};
use crate::observe::statistics::Statistics;
use bundle::quantization::Affine;
use rayon::prelude::*;

/// The exponents to try, in twentieths.
const TWENTIETHS: [u8; 9] = [6, 8, 10, 11, 12, 13, 14, 16, 18];

/// Statistics of an input after its channels are divided.
#[derive(Debug, Clone, PartialEq)]
pub struct SmoothedInput {
    /// The range.
    pub range: Affine,
    /// Mean square per channel.
    pub importance: Vec<f32>,
    /// Mean per channel.
    pub mean: Vec<f32>,
    /// Mean square of the rounding error per channel.
    pub error: Vec<f32>,
    /// Mean of the rounding error per channel.
    pub shift: Vec<f32>,
}

impl SmoothedInput {
    /// Computes the statistics of an input divided by `divisors`.
    pub fn new(statistics: &Statistics, divisors: &[f32], ranges: Ranges) -> Self {
        let channels = divisors.len();
        #[expect(clippy::cast_possible_truncation, reason = "statistics of f32 values")]
        let divided = |values: Vec<f64>, power: i32| -> Vec<f32> {
            let divide = |(value, divisor): (f64, &f32)| (value / f64::from(*divisor).powi(power)) as f32;
            values.into_iter().zip(divisors).map(divide).collect()
        };
        let low = statistics.min.iter().zip(divisors).map(|(v, d)| v / d).fold(f32::INFINITY, f32::min);
        let high = statistics.max.iter().zip(divisors).map(|(v, d)| v / d).fold(f32::NEG_INFINITY, f32::max);
        let samples =
            || statistics.samples.iter().zip(divisors.iter().cycle()).map(|(value, divisor)| value / divisor);
        let range = Histogram::new(samples(), (low, high)).range(ranges);
        let rows = statistics.samples.len() / channels.max(1);
        let (mut error, mut shift) = (vec![0.0_f32; channels], vec![0.0_f32; channels]);
        for (index, value) in samples().enumerate() {
            let rounding = round_trip(range, value) - value;
            error[index % channels] += rounding * rounding;
            shift[index % channels] += rounding;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few hundred rows")]
        let count = rows.max(1) as f32;
        error.iter_mut().chain(&mut shift).for_each(|value| *value /= count);
        Self {
            range,
            importance: divided(statistics.mean_squares(), 2),
            mean: divided(statistics.means(), 1),
            error,
            shift,
        }
    }
}

/// The divisors for an exponent.
fn divisors(alpha: f32, inputs: &[f32], weights: &[f32], format: ActivationFormat) -> Vec<f32> {
    let raw = |(input, weight): (&f32, &f32)| {
        if *input > 0.0 && *weight > 0.0 { input.powf(alpha) / weight.powf(1.0 - alpha) } else { f32::NAN }
    };
    let raw: Vec<f32> = inputs.iter().zip(weights).map(raw).collect();
    // Only ratios matter. Centred at 1 they cannot overflow.
    let known: Vec<f32> = raw.iter().copied().filter(|value| value.is_finite() && *value > 0.0).collect();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
    let centre = (known.iter().map(|value| value.ln()).sum::<f32>() / known.len().max(1) as f32).exp();
    raw.into_iter()
        .map(|value| if value.is_finite() { (value / centre).clamp(1e-3, 1e3) } else { 1.0 })
        .map(|divisor| format.divisor(divisor))
        .collect()
}

/// The summed relative error of layers with a common input, for divided channels and unclipped weight scales.
fn error_of(layers: &[Matrix], divisors: &[f32], input: &SmoothedInput) -> f64 {
    layers
        .iter()
        .map(|layer| {
            let mut scaled = layer.clone();
            scaled.scale_columns(divisors);
            let scales: Vec<f32> = scaled.values.par_chunks(scaled.columns).map(unclipped_scale).collect();
            relative_error(&scaled, &scales, &input.importance, &input.error)
        })
        .sum()
}

/// The result of [`search`].
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The divisors, or `None` if smoothing does not reduce the error enough.
    pub divisors: Option<Vec<f32>>,
    /// The exponent.
    pub alpha: f32,
    /// The divided input.
    pub input: SmoothedInput,
    /// Estimated relative error, summed over the layers.
    pub error: f64,
}

/// Searches the best exponent for layers with a common input. Smoothing is used if the error is below `gain` times the
/// error without it; `None` turns it off.
pub fn search(layers: &[Matrix], statistics: &Statistics, gain: Option<f64>, ranges: Ranges) -> Choice {
    let ones = vec![1.0; statistics.channels()];
    let input = SmoothedInput::new(statistics, &ones, ranges);
    let error = error_of(layers, &ones, &input);
    let mut best = Choice { divisors: None, alpha: 0.0, input, error };
    let Some(gain) = gain else { return best };
    let mut weights = vec![0.0_f32; statistics.channels()];
    for layer in layers {
        for (largest, value) in weights.iter_mut().zip(layer.column_magnitudes()) {
            *largest = largest.max(value);
        }
    }
    let inputs = statistics.magnitudes();
    let plain = best.error;
    for twentieths in TWENTIETHS {
        let alpha = f32::from(twentieths) / 20.0;
        let divisors = divisors(alpha, &inputs, &weights, ranges.format);
        let input = SmoothedInput::new(statistics, &divisors, ranges);
        let error = error_of(layers, &divisors, &input);
        if error < best.error && error < gain * plain {
            best = Choice { divisors: Some(divisors), alpha, input, error };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::range::RangeMethod;
    use crate::observe::statistics::Record;
    use bundle::dtype::WeightType;

    /// 256 rows of 8 channels; channel 3 is 40 times as large as the others.
    fn with_an_outlier_channel() -> Statistics {
        let value = |row: usize, channel: usize| {
            let base = ((row * 37 + channel * 101) % 97) as f32 / 48.5 - 1.0;
            if channel == 3 { 40.0 * base } else { base }
        };
        let samples: Vec<f32> =
            (0..256).flat_map(|row| (0..8).map(move |channel| value(row, channel))).collect();
        let fold = |f: &dyn Fn(f32, f32) -> f32, start: f32| -> Vec<f32> {
            (0..8).map(|channel| (0..256).map(|row| value(row, channel)).fold(start, f)).collect()
        };
        let mut statistics = Statistics::default();
        let record = Record {
            min: &fold(&f32::min, f32::INFINITY),
            max: &fold(&f32::max, f32::NEG_INFINITY),
            sum: &fold(&|a, b| a + b, 0.0),
            square: &fold(&|a, b| a + b * b, 0.0),
            size: samples.len() as f32,
            samples: &samples,
        };
        statistics.add("x", record).unwrap();
        statistics
    }

    fn weights() -> Matrix {
        let values = (0..32).map(|i| ((i * 29 % 31) as f32 / 15.5 - 1.0) * 0.1).collect();
        Matrix { rows: 4, columns: 8, values }
    }

    #[test]
    fn smoothing_an_outlier_channel_reduces_the_error() {
        let statistics = with_an_outlier_channel();
        for format in [ActivationFormat::Unsigned, ActivationFormat::Signed(WeightType::Bf16)] {
            let ranges = Ranges { method: RangeMethod::LeastSquares, format };
            let choice = search(&[weights()], &statistics, Some(1.0), ranges);
            let plain = search(&[weights()], &statistics, None, ranges);
            let divisors = choice.divisors.unwrap();
            assert!(divisors[3] > 3.0 * divisors[0], "{divisors:?}");
            assert!(choice.error < 0.7 * plain.error, "{} {}", choice.error, plain.error);
            assert!(plain.divisors.is_none());
        }
    }

    #[test]
    fn channels_without_values_or_weights_are_not_divided() {
        assert_eq!(
            divisors(0.5, &[0.0, 1.0, 4.0], &[1.0, 0.0, 1.0], ActivationFormat::Unsigned),
            [1.0, 1.0, 1.0]
        );
        let wild = divisors(0.5, &[1e-38, 1e38], &[1e-38, 1e-38], ActivationFormat::Unsigned);
        assert!(wild.iter().all(|value| (1e-3..=1e3).contains(value)), "{wild:?}");
    }
}
