//! Linear layers: `y[l][n] = Σ x[l][k]·w[n][k] + b[n]`. The epilogue runs while the sums are in registers.

mod branch;
mod epilogue;
mod plan;
mod rows;
mod stored;
pub(crate) mod tile;
mod tiled;

use crate::Kernels;
use crate::packing::{Bf16Weights, GROUP, Int8Weights, MatrixShape, STEP};
use crate::rows::RowScale;
use crate::shared::Chunks;
use crate::simd::tiles::SIDE;
use crate::simd::{Operation, Simd};
use crate::size::{SizeError, check, product};
use crate::workers::Workers;
use branch::BranchProduct;
pub use branch::{Bf16Layer, Branch, Int8Layer};
use epilogue::{Epilogue, SumsRow};
pub use epilogue::{Gate, Output, Residual};
use half::bf16;
use rows::Rows;
pub use stored::StoredBf16;
use tile::{Bf16Dot, Dot, Int8Dot, OutputLines, PANEL, Sums, TileInput, floats, multiply};

/// Approximate rows per task: few enough for many cores, and enough to reuse a panel of weights.
const TASK_ROWS: usize = 246;

/// Rows of quantised values `[L,K]` with a scale for each row.
#[derive(Debug, Clone, Copy)]
pub struct QuantisedRows<'a> {
    quantised: &'a [u8],
    scales: &'a [RowScale],
}

impl<'a> QuantisedRows<'a> {
    /// Creates rows from `quantised [L,K]`; `L` is the number of `scales`.
    ///
    /// # Errors
    /// Returns an error if the quantised values are not whole rows.
    pub fn new(quantised: &'a [u8], scales: &'a [RowScale]) -> Result<Self, SizeError> {
        let width = quantised.len().checked_div(scales.len()).unwrap_or(0);
        check("quantised activations", quantised.len(), width * scales.len())?;
        Ok(Self { quantised, scales })
    }
}

