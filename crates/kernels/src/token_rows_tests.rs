use super::*;
use crate::path::paths_under_test as paths;
use crate::{
    Bf16Matrix, Gate, Int8Matrix, Kernels, MatrixShape, Norm, Output, QuantisedRows, QuantisedRowsMut, Range,
    Residual, RowScale, Serial,
};
use half::bf16;
use test_support::Random;

#[test]
fn entries_outside_the_table_and_empty_maps_are_refused() {
    assert_eq!(TokenRows::new(&[], 2).unwrap_err(), RowMapError::Empty);
    let outside = |row| RowMapError::OutOfRange { token: 1, row, rows: 2 };
    for row in [2, -1, i64::MIN, i64::MAX] {
        assert_eq!(TokenRows::new(&[0, row, 1], 2).unwrap_err(), outside(row));
    }
    assert!(TokenRows::new(&[0], 0).is_err());
    assert!(TokenRows::new(&[0, 1], 1).is_err(), "the second entry is not a row of the table");
    assert_eq!(outside(-1).to_string(), "token 1 is mapped to row -1 of a table of 2 rows");
}

#[test]
fn a_map_repeats_over_the_pictures_of_a_batch() {
    let map = TokenRows::new(&[0, 1, 1], 2).unwrap();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|token| map.of(token)), [0, 1, 1, 0, 1, 1]);
    assert!(map.check(6).is_ok() && map.check(0).is_ok());
    assert_eq!(map.check(4).unwrap_err().what(), "rows of the tokens");
    assert!(TokenRows::new(&[0, 0, 0], 1).unwrap().check(4).is_ok());
}

/// Rows of activations, tables of vectors and weights.
struct Case {
    tokens: usize,
    width: usize,
    x: Vec<f32>,
    /// Two tables, `[R,D]`.
    tables: [Vec<f32>; 2],
    matrix: Int8Matrix,
    bf16_matrix: Bf16Matrix,
    bias: Vec<f32>,
}

/// The results of every operator that takes a table.
#[derive(Debug, PartialEq)]
struct Results {
    quantised: Vec<u8>,
    scales: Vec<RowScale>,
    normed: Vec<bf16>,
    int8: Vec<f32>,
    int8_apart: Vec<f32>,
    bf16: Vec<f32>,
}

impl Case {
    fn new(tokens: usize, width: usize, table: usize) -> Self {
        let mut random = Random::new((tokens * 31 + width * 7 + table) as u64);
        let mut values =
            |count: usize| -> Vec<f32> { (0..count).map(|_| random.next_normal()).collect::<Vec<_>>() };
        let shape = MatrixShape::new(width, width).unwrap();
        let weights = values(shape.elements());
        let halves: Vec<bf16> = weights.iter().map(|weight| bf16::from_f32(*weight)).collect();
        Self {
            tokens,
            width,
            x: values(tokens * width),
            tables: [values(table * width), values(table * width)],
            matrix: Int8Matrix::quantise(shape, &weights).unwrap(),
            bf16_matrix: Bf16Matrix::pack(shape, &halves).unwrap(),
            bias: values(width),
        }
    }

    /// Runs every operator with given tables, map and gate.
    fn run(&self, kernels: Kernels, norm: Norm<'_>, gate: Gate<'_>) -> Results {
        let size = self.x.len();
        let (mut quantised, mut scales) =
            (vec![0; size], vec![RowScale { scale: 0.0, zero: 0.0 }; self.tokens]);
        let to = QuantisedRowsMut { quantised: &mut quantised, scales: &mut scales };
        kernels.norm_quantise(&Serial, &self.x, norm, to).unwrap();
        let mut normed = vec![bf16::ZERO; size];
        kernels.norm_bf16(&Serial, &self.x, norm, &mut normed).unwrap();
        // Products of inputs that do not depend on the tables.
        let (mut plain, mut plain_scales) = (quantised.clone(), scales.clone());
        let to = QuantisedRowsMut { quantised: &mut plain, scales: &mut plain_scales };
        kernels.quantise_f32(&Serial, &self.x, Range::Symmetric, to).unwrap();
        let halves: Vec<bf16> = self.x.iter().map(|x| bf16::from_f32(*x)).collect();
        let rows = QuantisedRows::new(&plain, &plain_scales).unwrap();
        let int8 = |to| kernels.linear_int8(&Serial, rows, self.matrix.view(), &self.bias, to).unwrap();
        let (mut in_place, mut apart, mut bf16_result) = (self.x.clone(), vec![0.0; size], self.x.clone());
        int8(Output::Residual(Residual { to: &mut in_place, stream: None, gate }));
        int8(Output::Residual(Residual { to: &mut apart, stream: Some(&self.x), gate }));
        let to = Output::Residual(Residual { to: &mut bf16_result, stream: None, gate });
        kernels.linear_bf16(&Serial, &halves, self.bf16_matrix.view(), &self.bias, to).unwrap();
        Results { quantised, scales, normed, int8: in_place, int8_apart: apart, bf16: bf16_result }
    }

    fn mapped(&self, kernels: Kernels, map: TokenRows<'_>) -> Results {
        let [mul, add] = &self.tables;
        let norm = Norm { mul, add, rows: map, epsilon: 1e-6 };
        self.run(kernels, norm, Gate::ByRow { table: mul, rows: map })
    }

    /// All tokens with row `row` of the tables, without a map.
    fn with_row(&self, kernels: Kernels, row: usize) -> Results {
        let [mul, add] = self.tables.each_ref().map(|table| &table[row * self.width..][..self.width]);
        self.run(kernels, Norm { mul, add, rows: TokenRows::ONE, epsilon: 1e-6 }, Gate::Each(mul))
    }
}

