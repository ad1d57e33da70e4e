//! Runs the operators of one transformer block of the 1.3B model once, for instruction-counting tools: `block ROWS
//! THREADS WHAT`, where WHAT is `all`, `serial` (everything except the tasks that threads share) or `nothing`. The
//! weights are zeros.
//!
//! `scripts/serial-share.sh` counts the instructions of all three and prints the serial share.

#![expect(unsafe_code, reason = "workers promise to run each task at most once")]

use half::bf16;
use kernels::{
    Attention, Columns, Gate, Heads, Int8Weights, Kernels, MatrixShape, Norm, Output, QuantisedRows,
    QuantisedRowsMut, Range, Residual, Rotary, RowScale, Scratch, Threads, TokenRows, ValueProduct, Workers,
};
use std::num::NonZeroUsize;

const WIDTH: usize = 1536;
const HIDDEN: usize = 8960;

/// Runs no tasks, so that only the serial part remains.
struct NoTasks(NonZeroUsize);

// SAFETY: no task is called.
unsafe impl Workers for NoTasks {
    fn run(&self, _: usize, _: &(dyn Fn(usize) + Sync)) {}

    fn threads(&self) -> NonZeroUsize {
        self.0
    }
}

/// A weight matrix of zeros.
struct Zeros {
    shape: MatrixShape,
    packed: Vec<i8>,
    sums: Vec<i32>,
    scales: Vec<f32>,
}

impl Zeros {
    fn new(outputs: usize, inputs: usize) -> Result<Self, kernels::SizeError> {
        let shape = MatrixShape::new(outputs, inputs)?;
        Ok(Self {
            shape,
            packed: vec![0; shape.packed_int8()],
            sums: vec![0; outputs],
            scales: vec![1.0; outputs],
        })
    }

    fn view(&self) -> Result<Int8Weights<'_>, kernels::SizeError> {
        Int8Weights::new(self.shape, &self.packed, &self.sums, &self.scales)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, threads, what] = &arguments[..] else {
        return Err("block ROWS THREADS all|serial|nothing".into());
    };
    let (rows, threads): (usize, NonZeroUsize) = (rows.parse()?, threads.parse()?);
    let all: [Box<dyn Workers>; 2] = [Box::new(Threads(threads)), Box::new(NoTasks(threads))];
    let workers = match what.as_str() {
        "all" => Some(&all[0]),
        "serial" => Some(&all[1]),
        "nothing" => None,
        _ => return Err(format!("unknown mode {what}; expected all, serial or nothing").into()),
    };
    let kernels = Kernels::best();
    let (qkv, out) = (Zeros::new(3 * WIDTH, WIDTH)?, Zeros::new(WIDTH, WIDTH)?);
    let (up, down) = (Zeros::new(HIDDEN, WIDTH)?, Zeros::new(WIDTH, HIDDEN)?);
    let mut stream = vec![0.0; rows * WIDTH];
    let x = vec![0.0; rows * WIDTH];
    let (ones, zeros) = (vec![1.0; 3 * WIDTH], vec![0.0; HIDDEN]);
    let mut narrow = vec![0; rows * WIDTH];
    let mut wide = vec![0; rows * HIDDEN];
    let mut scales = vec![RowScale { scale: 1.0, zero: 0.0 }; rows];
    let mut projected = vec![bf16::ZERO; rows * 3 * WIDTH];
    let mut attended = vec![bf16::ZERO; rows * WIDTH];
    let mut hidden = vec![bf16::ZERO; rows * HIDDEN];
    let angles = vec![0.0; rows * 64];
    let mut scratch = Scratch::new();
    let Some(workers) = workers else { return Ok(()) };
    let workers = workers.as_ref();

    let norm = Norm { mul: &ones[..WIDTH], add: &zeros[..WIDTH], rows: TokenRows::ONE, epsilon: 1e-6 };
    kernels.norm_quantise(
        workers,
        &x,
        norm,
        QuantisedRowsMut { quantised: &mut narrow, scales: &mut scales },
    )?;
    let to = Output::Bf16(&mut projected);
    kernels.linear_int8(
        workers,
        QuantisedRows::new(&narrow, &scales)?,
        qkv.view()?,
        &zeros[..3 * WIDTH],
        to,
    )?;
    let columns = |index: usize| Columns::new(&projected, 3 * WIDTH, index * WIDTH, WIDTH);
    let attention = Attention {
        heads: Heads::new(12, 128)?,
        queries: columns(0)?,
        keys: columns(1)?,
        values: columns(2)?,
        gains: [&ones[..WIDTH], &ones[..WIDTH]],
        epsilon: 1e-6,
        rotary: Some(Rotary { cos: &angles, sin: &angles }),
        key_bias: None,
        product: ValueProduct::Int8,
    };
    kernels.attention(workers, &mut scratch, &attention, &mut attended)?;
    let to = QuantisedRowsMut { quantised: &mut narrow, scales: &mut scales };
    kernels.quantise_bf16(workers, &attended, Range::Symmetric, to)?;
    let mut residual = |quantised: &[u8], scales: &[RowScale], weights: &Zeros| {
        let to = Residual { to: &mut stream, stream: None, gate: Gate::Each(&ones[..WIDTH]) };
        let (x, bias) = (QuantisedRows::new(quantised, scales)?, &zeros[..WIDTH]);
        kernels.linear_int8(workers, x, weights.view()?, bias, Output::Residual(to))
    };
    residual(&narrow, &scales, &out)?;
    let to = Output::GeluBf16(&mut hidden);
    kernels.linear_int8(workers, QuantisedRows::new(&narrow, &scales)?, up.view()?, &zeros, to)?;
    let to = QuantisedRowsMut { quantised: &mut wide, scales: &mut scales };
    kernels.quantise_bf16(workers, &hidden, Range::Asymmetric, to)?;
    residual(&wide, &scales, &down)?;
    Ok(())
}
