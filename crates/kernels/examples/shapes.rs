//! Benchmarks products and attention with the shapes of the models on the two best paths, alternating, relative to
//! the peaks measured in the same run: `shapes [ROWS] [THREADS] [SECONDS] [WORD]`. Runs only the cases whose name
//! contains WORD.

mod comparison;

use comparison::{Aligned, Times, line, noise, paths, quantised};
use half::bf16;
use kernels::{
    Attention, Bf16Matrix, Bf16Weights, Columns, Gate, Heads, Int8Matrix, Int8Weights, Kernels, MatrixShape,
    Output, QuantisedRows, QuantisedRowsMut, Residual, Rotary, RowScale, Scratch, SizeError, Threads,
    ValueProduct,
};
use std::num::NonZeroUsize;

/// Inputs and outputs of the layers of the 1.3B, 5B and 14B models.
const SHAPES: [[usize; 2]; 9] = [
    [1536, 1536],
    [1536, 8960],
    [8960, 1536],
    [3072, 3072],
    [3072, 14336],
    [14336, 3072],
    [5120, 5120],
    [5120, 13824],
    [13824, 5120],
];
const GELU_SCALE: RowScale = RowScale { scale: 0.02, zero: 8.0 };

fn random_bf16(count: usize) -> Vec<bf16> {
    noise(count).into_iter().map(bf16::from_f32).collect()
}

struct Bench {
    paths: Vec<Kernels>,
    /// INT8 peak of the first path.
    int8_peak: f64,
    bf16_peak: f64,
    workers: Threads,
    rows: usize,
    seconds: f64,
    word: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let rows = arguments.next().map_or(Ok(1950), |text| text.parse())?;
    let threads: NonZeroUsize = match arguments.next() {
        Some(text) => text.parse()?,
        None => std::thread::available_parallelism()?,
    };
    let seconds = arguments.next().map_or(Ok(1.0), |text| text.parse())?;
    let word = arguments.next().unwrap_or_default();
    let paths = paths();
    let peaks = paths[0].peaks(threads);
    let bf16_peak = peaks.bf16.unwrap_or(peaks.f32);
    let names: Vec<&str> = paths.iter().map(|path| path.path().name()).collect();
    println!(
        "{} threads, {rows} rows; {}; peaks of the first path: int8 {:.0} GOP/s, bf16 {:.0} GFLOP/s",
        threads.get(),
        names.join(" vs. "),
        peaks.int8 / 1e9,
        bf16_peak / 1e9
    );
    let workers = Threads(threads);
    let bench = Bench { paths, int8_peak: peaks.int8, bf16_peak, workers, rows, seconds, word };
    for shape in SHAPES {
        bench.int8(shape)?;
        bench.bf16(shape)?;
    }
    bench.attention()?;
    Ok(())
}

impl Bench {
    fn is_selected(&self, name: &str) -> bool {
        name.contains(&self.word)
    }

    fn time(
        &self,
        name: &str,
        products: usize,
        peak: f64,
        mut work: impl FnMut(Kernels) -> Result<(), SizeError>,
    ) -> Result<(), SizeError> {
        if !self.is_selected(name) {
            return Ok(());
        }
        let mut result = Ok(());
        let times = Times::take(&self.paths, self.seconds, |path| {
            if result.is_ok() {
                result = work(path);
            }
        });
        result?;
        #[expect(clippy::cast_precision_loss, reason = "an operation count for display")]
        let operations = 2.0 * products as f64;
        println!("{}", line(name, &times.shortest(), &times.median(), operations, peak));
        Ok(())
    }

