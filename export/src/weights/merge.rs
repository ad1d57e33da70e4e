//! Changes that are merged into weights: `W' = W + s·ΔW`.

use super::delta::matrix;
pub use super::delta::{Delta, Factor};
pub use super::magnitudes::Magnitudes;
use super::row_segments::row_segments;
use crate::Error;
use bundle::digest::Digest;

/// The change of one weight, in f32: `W' = W + s·ΔW`, or [`Magnitudes`] of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    weight: String,
    scale: f32,
    delta: Delta,
    magnitudes: Option<Magnitudes>,
}

impl Merge {
    /// Creates the addition of `scale · up · down` to the weight of this canonical name. `up` is `B`, `[out,rank]`;
    /// `down` is `A`, `[rank,in]`.
    ///
    /// ```
    /// use export::weights::merge::{Factor, Merge};
    ///
    /// let up = Factor { shape: [2, 1], values: [1.0, 2.0].into() };
    /// let down = Factor { shape: [1, 3], values: [1.0, 0.0, -1.0].into() };
    /// let merge = Merge::new("blocks.0.attn1.to_q.weight", 0.5, up.clone(), down)?;
    /// assert!(merge.check(&[2, 3]).is_ok());
    /// assert!(Merge::new("blocks.0.attn1.to_q.weight", 0.5, up.clone(), up).is_err());
    /// # Ok::<(), export::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Merge`] if the factors do not fit each other, have no elements, or if an element or the scale is not
    /// finite.
    pub fn new(weight: impl Into<String>, scale: f32, up: Factor, down: Factor) -> Result<Self, Error> {
        Self::of(weight, scale, Delta::LowRank { up, down })
    }

    /// Creates the addition of `scale · delta` to the weight of this canonical name.
    ///
    /// # Errors
    /// [`Error::Merge`] if matrices of the change do not fit each other, have no elements, or if an element or the scale
    /// is not finite.
    pub fn of(weight: impl Into<String>, scale: f32, delta: Delta) -> Result<Self, Error> {
        let weight = weight.into();
        let why = delta.fault().or_else(|| (!scale.is_finite()).then(|| format!("its scale is {scale}")));
        match why {
            Some(why) => Err(Error::Merge { weight, why }),
            None => Ok(Self { weight, scale, delta, magnitudes: None }),
        }
    }

    /// Returns the same change with magnitudes.
    #[must_use]
    pub fn with_magnitudes(self, magnitudes: Magnitudes) -> Self {
        Self { magnitudes: Some(magnitudes), ..self }
    }

    /// Returns the canonical name of the weight.
    pub fn weight(&self) -> &str {
        &self.weight
    }

    /// Returns the factor on the change.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Returns the change without its scale.
    pub fn delta(&self) -> &Delta {
        &self.delta
    }

    /// Returns its magnitudes, if it has them.
    pub fn magnitudes(&self) -> Option<&Magnitudes> {
        self.magnitudes.as_ref()
    }

    /// Returns the Frobenius norm of `W' - W`.
    pub fn change(&self) -> f64 {
        let plain = || f64::from(self.scale).abs() * self.delta.norm();
        self.magnitudes.as_ref().map_or_else(plain, |magnitudes| magnitudes.change)
    }

    /// Checks that the change fits a weight of this shape.
    ///
    /// # Errors
    /// [`Error::Merge`] with both shapes.
    pub fn check(&self, shape: &[usize]) -> Result<(), Error> {
        if self.delta.fits(shape) {
            return Ok(());
        }
        let why = format!("the change is {:?} and the weight is {shape:?}", self.delta.shape());
        Err(Error::Merge { weight: self.weight.clone(), why })
    }

    /// Returns the digest of the name, the scale and the change.
    pub fn digest(&self) -> Digest {
        let mut parts = vec![
            b"merge".to_vec(),
            self.weight.as_bytes().to_vec(),
            self.scale.to_le_bytes().to_vec(),
            self.delta.digest().blake3.into_bytes(),
        ];
        parts.extend(self.magnitudes.as_ref().map(|magnitudes| magnitudes.digest().blake3.into_bytes()));
        Digest::of_parts(parts.iter().map(Vec::as_slice))
    }