impl Kernels {
    /// Computes a linear layer on quantised activations and weights, with `bias [N]`.
    ///
    /// The sums of products are exact integers, identical on every path.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn linear_int8(
        self,
        workers: &dyn Workers,
        x: QuantisedRows<'_>,
        weights: Int8Weights<'_>,
        bias: &[f32],
        to: Output<'_>,
    ) -> Result<(), SizeError> {
        self.layer_int8(workers, &Int8Layer::new(x, weights, bias), to)
    }

    /// Computes a linear layer on quantised activations and weights, with what is added to its values.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn layer_int8(
        self,
        workers: &dyn Workers,
        layer: &Int8Layer<'_>,
        to: Output<'_>,
    ) -> Result<(), SizeError> {
        let Int8Layer { x, weights, bias, branch, addend } = *layer;
        let shape = weights.shape();
        let (outputs, inputs, rows) = (shape.outputs(), shape.inputs(), x.scales.len());
        let size = product("quantised activations", &[rows, inputs])?;
        check("quantised activations", x.quantised.len(), size)?;
        check("bias", bias.len(), outputs)?;
        let epilogue = &Epilogue::new(to, [rows, outputs], addend)?;
        let values = &Int8Values { scales: x.scales, weights, bias: Some(bias) };
        let is_tiled = self.is_tiled(rows, shape);
        let branch =
            branch.map(|branch| BranchProduct::int8(branch, [rows, outputs], is_tiled)).transpose()?;
        let x = Rows::new(x.quantised, inputs, is_tiled)?;
        let operands = Operands {
            x: x.start(),
            stride: x.stride(),
            depth: x.stride(),
            weights: weights.packed().as_ptr().cast(),
            steps: inputs.div_ceil(STEP),
            rows,
            outputs,
        };
        self.compute(workers, &Product { operands, values, branch: branch.as_ref(), epilogue }, is_tiled);
        Ok(())
    }

    /// Computes only the sums of products, `Σ (q[l][k] - zero[l])·w[n][k]`, into `[L,N]`; used by tests.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn accumulate_int8(
        self,
        workers: &dyn Workers,
        x: QuantisedRows<'_>,
        weights: Int8Weights<'_>,
        to: &mut [i32],
    ) -> Result<(), SizeError> {
        let zeros = vec![0.0; weights.shape().outputs()];
        self.linear_int8(workers, x, weights, &zeros, Output::Accumulators(to))
    }

    /// Computes a linear layer on bf16 activations `[L,K]` and weights, with `bias [N]`; the sums are f32.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn linear_bf16(
        self,
        workers: &dyn Workers,
        x: &[bf16],
        weights: Bf16Weights<'_>,
        bias: &[f32],
        to: Output<'_>,
    ) -> Result<(), SizeError> {
        self.layer_bf16(workers, &Bf16Layer::new(x, weights, bias), to)
    }

    /// Computes a linear layer on bf16 activations and weights, with what is added to its values; the sums are f32.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn layer_bf16(
        self,
        workers: &dyn Workers,
        layer: &Bf16Layer<'_>,
        to: Output<'_>,
    ) -> Result<(), SizeError> {
        let Bf16Layer { x, weights, scales, bias, branch, addend } = *layer;
        let shape = weights.shape();
        let (outputs, inputs) = (shape.outputs(), shape.inputs());
        let rows = x.len().checked_div(inputs).unwrap_or(0);
        check("activations", x.len(), rows * inputs)?;
        check("bias", bias.len(), outputs)?;
        check("scales of the outputs", scales.map_or(outputs, <[f32]>::len), outputs)?;
        let epilogue = &Epilogue::new(to, [rows, outputs], addend)?;
        let is_tiled = self.is_tiled(rows, shape);
        let branch =
            branch.map(|branch| BranchProduct::bf16(branch, [rows, outputs], is_tiled)).transpose()?;
        let x = Rows::new(x, inputs, is_tiled)?;
        let operands = Operands {
            x: x.start(),
            stride: x.stride(),
            depth: x.stride(),
            weights: weights.packed().as_ptr().cast(),
            steps: inputs.div_ceil(STEP / 2),
            rows,
            outputs,
        };
        let values = &Bf16Values { scales, bias: Some(bias) };
        self.compute(workers, &Product { operands, values, branch: branch.as_ref(), epilogue }, is_tiled);
        Ok(())
    }

    /// Returns true if a product of `rows` rows runs on tiles. With fewer rows than a block, vectors are as fast.
    fn is_tiled(self, rows: usize, shape: MatrixShape) -> bool {
        self.has_tiles() && rows >= SIDE && shape.inputs() > 0
    }

    fn compute<V: Values>(self, workers: &dyn Workers, product: &Product<'_, V>, is_tiled: bool) {
        if is_tiled {
            self.each_tiled_task(workers, product);
        } else {
            self.each_panel(workers, product);
        }
    }

    fn each_panel<V: Values>(self, workers: &dyn Workers, product: &Product<'_, V>) {
        // All tasks but the last have whole register tiles, of six and of four rows.
        const MULTIPLE: usize = 12;
        let Operands { rows, outputs, .. } = product.operands;
        let parts = rows.div_ceil(TASK_ROWS).max(1);
        let size = rows.div_ceil(parts).next_multiple_of(MULTIPLE);
        let chunks = Chunks { rows, size };
        let panels = outputs.div_ceil(PANEL);
        // Neighbouring tasks share a panel of weights, which is read from memory.
        workers.run(panels * chunks.count(), &|task| {
            let (panel, chunk) = (task / chunks.count(), task % chunks.count());
            let rows = chunks.range(chunk);
            self.run(Panel { product, rows, first: panel * PANEL });
        });
    }
}

/// A product, what is added to its values, and what is done with them.
struct Product<'a, V> {
    operands: Operands,
    values: &'a V,
    branch: Option<&'a BranchProduct<V>>,
    epilogue: &'a Epilogue<'a>,
}

/// Addresses and extents of the operands of a product, in any number format. Activations and weights consist of whole
/// steps of four bytes: [`Rows`] has `rows × stride` bytes, and the constructors of the weights checked that there are
/// `16 × 4 × steps` bytes for each group of sixteen outputs.
#[derive(Debug, Clone, Copy)]
struct Operands {
    x: *const u8,
    /// Bytes from one row of activations to the next.
    stride: usize,
    /// Bytes of a row that the weights are multiplied with: whole steps.
    depth: usize,
    weights: *const u8,
    /// Steps of four bytes of a group of weights.
    steps: usize,
    rows: usize,
    outputs: usize,
}

// SAFETY: activations and weights are only read, and are borrowed until all tasks have returned.
#[expect(unsafe_code, reason = "pointers to data that all tasks only read")]
unsafe impl Send for Operands {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "pointers to data that all tasks only read")]
unsafe impl Sync for Operands {}

