//! Low-rank changes of weights: `W' = W + s·B·A`.
//!
//! Source: `LoRA` (arXiv 2106.09685). There, `s` is `alpha / rank`.

use super::row_segments::row_segments;
use crate::Error;
use bundle::digest::Digest;
use std::fmt;
use std::sync::Arc;

/// A factor of a low-rank change.
#[derive(Clone, PartialEq)]
pub struct Factor {
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Its elements, row-major.
    pub values: Arc<[f32]>,
}

impl fmt::Debug for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factor").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Factor {
    /// Returns the digest of shape and elements.
    fn digest(&self) -> Digest {
        let shape = self.shape.map(|extent| (extent as u64).to_le_bytes());
        let values: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Digest::of_parts([&shape[0][..], &shape[1], &values])
    }

    /// Returns a row.
    fn row(&self, row: usize) -> &[f32] {
        let columns = self.shape[1];
        &self.values[row * columns..(row + 1) * columns]
    }
}

/// The addition of a low-rank matrix to a weight: `W' = W + s·B·A`, in f32.
///
/// The weight has the shape `[out,in]`, or `[out,in,…]` for a convolution, which is read as a matrix
/// `[out,in·…]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    weight: String,
    scale: f32,
    up: Factor,
    down: Factor,
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
        let weight = weight.into();
        let why = wrong_factor("up", &up).or_else(|| wrong_factor("down", &down)).or_else(|| {
            if up.shape[1] != down.shape[0] {
                Some(format!("`up` is {:?} and `down` is {:?}: the ranks differ", up.shape, down.shape))
            } else {
                (!scale.is_finite()).then(|| format!("its scale is {scale}"))
            }
        });
        match why {
            Some(why) => Err(Error::Merge { weight, why }),
            None => Ok(Self { weight, scale, up, down }),
        }
    }

    /// Returns the canonical name of the weight.
    pub fn weight(&self) -> &str {
        &self.weight
    }

    /// Checks that the change fits a weight of this shape.
    ///
    /// # Errors
    /// [`Error::Merge`] with both shapes.
    pub fn check(&self, shape: &[usize]) -> Result<(), Error> {
        let [rows, columns] = [self.up.shape[0], self.down.shape[1]];
        let fits = match shape {
            [out, inputs @ ..] if !inputs.is_empty() => {
                *out == rows && checked_product(inputs) == Some(columns)
            }
            _ => false,
        };
        let why = || format!("the change is [{rows}, {columns}] and the weight is {shape:?}");
        if fits { Ok(()) } else { Err(Error::Merge { weight: self.weight.clone(), why: why() }) }
    }

    /// Returns the digest of the name, the scale and the factors.
    pub fn digest(&self) -> Digest {
        let [up, down] = [self.up.digest(), self.down.digest()];
        let scale = self.scale.to_le_bytes();
        Digest::of_parts([
            b"merge".as_slice(),
            self.weight.as_bytes(),
            &scale,
            up.blake3.as_bytes(),
            down.blake3.as_bytes(),
        ])
    }

    /// Adds the change to the elements of a weight of this shape from `start` on. The bits of an element do not
    /// depend on the block, and an element whose change is zero keeps its bits.
    pub(super) fn add(&self, shape: &[usize], start: usize, values: &mut [f32]) -> Result<(), Error> {
        self.check(shape)?;
        let columns = self.down.shape[1];
        let mut products = vec![0.0_f32; columns.min(values.len())];
        for segment in row_segments(columns, start, values.len()) {
            let products = &mut products[..segment.block.len()];
            products.fill(0.0);
            for (rank, up) in self.up.row(segment.row).iter().enumerate() {
                let down = &self.down.row(rank)[segment.columns.clone()];
                for (product, down) in products.iter_mut().zip(down) {
                    *product += up * down;
                }
            }
            let mut overflows = false;
            for (value, product) in values[segment.block].iter_mut().zip(products) {
                let change = self.scale * *product;
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

/// Returns what is wrong with a factor, if anything.
fn wrong_factor(name: &str, factor: &Factor) -> Option<String> {
    let Factor { shape, values } = factor;
    if values.is_empty() || checked_product(shape) != Some(values.len()) {
        return Some(format!("`{name}` is {shape:?} and has {} elements", values.len()));
    }
    let bad = values.iter().position(|value| !value.is_finite())?;
    Some(format!("element {bad} of `{name}` is {}", values[bad]))
}

fn checked_product(extents: &[usize]) -> Option<usize> {
    extents.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent))
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
