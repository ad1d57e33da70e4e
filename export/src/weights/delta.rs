//! The forms in which changes of weights are stored.

use bundle::digest::Digest;
use rayon::prelude::*;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A matrix of a change.
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
    pub fn row(&self, row: usize) -> &[f32] {
        let columns = self.shape[1];
        &self.values[row * columns..(row + 1) * columns]
    }

    /// Returns what is wrong with it, if anything.
    fn fault(&self, name: &str) -> Option<String> {
        let Self { shape, values } = self;
        if values.is_empty() || checked_product(shape) != Some(values.len()) {
            return Some(format!("`{name}` is {shape:?} and has {} elements", values.len()));
        }
        let bad = values.iter().position(|value| !value.is_finite())?;
        Some(format!("element {bad} of `{name}` is {}", values[bad]))
    }

    /// Returns the products of all pairs of its columns: `FᵀF`.
    fn column_products(&self) -> Vec<f64> {
        let rank = self.shape[1];
        let zeros = || vec![0.0; rank * rank];
        let add = |mut sums: Vec<f64>, row: &[f32]| {
            for (sums, left) in sums.chunks_mut(rank).zip(row) {
                for (sum, right) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*left) * f64::from(*right);
                }
            }
            sums
        };
        self.values.par_chunks(rank).fold(zeros, add).reduce(zeros, |mut sums, others| {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
            sums
        })
    }

    /// Returns the transposed matrix.
    pub fn transposed(&self) -> Self {
        let [rows, columns] = self.shape;
        let values = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
        let values = values.map(|(row, column)| self.values[row * columns + column]).collect();
        Self { shape: [columns, rows], values }
    }

    /// The Frobenius norm.
    fn norm(&self) -> f64 {
        self.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
    }
}

/// A change ΔW of one weight, without its scale.
///
/// The weight has the shape `[out,in]`, or `[out,in,…]` for a convolution, which is read as a matrix `[out,in·…]`.
/// Vectors and tables change by [`Dense`](Self::Dense) only.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// `up·down`, with `up [out,rank]` and `down [rank,in]`. Source: `LoRA` (arXiv 2106.09685).
    LowRank {
        /// `B`.
        up: Factor,
        /// `A`.
        down: Factor,
    },
    /// The product, element by element, of two low-rank matrices, each `[up, down]`. Source: `LoHa` (arXiv 2108.06098).
    Hadamard {
        /// The first matrix.
        first: [Factor; 2],
        /// The second matrix.
        second: [Factor; 2],
    },
    /// The Kronecker product of two matrices. Source: `LoKr` (arXiv 2309.14859).
    Kronecker {
        /// The blocks.
        left: Factor,
        /// The elements of a block.
        right: Factor,
    },
    /// Every element.
    Dense {
        /// The shape of the weight.
        shape: Vec<usize>,
        /// The elements, row-major.
        values: Arc<[f32]>,
    },
}

impl Delta {
    /// Checks that its matrices fit each other, have elements, and are finite.
    pub(crate) fn fault(&self) -> Option<String> {
        let pair = |[up, down]: [&Factor; 2], names: [&str; 2]| {
            up.fault(names[0]).or_else(|| down.fault(names[1])).or_else(|| {
                let ([_, left], [right, _]) = (up.shape, down.shape);
                let [a, b] = names;
                (left != right).then(|| {
                    format!("`{a}` is {:?} and `{b}` is {:?}: the ranks differ", up.shape, down.shape)
                })
            })
        };
        match self {
            Self::LowRank { up, down } => pair([up, down], ["up", "down"]),
            Self::Hadamard { first: [a, b], second: [c, d] } => {
                let shapes = || {
                    let (one, other) = ([a.shape[0], b.shape[1]], [c.shape[0], d.shape[1]]);
                    (one != other).then(|| format!("its two matrices are {one:?} and {other:?}"))
                };
                pair([a, b], ["w1_a", "w1_b"]).or_else(|| pair([c, d], ["w2_a", "w2_b"])).or_else(shapes)
            }
            Self::Kronecker { left, right } => {
                let shapes = || {
                    let fits = left.shape.iter().zip(right.shape).all(|(a, b)| a.checked_mul(b).is_some());
                    (!fits).then(|| format!("`w1` is {:?} and `w2` is {:?}", left.shape, right.shape))
                };
                left.fault("w1").or_else(|| right.fault("w2")).or_else(shapes)
            }
            Self::Dense { shape, values } => {
                let columns = checked_product(shape).unwrap_or(usize::MAX);
                Factor { shape: [1, columns], values: Arc::clone(values) }.fault("diff")
            }
        }
    }

