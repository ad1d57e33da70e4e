//! Branches and addends of products, against scalar loops in f64.

use super::*;
use crate::path::paths_under_test as paths;
use crate::rows::QuantisedRowsMut;
use crate::{Bf16Matrix, Int8Matrix, Serial, Threads, TokenRows};
use std::num::NonZeroUsize;
use test_support::Random;

/// Extents of a layer and its branch: rows, outputs, inputs, rank and parts.
type Extents = [usize; 5];

const CASES: [Extents; 8] = [
    // Vectors alone, then tiles; one part of any rank.
    [5, 150, 96, 3, 1],
    [31, 80, 40, 64, 1],
    [45, 150, 100, 5, 1],
    [75, 66, 129, 70, 1],
    // K in several parts, whose sums are spilled.
    [64, 64, 4200, 16, 1],
    // Parts of 64 outputs and 64 bytes.
    [7, 192, 64, 64, 3],
    [100, 384, 96, 64, 3],
    [33, 256, 32, 128, 2],
];

/// The scalar loop: the sums of a layer, times a factor, plus bias, branch and addend.
struct Reference {
    values: Vec<f64>,
    outputs: usize,
}

impl Reference {
    fn new([rows, outputs, ..]: Extents, value: impl Fn(usize, usize) -> f64) -> Self {
        let at = |index: usize| value(index / outputs, index % outputs);
        Self { values: (0..rows * outputs).map(at).collect(), outputs }
    }

    /// Runs every epilogue and compares its values.
    fn check(&self, what: &str, run: &dyn Fn(Output<'_>)) {
        let (size, outputs) = (self.values.len(), self.outputs);
        let rows = size / outputs;
        let stream: Vec<f32> = (0..size).map(|index| (index % 97) as f32 * 0.01).collect();
        let table: Vec<f32> = (0..2 * outputs).map(|index| index as f32 * 0.01 - 1.0).collect();
        let map: Vec<i64> = (0..rows as i64).map(|row| row % 2).collect();
        let scale = RowScale { scale: 0.05, zero: 4.0 };
        let mut floats = vec![0.0; size];
        let (mut halves, mut gelus) = (vec![bf16::ZERO; size], vec![bf16::ZERO; size]);
        let mut quantised = vec![0; size];
        let mut scales = vec![RowScale { scale: 0.0, zero: 0.0 }; rows];
        let (mut in_place, mut apart, mut by_row) = (stream.clone(), vec![0.0; size], vec![0.0; size]);
        run(Output::F32(&mut floats));
        run(Output::Bf16(&mut halves));
        run(Output::GeluBf16(&mut gelus));
        let to = QuantisedRowsMut { quantised: &mut quantised, scales: &mut scales };
        run(Output::GeluQuantised { to, scale });
        run(Output::Residual(Residual { to: &mut in_place, stream: None, gate: Gate::Open }));
        let gate = Gate::Each(&table[..outputs]);
        run(Output::Residual(Residual { to: &mut apart, stream: Some(&stream), gate }));
        let gate = Gate::ByRow { table: &table, rows: TokenRows::new(&map, 2).unwrap() };
        run(Output::Residual(Residual { to: &mut by_row, stream: Some(&stream), gate }));
        for (index, exact) in self.values.iter().copied().enumerate() {
            let (row, output) = (index / outputs, index % outputs);
            let near = |value: f64, exact: f64, bits: i32| {
                let off = (value - exact).abs();
                assert!(
                    off <= exact.abs() * 2.0_f64.powi(-bits) + 2e-3,
                    "{what} {row} {output}: {value} {exact}"
                );
            };
            near(floats[index].into(), exact, 17);
            near(halves[index].into(), exact, 8);
            near(gelus[index].into(), tests::gelu(exact), 8);
            let byte = (tests::gelu(exact) / 0.05 + 4.0).clamp(0.0, 255.0);
            assert!((f64::from(quantised[index]) - byte).abs() <= 1.0, "{what} {row} {output}");
            let stream = f64::from(stream[index]);
            near(in_place[index].into(), stream + exact, 17);
            near(apart[index].into(), stream + exact * f64::from(table[output]), 16);
            near(by_row[index].into(), stream + exact * f64::from(table[row % 2 * outputs + output]), 16);
        }
    }
}

struct Int8Operands {
    quantised: Vec<u8>,
    scales: Vec<RowScale>,
    weights: Vec<i8>,
    matrix: Int8Matrix,
}

impl Int8Operands {
    fn new(random: &mut Random, [rows, width, outputs, inputs]: [usize; 4]) -> Self {
        let shape = MatrixShape::new(outputs, inputs).unwrap();
        let zeros = [128.0, 0.0, 17.0, 255.0];
        let scale = |row: usize| RowScale { scale: 0.001 * (1 + row % 5) as f32, zero: zeros[row % 4] };
        let weights: Vec<i8> = (0..shape.elements()).map(|_| (random.bits() >> 56) as i8).collect();
        let of_outputs: Vec<f32> = (0..outputs).map(|output| 0.001 * (1 + output % 3) as f32).collect();
        Self {
            quantised: (0..rows * width).map(|_| (random.bits() >> 56) as u8).collect(),
            scales: (0..rows).map(scale).collect(),
            matrix: Int8Matrix::pack(shape, &weights, &of_outputs).unwrap(),
            weights,
        }
    }

