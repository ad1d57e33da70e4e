//! Linear layers with fused epilogues: GELU, quantising, gated residual.
//!
//! All of them add a branch and an addend to their values, if they have the inputs for these.

use super::OperatorContext;
use super::tensors::{
    Input, SessionThreads, count, infer, input, known_last_extent, operator_error, optional, output,
    required_inputs, required_outputs, size_error, token_rows,
};
use half::bf16;
use kernels::{
    Bf16Layer, Bf16Weights, Branch, Gate, Int8Layer, Int8Weights, MatrixShape, Output, QuantisedRows,
    Residual, RowScale,
};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{self, Bfloat16, Float32, Int8, Int32, Int64, Uint8};

/// The attribute with the number of parts of a branch.
const PARTS: &str = "parts";
/// Inputs of an INT8 product: quantised values u8 `[B,L,K]`, their scales and zero points f32 `[B,L,2]`, weights s8
/// `[N/16,K/4,64]`, their sums i32 `[N]` and scales f32 `[N]`, bias f32 `[N]`.
const INT8_INPUTS: [TensorElementType; 6] = [Uint8, Float32, Int8, Int32, Float32, Float32];
/// Inputs of a BF16 product: x `[B,L,K]`, weights `[N/16,K/2,32]`, bias f32 `[N]`.
const BF16_INPUTS: [TensorElementType; 3] = [Bfloat16, Bfloat16, Float32];
/// Optional inputs after all others of an INT8 product: an addend bf16 `[B,L,N]`; of the branch, the rows u8
/// `[B,L,parts·R]` with their scales and zero points f32 `[B,L,2]`, the weights s8 `[N/16,R/4,64]`, their sums i32 `[N]`
/// and scales f32 `[N]`. The attribute `parts` is 1 if it is absent.
const INT8_ADDED: [TensorElementType; 6] = [Bfloat16, Uint8, Float32, Int8, Int32, Float32];
/// Optional inputs after all others of a BF16 product: an addend bf16 `[B,L,N]`; of the branch, the rows bf16
/// `[B,L,parts·R]` and the weights `[N/16,R/2,32]`; factors of the layer's sums, f32 `[N]`.
const BF16_ADDED: [TensorElementType; 4] = [Bfloat16, Bfloat16, Bfloat16, Float32];

/// An INT8 product with bf16 output `[B,L,N]`, and GELU if the attribute `gelu` is 1.
pub(super) struct LinearQ(pub(super) OperatorContext);
/// An INT8 product, optionally times a gate f32 `[N]`, added in place to the residual stream f32 `[B,L,N]`. With the
/// optional input `rows` i64 `[1,M]`, the gate is a table `[R,N]`, and token `l` uses row `rows[l]`, or the only entry.
pub(super) struct LinearQResidual(pub(super) OperatorContext);
/// A BF16 product like [`LinearQ`].
pub(super) struct LinearBf16(pub(super) OperatorContext);
/// A BF16 product like [`LinearQResidual`].
pub(super) struct LinearBf16Residual(pub(super) OperatorContext);