    /// Returns its shape as a matrix, or as stored if it is dense.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::LowRank { up, down } => vec![up.shape[0], down.shape[1]],
            Self::Hadamard { first: [up, down], .. } => vec![up.shape[0], down.shape[1]],
            Self::Kronecker { left, right } => {
                vec![left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]]
            }
            Self::Dense { shape, .. } => shape.clone(),
        }
    }

    /// Returns true if it fits a weight of this shape. Extents of 1 of dense changes do not count.
    pub fn fits(&self, weight: &[usize]) -> bool {
        match (self, weight) {
            (Self::Dense { shape, .. }, _) => {
                let plain = |shape: &[usize]| -> Vec<usize> {
                    shape.iter().copied().filter(|extent| *extent != 1).collect()
                };
                plain(shape) == plain(weight)
            }
            (_, [out, inputs @ ..]) if !inputs.is_empty() => {
                checked_product(inputs).is_some_and(|columns| self.shape() == [*out, columns])
            }
            _ => false,
        }
    }

    /// Returns the digest of its form and its elements.
    pub(super) fn digest(&self) -> Digest {
        let (form, factors): (&[u8], Vec<&Factor>) = match self {
            Self::LowRank { up, down } => (b"low-rank", vec![up, down]),
            Self::Hadamard { first: [a, b], second: [c, d] } => (b"hadamard", vec![a, b, c, d]),
            Self::Kronecker { left, right } => (b"kronecker", vec![left, right]),
            Self::Dense { values, .. } => {
                let all = Factor { shape: [1, values.len()], values: Arc::clone(values) };
                return Digest::of_parts([b"dense".as_slice(), all.digest().blake3.as_bytes()]);
            }
        };
        let factors: Vec<Digest> = factors.into_iter().map(Factor::digest).collect();
        Digest::of_parts([form].into_iter().chain(factors.iter().map(|digest| digest.blake3.as_bytes())))
    }

    /// Adds the elements of `columns` of a row to `sums`, for a weight that has `width` columns. `work` is a buffer.
    pub(crate) fn add_row(
        &self,
        (row, width): (usize, usize),
        columns: Range<usize>,
        sums: &mut [f32],
        work: &mut Vec<f32>,
    ) {
        match self {
            Self::LowRank { up, down } => add_product(up, down, row, columns, sums),
            Self::Hadamard { first: [a, b], second: [c, d] } => {
                work.clear();
                work.resize(2 * sums.len(), 0.0);
                let (one, other) = work.split_at_mut(sums.len());
                add_product(a, b, row, columns.clone(), one);
                add_product(c, d, row, columns, other);
                for ((sum, one), other) in sums.iter_mut().zip(one).zip(other) {
                    *sum += *one * *other;
                }
            }
            Self::Kronecker { left, right } => {
                let [height, inner] = right.shape;
                let (blocks, elements) = (left.row(row / height), right.row(row % height));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum += blocks[column / inner] * elements[column % inner];
                }
            }
            // Its own shape may have other extents of 1.
            Self::Dense { values, .. } => {
                let row = &values[row * width..(row + 1) * width];
                for (sum, value) in sums.iter_mut().zip(&row[columns]) {
                    *sum += value;
                }
            }
        }
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        match self {
            // With a higher rank, the matrices below would be larger than the factors.
            Self::LowRank { up, down } if up.shape[1] <= up.shape[0].max(down.shape[1]) => {
                // ‖BA‖² = tr(AᵀBᵀBA) = ⟨BᵀB, AAᵀ⟩.
                let (left, right) = (up.column_products(), down.transposed().column_products());
                left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>().max(0.0).sqrt()
            }
            Self::LowRank { .. } | Self::Hadamard { .. } => {
                let shape = self.shape();
                let rows = (0..shape[0]).into_par_iter().map_init(
                    || (vec![0.0_f32; shape[1]], Vec::new()),
                    |(sums, work), row| {
                        sums.fill(0.0);
                        self.add_row((row, shape[1]), 0..shape[1], sums, work);
                        sums.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>()
                    },
                );
                rows.sum::<f64>().sqrt()
            }
            Self::Kronecker { left, right } => left.norm() * right.norm(),
            Self::Dense { values, .. } => {
                values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
            }
        }
    }

    /// Returns the rank of its factors; none for a dense change.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank { down, .. } | Self::Hadamard { first: [_, down], .. } => Some(down.shape[0]),
            Self::Kronecker { .. } | Self::Dense { .. } => None,
        }
    }
}

/// `sums += up[row] · down[:, columns]`.
fn add_product(up: &Factor, down: &Factor, row: usize, columns: Range<usize>, sums: &mut [f32]) {
    for (rank, up) in up.row(row).iter().enumerate() {
        let down = &down.row(rank)[columns.clone()];
        for (sum, down) in sums.iter_mut().zip(down) {
            *sum += up * down;
        }
    }
}