    fn rows(&self) -> QuantisedRows<'_> {
        QuantisedRows::new(&self.quantised, &self.scales).unwrap()
    }

    /// The product of the row's columns from `from` on and the weights of an output.
    fn value(&self, row: usize, output: usize, from: usize) -> f64 {
        let (inputs, width) = (self.matrix.shape().inputs(), self.quantised.len() / self.scales.len());
        let RowScale { scale, zero } = self.scales[row];
        let x = &self.quantised[row * width + from..][..inputs];
        let products = x.iter().zip(&self.weights[output * inputs..][..inputs]);
        let sum: i64 = products.map(|(x, w)| (i64::from(*x) - zero as i64) * i64::from(*w)).sum();
        sum as f64 * f64::from(scale) * f64::from(self.matrix.scales()[output])
    }
}

struct Bf16Operands {
    x: Vec<bf16>,
    weights: Vec<bf16>,
    matrix: Bf16Matrix,
}

impl Bf16Operands {
    fn new(random: &mut Random, [rows, width, outputs, inputs]: [usize; 4]) -> Self {
        let shape = MatrixShape::new(outputs, inputs).unwrap();
        let mut values = |count: usize| -> Vec<bf16> {
            (0..count).map(|_| bf16::from_f32(0.3 * random.next_normal())).collect()
        };
        let (x, weights) = (values(rows * width), values(shape.elements()));
        Self { x, matrix: Bf16Matrix::pack(shape, &weights).unwrap(), weights }
    }

    fn value(&self, (row, width): (usize, usize), output: usize, from: usize) -> f64 {
        let inputs = self.matrix.shape().inputs();
        let x = &self.x[row * width + from..][..inputs];
        x.iter().zip(&self.weights[output * inputs..]).map(|(x, w)| x.to_f64() * w.to_f64()).sum()
    }
}

fn bf16_noise(random: &mut Random, count: usize) -> Vec<bf16> {
    (0..count).map(|_| bf16::from_f32(random.next_normal())).collect()
}

fn floats(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.next_normal()).collect()
}

#[test]
fn int8_layers_with_branch_and_addend_match_a_scalar_loop_on_every_path() {
    for extents in CASES {
        let [rows, outputs, inputs, rank, parts] = extents;
        let mut random = Random::new(extents.iter().sum::<usize>() as u64);
        let layer = Int8Operands::new(&mut random, [rows, inputs, outputs, inputs]);
        let change = Int8Operands::new(&mut random, [rows, parts * rank, outputs, rank]);
        let (bias, addend) = (floats(&mut random, outputs), bf16_noise(&mut random, rows * outputs));
        let branch = Branch { rows: change.rows(), weights: change.matrix.view(), parts };
        let plain =
            Reference::new(extents, |row, output| layer.value(row, output, 0) + f64::from(bias[output]));
        let changes = Reference::new(extents, |row, output| {
            change.value(row, output, output / (outputs / parts) * rank)
        });
        for (branch, addend) in
            [(Some(branch), None), (None, Some(&addend[..])), (Some(branch), Some(&addend[..]))]
        {
            let reference = Reference::new(extents, |row, output| {
                let index = row * outputs + output;
                plain.values[index]
                    + branch.map_or(0.0, |_| changes.values[index])
                    + addend.map_or(0.0, |addend| addend[index].to_f64())
            });
            let all =
                Int8Layer { branch, addend, ..Int8Layer::new(layer.rows(), layer.matrix.view(), &bias) };
            for kernels in paths() {
                let what =
                    format!("{} {extents:?} {} {}", kernels.path(), branch.is_some(), addend.is_some());
                reference.check(&what, &|to| kernels.layer_int8(&Serial, &all, to).unwrap());
            }
        }
    }
}