    fn int8(&self, [inputs, outputs]: [usize; 2]) -> Result<(), SizeError> {
        let names = ["int8", "int8, GELU", "int8, residual"]
            .map(|epilogue| format!("{inputs} -> {outputs}, {epilogue}"));
        if !names.iter().any(|name| self.is_selected(name)) {
            return Ok(());
        }
        let (rows, shape) = (self.rows, MatrixShape::new(outputs, inputs)?);
        let matrix = Int8Matrix::quantise(shape, &noise(shape.elements()))?;
        let packed = Aligned::new(matrix.packed());
        let weights = Int8Weights::new(shape, packed.get(), matrix.sums(), matrix.scales())?;
        let (x, scales) =
            (Aligned::new(&quantised(rows * inputs)), vec![RowScale { scale: 0.01, zero: 128.0 }; rows]);
        let x = QuantisedRows::new(x.get(), &scales)?;
        let bias = noise(outputs);
        let products = rows * inputs * outputs;
        let run = |path: Kernels, to: Output<'_>| path.linear_int8(&self.workers, x, weights, &bias, to);
        let mut to = Aligned::new(&vec![bf16::ZERO; rows * outputs]);
        self.time(&names[0], products, self.int8_peak, |path| run(path, Output::Bf16(to.get_mut())))?;
        let (mut to, mut row_scales) = (Aligned::new(&vec![0; rows * outputs]), scales.clone());
        self.time(&names[1], products, self.int8_peak, |path| {
            let to = QuantisedRowsMut { quantised: to.get_mut(), scales: &mut row_scales };
            run(path, Output::GeluQuantised { to, scale: GELU_SCALE })
        })?;
        let mut to = Aligned::new(&vec![0.0; rows * outputs]);
        self.time(&names[2], products, self.int8_peak, |path| {
            run(path, Output::Residual(Residual { to: to.get_mut(), stream: None, gate: Gate::Each(&bias) }))
        })
    }

    fn bf16(&self, [inputs, outputs]: [usize; 2]) -> Result<(), SizeError> {
        let names = ["bf16", "bf16, GELU", "bf16, residual"]
            .map(|epilogue| format!("{inputs} -> {outputs}, {epilogue}"));
        if !names.iter().any(|name| self.is_selected(name)) {
            return Ok(());
        }
        let (rows, shape) = (self.rows, MatrixShape::new(outputs, inputs)?);
        let packed = Aligned::new(Bf16Matrix::pack(shape, &random_bf16(shape.elements()))?.packed());
        let weights = Bf16Weights::new(shape, packed.get())?;
        let x = Aligned::new(&random_bf16(rows * inputs));
        let bias = noise(outputs);
        let products = rows * inputs * outputs;
        let run =
            |path: Kernels, to: Output<'_>| path.linear_bf16(&self.workers, x.get(), weights, &bias, to);
        let mut to = Aligned::new(&vec![bf16::ZERO; rows * outputs]);
        self.time(&names[0], products, self.bf16_peak, |path| run(path, Output::Bf16(to.get_mut())))?;
        self.time(&names[1], products, self.bf16_peak, |path| run(path, Output::GeluBf16(to.get_mut())))?;
        let mut to = Aligned::new(&vec![0.0; rows * outputs]);
        self.time(&names[2], products, self.bf16_peak, |path| {
            run(path, Output::Residual(Residual { to: to.get_mut(), stream: None, gate: Gate::Each(&bias) }))
        })
    }

    fn attention(&self) -> Result<(), SizeError> {
        let (rows, heads) = (self.rows, Heads::new(12, 128)?);
        let total = heads.total();
        let projected = Aligned::new(&random_bf16(rows * 3 * total));
        let (angles, gain) = (noise(rows * heads.width() / 2), vec![1.2; total]);
        let columns = |index: usize| Columns::new(projected.get(), 3 * total, index * total, total);
        let attention = Attention {
            heads,
            queries: columns(0)?,
            keys: columns(1)?,
            values: columns(2)?,
            gains: [&gain, &gain],
            epsilon: 1e-6,
            rotary: Some(Rotary { cos: &angles, sin: &angles }),
            key_bias: None,
            product: ValueProduct::Int8,
        };
        let (mut scratch, mut to) = (Scratch::new(), Aligned::new(&vec![bf16::ZERO; rows * total]));
        self.time("self attention", 2 * rows * rows * total, self.bf16_peak, |path| {
            path.attention(&self.workers, &mut scratch, &attention, to.get_mut())
        })
    }
}
