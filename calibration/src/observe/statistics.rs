//! What is kept of a value: statistics of each channel, and rows spread evenly over all that was seen.

use crate::Error;
use std::collections::BTreeMap;

/// Statistics of one value. Folding records in order gives the same bits whether or not it was interrupted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// Smallest of each channel.
    pub min: Vec<f32>,
    /// Largest of each channel.
    pub max: Vec<f32>,
    /// Sum of each channel.
    pub sum: Vec<f64>,
    /// Sum of squares of each channel.
    pub square: Vec<f64>,
    /// Elements seen.
    pub size: f64,
    /// Whole rows `[R,K]`, or single elements where a row has one channel only for the caller.
    pub samples: Vec<f32>,
}

/// One record of a value, as a graph gives it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Smallest of each channel.
    pub min: &'a [f32],
    /// Largest of each channel.
    pub max: &'a [f32],
    /// Sum of each channel.
    pub sum: &'a [f32],
    /// Sum of squares of each channel.
    pub square: &'a [f32],
    /// Elements.
    pub size: f32,
    /// Rows or elements.
    pub samples: &'a [f32],
}

impl Statistics {
    /// Channels.
    pub fn channels(&self) -> usize {
        self.min.len()
    }

    /// Adds a record.
    ///
    /// # Errors
    /// A value that is not finite, or another number of channels than before.
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

    /// All of these together, in their order.
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

    /// Elements of one channel.
    fn per_channel(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand channels")]
        let channels = self.channels().max(1) as f64;
        (self.size / channels).max(1.0)
    }

    /// Mean of each channel.
    pub fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.per_channel()).collect()
    }

    /// Mean square of each channel.
    pub fn mean_squares(&self) -> Vec<f64> {
        self.square.iter().map(|square| square / self.per_channel()).collect()
    }

    /// Largest magnitude of each channel.
    pub fn magnitudes(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(min, max)| min.abs().max(max.abs())).collect()
    }

    /// Largest magnitude of all.
    pub fn magnitude(&self) -> f32 {
        self.magnitudes().into_iter().fold(0.0, f32::max)
    }

    /// Smallest and largest of all.
    pub fn extremes(&self) -> (f32, f32) {
        let low = self.min.iter().copied().fold(f32::INFINITY, f32::min);
        (low, self.max.iter().copied().fold(f32::NEG_INFINITY, f32::max))
    }
}

/// Statistics by the name of the value.
pub type Points = BTreeMap<String, Statistics>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(rows: &[[f32; 2]]) -> Statistics {
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
    fn values_that_are_not_finite_are_named() {
        let mut statistics = of(&[[1.0, 2.0]]);
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
        fn merging_equals_seeing_all_at_once(
            rows in proptest::collection::vec([-100.0_f32..100.0, -1.0_f32..1.0], 2..20), cut in 1_usize..19,
        ) {
            let cut = cut.min(rows.len() - 1);
            let (a, b) = (of(&rows[..cut]), of(&rows[cut..]));
            let (merged, whole) = (Statistics::merged([&a, &b]), of(&rows));
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