/// Returns the rows and columns of a weight: a vector is one row, and the axes after the first are one.
pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    match shape {
        [] => [1, 1],
        [length] => [1, *length],
        [rows, columns @ ..] => [*rows, columns.iter().product()],
    }
}

pub(super) fn checked_product(extents: &[usize]) -> Option<usize> {
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

    fn wide(factor: &Factor) -> Array2<f64> {
        ArrayView2::from_shape(factor.shape, &factor.values).unwrap().mapv(f64::from)
    }

    fn matrix_of(delta: &Delta) -> Array2<f64> {
        let shape = delta.shape();
        let mut all = Array2::zeros((shape[0], shape[1]));
        for (row, mut found) in all.rows_mut().into_iter().enumerate() {
            let (mut sums, mut work) = (vec![0.0; shape[1]], Vec::new());
            // In two parts, as blocks of a weight are.
            let half = shape[1] / 2;
            let (left, right) = sums.split_at_mut(half);
            delta.add_row((row, shape[1]), 0..half, left, &mut work);
            delta.add_row((row, shape[1]), half..shape[1], right, &mut work);
            found.iter_mut().zip(&sums).for_each(|(found, sum)| *found = f64::from(*sum));
        }
        all
    }

    fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-2.0_f32..2.0, count)
    }

    /// Sizes out, in and rank, and enough numbers for four factors.
    fn sizes() -> impl Strategy<Value = ([usize; 3], Vec<f32>)> {
        (1_usize..7, 1_usize..7, 1_usize..4)
            .prop_flat_map(|(out, width, rank)| (Just([out, width, rank]), numbers(2 * rank * (out + width))))
    }

    proptest! {
        #[test]
        fn every_form_is_the_matrix_that_it_stands_for(([out, width, rank], values) in sizes()) {
            let mut rest = values.as_slice();
            let mut take = |shape: [usize; 2]| {
                let (own, others) = rest.split_at(shape[0] * shape[1]);
                rest = others;
                factor(shape, own)
            };
            let first = [take([out, rank]), take([rank, width])];
            let second = [take([out, rank]), take([rank, width])];
            let product = |[up, down]: &[Factor; 2]| wide(up).dot(&wide(down));
            let (one, other) = (product(&first), product(&second));
            let [up, down] = first.clone();
            let kronecker = {
                let (left, right) = (wide(&up), wide(&down));
                Array2::from_shape_fn((out * rank, rank * width), |(row, column)| {
                    left[(row / rank, column / width)] * right[(row % rank, column % width)]
                })
            };
            for (delta, expected) in [
                (Delta::LowRank { up: up.clone(), down: down.clone() }, one.clone()),
                (Delta::Hadamard { first, second }, &one * &other),
                (Delta::Kronecker { left: up, right: down }, kronecker),
            ] {
                prop_assert_eq!(delta.fault(), None);
                let found = matrix_of(&delta);
                prop_assert!((&found - &expected).iter().all(|error| error.abs() < 1e-4));
                let norm = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
                prop_assert!((delta.norm() - norm).abs() <= 1e-5 * norm.max(1.0), "{} {norm}", delta.norm());
            }
        }
    }

    #[test]
    fn forms_that_do_not_fit_together_are_faults() {
        let a = || factor([2, 1], &[1.0, 2.0]);
        let b = || factor([1, 3], &[1.0, 2.0, 3.0]);
        let wider = || factor([1, 2], &[1.0, 2.0]);
        for (delta, named) in [
            (Delta::LowRank { up: a(), down: a() }, "ranks differ"),
            (
                Delta::Hadamard { first: [a(), b()], second: [a(), wider()] },
                "its two matrices are [2, 3] and [2, 2]",
            ),
            (Delta::Kronecker { left: a(), right: factor([1, 1], &[f32::NAN]) }, "element 0 of `w2` is NaN"),
            (Delta::Dense { shape: vec![3], values: [1.0].into() }, "has 1 elements"),
        ] {
            let fault = delta.fault().unwrap();
            assert!(fault.contains(named), "{fault}");
        }
        let table = Delta::Dense { shape: vec![6, 4], values: vec![0.0; 24].into() };
        assert!(table.fits(&[1, 6, 4]) && table.fits(&[6, 4]) && !table.fits(&[4, 6]) && !table.fits(&[24]));
        assert!(Delta::LowRank { up: a(), down: b() }.fits(&[2, 3, 1, 1]));
        assert!(!Delta::LowRank { up: a(), down: b() }.fits(&[6]));
    }
}
