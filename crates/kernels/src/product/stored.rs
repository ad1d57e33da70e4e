//! Linear layers over bf16 weights as checkpoints store them: `[N,K]`, row by row, used where they are.
//!
//! Activations and sums are f32. A bf16 weight is widened in a register, which is exact, so the result differs from a
//! product of f32 weights only in the order of its sums. That order depends on `K` alone: a row has the same bits in
//! every batch.
#![expect(
    unsafe_code,
    reason = "the innermost loop reads through raw pointers; the driver checks the bounds"
)]

use super::tile::MAX_TILE_ROWS;
use crate::Kernels;
use crate::packing::MatrixShape;
use crate::shared::{Chunks, SharedSlice};
use crate::simd::{Operation, Simd, unrolled};
use crate::size::{SizeError, check, product};
use crate::workers::Workers;
use half::bf16;
use std::ops::Range;

/// Outputs of a task: its weights stay in the L2 cache while the rows pass.
const TASK_OUTPUTS: usize = 32;
/// Largest number of rows that pass all weights together: they stay in the L3 cache.
const TASK_ROWS: usize = 512;
/// Multiple of the rows of every register tile.
const ROW_MULTIPLE: usize = 12;

/// bf16 weights `[N,K]` of a linear layer, in the layout of checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct StoredBf16<'a> {
    shape: MatrixShape,
    values: &'a [bf16],
}

impl<'a> StoredBf16<'a> {
    /// Creates weights of `shape` from `values [N,K]`.
    ///
    /// # Errors
    /// Returns an error if the number of values does not match the shape.
    pub fn new(shape: MatrixShape, values: &'a [bf16]) -> Result<Self, SizeError> {
        check("weights", values.len(), shape.elements())?;
        Ok(Self { shape, values })
    }
}

impl Kernels {
    /// Computes `y[l][n] = Σ x[l][k]·w[n][k] + b[n]` into `to [L,N]` from `x [L,K]`, both f32, and bf16 weights.
    ///
    /// ```
    /// use half::bf16;
    /// use kernels::{Kernels, MatrixShape, Serial, StoredBf16};
    ///
    /// let weights = [1.0, 2.0, 0.5, 0.0].map(bf16::from_f32);
    /// let weights = StoredBf16::new(MatrixShape::new(2, 2)?, &weights)?;
    /// let mut y = [0.0; 2];
    /// Kernels::best().linear_stored_bf16(&Serial, &[3.0, 4.0], weights, Some(&[0.0, 1.0]), &mut y)?;
    /// assert_eq!(y, [11.0, 2.5]);
    /// # Ok::<(), kernels::SizeError>(())
    /// ```
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn linear_stored_bf16(
        self,
        workers: &dyn Workers,
        x: &[f32],
        weights: StoredBf16<'_>,
        bias: Option<&[f32]>,
        to: &mut [f32],
    ) -> Result<(), SizeError> {
        let (outputs, inputs) = (weights.shape.outputs(), weights.shape.inputs());
        let rows = to.len().checked_div(outputs).unwrap_or(0);
        check("result", to.len(), rows * outputs)?;
        check("activations", x.len(), product("activations", &[rows, inputs])?)?;
        if let Some(bias) = bias {
            check("bias", bias.len(), outputs)?;
        }
        let operands =
            Operands { x, weights: weights.values, bias, outputs, inputs, to: SharedSlice::new(to) };
        let parts = rows.div_ceil(TASK_ROWS).max(1);
        let chunks = Chunks { rows, size: rows.div_ceil(parts).next_multiple_of(ROW_MULTIPLE) };
        let blocks = outputs.div_ceil(TASK_OUTPUTS);
        workers.run(blocks * chunks.count(), &|task| {
            let (chunk, block) = (task / blocks, task % blocks);
            let first = block * TASK_OUTPUTS;
            let columns = first..outputs.min(first + TASK_OUTPUTS);
            self.run(Block { operands, rows: chunks.range(chunk), columns });
        });
        Ok(())
    }
}

