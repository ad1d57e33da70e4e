//! Symmetric signed 8-bit integers: a value is an integer from -127 to 127 times a scale.
//!
//! The scale is the largest magnitude, of the tensor or of a channel, divided by 127. -128 is not used: the range is
//! symmetric, and products of two quantised values fit their accumulators.

use super::CodecError as Error;

/// The largest quantised value; the smallest is `-MAX_VALUE`.
pub const MAX_VALUE: i8 = 127;

/// The step between two quantised values: above 0, normal and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Scale(f32);

impl Scale {
    /// The largest scale whose multiples are all finite: one step below `f32::MAX / 127`, which rounds up.
    const LARGEST: f32 = (f32::MAX / MAX_VALUE as f32).next_down();

    /// The scale for values whose largest magnitude is `amax`, finite and at least 0.
    ///
    /// It is 1 if all values are 0. If it would be denormal, which some hardware flushes to 0, it is the smallest
    /// normal number.
    pub(crate) fn for_magnitude(amax: f32) -> Self {
        let scale = amax / f32::from(MAX_VALUE);
        Self(if amax == 0.0 { 1.0 } else { scale.clamp(f32::MIN_POSITIVE, Self::LARGEST) })
    }

    /// The scale as a number.
    pub fn get(self) -> f32 {
        self.0
    }

    /// Quantises a value to the nearest integer, ties to even. Values beyond ±127 scales become ±127, NaN becomes 0.
    pub fn encode(self, value: f32) -> i8 {
        let limit = f32::from(MAX_VALUE);
        (value / self.0).round_ties_even().clamp(-limit, limit) as i8
    }

    /// Dequantises a value. The result is finite for every scale of a tensor.
    pub fn decode(self, quantized: i8) -> f32 {
        f32::from(quantized) * self.0
    }
}

/// A quantised tensor in row-major order, with one scale or one per position on an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedTensor {
    quantized: Vec<i8>,
    scales: Vec<Scale>,
    /// Number of values between consecutive positions on the channel axis.
    stride: usize,
}

impl QuantizedTensor {
    /// Quantises a tensor with one scale.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn per_tensor(values: &[f32]) -> Result<Self, Error> {
        Self::new(values, 1, values.len())
    }

    /// Quantises a tensor of shape `shape` with a scale for each position on `axis`.
    ///
    /// # Errors
    /// A value is not finite, the shape does not have the axis, or the number of values differs from the shape.
    pub fn per_channel(values: &[f32], shape: &[usize], axis: usize) -> Result<Self, Error> {
        let Some(&channels) = shape.get(axis) else {
            return Err(Error::NoSuchAxis { axis, shape: shape.to_vec() });
        };
        let length = shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
        if length != Some(values.len()) {
            return Err(Error::Length { shape: shape.to_vec(), found: values.len() });
        }
        let stride = if values.is_empty() { 0 } else { shape[axis + 1..].iter().product() };
        Self::new(values, channels, stride)
    }

    fn new(values: &[f32], channels: usize, stride: usize) -> Result<Self, Error> {
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { index, value: *value });
        }
        let mut magnitudes = vec![0.0_f32; channels];
        for (index, value) in values.iter().enumerate() {
            let magnitude = &mut magnitudes[channel_at(index, channels, stride)];
            *magnitude = magnitude.max(value.abs());
        }
        let scales: Vec<Scale> = magnitudes.into_iter().map(Scale::for_magnitude).collect();
        let quantized = values
            .iter()
            .enumerate()
            .map(|(index, value)| scales[channel_at(index, channels, stride)].encode(*value))
            .collect();
        Ok(Self { quantized, scales, stride })
    }

    /// The quantised values, -127 to 127.
    pub fn values(&self) -> &[i8] {
        &self.quantized
    }

    /// The scale of the tensor, or of its channels in order.
    pub fn scales(&self) -> &[Scale] {
        &self.scales
    }

    /// Dequantises the tensor. Each value differs from the original by at most half a scale.
    pub fn decode(&self) -> Vec<f32> {
        let scale_at = |index| self.scales[channel_at(index, self.scales.len(), self.stride)];
        self.quantized
            .iter()
            .enumerate()
            .map(|(index, quantized)| scale_at(index).decode(*quantized))
            .collect()
    }
}

