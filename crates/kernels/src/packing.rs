//! Weights in the order in which the products read them.
//!
//! Sixteen outputs stand side by side, each with four bytes of consecutive inputs: `[N/16][K/4][16][4]` of s8, or
//! `[N/16][K/2][16][2]` of bf16. One 512-bit vector is one step of sixteen outputs, and half of it one 256-bit vector:
//! the same bytes serve every instruction set. Missing outputs and inputs are zeros.

use half::bf16;

/// Outputs that stand side by side.
pub const GROUP: usize = 16;
/// Bytes of one step of one output.
pub(crate) const STEP: usize = 4;

/// Why weights or activations do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` has {found} elements where {expected} are needed")]
pub struct SizeError {
    /// Which of the operands.
    pub what: &'static str,
    /// Elements that the other operands ask for.
    pub expected: usize,
    /// Elements that it has.
    pub found: usize,
}

pub(crate) fn check(what: &'static str, found: usize, expected: usize) -> Result<(), SizeError> {
    if found == expected { Ok(()) } else { Err(SizeError { what, expected, found }) }
}

/// The extents of a weight matrix `[outputs, inputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixShape {
    /// Rows: outputs of the linear layer.
    pub outputs: usize,
    /// Columns: inputs of the linear layer.
    pub inputs: usize,
}

impl MatrixShape {
    /// Elements of the unpacked matrix.
    pub fn elements(self) -> usize {
        self.outputs * self.inputs
    }

    /// Groups of sixteen outputs.
    pub(crate) fn groups(self) -> usize {
        self.outputs.div_ceil(GROUP)
    }

    /// Bytes of the matrix packed as s8.
    pub fn packed_int8(self) -> usize {
        self.groups() * self.inputs.div_ceil(STEP) * STEP * GROUP
    }

    /// Elements of the matrix packed as bf16.
    pub fn packed_bf16(self) -> usize {
        self.groups() * self.inputs.div_ceil(STEP / 2) * (STEP / 2) * GROUP
    }
}

/// Symmetric s8 weights of a linear layer, one scale for each output: `w[n][k] ≈ scale[n]·code[n][k]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Matrix {
    /// Extents.
    pub shape: MatrixShape,
    /// `[N/16][K/4][16][4]`.
    pub packed: Vec<i8>,
    /// Sum of the codes of each output `[N]`: what a zero point of the activations is multiplied with.
    pub sums: Vec<i32>,
    /// Scale of each output `[N]`.
    pub scales: Vec<f32>,
}

impl Int8Matrix {
    /// Packs codes `[N,K]` with their scales `[N]`.
    ///
    /// # Errors
    /// A number of codes or scales that is not the shape's.
    pub fn pack(shape: MatrixShape, codes: &[i8], scales: &[f32]) -> Result<Self, SizeError> {
        check("codes", codes.len(), shape.elements())?;
        check("scales", scales.len(), shape.outputs)?;
        let mut packed = vec![0; shape.packed_int8()];
        pack(codes, shape.inputs, STEP, &mut packed);
        let rows = codes.chunks(shape.inputs.max(1));
        let sums = rows.map(|row| row.iter().map(|code| i32::from(*code)).sum()).collect();
        Ok(Self { shape, packed, sums, scales: scales.to_vec() })
    }

    /// Quantises weights `[N,K]`, each output by its largest weight, and packs them.
    ///
    /// # Errors
    /// A number of weights that is not the shape's.
    pub fn quantise(shape: MatrixShape, weights: &[f32]) -> Result<Self, SizeError> {
        check("weights", weights.len(), shape.elements())?;
        let rows = || weights.chunks(shape.inputs.max(1));
        let scales: Vec<f32> = rows()
            .map(|row| row.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs())) / 127.0)
            .collect();
        let codes: Vec<i8> = rows()
            .zip(&scales)
            .flat_map(|(row, scale)| {
                let inverse = if *scale > 0.0 { scale.recip() } else { 0.0 };
                row.iter().map(move |weight| code(weight * inverse))
            })
            .collect();
        Self::pack(shape, &codes, &scales)
    }

    /// The matrix as the products take it.
    pub fn view(&self) -> Int8Weights<'_> {
        let Self { shape, packed, sums, scales } = self;
        Int8Weights { shape: *shape, packed, sums, scales }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to what a byte holds")]
fn code(value: f32) -> i8 {
    value.round_ties_even().clamp(-127.0, 127.0) as i8
}

/// Packed s8 weights that lie anywhere, like in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Int8Weights<'a> {
    pub(crate) shape: MatrixShape,
    pub(crate) packed: &'a [i8],
    pub(crate) sums: &'a [i32],
    pub(crate) scales: &'a [f32],
}

