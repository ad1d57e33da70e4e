//! The two factors of the low-rank change of a fused layer, packed for Rushes kernels.

use super::layer::{Matrix, NewTensor};
use crate::Error;
use crate::model::{FusedRank, branch_tensor_name};
use crate::weights::new_file::Stored;
use crate::weights::packed::PackedFormat;
use bundle::dtype::ElementType;
use bundle::quantization::layers::FusedLayer;
use half::bf16;
use kernels::{Bf16Matrix, Int8Matrix, MatrixShape, SizeError};
use std::path::Path;

/// Outputs of a part that kernels can cut off.
const OUTPUTS: usize = 64;
/// Bytes of a row that kernels can cut off.
const BYTES: usize = 64;

/// The low-rank products `[up, down]` of each part of a fused layer.
pub(super) type PartProducts = Vec<Vec<[Matrix; 2]>>;

/// The low-rank change of a fused layer: `up · down`, where `down` has the rows of all parts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Factors {
    pub(super) rank: FusedRank,
    /// `[parts·rank, in]`.
    down: Vec<f32>,
    /// `[out, rank]`.
    up: Vec<f32>,
}

impl Factors {
    /// Joins the products of all parts of a layer. Returns none without products.
    ///
    /// Parts keep their own rows of `down` if this makes `up` narrower. Otherwise `up` is block-diagonal.
    pub(super) fn new(layer: &FusedLayer, format: PackedFormat, mut products: PartProducts) -> Option<Self> {
        let [outputs, inputs] = layer.shape;
        let all = products.iter_mut().flatten();
        all.for_each(|[up, down]| balance(up, down));
        let rank_of = |products: &Vec<[Matrix; 2]>| products.iter().map(|[_, down]| down.shape[0]).sum();
        let ranks: Vec<usize> = products.iter().map(rank_of).collect();
        let (stacked, widest) = (ranks.iter().sum::<usize>(), ranks.iter().copied().max().unwrap_or(0));
        if stacked == 0 {
            return None;
        }
        let unit = match format {
            PackedFormat::Int8 => BYTES,
            PackedFormat::Bf16 => BYTES / 2,
        };
        let cut = widest.next_multiple_of(unit);
        let is_cut = outputs.is_multiple_of(OUTPUTS) && cut < stacked.next_multiple_of(unit);
        let parts = if is_cut { layer.parts.len() } else { 1 };
        let rank = if is_cut { cut } else { stacked };
        let mut down = Vec::with_capacity(parts * rank * inputs);
        let mut up = vec![0.0; layer.parts.len() * outputs * rank];
        for (part, products) in products.iter().enumerate() {
            // The first column of the part in `up`.
            let mut column = if is_cut { 0 } else { ranks[..part].iter().sum() };
            if is_cut {
                down.resize(part * rank * inputs, 0.0);
            }
            for [of_outputs, of_inputs] in products {
                down.extend_from_slice(&of_inputs.values);
                let width = of_inputs.shape[0];
                for (row, values) in of_outputs.values.chunks(width.max(1)).enumerate() {
                    let from = (part * outputs + row) * rank + column;
                    up[from..from + width].copy_from_slice(values);
                }
                column += width;
            }
        }
        down.resize(parts * rank * inputs, 0.0);
        Some(Self { rank: FusedRank { rank, parts }, down, up })
    }

    /// Returns the tensors in the format of the layer.
    ///
    /// # Errors
    /// Returns an error if no memory could hold them.
    pub(super) fn tensors(&self, layer: &FusedLayer, format: PackedFormat) -> Result<Vec<NewTensor>, Error> {
        let FusedRank { rank, parts } = self.rank;
        let [outputs, inputs] = layer.shape;
        let down = ("down", [parts * rank, inputs], &self.down);
        let up = ("up", [layer.parts.len() * outputs, rank], &self.up);
        let mut all = vec![floats(layer, "down.bias", &vec![0.0; parts * rank])];
        for (name, shape, values) in [down, up] {
            let packed = packed(layer, (name, format), shape, values);
            all.extend(packed.map_err(|error| Error::header(Path::new(&layer.name), error.to_string()))?);
        }
        Ok(all)
    }
}

/// Gives the rows of `down` and the columns of `up` the same norms, which leaves their product as it is: the values of
/// the inner rows, and those of `up`, are then quantised with steps that suit all of them.
fn balance(up: &mut Matrix, down: &mut Matrix) {
    let (rank, inputs) = (down.shape[0], down.shape[1]);
    for (index, row) in down.values.chunks_mut(inputs.max(1)).enumerate() {
        let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
        };
        let of_row = norm(&mut row.iter().copied());
        let of_column = norm(&mut up.values.iter().copied().skip(index).step_by(rank.max(1)));
        let factor = (of_column / of_row).sqrt() as f32;
        // One of them is zero, or too large: their product is zero, or cannot be scaled.
        if !factor.is_normal() {
            continue;
        }
        row.iter_mut().for_each(|value| *value *= factor);
        up.values.iter_mut().skip(index).step_by(rank.max(1)).for_each(|value| *value /= factor);
    }
}

fn tensor(
    layer: &FusedLayer,
    part: &str,
    (element, shape): (ElementType, Vec<usize>),
    bytes: Vec<u8>,
) -> NewTensor {
    NewTensor { stored: Stored { name: branch_tensor_name(&layer.name, part), element, shape }, bytes }
}

/// A vector of a layer's branch, in f32.
pub(super) fn floats(layer: &FusedLayer, part: &str, values: &[f32]) -> NewTensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(layer, part, (ElementType::F32, vec![values.len()]), bytes)
}

