//! Symmetric signed 8-bit integers: a value is a whole number from -127 to 127 times a scale.
//!
//! The scale is the largest magnitude over 127, of the whole tensor or of each channel. -128 is not used, so that codes
//! and values have the same signs and products of two codes fit their sums.

use super::CodecError as Error;

/// The largest code; the smallest is its opposite.
pub const MAX_CODE: i8 = 127;

/// What one code more or less is worth: above 0, normal and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Scale(f32);

impl Scale {
    /// The largest scale whose multiples are all finite: one step below `f32::MAX / 127`, which rounds up.
    const LARGEST: f32 = (f32::MAX / MAX_CODE as f32).next_down();

    /// The scale of values whose largest magnitude is `amax`, finite and at least 0.
    ///
    /// Where all values are 0 it is 1. Where they are so small that it would be denormal, which some hardware takes for 0,
    /// it is the smallest normal number.
    pub(crate) fn for_magnitude(amax: f32) -> Self {
        let scale = amax / f32::from(MAX_CODE);
        Self(if amax == 0.0 { 1.0 } else { scale.clamp(f32::MIN_POSITIVE, Self::LARGEST) })
    }

    /// The number itself.
    pub fn get(self) -> f32 {
        self.0
    }

    /// The nearest code, the even one on a tie. Values beyond ±127 scales become ±127, NaN becomes 0.
    pub fn encode(self, value: f32) -> i8 {
        let limit = f32::from(MAX_CODE);
        (value / self.0).round_ties_even().clamp(-limit, limit) as i8
    }

    /// The value of a code. It is finite for every scale that a tensor was given.
    pub fn decode(self, code: i8) -> f32 {
        f32::from(code) * self.0
    }
}

/// A tensor in row-major order with one scale, or with one for each position along an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    codes: Vec<i8>,
    scales: Vec<Scale>,
    /// How many values lie between one position on the channel axis and the next.
    stride: usize,
}

impl Quantised {
    /// A tensor with one scale.
    ///
    /// # Errors
    /// A value that is not finite.
    pub fn per_tensor(values: &[f32]) -> Result<Self, Error> {
        Self::new(values, 1, values.len())
    }

