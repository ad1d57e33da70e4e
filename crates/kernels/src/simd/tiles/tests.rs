use super::emulated::Emulated;
use super::*;
use half::bf16;

/// Returns the sums of one block after two steps on top of the initial values.
fn run<T: Tiles>(tiles: &mut T, operands: &Operands, is_bf16: bool) -> Vec<u32> {
    let mut sums = operands.begin.clone();
    let at = BlockSums::rows(sums.as_mut_ptr().cast(), SIDE * 4);
    // SAFETY: the operands have two steps of 32 rows and columns, and the sums are 32 × 32.
    unsafe {
        tiles.load(at);
        for index in 0..2 {
            let step = Step {
                rows: operands.rows.as_ptr().wrapping_add(index * DEPTH),
                stride: 2 * DEPTH,
                columns: [0, 1]
                    .map(|group| operands.columns.as_ptr().wrapping_add((group * 2 + index) * TILE)),
            };
            if is_bf16 { tiles.step_bf16(step) } else { tiles.step_int8(step) }
        }
        tiles.store(at);
    }
    sums
}

struct Operands {
    rows: Vec<u8>,
    columns: Vec<u8>,
    begin: Vec<u32>,
}

impl Operands {
    fn int8() -> Self {
        let mut state = 5_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        Self {
            rows: (0..SIDE * 2 * DEPTH).map(|_| (next() >> 24) as u8).collect(),
            columns: (0..4 * TILE).map(|_| (next() >> 24) as u8).collect(),
            begin: (0..SIDE * SIDE).map(|_| next() >> 8).collect(),
        }
    }

    /// bf16 values around one, including some subnormal numbers.
    fn bf16() -> Self {
        let bytes = Self::int8();
        let float = |pair: &[u8]| {
            let value = f32::from(pair[0]) / 128.0 - 1.0;
            bf16::from_f32(if pair[1] == 7 { value * 1e-39 } else { value }).to_le_bytes()
        };
        let floats = |bytes: &[u8]| bytes.chunks(2).flat_map(float).collect();
        Self {
            rows: floats(&bytes.rows),
            columns: floats(&bytes.columns),
            begin: bytes.begin.iter().map(|bits| (*bits as f32 / 1e6).to_bits()).collect(),
        }
    }
}

#[test]
fn emulated_int8_products_match_plain_loops() {
    let operands = Operands::int8();
    let found = run(&mut Emulated::default(), &operands, false);
    for (index, found) in found.iter().enumerate() {
        let (row, column) = (index / SIDE, index % SIDE);
        let mut sum = operands.begin[index] as i32;
        for k in 0..2 * DEPTH {
            let at =
                (column / ROWS * 2 + k / DEPTH) * TILE + k % DEPTH / 4 * DEPTH + column % ROWS * 4 + k % 4;
            sum += i32::from(operands.rows[row * 2 * DEPTH + k]) * i32::from(operands.columns[at] as i8);
        }
        assert_eq!(*found as i32, sum, "row {row}, column {column}");
    }
}

#[test]
fn amx_and_emulated_tiles_are_bit_identical() {
    #[cfg(target_arch = "x86_64")]
    if permission::tiles().is_ok() {
        for (operands, is_bf16) in [(Operands::int8(), false), (Operands::bf16(), true)] {
            // SAFETY: permission succeeded.
            let found = run(&mut unsafe { hardware::Hardware::configured() }, &operands, is_bf16);
            assert!(found == run(&mut Emulated::default(), &operands, is_bf16), "is_bf16: {is_bf16}");
        }
        return;
    }
    eprintln!("skipped: this machine has no AMX");
}

#[test]
fn products_of_held_rows_match_f64_and_amx() {
    let operands = Operands::bf16();
    // Four steps of sixteen contiguous rows, and two groups of columns.
    let columns: Vec<u8> = operands.columns.iter().chain(&operands.columns).copied().collect();
    let begin: Vec<f32> = (0..ROWS * 16).map(|index| (index / 16) as f32).collect();
    fn held<T: Tiles>(tiles: &mut T, operands: &Operands, columns: &[u8], begin: &[f32]) -> Vec<f32> {
        let mut to = vec![f32::NAN; ROWS * SIDE];
        let products = HeldProducts {
            begin: begin.as_ptr(),
            columns: [0, 4 * TILE].map(|group| columns[group..].as_ptr()),
            to: to.as_mut_ptr(),
            pitch: SIDE * 4,
        };
        // SAFETY: the operands have sixteen rows of four steps and the matching tiles, and `to` has room for the
        // sums.
        unsafe {
            tiles.hold(operands.rows.as_ptr(), HELD);
            tiles.held_products(products);
        }
        to
    }
    let found = held(&mut Emulated::default(), &operands, &columns, &begin);
    let half = |bytes: &[u8], at: usize| bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64();
    for (index, found) in found.iter().enumerate() {
        let (row, column) = (index / SIDE, index % SIDE);
        let mut exact = row as f64;
        for k in 0..HELD / 2 {
            let tile = column / ROWS * 4 * TILE + k / 32 * TILE;
            let at = tile + k % 32 / 2 * DEPTH + column % ROWS * 4 + k % 2 * 2;
            exact += half(&operands.rows, row * HELD + k * 2) * half(&columns, at);
        }
        assert!((f64::from(*found) - exact).abs() < 1e-4, "row {row}, column {column}: {found} {exact}");
    }
    #[cfg(target_arch = "x86_64")]
    if permission::tiles().is_ok() {
        // SAFETY: permission succeeded.
        let mut tiles = unsafe { hardware::Hardware::configured() };
        assert!(held(&mut tiles, &operands, &columns, &begin) == found);
        return;
    }
    eprintln!("partly skipped: this machine has no AMX");
}
