//! Ranges of quantised activations.

use super::activations::ActivationFormat;
use bundle::quantization::Affine;
use bundle::{Error, Field};
use std::fmt;
use std::str::FromStr;

/// The largest quantised value of an unsigned activation.
const MAX_QUANTIZED: f32 = 255.0;
/// Bins of a histogram.
const BINS: usize = 2048;

/// The default share of values that [`RangeMethod::Percentile`] clips.
const DEFAULT_TAILS: f64 = 1e-4;

/// A method for choosing a range.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum RangeMethod {
    /// From the minimum to the maximum.
    Extremes,
    /// Clips this share of the values, half of it at each end.
    Percentile(f64),
    /// The smallest mean square error.
    #[default]
    LeastSquares,
    /// The smallest Kullback-Leibler divergence between the values and their quantised form.
    Entropy,
}

impl RangeMethod {
    /// Every method, with its name in flags.
    const ALL: [Self; 4] =
        [Self::LeastSquares, Self::Percentile(DEFAULT_TAILS), Self::Entropy, Self::Extremes];

    fn name(self) -> &'static str {
        match self {
            Self::LeastSquares => "mse",
            Self::Percentile(_) => "percentile",
            Self::Entropy => "entropy",
            Self::Extremes => "extremes",
        }
    }
}

impl fmt::Display for RangeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RangeMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|method| method.name() == text).ok_or_else(|| {
            let rule = "unknown range method; expected one of mse, percentile, entropy, extremes";
            Error::value(Field::Ranges, format!("`{text}`"), rule, "use one of these")
        })
    }
}

/// How static ranges are chosen, and for which integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranges {
    /// The method.
    pub method: RangeMethod,
    /// The integers.
    pub format: ActivationFormat,
}

/// A histogram with `BINS` equal bins between the extremes.
#[derive(Debug, Clone)]
pub struct Histogram {
    low: f32,
    width: f32,
    counts: Vec<f64>,
}

impl Histogram {
    /// Counts `values`, all within `low..=high`.
    pub fn new(values: impl IntoIterator<Item = f32>, (low, high): (f32, f32)) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        #[expect(clippy::cast_precision_loss, reason = "a few thousand bins")]
        let width = ((high - low) / BINS as f32).max(f32::MIN_POSITIVE);
        let mut counts = vec![0.0; BINS];
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "cut to the bins there are"
        )]
        let bin = |value: f32| (((value - low) / width).max(0.0) as usize).min(BINS - 1);
        for value in values {
            counts[bin(value)] += 1.0;
        }
        // The samples may not contain the extremes.
        counts[bin(low)] += 1.0;
        counts[bin(high)] += 1.0;
        Self { low, width, counts }
    }

    fn centre(&self, bin: usize) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand bins")]
        let position = bin as f32 + 0.5;
        self.low + position * self.width
    }

    fn extremes(&self) -> (f32, f32) {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand bins")]
        let span = BINS as f32 * self.width;
        (self.low, self.low + span)
    }

    /// Returns the range for the values of the histogram.
    pub fn range(&self, ranges: Ranges) -> Affine {
        let (low, high) = self.extremes();
        match ranges.method {
            RangeMethod::Extremes => ranges.format.affine(low, high),
            RangeMethod::Percentile(share) => {
                let (low, high) = self.without_tails(share);
                ranges.format.affine(low, high)
            }
            RangeMethod::LeastSquares => self.least_error(ranges, |affine| self.square_error(affine)),
            RangeMethod::Entropy => self.least_error(ranges, |affine| self.divergence(affine)),
        }
    }

    fn without_tails(&self, share: f64) -> (f32, f32) {
        let cut = self.counts.iter().sum::<f64>() * share / 2.0;
        let low = self.first_beyond(cut, 0..BINS).map_or(self.low, |bin| self.centre(bin));
        let high = self.first_beyond(cut, (0..BINS).rev()).map_or(self.low, |bin| self.centre(bin));
        (low.min(0.0), high.max(0.0))
    }

    /// The first bin, in the order of `bins`, at which the cumulative count exceeds `cut`.
    fn first_beyond(&self, cut: f64, mut bins: impl Iterator<Item = usize>) -> Option<usize> {
        let mut behind = 0.0;
        bins.find(|bin| {
            behind += self.counts[*bin];
            behind > cut
        })
    }

    /// The range with the smallest error among shrunk versions of the whole range.
    fn least_error(&self, ranges: Ranges, error: impl Fn(Affine) -> f64) -> Affine {
        let (low, high) = self.extremes();
        let mut best = (f64::INFINITY, ranges.format.affine(low, high));
        for percent in (20_u8..=100).rev().step_by(2) {
            let share = f32::from(percent) / 100.0;
            let candidate = ranges.format.affine(low * share, high * share);
            let error = error(candidate);
            if error < best.0 {
                best = (error, candidate);
            }
        }
        best.1
    }

    fn square_error(&self, affine: Affine) -> f64 {
        let occupied = self.counts.iter().enumerate().filter(|(_, count)| **count > 0.0);
        occupied
            .map(|(bin, count)| {
                let value = self.centre(bin);
                count * f64::from(value - round_trip(affine, value)).powi(2)
            })
            .sum()
    }

    /// `Σ p·ln(p/q)`, where q is uniform over the bins of a quantised value.
    fn divergence(&self, affine: Affine) -> f64 {
        let mut per_quantized = vec![(0.0_f64, 0.0_f64); 256];
        let quantized: Vec<usize> =
            (0..BINS).map(|bin| usize::from(encode(affine, self.centre(bin)))).collect();
        for (bin, value) in quantized.iter().enumerate().filter(|(bin, _)| self.counts[*bin] > 0.0) {
            per_quantized[*value].0 += self.counts[bin];
            per_quantized[*value].1 += 1.0;
        }
        let total: f64 = self.counts.iter().sum();
        let share = |bin: usize| self.counts[bin] / total;
        let spread = |value: usize| per_quantized[value].0 / per_quantized[value].1 / total;
        let occupied = quantized.iter().enumerate().filter(|(bin, _)| self.counts[*bin] > 0.0);
        occupied.map(|(bin, value)| share(bin) * (share(bin) / spread(*value)).ln().abs()).sum()
    }
}