/// The operands of a product.
enum Operands<'a> {
    Int8([Input<'a>; 6]),
    Bf16([Input<'a>; 3]),
}

impl<'a> Operands<'a> {
    fn of(context: &'a ComputeContext, is_int8: bool) -> ort::Result<Self> {
        let at = |index| input(context, index);
        Ok(if is_int8 {
            Self::Int8([at(0)?, at(1)?, at(2)?, at(3)?, at(4)?, at(5)?])
        } else {
            Self::Bf16([at(0)?, at(1)?, at(2)?])
        })
    }

    fn count(&self) -> usize {
        match self {
            Self::Int8(inputs) => inputs.len(),
            Self::Bf16(inputs) => inputs.len(),
        }
    }

    /// The shape of the result.
    fn shape(&self) -> ort::Result<[usize; 3]> {
        let (x, bias) = match self {
            Self::Int8([x, .., bias]) | Self::Bf16([x, _, bias]) => (x, bias),
        };
        let ([batch, rows, _], [outputs]) = (x.shape()?, bias.shape()?);
        Ok([batch, rows, outputs])
    }

    fn multiply(
        &self,
        workers: &SessionThreads<'_>,
        (added, parts): (&Added<'_>, usize),
        to: Output<'_>,
    ) -> ort::Result<()> {
        let kernels = workers.shared.kernels;
        let [_, _, outputs] = self.shape()?;
        let addend = added.0[0].as_ref().map(|addend| addend.slice()).transpose()?;
        match (self, &added.0[1..]) {
            (
                Self::Int8([quantized, scales, packed, sums, output_scales, bias]),
                [rows, row_scales, factor, factor_sums, factor_scales],
            ) => {
                let layer = [quantized, scales, packed, sums, output_scales];
                let (x, weights) = int8_operands(layer, outputs, 1)?;
                let branch = match [rows, row_scales, factor, factor_sums, factor_scales].map(Option::as_ref)
                {
                    [None, None, None, None, None] => None,
                    [Some(rows), Some(row_scales), Some(factor), Some(sums), Some(scales)] => {
                        let (rows, weights) =
                            int8_operands([rows, row_scales, factor, sums, scales], outputs, parts)?;
                        Some(Branch { rows, weights, parts })
                    }
                    _ => return Err(operator_error("the branch lacks an input")),
                };
                let layer = Int8Layer { branch, addend, ..Int8Layer::new(x, weights, bias.slice()?) };
                kernels.layer_int8(workers, &layer, to).map_err(size_error)
            }
            (Self::Bf16([x, packed, bias]), [rows, factor, scales]) => {
                let (x, weights) = bf16_operands([x, packed], outputs, 1)?;
                let branch = match [rows, factor].map(Option::as_ref) {
                    [None, None] => None,
                    [Some(rows), Some(factor)] => {
                        let (rows, weights) = bf16_operands([rows, factor], outputs, parts)?;
                        Some(Branch { rows, weights, parts })
                    }
                    _ => return Err(operator_error("the branch lacks an input")),
                };
                let scales = scales.as_ref().map(|scales| scales.slice()).transpose()?;
                let layer = Bf16Layer { scales, branch, addend, ..Bf16Layer::new(x, weights, bias.slice()?) };
                kernels.layer_bf16(workers, &layer, to).map_err(size_error)
            }
            _ => Err(operator_error("the inputs of what is added are those of another operator")),
        }
    }
}

/// Rows and weights of an INT8 product, whose weights have the width of one of `parts` parts of the rows.
fn int8_operands<'a>(
    [rows, row_scales, packed, sums, scales]: [&'a Input<'_>; 5],
    outputs: usize,
    parts: usize,
) -> ort::Result<(QuantisedRows<'a>, Int8Weights<'a>)> {
    let shape = part_shape(rows, outputs, parts)?;
    let row_scales = RowScale::rows(row_scales.slice()?).map_err(size_error)?;
    let rows = QuantisedRows::new(rows.slice()?, row_scales).map_err(size_error)?;
    let weights = Int8Weights::new(shape, packed.slice()?, sums.slice()?, scales.slice()?);
    Ok((rows, weights.map_err(size_error)?))
}

/// Rows and weights of a BF16 product.
fn bf16_operands<'a>(
    [rows, packed]: [&'a Input<'_>; 2],
    outputs: usize,
    parts: usize,
) -> ort::Result<(&'a [bf16], Bf16Weights<'a>)> {
    let shape = part_shape(rows, outputs, parts)?;
    Ok((rows.slice()?, Bf16Weights::new(shape, packed.slice()?).map_err(size_error)?))
}

fn part_shape(rows: &Input<'_>, outputs: usize, parts: usize) -> ort::Result<MatrixShape> {
    let [_, _, width] = rows.shape()?;
    match width.checked_div(parts) {
        Some(inputs) if inputs * parts == width => MatrixShape::new(outputs, inputs).map_err(size_error),
        _ => Err(operator_error(format!("rows of {width} values cannot be cut into {parts} parts"))),
    }
}

/// The inputs of what is added, those of [`INT8_ADDED`] or [`BF16_ADDED`].
struct Added<'a>(Vec<Option<Input<'a>>>);

impl<'a> Added<'a> {
    /// Reads them from input `from` on.
    fn of(context: &'a ComputeContext, from: usize, is_int8: bool) -> ort::Result<Self> {
        let count = if is_int8 { INT8_ADDED.len() } else { BF16_ADDED.len() };
        Ok(Self((from..from + count).map(|index| optional(context, index)).collect::<ort::Result<_>>()?))
    }
}

/// Returns the number of parts of a branch.
fn parts(context: &KernelContext<'_>) -> ort::Result<usize> {
    match context.get::<i64>(PARTS) {
        None => Ok(1),
        Some(_) => count(context, PARTS),
    }
}

fn infer_result(context: &mut ShapeInferenceContext, bias: usize, ty: TensorElementType) -> ort::Result<()> {
    match known_last_extent(context, bias) {
        Some(outputs) => infer(context, 0, ty, 0, Some(outputs)),
        None => Ok(()),
    }
}

/// Implements an operator with bf16 output.
macro_rules! bf16_output_operator {
    ($operator:ident, $inputs:ident, $added:ident, $is_int8:literal) => {
        impl Operator for $operator {
            type Kernel<'attr> = Bf16OutputKernel;

            fn name(&self) -> &'static str {
                stringify!($operator)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                required_inputs($inputs).into_iter().chain($added.map(OperatorInput::optional))
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                required_outputs([Bfloat16])
            }

            fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Bf16OutputKernel> {
                let (gelu, parts) = (count(context, "gelu")? != 0, parts(context)?);
                Ok(Bf16OutputKernel { shared: self.0.clone(), is_int8: $is_int8, gelu, parts })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer_result(context, $inputs.len() - 1, Bfloat16)
            }
        }
    };
}