/// The channel of the value at `index` in row-major order.
fn channel_at(index: usize, channels: usize, stride: usize) -> usize {
    index / stride % channels
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scales(quantised: &QuantizedTensor) -> Vec<f32> {
        quantised.scales().iter().map(|scale| scale.get()).collect()
    }

    #[test]
    fn every_quantised_value_round_trips() {
        for scale in [1.0, 0.1, 3.7e-5, f32::MIN_POSITIVE, Scale::LARGEST] {
            for quantized in -MAX_VALUE..=MAX_VALUE {
                let value = Scale(scale).decode(quantized);
                assert!(value.is_finite());
                assert_eq!(Scale(scale).encode(value), quantized, "{value} at scale {scale}");
            }
        }
    }

    #[test]
    fn values_round_to_the_nearest_and_ties_to_even() {
        let scale = Scale(0.5);
        for quantized in 0..MAX_VALUE {
            let tie = f32::midpoint(scale.decode(quantized), scale.decode(quantized + 1));
            let even = if quantized % 2 == 0 { quantized } else { quantized + 1 };
            for (value, expected) in
                [(tie.next_down(), quantized), (tie, even), (tie.next_up(), quantized + 1)]
            {
                assert_eq!((scale.encode(value), scale.encode(-value)), (expected, -expected), "{value}");
            }
        }
    }

    #[test]
    fn values_beyond_the_range_saturate() {
        let scale = Scale(1.0);
        for value in [127.5, 128.0, 1e30, f32::INFINITY] {
            assert_eq!((scale.encode(value), scale.encode(-value)), (127, -127), "{value}");
        }
        assert_eq!(scale.encode(f32::NAN), 0);
    }

    #[test]
    fn a_tensor_has_one_scale() {
        let quantised = QuantizedTensor::per_tensor(&[0.0, 63.5, -127.0, 1.0]).unwrap();
        assert_eq!(scales(&quantised), [1.0]);
        assert_eq!(quantised.values(), [0, 64, -127, 1]);
        assert_eq!(quantised.decode(), [0.0, 64.0, -127.0, 1.0]);
    }

    #[test]
    fn channels_may_be_on_any_axis() {
        let values = [127.0, -254.0, 0.0, 254.0, 127.0, 0.0];
        let rows = QuantizedTensor::per_channel(&values, &[2, 3], 0).unwrap();
        assert_eq!(scales(&rows), [2.0, 2.0]);
        let columns = QuantizedTensor::per_channel(&values, &[2, 3], 1).unwrap();
        assert_eq!(scales(&columns), [2.0, 2.0, 1.0]);
        let middle = QuantizedTensor::per_channel(&values, &[1, 3, 2], 1).unwrap();
        assert_eq!(scales(&middle), [2.0, 2.0, 1.0]);
        assert_eq!(middle.values(), [64, -127, 0, 127, 127, 0]);
    }

    #[test]
    fn a_channel_of_zeros_has_scale_one() {
        let quantised = QuantizedTensor::per_channel(&[0.0, -0.0, 12.7, 0.0], &[2, 2], 0).unwrap();
        assert_eq!(scales(&quantised), [1.0, 12.7 / 127.0]);
        assert_eq!(quantised.values(), [0, 0, 127, 0]);
    }

    #[test]
    fn denormal_values_have_a_normal_scale() {
        let smallest = f32::from_bits(1);
        let tiny = QuantizedTensor::per_tensor(&[smallest, -smallest]).unwrap();
        assert_eq!(scales(&tiny), [f32::MIN_POSITIVE]);
        assert_eq!(tiny.values(), [0, 0]);
        let small = QuantizedTensor::per_tensor(&[3.0 * f32::MIN_POSITIVE, -f32::MIN_POSITIVE]).unwrap();
        assert_eq!(scales(&small), [f32::MIN_POSITIVE]);
        assert_eq!(small.values(), [3, -1]);
    }

    #[test]
    fn the_largest_values_are_finite_when_dequantised() {
        let quantised = QuantizedTensor::per_tensor(&[f32::MAX, f32::MIN]).unwrap();
        assert_eq!(quantised.values(), [127, -127]);
        assert!(quantised.decode().iter().all(|value| value.is_finite()));
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_index() {
        let infinite = QuantizedTensor::per_tensor(&[1.0, f32::NEG_INFINITY]);
        assert_eq!(infinite, Err(Error::NotFinite { index: 1, value: f32::NEG_INFINITY }));
        let error = QuantizedTensor::per_channel(&[1.0, 2.0, f32::NAN, 3.0], &[2, 2], 1).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 2, value } if value.is_nan()));
    }

    #[test]
    fn a_mismatched_shape_is_refused() {
        assert_eq!(
            QuantizedTensor::per_channel(&[1.0; 6], &[2, 3], 2),
            Err(Error::NoSuchAxis { axis: 2, shape: vec![2, 3] })
        );
        for shape in [vec![2, 4], vec![usize::MAX, 2], vec![0, 6]] {
            let found = QuantizedTensor::per_channel(&[1.0; 6], &shape, 0);
            assert_eq!(found, Err(Error::Length { shape, found: 6 }));
        }
    }

    #[test]
    fn an_empty_tensor_is_quantised() {
        assert!(QuantizedTensor::per_tensor(&[]).unwrap().decode().is_empty());
        let channels = QuantizedTensor::per_channel(&[], &[3, 0], 0).unwrap();
        assert_eq!((scales(&channels), channels.decode()), (vec![1.0; 3], vec![]));
    }

    proptest! {
        #[test]
        fn dequantised_values_are_within_half_a_scale(
            values in proptest::collection::vec(proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO, 1..40),
        ) {
            let quantised = QuantizedTensor::per_tensor(&values).unwrap();
            let half = 0.5 * f64::from(quantised.scales()[0].get());
            for (value, found) in values.iter().zip(quantised.decode()) {
                prop_assert!(found.is_finite());
                let distance = (f64::from(found) - f64::from(*value)).abs();
                prop_assert!(distance <= half * (1.0 + 1e-4), "{value} came back as {found}");
            }
        }

        #[test]
        fn channels_are_quantised_independently(
            values in proptest::collection::vec(-1e3_f32..1e3, 24), axis in 0_usize..3,
        ) {
            let shape = [2, 3, 4];
            let whole = QuantizedTensor::per_channel(&values, &shape, axis).unwrap();
            let stride: usize = shape[axis + 1..].iter().product();
            for channel in 0..shape[axis] {
                let is_inside = |index: &usize| index / stride % shape[axis] == channel;
                let own: Vec<f32> = (0..24).filter(is_inside).map(|index| values[index]).collect();
                let expected: Vec<i8> = (0..24).filter(is_inside).map(|index| whole.values()[index]).collect();
                let alone = QuantizedTensor::per_tensor(&own).unwrap();
                prop_assert_eq!(alone.values(), expected);
                prop_assert_eq!(alone.scales()[0], whole.scales()[channel]);
            }
        }
    }
}
