//! Magnitudes of weights that were decomposed into magnitude and direction.

use super::delta::{Delta, matrix};
use crate::Error;
use bundle::digest::Digest;
use std::sync::Arc;

/// Magnitudes of a weight that was decomposed into magnitude and direction: `W' = W + strength·((W+ΔW)·m - W)`, where
/// `m` are the trained magnitudes divided by the norms of `W+ΔW`. Source: `DoRA` (arXiv 2402.09353).
#[derive(Debug, Clone, PartialEq)]
pub struct Magnitudes {
    /// True if there is a factor for each row (output), false for each column (input).
    pub of_rows: bool,
    /// The factors `m`.
    pub factors: Arc<[f32]>,
    /// How much of the change applies.
    pub strength: f32,
    /// The Frobenius norm of `W' - W`.
    pub change: f64,
}

impl Magnitudes {
    /// Computes the factors from the trained magnitudes `trained`, for a weight `[out,in]` with the elements `values` and
    /// a change of it.
    ///
    /// # Errors
    /// [`Error::Merge`] if the magnitudes have neither a value for each row nor one for each column, or one that is not
    /// finite.
    pub fn new(
        weight: &str,
        (shape, values): (&[usize], &[f32]),
        (scale, delta): (f32, &Delta),
        (of_rows, trained): (bool, &[f32]),
        strength: f32,
    ) -> Result<Self, Error> {
        let [rows, columns] = matrix(shape);
        let refused = |why: String| Error::Merge { weight: weight.to_owned(), why };
        let expected = if of_rows { rows } else { columns };
        if trained.len() != expected {
            return Err(refused(format!("it has {} magnitudes, and the weight is {shape:?}", trained.len())));
        }
        if let Some(bad) = trained.iter().position(|value| !value.is_finite()) {
            return Err(refused(format!("magnitude {bad} is {}", trained[bad])));
        }
        let changed = |row: usize, sums: &mut [f32], work: &mut Vec<f32>| {
            sums.fill(0.0);
            delta.add_row((row, columns), 0..columns, sums, work);
            for (sum, value) in sums.iter_mut().zip(&values[row * columns..(row + 1) * columns]) {
                *sum = value + scale * *sum;
            }
        };
        let mut squares = vec![0.0_f64; expected];
        let (mut sums, mut work) = (vec![0.0; columns], Vec::new());
        for row in 0..rows {
            changed(row, &mut sums, &mut work);
            if of_rows {
                squares[row] = sums.iter().map(|value| f64::from(*value).powi(2)).sum();
            } else {
                for (square, value) in squares.iter_mut().zip(&sums) {
                    *square += f64::from(*value).powi(2);
                }
            }
        }
        // A row of zeros has no direction, and stays zero.
        let factors: Arc<[f32]> = squares
            .iter()
            .zip(trained)
            .map(
                |(square, trained)| {
                    if *square > 0.0 { (f64::from(*trained) / square.sqrt()) as f32 } else { 0.0 }
                },
            )
            .collect();
        let mut change = 0.0;
        for row in 0..rows {
            changed(row, &mut sums, &mut work);
            let before = &values[row * columns..(row + 1) * columns];
            for (column, (after, before)) in sums.iter().zip(before).enumerate() {
                let factor = factors[if of_rows { row } else { column }];
                change += f64::from(strength * (after * factor - before)).powi(2);
            }
        }
        Ok(Self { of_rows, factors, strength, change: change.sqrt() })
    }

    pub(super) fn digest(&self) -> Digest {
        let Self { of_rows, factors, strength, change: _ } = self;
        let factors: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        Digest::of_parts([&[u8::from(*of_rows)][..], &strength.to_le_bytes(), &factors])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::delta::Factor;
    use ndarray::{Array2, ArrayView2};
    use proptest::prelude::*;

    fn factor(shape: [usize; 2], values: &[f32]) -> Factor {
        Factor { shape, values: values.into() }
    }

    fn wide(factor: &Factor) -> Array2<f64> {
        ArrayView2::from_shape(factor.shape, &factor.values).unwrap().mapv(f64::from)
    }

    /// Sizes out, in and rank, and the numbers of two factors.
    fn sizes() -> impl Strategy<Value = ([usize; 3], Vec<f32>)> {
        (1_usize..7, 1_usize..7, 1_usize..4).prop_flat_map(|(out, width, rank)| {
            let numbers = proptest::collection::vec(-2.0_f32..2.0, rank * (out + width));
            (Just([out, width, rank]), numbers)
        })
    }

    proptest! {
        #[test]
        fn magnitudes_are_the_norms_of_the_changed_weight(
            ([out, width, rank], values) in sizes(),
            strength in -1.5_f32..1.5,
            of_rows in any::<bool>(),
        ) {
            let (up, down) = (factor([out, rank], &values[..out * rank]), factor([rank, width], &values[out * rank..][..rank * width]));
            let weight: Vec<f32> = (0..out * width).map(|index| 0.5 + (index % 5) as f32).collect();
            let trained: Vec<f32> = (0..if of_rows { out } else { width }).map(|index| 1.0 + index as f32).collect();
            let delta = Delta::LowRank { up: up.clone(), down: down.clone() };
            let base = (&[out, width][..], weight.as_slice());
            let found = Magnitudes::new("w", base, (0.1, &delta), (of_rows, &trained), strength).unwrap();
            let before = ArrayView2::from_shape((out, width), &weight).unwrap().mapv(f64::from);
            let changed = &before + &(wide(&up).dot(&wide(&down)) * 0.1);
            let merge = crate::weights::merge::Merge::of("w", 0.1, delta).unwrap().with_magnitudes(found.clone());
            let mut merged = weight.clone();
            merge.add(&[out, width], 0, &mut merged).unwrap();
            let mut square = 0.0;
            for ((row, column), before) in before.indexed_iter() {
                let line = if of_rows { changed.row(row) } else { changed.column(column) };
                let norm = line.iter().map(|value| value * value).sum::<f64>().sqrt();
                let whole = changed[(row, column)] * f64::from(trained[if of_rows { row } else { column }]) / norm;
                let change = f64::from(strength) * (whole - before);
                square += change * change;
                let error = f64::from(merged[row * width + column]) - (before + change);
                prop_assert!(error.abs() < 1e-4, "{error}");
            }
            prop_assert!((found.change - square.sqrt()).abs() < 1e-3);
        }
    }

    #[test]
    fn magnitudes_for_another_size_are_refused() {
        let delta = Delta::LowRank { up: factor([2, 1], &[0.0; 2]), down: factor([1, 2], &[0.0; 2]) };
        let new = |trained: &[f32]| {
            Magnitudes::new("w", (&[2, 2], &[1.0, 2.0, 0.0, 0.0]), (1.0, &delta), (true, trained), 1.0)
        };
        assert!(new(&[1.0]).unwrap_err().to_string().contains("1 magnitudes"));
        assert!(new(&[1.0, f32::NAN]).unwrap_err().to_string().contains("magnitude 1 is NaN"));
        // A row of zeros has no direction.
        assert_eq!(&*new(&[5.0, 1.0]).unwrap().factors, &[5.0_f32.sqrt(), 0.0]);
    }
}