/// `x` has `inputs` elements for each row of `to`, and `weights` for each of `outputs` outputs.
#[derive(Debug, Clone, Copy)]
struct Operands<'a> {
    x: &'a [f32],
    weights: &'a [bf16],
    bias: Option<&'a [f32]>,
    outputs: usize,
    inputs: usize,
    to: SharedSlice<'a, f32>,
}

/// The rows and outputs of one task.
struct Block<'a> {
    operands: Operands<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Operation for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let left = self.rows.end - row;
            row += match left {
                left if S::ROWS == MAX_TILE_ROWS && left >= MAX_TILE_ROWS => {
                    self.row_tile::<S, MAX_TILE_ROWS>(s, row)
                }
                left if left >= 4 => self.row_tile::<S, 4>(s, row),
                left if left >= 2 => self.row_tile::<S, 2>(s, row),
                _ => self.row_tile::<S, 1>(s, row),
            };
        }
    }
}

impl Block<'_> {
    /// Computes all columns of `R` rows. Returns `R`.
    #[inline(always)]
    fn row_tile<S: Simd, const R: usize>(&self, s: S, row: usize) -> usize {
        let mut column = self.columns.start;
        while column < self.columns.end {
            let left = self.columns.end - column;
            let operands = self.operands;
            column += if S::COLUMNS == 4 && left >= 4 {
                s.vectorize(Tile::<R, 4> { operands, row, column });
                4
            } else if left >= 2 {
                s.vectorize(Tile::<R, 2> { operands, row, column });
                2
            } else {
                s.vectorize(Tile::<R, 1> { operands, row, column });
                1
            };
        }
        R
    }
}

/// `R` rows and `C` outputs, with all sums in registers.
struct Tile<'a, const R: usize, const C: usize> {
    operands: Operands<'a>,
    row: usize,
    column: usize,
}