/// Quantises a value like ONNX's `QuantizeLinear`.
pub fn encode(affine: Affine, value: f32) -> u8 {
    let quantized = (value / affine.scale).round_ties_even() + f32::from(affine.zero_point);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    let quantized = quantized.clamp(0.0, MAX_QUANTIZED) as u8;
    quantized
}

/// Quantises and dequantises a value.
pub fn round_trip(affine: Affine, value: f32) -> f32 {
    // Without a conversion to integer, so that it can be vectorised.
    let zero = f32::from(affine.zero_point);
    ((value / affine.scale).round_ties_even().clamp(-zero, MAX_QUANTIZED - zero)) * affine.scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::activations::unsigned as affine;
    use bundle::dtype::WeightType;
    use proptest::prelude::*;

    #[test]
    fn method_names_are_parsed_and_unknown_ones_are_refused() {
        for method in RangeMethod::ALL {
            assert_eq!(method.to_string().parse::<RangeMethod>().unwrap(), method);
        }
        assert_eq!(RangeMethod::default().to_string(), "mse");
        assert!("max".parse::<RangeMethod>().is_err());
    }

    #[test]
    fn zero_is_exact_and_every_range_has_a_normal_scale() {
        for (low, high) in [(0.0, 0.0), (1.0, 3.0), (-2.0, -1.0), (-1.0e-44, 1.0e-44), (f32::MIN, f32::MAX)] {
            let affine = affine(low, high);
            assert!(affine.scale.is_normal() && affine.scale > 0.0, "{low} {high}: {affine:?}");
            assert_eq!(round_trip(affine, 0.0), 0.0);
        }
    }

    #[test]
    fn an_outlier_is_clipped_by_least_squares_and_by_percentile_but_not_by_extremes() {
        let values: Vec<f32> = (0..20_000_i16).map(|i| f32::from(i) / 20_000.0).collect();
        let histogram = Histogram::new(values, (0.0, 8.0));
        for (format, steps) in
            [(ActivationFormat::Unsigned, 255.0), (ActivationFormat::Signed(WeightType::F32), 127.0)]
        {
            let highest = |method| histogram.range(Ranges { method, format }).scale * steps;
            assert!((highest(RangeMethod::Extremes) - 8.0).abs() < 1e-4);
            assert!(highest(RangeMethod::Percentile(0.01)) < 1.1);
            assert!(highest(RangeMethod::LeastSquares) < 8.0);
            assert!(highest(RangeMethod::Entropy) <= 8.001);
        }
    }

    proptest! {
        #[test]
        fn the_error_within_the_range_is_at_most_one_step(low in -10.0_f32..0.0, high in 0.1_f32..10.0, at in 0.0_f32..1.0) {
            let affine = affine(low, high);
            let value = low + at * (high - low);
            prop_assert!((round_trip(affine, value) - value).abs() <= affine.scale * 1.001);
            let decoded = (f32::from(encode(affine, value)) - f32::from(affine.zero_point)) * affine.scale;
            prop_assert_eq!(decoded, round_trip(affine, value));
        }
    }
}