/// Token counts and widths with and without remainders of blocks, vectors and tasks.
const EXTENTS: [(usize, usize); 4] = [(2, 16), (35, 150), (75, 96), (600, 64)];

#[test]
fn a_map_to_one_row_gives_the_bits_of_no_map() {
    for (tokens, width) in EXTENTS {
        let case = Case::new(tokens, width, 1);
        let zeros = vec![0; tokens];
        for kernels in paths() {
            let expected = case.with_row(kernels, 0);
            for rows in [&zeros[..], &[0]] {
                let map = TokenRows::new(rows, 1).unwrap();
                assert!(case.mapped(kernels, map) == expected, "{} {tokens}x{width}", kernels.path());
            }
        }
    }
}

#[test]
fn each_token_gets_the_bits_of_its_row() {
    for (tokens, width) in EXTENTS {
        let case = Case::new(tokens, width, 3);
        let mut random = Random::new(tokens as u64);
        // The map of one picture of a batch of two, of all tokens, and one row for all tokens.
        for length in [tokens.div_ceil(2), tokens, 1] {
            if !tokens.is_multiple_of(length) {
                continue;
            }
            let rows: Vec<i64> = (0..length).map(|_| (random.bits() % 3) as i64).collect();
            let map = TokenRows::new(&rows, 3).unwrap();
            for kernels in paths() {
                let alone = [0, 1, 2].map(|row| case.with_row(kernels, row));
                let found = case.mapped(kernels, map);
                for token in 0..tokens {
                    let row = rows[token % length] as usize;
                    let part = token * width..(token + 1) * width;
                    let (found, alone) = (&found, &alone[row]);
                    assert_eq!(found.scales[token], alone.scales[token]);
                    assert!(found.quantised[part.clone()] == alone.quantised[part.clone()], "{token}");
                    assert!(found.normed[part.clone()] == alone.normed[part.clone()], "{token}");
                    assert!(found.int8[part.clone()] == alone.int8[part.clone()], "{token}");
                    assert!(found.int8_apart[part.clone()] == alone.int8_apart[part.clone()], "{token}");
                    assert!(found.bf16[part.clone()] == alone.bf16[part], "{token}");
                }
            }
        }
    }
}

#[test]
fn tables_and_maps_of_wrong_lengths_are_errors() {
    let (tokens, width) = (6, 16);
    let case = Case::new(tokens, width, 3);
    let [mul, add] = &case.tables;
    let kernels = Kernels::best();
    let norm = |norm: Norm<'_>| {
        let (mut quantised, mut scales) =
            (vec![0; tokens * width], vec![RowScale { scale: 0.0, zero: 0.0 }; tokens]);
        let to = QuantisedRowsMut { quantised: &mut quantised, scales: &mut scales };
        let quantised = kernels.norm_quantise(&Serial, &case.x, norm, to).unwrap_err();
        let mut normed = vec![bf16::ZERO; tokens * width];
        let normed = kernels.norm_bf16(&Serial, &case.x, norm, &mut normed).unwrap_err();
        assert_eq!(quantised.what(), normed.what());
        quantised.what()
    };
    let gate = |gate: Gate<'_>| {
        let mut to = case.x.clone();
        let halves = vec![bf16::ONE; tokens * width];
        let to = Output::Residual(Residual { to: &mut to, stream: None, gate });
        kernels.linear_bf16(&Serial, &halves, case.bf16_matrix.view(), &case.bias, to).unwrap_err().what()
    };
    let short = TokenRows::new(&[0, 1, 2, 0], 3).unwrap();
    assert_eq!(norm(Norm { mul, add, rows: short, epsilon: 1e-6 }), "rows of the tokens");
    assert_eq!(gate(Gate::ByRow { table: mul, rows: short }), "rows of the tokens");
    let map = TokenRows::new(&[0, 1, 1], 2).unwrap();
    let add_of_two = &add[..2 * width];
    assert_eq!(norm(Norm { mul: &mul[..2 * width], add, rows: map, epsilon: 1e-6 }), "add");
    assert_eq!(norm(Norm { mul: &mul[..2 * width - 1], add: add_of_two, rows: map, epsilon: 1e-6 }), "mul");
    assert_eq!(gate(Gate::ByRow { table: mul, rows: map }), "gate");
    assert_eq!(gate(Gate::ByRow { table: &mul[..width], rows: map }), "gate");
}

#[test]
fn tables_whose_size_wraps_are_refused() {
    let rows = TokenRows::new(&[0, 1], 1 << 62).unwrap();
    let gate = Gate::ByRow { table: &[], rows };
    let residual = Residual { to: &mut [0.0; 32], stream: None, gate };
    let matrix = Bf16Matrix::pack(MatrixShape::new(16, 1).unwrap(), &[bf16::ONE; 16]).unwrap();
    let x = [bf16::ONE; 2];
    let refused =
        Kernels::best().linear_bf16(&Serial, &x, matrix.view(), &[0.0; 16], Output::Residual(residual));
    assert_eq!(refused, Err(SizeError::TooLarge { what: "gate" }));
    let norm = Norm { mul: &[], add: &[], rows, epsilon: 1e-6 };
    let (mut quantised, mut scales) = ([0; 32], [RowScale { scale: 0.0, zero: 0.0 }; 2]);
    let to = QuantisedRowsMut { quantised: &mut quantised, scales: &mut scales };
    let refused = Kernels::best().norm_quantise(&Serial, &[0.0; 32], norm, to);
    assert_eq!(refused, Err(SizeError::TooLarge { what: "mul" }));
    assert!(Kernels::best().norm_bf16(&Serial, &[0.0; 32], norm, &mut [bf16::ZERO; 32]).is_err());
}