impl<const R: usize, const C: usize> Operation for Tile<'_, R, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Operands { x, weights, bias, outputs, inputs, to } = self.operands;
        let x = &x[self.row * inputs..(self.row + R) * inputs];
        let weights = &weights[self.column * inputs..(self.column + C) * inputs];
        let mut sums = [[s.splat(0.0); C]; R];
        let x_rows: [*const f32; R] = std::array::from_fn(|r| x[r * inputs..].as_ptr());
        let w_rows: [*const bf16; C] = std::array::from_fn(|c| weights[c * inputs..].as_ptr());
        let whole = inputs / S::LANES * S::LANES;
        let mut at = 0;
        while at < whole {
            let mut w = [s.splat(0.0); C];
            unrolled!(c < C, {
                // SAFETY: `weights` has `C` rows of `inputs` values, and `at + LANES` is at most `inputs`.
                w[c] = unsafe { s.load_bf16_at(w_rows[c].add(at)) };
            });
            unrolled!(r < R, {
                // SAFETY: as above, for the `R` rows of `x`.
                let a = unsafe { s.load_at(x_rows[r].add(at)) };
                unrolled!(c < C, {
                    sums[r][c] = s.mul_add(a, w[c], sums[r][c]);
                });
            });
            at += S::LANES;
        }
        if whole < inputs {
            unrolled!(c < C, {
                let w = s.load_bf16(&weights[c * inputs + whole..(c + 1) * inputs]);
                unrolled!(r < R, {
                    let a = s.load(&x[r * inputs + whole..(r + 1) * inputs]);
                    sums[r][c] = s.mul_add(a, w, sums[r][c]);
                });
            });
        }
        unrolled!(r < R, {
            // SAFETY: no other task has these rows and columns.
            let to = unsafe { to.part((self.row + r) * outputs + self.column, C) };
            unrolled!(c < C, {
                to[c] = s.sum(sums[r][c]) + bias.map_or(0.0, |bias| bias[self.column + c]);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::paths_under_test as paths;
    use crate::{Serial, Threads};
    use std::num::NonZeroUsize;
    use test_support::Random;

    struct Case {
        shape: MatrixShape,
        x: Vec<f32>,
        weights: Vec<bf16>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, outputs: usize, inputs: usize) -> Self {
            let mut random = Random::new(0x9E37_79B9 ^ (rows * 31 + outputs * 7 + inputs) as u64);
            let shape = MatrixShape::new(outputs, inputs).unwrap();
            let x = (0..rows * inputs).map(|_| random.next_normal()).collect();
            let weights = (0..shape.elements()).map(|_| bf16::from_f32(random.next_normal())).collect();
            let bias = (0..outputs).map(|_| random.next_normal()).collect();
            Self { shape, x, weights, bias }
        }

        fn weights(&self) -> StoredBf16<'_> {
            StoredBf16::new(self.shape, &self.weights).unwrap()
        }

        /// The result for the rows from `from` on.
        fn computed(&self, kernels: Kernels, workers: &dyn Workers, from: usize, bias: bool) -> Vec<f32> {
            let x = &self.x[from * self.shape.inputs()..];
            let rows = x.len().checked_div(self.shape.inputs()).unwrap_or(0);
            let mut y = vec![f32::NAN; rows * self.shape.outputs()];
            let bias = bias.then_some(&self.bias[..]);
            kernels.linear_stored_bf16(workers, x, self.weights(), bias, &mut y).unwrap();
            y
        }
    }

    #[test]
    fn every_path_computes_the_product_in_f32() {
        let cases = [
            (1, 1, 1),
            (1, 5, 17),
            (7, 33, 64),
            (13, 70, 100),
            (3, 4, 15),
            (25, 66, 257),
            (525, 3, 40),
            (9, 37, 512),
        ];
        for (rows, outputs, inputs) in cases {
            let case = Case::new(rows, outputs, inputs);
            for kernels in paths() {
                for has_bias in [false, true] {
                    let y = case.computed(kernels, &Serial, 0, has_bias);
                    for (index, y) in y.into_iter().enumerate() {
                        let (row, output) = (index / outputs, index % outputs);
                        let pairs =
                            case.x[row * inputs..][..inputs].iter().zip(&case.weights[output * inputs..]);
                        let products = pairs.map(|(x, w)| f64::from(*x) * w.to_f64());
                        let (sum, size) =
                            products.fold((0.0, 0.0), |(sum, size), one| (sum + one, size + one.abs()));
                        let expected = sum + if has_bias { f64::from(case.bias[output]) } else { 0.0 };
                        let error = (f64::from(y) - expected).abs();
                        let path = kernels.path();
                        assert!(
                            error <= 1e-6 * (size + 1.0),
                            "{path} {rows}x{outputs}x{inputs}: {index} {error}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_with_any_threads_and_in_any_batch() {
        let case = Case::new(31, 70, 100);
        for kernels in paths() {
            let whole = case.computed(kernels, &Serial, 0, true);
            let threads = Threads(NonZeroUsize::new(3).unwrap());
            assert!(case.computed(kernels, &threads, 0, true) == whole, "{}", kernels.path());
            for from in [1, 2, 5, 13, 30] {
                let rest = case.computed(kernels, &Serial, from, true);
                assert!(rest == whole[from * 70..], "{} from {from}", kernels.path());
            }
        }
    }

    #[test]
    fn lengths_that_do_not_match_are_errors() {
        let case = Case::new(2, 3, 4);
        assert!(StoredBf16::new(case.shape, &case.weights[1..]).is_err());
        let kernels = Kernels::best();
        let mut y = [0.0; 6];
        let run = |x: &[f32], bias: Option<&[f32]>, y: &mut [f32]| {
            kernels.linear_stored_bf16(&Serial, x, case.weights(), bias, y)
        };
        assert_eq!(run(&case.x, None, &mut y), Ok(()));
        assert!(run(&case.x[1..], None, &mut y).is_err());
        assert!(run(&case.x, Some(&case.bias[1..]), &mut y).is_err());
        assert!(run(&case.x, None, &mut y[1..]).is_err());
        let empty = StoredBf16::new(MatrixShape::new(0, 4).unwrap(), &[]).unwrap();
        assert_eq!(kernels.linear_stored_bf16(&Serial, &[], empty, None, &mut []), Ok(()));
        // Without inputs, the result is the bias.
        let empty = StoredBf16::new(MatrixShape::new(3, 0).unwrap(), &[]).unwrap();
        assert_eq!(kernels.linear_stored_bf16(&Serial, &[], empty, Some(&case.bias), &mut y), Ok(()));
        assert_eq!(y[..3], case.bias);
    }
}