    /// A tensor of shape `shape` with a scale for each position on `axis`.
    ///
    /// # Errors
    /// A value that is not finite, an axis that the shape does not have, more or fewer values than the shape says.
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
        let codes = values
            .iter()
            .enumerate()
            .map(|(index, value)| scales[channel_at(index, channels, stride)].encode(*value))
            .collect();
        Ok(Self { codes, scales, stride })
    }

    /// One code per value, -127 to 127.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scale of the tensor, or those of its channels in order.
    pub fn scales(&self) -> &[Scale] {
        &self.scales
    }

    /// The values that the codes stand for, each at most half a scale from what it was.
    pub fn decode(&self) -> Vec<f32> {
        let scale_at = |index| self.scales[channel_at(index, self.scales.len(), self.stride)];
        self.codes.iter().enumerate().map(|(index, code)| scale_at(index).decode(*code)).collect()
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

    fn scales(quantised: &Quantised) -> Vec<f32> {
        quantised.scales().iter().map(|scale| scale.get()).collect()
    }

    #[test]
    fn every_code_comes_back() {
        for scale in [1.0, 0.1, 3.7e-5, f32::MIN_POSITIVE, Scale::LARGEST] {
            for code in -MAX_CODE..=MAX_CODE {
                let value = Scale(scale).decode(code);
                assert!(value.is_finite());
                assert_eq!(Scale(scale).encode(value), code, "{value} at scale {scale}");
            }
        }
    }

    #[test]
    fn between_neighbours_the_nearest_wins_and_the_even_on_a_tie() {
        let scale = Scale(0.5);
        for code in 0..MAX_CODE {
            let tie = f32::midpoint(scale.decode(code), scale.decode(code + 1));
            let even = if code % 2 == 0 { code } else { code + 1 };
            for (value, expected) in [(tie.next_down(), code), (tie, even), (tie.next_up(), code + 1)] {
                assert_eq!((scale.encode(value), scale.encode(-value)), (expected, -expected), "{value}");
            }
        }
    }

    #[test]
    fn what_lies_beyond_is_saturated() {
        let scale = Scale(1.0);
        for value in [127.5, 128.0, 1e30, f32::INFINITY] {
            assert_eq!((scale.encode(value), scale.encode(-value)), (127, -127), "{value}");
        }
        assert_eq!(scale.encode(f32::NAN), 0);
    }

    #[test]
    fn a_tensor_has_one_scale() {
        let quantised = Quantised::per_tensor(&[0.0, 63.5, -127.0, 1.0]).unwrap();
        assert_eq!(scales(&quantised), [1.0]);
        assert_eq!(quantised.codes(), [0, 64, -127, 1]);
        assert_eq!(quantised.decode(), [0.0, 64.0, -127.0, 1.0]);
    }

    #[test]
    fn channels_lie_on_any_axis() {
        let values = [127.0, -254.0, 0.0, 254.0, 127.0, 0.0];
        let rows = Quantised::per_channel(&values, &[2, 3], 0).unwrap();
        assert_eq!(scales(&rows), [2.0, 2.0]);
        let columns = Quantised::per_channel(&values, &[2, 3], 1).unwrap();
        assert_eq!(scales(&columns), [2.0, 2.0, 1.0]);
        let middle = Quantised::per_channel(&values, &[1, 3, 2], 1).unwrap();
        assert_eq!(scales(&middle), [2.0, 2.0, 1.0]);
        assert_eq!(middle.codes(), [64, -127, 0, 127, 127, 0]);
    }

    #[test]
    fn a_channel_of_zeros_stays_one() {
        let quantised = Quantised::per_channel(&[0.0, -0.0, 12.7, 0.0], &[2, 2], 0).unwrap();
        assert_eq!(scales(&quantised), [1.0, 12.7 / 127.0]);
        assert_eq!(quantised.codes(), [0, 0, 127, 0]);
    }

    #[test]
    fn denormal_values_have_a_normal_scale() {
        let smallest = f32::from_bits(1);
        let tiny = Quantised::per_tensor(&[smallest, -smallest]).unwrap();
        assert_eq!(scales(&tiny), [f32::MIN_POSITIVE]);
        assert_eq!(tiny.codes(), [0, 0]);
        let small = Quantised::per_tensor(&[3.0 * f32::MIN_POSITIVE, -f32::MIN_POSITIVE]).unwrap();
        assert_eq!(scales(&small), [f32::MIN_POSITIVE]);
        assert_eq!(small.codes(), [3, -1]);
    }

    #[test]
    fn the_largest_values_come_back_finite() {
        let quantised = Quantised::per_tensor(&[f32::MAX, f32::MIN]).unwrap();
        assert_eq!(quantised.codes(), [127, -127]);
        assert!(quantised.decode().iter().all(|value| value.is_finite()));
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let infinite = Quantised::per_tensor(&[1.0, f32::NEG_INFINITY]);
        assert_eq!(infinite, Err(Error::NotFinite { index: 1, value: f32::NEG_INFINITY }));
        let error = Quantised::per_channel(&[1.0, 2.0, f32::NAN, 3.0], &[2, 2], 1).unwrap_err();
        assert!(matches!(error, Error::NotFinite { index: 2, value } if value.is_nan()));
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused() {
        assert_eq!(
            Quantised::per_channel(&[1.0; 6], &[2, 3], 2),
            Err(Error::NoSuchAxis { axis: 2, shape: vec![2, 3] })
        );
        for shape in [vec![2, 4], vec![usize::MAX, 2], vec![0, 6]] {
            let found = Quantised::per_channel(&[1.0; 6], &shape, 0);
            assert_eq!(found, Err(Error::Length { shape, found: 6 }));
        }
    }

    #[test]
    fn nothing_is_quantised_to_nothing() {
        assert!(Quantised::per_tensor(&[]).unwrap().decode().is_empty());
        let channels = Quantised::per_channel(&[], &[3, 0], 0).unwrap();
        assert_eq!((scales(&channels), channels.decode()), (vec![1.0; 3], vec![]));
    }

    proptest! {
        #[test]
        fn values_come_back_within_half_a_scale(
            values in proptest::collection::vec(proptest::num::f32::NORMAL | proptest::num::f32::SUBNORMAL | proptest::num::f32::ZERO, 1..40),
        ) {
            let quantised = Quantised::per_tensor(&values).unwrap();
            let half = 0.5 * f64::from(quantised.scales()[0].get());
            for (value, found) in values.iter().zip(quantised.decode()) {
                prop_assert!(found.is_finite());
                let distance = (f64::from(found) - f64::from(*value)).abs();
                prop_assert!(distance <= half * (1.0 + 1e-4), "{value} came back as {found}");
            }
        }

        #[test]
        fn each_channel_is_quantised_as_if_alone(
            values in proptest::collection::vec(-1e3_f32..1e3, 24), axis in 0_usize..3,
        ) {
            let shape = [2, 3, 4];
            let whole = Quantised::per_channel(&values, &shape, axis).unwrap();
            let stride: usize = shape[axis + 1..].iter().product();
            for channel in 0..shape[axis] {
                let is_inside = |index: &usize| index / stride % shape[axis] == channel;
                let own: Vec<f32> = (0..24).filter(is_inside).map(|index| values[index]).collect();
                let codes: Vec<i8> = (0..24).filter(is_inside).map(|index| whole.codes()[index]).collect();
                let alone = Quantised::per_tensor(&own).unwrap();
                prop_assert_eq!(alone.codes(), codes);
                prop_assert_eq!(alone.scales()[0], whole.scales()[channel]);
            }
        }
    }
}