fn packed(
    layer: &FusedLayer,
    (name, format): (&str, PackedFormat),
    [outputs, inputs]: [usize; 2],
    values: &[f32],
) -> Result<Vec<NewTensor>, SizeError> {
    let shape = MatrixShape::new(outputs, inputs)?;
    let groups = outputs.div_ceil(kernels::GROUP);
    let part = |part: &str| format!("{name}.{part}");
    Ok(match format {
        PackedFormat::Int8 => {
            let matrix = Int8Matrix::quantise(shape, values)?;
            let extents = vec![groups, inputs.div_ceil(4), 64];
            let packed = matrix.packed().iter().map(|value| value.cast_unsigned()).collect();
            let sums = matrix.sums().iter().flat_map(|sum| sum.to_le_bytes()).collect();
            vec![
                tensor(layer, &part("packed"), (ElementType::I8, extents), packed),
                tensor(layer, &part("sums"), (ElementType::I32, vec![outputs]), sums),
                floats(layer, &part("scales"), matrix.scales()),
            ]
        }
        PackedFormat::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
            let matrix = Bf16Matrix::pack(shape, &values)?;
            let extents = vec![groups, inputs.div_ceil(2), 32];
            let packed = matrix.packed().iter().flat_map(|value| value.to_le_bytes()).collect();
            vec![tensor(layer, &part("packed"), (ElementType::Bf16, extents), packed)]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_support::Random;

    fn layer(parts: usize, shape: [usize; 2]) -> FusedLayer {
        let parts = (0..parts).map(|part| format!("part.{part}")).collect();
        FusedLayer { name: "layer".into(), parts, shape }
    }

    fn matrix(random: &mut Random, shape: [usize; 2]) -> Matrix {
        Matrix { shape, values: (0..shape[0] * shape[1]).map(|_| random.next_normal()).collect() }
    }

    /// `up · down` of one part.
    fn product(factors: &Factors, layer: &FusedLayer, part: usize) -> Vec<f64> {
        let FusedRank { rank, parts } = factors.rank;
        let [outputs, inputs] = layer.shape;
        let first = if parts > 1 { part * rank } else { 0 };
        let element = |row: usize, column: usize| {
            (0..rank)
                .map(|index| {
                    let up = factors.up[(part * outputs + row) * rank + index];
                    f64::from(up) * f64::from(factors.down[(first + index) * inputs + column])
                })
                .sum()
        };
        (0..outputs * inputs).map(|index| element(index / inputs, index % inputs)).collect()
    }

    #[test]
    fn joined_products_are_the_products_of_each_part() {
        let mut random = Random::new(5);
        // Ranks of the products of each part, the outputs of a part, and what becomes of them.
        let cases: [(&[&[usize]], usize, FusedRank); 6] = [
            (&[&[3]], 10, FusedRank { rank: 3, parts: 1 }),
            (&[&[3, 2], &[], &[1]], 10, FusedRank { rank: 6, parts: 1 }),
            (&[&[20], &[20], &[20]], 64, FusedRank { rank: 60, parts: 1 }),
            (&[&[64], &[64], &[64]], 64, FusedRank { rank: 64, parts: 3 }),
            (&[&[60, 6], &[70], &[1]], 128, FusedRank { rank: 128, parts: 3 }),
            (&[&[64], &[64]], 66, FusedRank { rank: 128, parts: 1 }),
        ];
        for (ranks, outputs, expected) in cases {
            let layer = layer(ranks.len(), [outputs, 12]);
            let products: PartProducts = ranks
                .iter()
                .map(|ranks| {
                    let pair = |rank: &usize| {
                        [matrix(&mut random, [outputs, *rank]), matrix(&mut random, [*rank, 12])]
                    };
                    ranks.iter().map(pair).collect()
                })
                .collect();
            let factors = Factors::new(&layer, PackedFormat::Int8, products.clone()).unwrap();
            assert_eq!(factors.rank, expected, "{ranks:?}");
            for (part, products) in products.iter().enumerate() {
                for (index, found) in product(&factors, &layer, part).into_iter().enumerate() {
                    let (row, column) = (index / 12, index % 12);
                    let of = |[up, down]: &[Matrix; 2]| -> f64 {
                        let rank = down.shape[0];
                        let up = &up.values[row * rank..][..rank];
                        let terms = up.iter().enumerate();
                        terms
                            .map(|(index, up)| f64::from(*up) * f64::from(down.values[index * 12 + column]))
                            .sum()
                    };
                    let exact: f64 = products.iter().map(of).sum();
                    assert!((found - exact).abs() < 1e-4, "{ranks:?} {part} {row} {column}: {found} {exact}");
                }
            }
            for format in [PackedFormat::Int8, PackedFormat::Bf16] {
                for tensor in factors.tensors(&layer, format).unwrap() {
                    assert_eq!(tensor.bytes.len(), tensor.stored.bytes(), "{}", tensor.stored.name);
                }
            }
        }
        assert_eq!(Factors::new(&layer(2, [4, 4]), PackedFormat::Bf16, vec![vec![], vec![]]), None);
    }

    #[test]
    fn factors_of_very_different_sizes_are_balanced_and_zeros_are_left_alone() {
        let mut up = Matrix { shape: [2, 2], values: vec![1e-4, 0.0, 2e-4, 0.0] };
        let mut down = Matrix { shape: [2, 2], values: vec![1e4, -1e4, 5.0, 6.0] };
        balance(&mut up, &mut down);
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(largest(&up.values) / largest(&down.values[..2]) > 0.5, "{up:?} {down:?}");
        assert_eq!(down.values[2..], [5.0, 6.0]);
        assert!((up.values[2] * down.values[0] - 2.0).abs() < 1e-5);
    }
}