impl<'a> Int8Weights<'a> {
    /// Over what [`Int8Matrix`] holds.
    ///
    /// # Errors
    /// A length that is not the shape's.
    pub fn new(
        shape: MatrixShape,
        packed: &'a [i8],
        sums: &'a [i32],
        scales: &'a [f32],
    ) -> Result<Self, SizeError> {
        check("packed weights", packed.len(), shape.packed_int8())?;
        check("sums of the weights", sums.len(), shape.outputs)?;
        check("scales of the weights", scales.len(), shape.outputs)?;
        Ok(Self { shape, packed, sums, scales })
    }

    /// Extents.
    pub fn shape(self) -> MatrixShape {
        self.shape
    }
}

/// Bf16 weights of a linear layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Bf16Matrix {
    /// Extents.
    pub shape: MatrixShape,
    /// `[N/16][K/2][16][2]`.
    pub packed: Vec<bf16>,
}

impl Bf16Matrix {
    /// Packs weights `[N,K]`.
    ///
    /// # Errors
    /// A number of weights that is not the shape's.
    pub fn pack(shape: MatrixShape, weights: &[bf16]) -> Result<Self, SizeError> {
        check("weights", weights.len(), shape.elements())?;
        let mut packed = vec![bf16::ZERO; shape.packed_bf16()];
        pack(weights, shape.inputs, STEP / 2, &mut packed);
        Ok(Self { shape, packed })
    }

    /// The matrix as the products take it.
    pub fn view(&self) -> Bf16Weights<'_> {
        Bf16Weights { shape: self.shape, packed: &self.packed }
    }
}

/// Packed bf16 weights that lie anywhere, like in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Bf16Weights<'a> {
    pub(crate) shape: MatrixShape,
    pub(crate) packed: &'a [bf16],
}

impl<'a> Bf16Weights<'a> {
    /// Over what [`Bf16Matrix`] holds.
    ///
    /// # Errors
    /// A length that is not the shape's.
    pub fn new(shape: MatrixShape, packed: &'a [bf16]) -> Result<Self, SizeError> {
        check("packed weights", packed.len(), shape.packed_bf16())?;
        Ok(Self { shape, packed })
    }

    /// Extents.
    pub fn shape(self) -> MatrixShape {
        self.shape
    }
}

/// `[N,K]` to `[N/16][K/step][16][step]`, over zeros.
fn pack<T: Copy>(rows: &[T], inputs: usize, step: usize, packed: &mut [T]) {
    if inputs == 0 {
        return;
    }
    let steps = inputs.div_ceil(step);
    for (output, row) in rows.chunks(inputs).enumerate() {
        let group = output / GROUP * steps;
        for (index, values) in row.chunks(step).enumerate() {
            let at = ((group + index) * GROUP + output % GROUP) * step;
            packed[at..at + values.len()].copy_from_slice(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_outputs_stand_side_by_side_with_four_inputs_each() {
        let shape = MatrixShape { outputs: 18, inputs: 6 };
        let codes: Vec<i8> = (0..18 * 6).map(|i| i8::try_from(i).unwrap()).collect();
        let matrix = Int8Matrix::pack(shape, &codes, &[1.0; 18]).unwrap();
        assert_eq!(matrix.packed.len(), 2 * 2 * 16 * 4);
        assert_eq!(matrix.packed[..8], [0, 1, 2, 3, 6, 7, 8, 9]);
        assert_eq!(matrix.packed[64..72], [4, 5, 0, 0, 10, 11, 0, 0]);
        assert_eq!(matrix.packed[128..136], [96, 97, 98, 99, 102, 103, 104, 105]);
        assert_eq!(matrix.sums[1], (6..12).sum::<i32>());
        let short = Int8Matrix::pack(shape, &codes[1..], &[1.0; 18]);
        assert_eq!(short, Err(SizeError { what: "codes", expected: 108, found: 107 }));
    }

    #[test]
    fn weights_are_within_half_a_code_of_their_own_scale() {
        let shape = MatrixShape { outputs: 3, inputs: 4 };
        let weights = [1.0, -2.54, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 1e-3, 2e-3, -3e-3, 4e-3];
        let matrix = Int8Matrix::quantise(shape, &weights).unwrap();
        for (output, row) in weights.chunks(4).enumerate() {
            for (input, weight) in row.iter().enumerate() {
                let code = f32::from(matrix.packed[output * 4 + input]);
                assert!((code * matrix.scales[output] - weight).abs() <= matrix.scales[output] * 0.501);
            }
        }
    }
}