    /// Adds the change to the elements of a weight of this shape from `start` on. The bits of an element do not
    /// depend on the block, and an element whose change is zero keeps its bits.
    pub(crate) fn add(&self, shape: &[usize], start: usize, values: &mut [f32]) -> Result<(), Error> {
        self.check(shape)?;
        let columns = matrix(shape)[1];
        let mut products = vec![0.0_f32; columns.min(values.len())];
        let mut work = Vec::new();
        for segment in row_segments(columns, start, values.len()) {
            let products = &mut products[..segment.block.len()];
            products.fill(0.0);
            let row = (segment.row, columns);
            self.delta.add_row(row, segment.columns.clone(), products, &mut work);
            let mut overflows = false;
            let values = values[segment.block].iter_mut().zip(products);
            for ((value, product), column) in values.zip(segment.columns) {
                let change = match &self.magnitudes {
                    None => self.scale * *product,
                    Some(Magnitudes { of_rows, factors, strength, .. }) => {
                        let factor = factors[if *of_rows { segment.row } else { column }];
                        strength * ((*value + self.scale * *product) * factor - *value)
                    }
                };
                // Adding zero would change the sign of -0.
                let merged = if change == 0.0 { *value } else { *value + change };
                overflows |= value.is_finite() & !merged.is_finite();
                *value = merged;
            }
            if overflows {
                let why = format!("row {} is out of range for f32", segment.row);
                return Err(Error::Merge { weight: self.weight.clone(), why });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, ArrayView2};
    use proptest::prelude::*;

    fn factor(shape: [usize; 2], values: &[f32]) -> Factor {
        Factor { shape, values: values.into() }
    }

    fn refused(up: Factor, down: Factor, scale: f32) -> String {
        Merge::new("w", scale, up, down).unwrap_err().to_string()
    }

    #[test]
    fn factors_that_do_not_fit_are_refused_by_name() {
        let two = || factor([2, 1], &[1.0, 2.0]);
        let row = || factor([1, 2], &[1.0, 2.0]);
        for (error, named) in [
            (refused(two(), two(), 1.0), "`up` is [2, 1] and `down` is [2, 1]: the ranks differ"),
            (refused(factor([2, 2], &[1.0]), row(), 1.0), "`up` is [2, 2] and has 1 elements"),
            (refused(factor([usize::MAX, 2], &[1.0]), row(), 1.0), "`up` is"),
            (refused(factor([2, 0], &[]), factor([0, 2], &[]), 1.0), "`up` is [2, 0] and has 0 elements"),
            (refused(two(), factor([1, 2], &[1.0, f32::NAN]), 1.0), "element 1 of `down` is NaN"),
            (refused(two(), row(), f32::INFINITY), "its scale is inf"),
        ] {
            assert!(error.contains("weight w") && error.contains(named), "{error}");
        }
        let merge = Merge::new("w", 1.0, two(), row()).unwrap();
        assert!(merge.check(&[2, 2]).is_ok() && merge.check(&[2, 1, 2, 1]).is_ok());
        for wrong in [&[3, 2][..], &[2, 3], &[2], &[4], &[], &[2, usize::MAX, 2]] {
            let error = merge.check(wrong).unwrap_err().to_string();
            assert!(error.contains("weight w") && error.contains(&format!("{wrong:?}")), "{error}");
        }
    }

    #[test]
    fn a_sum_out_of_range_is_refused() {
        let merge = Merge::new("w", 1e30, factor([2, 1], &[0.0, 1e30]), factor([1, 1], &[1.0])).unwrap();
        let error = merge.add(&[2, 1], 0, &mut [1.0, 1.0]).unwrap_err().to_string();
        assert!(error.contains("row 1 is out of range"), "{error}");
        // A damaged weight is not a fault of the change.
        let mut values = [f32::NAN];
        assert!(merge.add(&[2, 1], 0, &mut values).is_ok());
    }

    #[test]
    fn every_parameter_changes_the_digest() {
        let up = factor([2, 1], &[1.0, 2.0]);
        let merge = |weight: &str, scale, down: &[f32]| {
            Merge::new(weight, scale, up.clone(), factor([1, 2], down)).unwrap().digest()
        };
        let first = merge("w", 1.0, &[1.0, 2.0]);
        assert_eq!(merge("w", 1.0, &[1.0, 2.0]), first);
        for other in
            [merge("v", 1.0, &[1.0, 2.0]), merge("w", 0.5, &[1.0, 2.0]), merge("w", 1.0, &[1.0, 3.0])]
        {
            assert_ne!(other, first);
        }
    }

    fn product_case() -> impl Strategy<Value = ([usize; 3], Vec<f32>, f32, usize)> {
        (1_usize..9, 1_usize..9, 1_usize..6).prop_flat_map(|(out, inputs, rank)| {
            let count = out * inputs + out * rank + rank * inputs;
            let values = proptest::collection::vec(-4.0_f32..4.0, count);
            (Just([out, inputs, rank]), values, -2.0_f32..2.0, 1_usize..90)
        })
    }

    proptest! {
        #[test]
        fn a_merged_weight_is_that_of_ndarray(
            ([out, inputs, rank], numbers, scale, block) in product_case(),
        ) {
            let (weight, factors) = numbers.split_at(out * inputs);
            let (up, down) = factors.split_at(out * rank);
            let merge =
                Merge::new("w", scale, factor([out, rank], up), factor([rank, inputs], down)).unwrap();
            let wide = |shape: [usize; 2], values: &[f32]| -> Array2<f64> {
                ArrayView2::from_shape(shape, values).unwrap().mapv(f64::from)
            };
            let product = wide([out, rank], up).dot(&wide([rank, inputs], down));
            let expected = wide([out, inputs], weight) + product * f64::from(scale);

            let mut whole = weight.to_vec();
            merge.add(&[out, inputs], 0, &mut whole).unwrap();
            for (found, expected) in whole.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
            }
            let mut blocks = weight.to_vec();
            for (index, values) in blocks.chunks_mut(block).enumerate() {
                merge.add(&[out, inputs], index * block, values).unwrap();
            }
            prop_assert_eq!(&blocks, &whole);
        }
    }
}