#[test]
fn bf16_layers_with_branch_addend_and_scales_match_a_scalar_loop_on_every_path() {
    for extents in CASES {
        let [rows, outputs, inputs, rank, parts] = extents;
        let mut random = Random::new(extents.iter().sum::<usize>() as u64);
        let layer = Bf16Operands::new(&mut random, [rows, inputs, outputs, inputs]);
        let change = Bf16Operands::new(&mut random, [rows, parts * rank, outputs, rank]);
        let (bias, scales) = (floats(&mut random, outputs), floats(&mut random, outputs));
        let addend = bf16_noise(&mut random, rows * outputs);
        let branch = Branch { rows: &change.x[..], weights: change.matrix.view(), parts };
        let reference = Reference::new(extents, |row, output| {
            let from = output / (outputs / parts) * rank;
            layer.value((row, inputs), output, 0) * f64::from(scales[output])
                + f64::from(bias[output])
                + change.value((row, parts * rank), output, from)
                + addend[row * outputs + output].to_f64()
        });
        for kernels in paths() {
            let all = Bf16Layer {
                scales: Some(&scales),
                branch: Some(branch),
                addend: Some(&addend),
                ..Bf16Layer::new(&layer.x, layer.matrix.view(), &bias)
            };
            let what = format!("{} {extents:?}", kernels.path());
            reference.check(&what, &|to| kernels.layer_bf16(&Serial, &all, to).unwrap());
        }
    }
}

#[test]
fn a_branch_has_the_same_bits_for_any_number_of_threads() {
    let [rows, outputs, inputs, rank, parts] = [700, 384, 64, 64, 3];
    let mut random = Random::new(3);
    let layer = Int8Operands::new(&mut random, [rows, inputs, outputs, inputs]);
    let change = Int8Operands::new(&mut random, [rows, parts * rank, outputs, rank]);
    let bias = floats(&mut random, outputs);
    let branch = Some(Branch { rows: change.rows(), weights: change.matrix.view(), parts });
    let all = Int8Layer { branch, ..Int8Layer::new(layer.rows(), layer.matrix.view(), &bias) };
    for kernels in paths() {
        let run = |workers: &dyn Workers| {
            let mut y = vec![bf16::ZERO; rows * outputs];
            kernels.layer_int8(workers, &all, Output::Bf16(&mut y)).unwrap();
            y
        };
        assert_eq!(run(&Serial), run(&Threads(NonZeroUsize::new(3).unwrap())), "{}", kernels.path());
    }
}

#[test]
fn branches_and_addends_of_other_extents_are_refused() {
    let mut random = Random::new(9);
    let [rows, outputs, inputs] = [40, 192, 64];
    let layer = Int8Operands::new(&mut random, [rows, inputs, outputs, inputs]);
    let halves = Bf16Operands::new(&mut random, [rows, inputs, outputs, inputs]);
    let bias = vec![0.0; outputs];
    let branches = [
        // Rows, width, outputs, rank and parts.
        ([40, 192, 192, 64], 3, true),
        ([40, 7, 192, 7], 1, true),
        ([39, 7, 192, 7], 1, false),
        ([40, 8, 192, 7], 1, false),
        ([40, 7, 191, 7], 1, false),
        ([40, 96, 192, 32], 3, false),
        ([40, 128, 192, 64], 2, false),
        ([40, 64, 192, 64], 0, false),
        ([40, 0, 192, 0], 1, false),
    ];
    for kernels in paths() {
        for (extents, parts, is_right) in branches {
            let change = Int8Operands::new(&mut random, extents);
            let branch = Some(Branch { rows: change.rows(), weights: change.matrix.view(), parts });
            let all = Int8Layer { branch, ..Int8Layer::new(layer.rows(), layer.matrix.view(), &bias) };
            let result = kernels.layer_int8(&Serial, &all, Output::F32(&mut vec![0.0; rows * outputs]));
            assert_eq!(result.is_ok(), is_right, "{extents:?} {parts}: {result:?}");
        }
        for length in [rows * outputs - 1, rows * outputs + 1] {
            let addend = vec![bf16::ZERO; length];
            let all = Int8Layer {
                addend: Some(&addend),
                ..Int8Layer::new(layer.rows(), layer.matrix.view(), &bias)
            };
            let error = kernels.layer_int8(&Serial, &all, Output::F32(&mut vec![0.0; rows * outputs]));
            assert_eq!(error.unwrap_err().what(), "addend");
        }
        let scales = Some(&bias[1..]);
        let all = Bf16Layer { scales, ..Bf16Layer::new(&halves.x, halves.matrix.view(), &bias) };
        let error = kernels.layer_bf16(&Serial, &all, Output::F32(&mut vec![0.0; rows * outputs]));
        assert_eq!(error.unwrap_err().what(), "scales of the outputs");
    }
}
