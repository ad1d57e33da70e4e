//! Statistics of an observed value: per channel, plus sampled rows.

use crate::Error;
use std::collections::BTreeMap;

/// Statistics of one value. Adding records in order gives the same bits with and without interruption.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// Minimum per channel.
    pub min: Vec<f32>,
    /// Maximum per channel.
    pub max: Vec<f32>,
    /// Sum per channel.
    pub sum: Vec<f64>,
    /// Sum of squares per channel.
    pub square: Vec<f64>,
    /// Number of elements.
    pub size: f64,
    /// Sampled rows `[R,K]`, or single elements if the value is sampled by elements.
    pub samples: Vec<f32>,
}

/// The statistics of a value from one run of a graph.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Minimum per channel.
    pub min: &'a [f32],
    /// Maximum per channel.
    pub max: &'a [f32],
    /// Sum per channel.
    pub sum: &'a [f32],
    /// Sum of squares per channel.
    pub square: &'a [f32],
    /// Number of elements.
    pub size: f32,
    /// Sampled rows or elements.
    pub samples: &'a [f32],
}

impl Statistics {
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.min.len()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// A value is not finite, or the number of channels differs from earlier records.
    pub fn add(&mut self, point: &str, record: Record<'_>) -> Result<(), Error> {
        let all = [record.min, record.max, record.sum, record.square, record.samples];
        if let Some((channel, value)) =
            all.iter().find_map(|part| part.iter().copied().enumerate().find(|(_, value)| !value.is_finite()))
        {
            return Err(Error::ActivationNotFinite { point: point.to_owned(), channel, value });
        }
        if self.min.is_empty() {
            let channels = record.min.len();
            self.min = vec![f32::INFINITY; channels];
            self.max = vec![f32::NEG_INFINITY; channels];
            self.sum = vec![0.0; channels];
            self.square = vec![0.0; channels];
        }
        if record.min.len() != self.min.len() {
            return Err(Error::Channels {
                point: point.to_owned(),
                expected: self.min.len(),
                found: record.min.len(),
            });
        }
        for channel in 0..self.min.len() {
            self.min[channel] = self.min[channel].min(record.min[channel]);
            self.max[channel] = self.max[channel].max(record.max[channel]);
            self.sum[channel] += f64::from(record.sum[channel]);
            self.square[channel] += f64::from(record.square[channel]);
        }
        self.size += f64::from(record.size);
        self.samples.extend_from_slice(record.samples);
        Ok(())
    }

    /// Merges statistics, in order.
    pub fn merged<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().cloned().unwrap_or_default();
        for part in parts {
            for channel in 0..all.min.len().min(part.min.len()) {
                all.min[channel] = all.min[channel].min(part.min[channel]);
                all.max[channel] = all.max[channel].max(part.max[channel]);
                all.sum[channel] += part.sum[channel];
                all.square[channel] += part.square[channel];
            }
            all.size += part.size;
            all.samples.extend_from_slice(&part.samples);
        }
        all
    }

    /// Number of elements per channel.
    fn per_channel(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let channels = self.channels().max(1) as f64;
        (self.size / channels).max(1.0)
    }

    /// Mean per channel.
    pub fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.per_channel()).collect()
    }

    /// Mean square per channel.
    pub fn mean_squares(&self) -> Vec<f64> {
        self.square.iter().map(|square| square / self.per_channel()).collect()
    }

    /// Largest magnitude per channel.
    pub fn magnitudes(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(min, max)| min.abs().max(max.abs())).collect()
    }

    /// Largest magnitude over all channels.
    pub fn magnitude(&self) -> f32 {
        self.magnitudes().into_iter().fold(0.0, f32::max)
    }

    /// Minimum and maximum over all channels.
    pub fn extremes(&self) -> (f32, f32) {
        let low = self.min.iter().copied().fold(f32::INFINITY, f32::min);
        (low, self.max.iter().copied().fold(f32::NEG_INFINITY, f32::max))
    }
}

/// Statistics by name of the value.
pub type Points = BTreeMap<String, Statistics>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn statistics_of(rows: &[[f32; 2]]) -> Statistics {
        let column = |channel: usize| rows.iter().map(move |row| row[channel]);
        let fold = |f: fn(f32, f32) -> f32, start: f32| [0, 1].map(|channel| column(channel).fold(start, f));
        let samples: Vec<f32> = rows.iter().flatten().copied().collect();
        let mut statistics = Statistics::default();
        statistics
            .add(
                "x",
                Record {
                    min: &fold(f32::min, f32::INFINITY),
                    max: &fold(f32::max, f32::NEG_INFINITY),
                    sum: &fold(|a, b| a + b, 0.0),
                    square: &fold(|a, b| a + b * b, 0.0),
                    size: samples.len() as f32,
                    samples: &samples,
                },
            )
            .unwrap();
        statistics
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_the_point_named() {
        let mut statistics = statistics_of(&[[1.0, 2.0]]);
        let bad = [1.0, f32::NAN];
        let good = [1.0, 1.0];
        let record = Record { min: &good, max: &bad, sum: &good, square: &good, size: 2.0, samples: &good };
        let error = statistics.add("blocks.0.attn1.to_q", record).unwrap_err();
        assert!(error.to_string().contains("blocks.0.attn1.to_q"), "{error}");
        let record =
            Record { min: &[1.0], max: &[1.0], sum: &[1.0], square: &[1.0], size: 1.0, samples: &[] };
        assert!(statistics.add("x", record).is_err());
    }

    proptest! {
        #[test]
        fn merging_equals_adding_all_rows_at_once(
            rows in proptest::collection::vec([-100.0_f32..100.0, -1.0_f32..1.0], 2..20), cut in 1_usize..19,
        ) {
            let cut = cut.min(rows.len() - 1);
            let (a, b) = (statistics_of(&rows[..cut]), statistics_of(&rows[cut..]));
            let (merged, whole) = (Statistics::merged([&a, &b]), statistics_of(&rows));
            prop_assert_eq!(&merged.min, &whole.min);
            prop_assert_eq!(&merged.max, &whole.max);
            prop_assert_eq!(&merged.samples, &whole.samples);
            for (a, b) in merged.means().iter().zip(whole.means()) {
                prop_assert!((a - b).abs() < 1e-4);
            }
            prop_assert_eq!(merged.magnitude(), rows.iter().flatten().fold(0.0_f32, |m, v| m.max(v.abs())));
        }
    }
}
