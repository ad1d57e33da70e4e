//! Quantisation of a weight with a scale for each output channel.

use super::row_segments::row_segments;
use crate::Error;
use bundle::digest::Digest;
use bundle::quantization::LayerNumerics;

/// Factors of a weight's rows and columns that are multiplied in before rounding: the smoothing of a layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Adjustment {
    /// The factor of each output channel; none for 1.
    pub rows: Option<Vec<f32>>,
    /// The factor of each input channel; none for 1.
    pub columns: Option<Vec<f32>>,
}

impl Adjustment {
    /// Returns the adjustment of a layer.
    pub fn of(numbers: &LayerNumerics) -> Self {
        Self {
            rows: numbers.row_factors.clone(),
            columns: numbers.smoothing.as_ref().map(|smoothing| smoothing.divisors.clone()),
        }
    }

    /// Checks that there are as many factors as rows and columns.
    fn fits(&self, rows: usize, columns: usize) -> bool {
        let has =
            |factors: &Option<Vec<f32>>, count| factors.as_ref().is_none_or(|factors| factors.len() == count);
        has(&self.rows, rows) && has(&self.columns, columns)
    }

    /// Multiplies the elements from `start` on of the weight of a layer, `[rows,columns]`.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the factors do not fit the weight.
    pub(crate) fn apply(
        &self,
        layer: &str,
        [rows, columns]: [usize; 2],
        start: usize,
        values: &mut [f32],
    ) -> Result<(), Error> {
        if !self.fits(rows, columns) {
            return Err(Error::Numerics { layer: layer.to_owned() });
        }
        for segment in row_segments(columns, start, values.len()) {
            let row = self.rows.as_ref().map_or(1.0, |factors| factors[segment.row]);
            let values = &mut values[segment.block];
            match &self.columns {
                Some(factors) => {
                    for (value, factor) in values.iter_mut().zip(&factors[segment.columns]) {
                        *value *= row * factor;
                    }
                }
                None => values.iter_mut().for_each(|value| *value *= row),
            }
        }
        Ok(())
    }
}

/// Quantisation of one weight to integers from -127 to 127: `W[n,k] · rows[n] · columns[k] / scales[n]`, rounded to the
/// nearest, ties to even.
#[derive(Debug, Clone, PartialEq)]
pub struct RowQuantization {
    /// The layer: the name of the weight without `.weight`.
    pub layer: String,
    /// Factors before rounding.
    pub adjustment: Adjustment,
    /// The scale of each output channel.
    pub scales: Vec<f32>,
}

impl RowQuantization {
    /// Returns true if `weight` is the weight of the layer.
    pub(super) fn is_of(&self, weight: &str) -> bool {
        weight.strip_suffix(".weight") == Some(self.layer.as_str())
    }

    /// Returns the digest of every parameter.
    pub(super) fn digest(&self) -> Digest {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let optional = |values: &Option<Vec<f32>>| bytes(values.as_deref().unwrap_or_default());
        let Adjustment { rows, columns } = &self.adjustment;
        let (rows, columns, scales) = (optional(rows), optional(columns), bytes(&self.scales));
        Digest::of_parts([b"quantize rows".as_slice(), self.layer.as_bytes(), &rows, &columns, &scales])
    }

    /// Quantises the elements from `start` on of a weight of this shape. `bytes` receives the integers.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the scales or factors do not fit the weight.
    pub(super) fn quantize(
        &self,
        shape: &[usize],
        start: usize,
        values: &mut [f32],
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        let wrong = || Error::Numerics { layer: self.layer.clone() };
        let [rows, columns] = as_matrix(shape).ok_or_else(wrong)?;
        if self.scales.len() != rows {
            return Err(wrong());
        }
        self.adjustment.apply(&self.layer, [rows, columns], start, values)?;
        for segment in row_segments(columns, start, values.len()) {
            let scale = self.scales[segment.row];
            for (byte, value) in bytes[segment.block.clone()].iter_mut().zip(&values[segment.block]) {
                *byte = rounded(*value, scale).cast_unsigned();
            }
        }
        Ok(())
    }
}

/// Returns `[out,in·…]` for a weight `[out,in,…]`; none for a shape without axes.
pub(crate) fn as_matrix(shape: &[usize]) -> Option<[usize; 2]> {
    let (rows, inputs) = shape.split_first()?;
    let columns = inputs.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent))?;
    Some([*rows, columns])
}

/// Rounds `value / scale` to an integer from -127 to 127.
#[expect(clippy::cast_possible_truncation, reason = "clamped to -127..=127")]
pub(crate) fn rounded(value: f32, scale: f32) -> i8 {
    (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantization() -> RowQuantization {
        let adjustment = Adjustment { rows: Some(vec![1.0, 2.0]), columns: Some(vec![1.0, 0.5, 4.0]) };
        RowQuantization { layer: "l".into(), adjustment, scales: vec![0.5, 1.0] }
    }

    #[test]
    fn rows_have_factors_and_a_scale_and_ties_round_to_even() {
        let values = [1.0, 2.5, -0.5, 1.25, 100.0, -100.0];
        let expected = [2, 2, -4, 2, 100, -127_i8].map(i8::cast_unsigned);
        let (mut whole, mut bytes) = (values, [0; 6]);
        quantization().quantize(&[2, 3], 0, &mut whole, &mut bytes).unwrap();
        assert_eq!(bytes, expected);
        for (start, value) in values.into_iter().enumerate() {
            let mut byte = [0];
            quantization().quantize(&[2, 3, 1], start, &mut [value], &mut byte).unwrap();
            assert_eq!(byte[0], expected[start]);
        }
    }

    #[test]
    fn scales_that_do_not_fit_the_weight_are_refused_by_name() {
        for shape in [&[3, 3][..], &[2, 2], &[2], &[]] {
            let error = quantization().quantize(shape, 0, &mut [1.0], &mut [0]).unwrap_err();
            assert!(matches!(&error, Error::Numerics { layer } if layer == "l"), "{shape:?}: {error}");
        }
    }

    #[test]
    fn every_parameter_changes_the_digest() {
        let first = quantization();
        let mut others = vec![first.clone(); 4];
        others[0].layer = "k".into();
        others[1].scales[1] = 2.0;
        others[2].adjustment.rows = None;
        others[3].adjustment.columns = Some(vec![1.0, 0.5, 5.0]);
        assert!(others.iter().all(|other| other.digest() != first.digest()));
        assert_eq!(quantization().digest(), first.digest());
    }
}