/// Per-column parameters of one panel, padded with zeros.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Columns {
    /// The columns of the result.
    range: std::ops::Range<usize>,
    scales: [f32; PANEL],
    bias: [f32; PANEL],
    gate: [f32; PANEL],
    sums: [i32; PANEL],
}

/// Conversion of the sums of a product to values.
trait Values: Sync {
    type Product: Dot;

    /// Returns the parameters of the columns `range` of the result.
    fn columns(&self, range: std::ops::Range<usize>) -> Columns;

    /// Parameters of one row of the result, broadcast to every lane and shared by all vectors of the row.
    type Row<S: Simd>: Copy;

    /// Loads the parameters of row `row`.
    fn row<S: Simd>(&self, s: S, row: usize) -> Self::Row<S>;

    /// Returns the values of one vector of columns, from `at` on, of a row of sums.
    fn value<S: Simd>(
        s: S,
        row: Self::Row<S>,
        columns: &Columns,
        sums: &[i32; PANEL],
        at: VectorOffset,
    ) -> S::F;

    /// Returns the same without a scale, if the sums are integers.
    fn integer<S: Simd>(
        s: S,
        row: Self::Row<S>,
        columns: &Columns,
        sums: &[i32; PANEL],
        at: VectorOffset,
    ) -> S::I;
}

/// The first column of a vector inside a panel, checked to leave room for the whole vector.
#[derive(Debug, Clone, Copy)]
struct VectorOffset(usize);

impl VectorOffset {
    /// Checks that a vector from column `at` on is inside the panel.
    #[inline(always)]
    fn new<S: Simd>(at: usize) -> Self {
        assert!(at + S::LANES <= PANEL, "the vector is outside its panel");
        Self(at)
    }

    #[inline(always)]
    fn floats<S: Simd>(self, s: S, from: &[f32; PANEL]) -> S::F {
        // SAFETY: `new` checked that the whole vector is inside the panel.
        #[expect(unsafe_code, reason = "a vector of a fixed-size array")]
        unsafe {
            s.load_at(from.as_ptr().add(self.0))
        }
    }

    #[inline(always)]
    fn integers<S: Simd>(self, s: S, from: &[i32; PANEL]) -> S::I {
        // SAFETY: `new` checked that the whole vector is inside the panel.
        #[expect(unsafe_code, reason = "a vector of a fixed-size array")]
        unsafe {
            s.load_bytes_at(from.as_ptr().add(self.0).cast())
        }
    }
}

struct Int8Values<'a> {
    scales: &'a [RowScale],
    weights: Int8Weights<'a>,
    bias: Option<&'a [f32]>,
}

impl Values for Int8Values<'_> {
    type Product = Int8Dot;

    fn columns(&self, range: std::ops::Range<usize>) -> Columns {
        let mut columns = bias_columns(self.bias, range.clone());
        columns.scales[..range.len()].copy_from_slice(&self.weights.scales()[range.clone()]);
        columns.sums[..range.len()].copy_from_slice(&self.weights.sums()[range]);
        columns
    }

    type Row<S: Simd> = (S::F, S::I);

    #[inline(always)]
    fn row<S: Simd>(&self, s: S, row: usize) -> (S::F, S::I) {
        let RowScale { scale, zero } = self.scales[row];
        #[expect(clippy::cast_possible_truncation, reason = "a zero point is an integer in 0..=255")]
        let zero = zero as i32;
        (s.splat(scale), s.splat_i32(zero))
    }

    #[inline(always)]
    fn value<S: Simd>(
        s: S,
        row: (S::F, S::I),
        columns: &Columns,
        sums: &[i32; PANEL],
        at: VectorOffset,
    ) -> S::F {
        let sum = s.to_f32(Self::integer(s, row, columns, sums, at));
        s.mul_add(sum, s.mul(at.floats(s, &columns.scales), row.0), at.floats(s, &columns.bias))
    }

    #[inline(always)]
    fn integer<S: Simd>(
        s: S,
        (_, zero): (S::F, S::I),
        columns: &Columns,
        sums: &[i32; PANEL],
        at: VectorOffset,
    ) -> S::I {
        s.sub_i32(at.integers(s, sums), s.mul_i32(at.integers(s, &columns.sums), zero))
    }
}

struct Bf16Values<'a> {
    /// Factors of the sums; 1 without them.
    scales: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
}