bf16_output_operator!(LinearQ, INT8_INPUTS, INT8_ADDED, true);
bf16_output_operator!(LinearBf16, BF16_INPUTS, BF16_ADDED, false);

pub(super) struct Bf16OutputKernel {
    shared: OperatorContext,
    is_int8: bool,
    gelu: bool,
    parts: usize,
}

impl Kernel for Bf16OutputKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let operands = Operands::of(context, self.is_int8)?;
        let mut to = output(context, 0, &operands.shape()?)?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        let to = if self.gelu { Output::GeluBf16(to) } else { Output::Bf16(to) };
        let added = Added::of(context, operands.count(), self.is_int8)?;
        operands.multiply(&SessionThreads { context, shared: &self.shared }, (&added, self.parts), to)
    }
}

/// Implements an operator that adds to the residual stream.
macro_rules! residual_operator {
    ($operator:ident, $inputs:ident, $added:ident, $stream:literal, $is_int8:literal) => {
        impl Operator for $operator {
            type Kernel<'attr> = ResidualKernel;

            /// The stream is updated in place.
            const INPLACES: &[(u32, u32)] = &[($stream, 0)];

            fn name(&self) -> &'static str {
                stringify!($operator)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                let stream = [OperatorInput::required(Float32)];
                let gate = [OperatorInput::optional(Float32), OperatorInput::optional(Int64)];
                let added = $added.map(OperatorInput::optional);
                required_inputs($inputs).into_iter().chain(stream).chain(gate).chain(added)
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                required_outputs([Float32])
            }

            fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ResidualKernel> {
                Ok(ResidualKernel { shared: self.0.clone(), is_int8: $is_int8, parts: parts(context)? })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer(context, 0, Float32, $stream, None)
            }
        }
    };
}

residual_operator!(LinearQResidual, INT8_INPUTS, INT8_ADDED, 6, true);
residual_operator!(LinearBf16Residual, BF16_INPUTS, BF16_ADDED, 3, false);

pub(super) struct ResidualKernel {
    shared: OperatorContext,
    is_int8: bool,
    parts: usize,
}

impl Kernel for ResidualKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let operands = Operands::of(context, self.is_int8)?;
        let stream = input(context, operands.count())?;
        let gate = optional(context, operands.count() + 1)?;
        let map = optional(context, operands.count() + 2)?;
        let [_, tokens, outputs] = operands.shape()?;
        let gate = match &gate {
            Some(gate) => {
                let table = gate.slice()?;
                let rows = token_rows(map.as_ref(), [table.len(), outputs], tokens)?;
                Gate::ByRow { table, rows }
            }
            None => Gate::Open,
        };
        let at = stream.address()?;
        let mut to = output(context, 0, &operands.shape()?)?;
        let (_, to) = to.try_extract_tensor_mut::<f32>()?;
        // If ONNX Runtime reuses the stream's memory for the output, there must not be two slices of it.
        let is_same = std::ptr::eq(at, to.as_ptr());
        let stream = if is_same { None } else { Some(stream.slice()?) };
        let added = Added::of(context, operands.count() + 3, self.is_int8)?;
        operands.multiply(
            &SessionThreads { context, shared: &self.shared },
            (&added, self.parts),
            Output::Residual(Residual { to, stream, gate }),
        )
    }
}