impl Values for Bf16Values<'_> {
    type Product = Bf16Dot;

    fn columns(&self, range: std::ops::Range<usize>) -> Columns {
        let mut columns = bias_columns(self.bias, range.clone());
        match self.scales {
            Some(scales) => columns.scales[..range.len()].copy_from_slice(&scales[range]),
            None => columns.scales.fill(1.0),
        }
        columns
    }

    type Row<S: Simd> = ();

    #[inline(always)]
    fn row<S: Simd>(&self, _: S, _: usize) {}

    #[inline(always)]
    fn value<S: Simd>(s: S, (): (), columns: &Columns, sums: &[i32; PANEL], at: VectorOffset) -> S::F {
        s.mul_add(at.floats(s, floats(sums)), at.floats(s, &columns.scales), at.floats(s, &columns.bias))
    }

    #[inline(always)]
    fn integer<S: Simd>(s: S, (): (), columns: &Columns, sums: &[i32; PANEL], at: VectorOffset) -> S::I {
        s.to_i32(Self::value(s, (), columns, sums, at))
    }
}

fn bias_columns(bias: Option<&[f32]>, range: std::ops::Range<usize>) -> Columns {
    let mut columns = Columns {
        range: range.clone(),
        scales: [0.0; PANEL],
        bias: [0.0; PANEL],
        gate: [0.0; PANEL],
        sums: [0; PANEL],
    };
    if let Some(bias) = bias {
        columns.bias[..range.len()].copy_from_slice(&bias[range]);
    }
    columns
}

/// One task: up to 64 columns of some rows.
struct Panel<'a, V> {
    product: &'a Product<'a, V>,
    rows: std::ops::Range<usize>,
    /// First column.
    first: usize,
}

impl<V: Values> Operation for Panel<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { operands, values, branch, epilogue } = *self.product;
        let end = operands.outputs.min(self.first + PANEL);
        let mut columns = values.columns(self.first..end);
        epilogue.gate(self.first..end, &mut columns.gate);
        let branch = branch.map(|branch| branch.panel(self.first..end));
        let (mut sums, mut branch_sums) = (Sums::new(), Sums::new());
        let mut row = self.rows.start;
        while row < self.rows.end {
            let rows = S::ROWS.min(self.rows.end - row);
            self.sums::<S>(s, &operands, row..row + rows, epilogue.lines(row, self.first, end), &mut sums);
            if let Some(branch) = &branch {
                self.sums::<S>(s, &branch.operands, row..row + rows, OutputLines::NONE, &mut branch_sums);
            }
            for in_tile in 0..rows {
                let of_layer = SumsRow { values, columns: &columns, sums: &sums.0[in_tile] };
                let of_branch = branch.as_ref().map(|branch| SumsRow {
                    values: branch.values,
                    columns: &branch.columns,
                    sums: &branch_sums.0[in_tile],
                });
                epilogue.row(s, of_layer, of_branch, row + in_tile);
            }
            row += rows;
        }
    }
}

impl<V: Values> Panel<'_, V> {
    /// Computes the sums of at most `S::ROWS` rows.
    #[inline(always)]
    fn sums<S: Simd>(
        &self,
        s: S,
        operands: &Operands,
        rows: std::ops::Range<usize>,
        lines: OutputLines,
        to: &mut Sums,
    ) {
        let end = operands.outputs.min(self.first + PANEL);
        let input = TileInput {
            runs: &[operands.x.wrapping_add(rows.start * operands.stride)],
            stride: operands.stride,
            weights: operands.weights_of(self.first),
            group: operands.group(),
            steps: operands.steps,
            begin: std::ptr::null(),
            lines,
        };
        let groups = (end - self.first).div_ceil(GROUP);
        // SAFETY: `Rows` has `rows × stride` bytes of activations, of which `4 × steps` are read from `x` on.
        // `Int8Weights::new` or `Bf16Weights::new` checked that each group has `16 × 4 × steps` bytes of weights. The
        // sums have room for a tile of `MAX_TILE_ROWS` rows and a panel of columns.
        #[expect(unsafe_code, reason = "the innermost loop reads through raw pointers")]
        unsafe {
            multiply::<S, V::Product>(s, input, rows.len(), groups, to.rows());
        }
    }
}

#[cfg(test)]
mod branch_tests;
#[cfg(test)]
#[path = "../product_tests.rs"]
mod tests;
