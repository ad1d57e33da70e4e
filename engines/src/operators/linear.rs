//! Linear layers with fused epilogues: GELU, quantising, gated residual.

use super::OperatorContext;
use super::tensors::{
    Input, SessionThreads, count, infer, input, known_last_extent, optional, output, required_inputs,
    required_outputs, size_error, token_rows,
};
use half::bf16;
use kernels::{Bf16Weights, Gate, Int8Weights, MatrixShape, Output, QuantisedRows, Residual, RowScale};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Bfloat16, Float32, Int8, Int32, Int64, Uint8};

/// Inputs of an INT8 product: quantised values u8 `[B,L,K]`, their scales and zero points f32 `[B,L,2]`, weights s8
/// `[N/16,K/4,64]`, their sums i32 `[N]` and scales f32 `[N]`, bias f32 `[N]`.
const INT8_INPUTS: [ort::value::TensorElementType; 6] = [Uint8, Float32, Int8, Int32, Float32, Float32];
/// Inputs of a BF16 product: x `[B,L,K]`, weights `[N/16,K/2,32]`, bias f32 `[N]`.
const BF16_INPUTS: [ort::value::TensorElementType; 3] = [Bfloat16, Bfloat16, Float32];

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

    fn multiply(&self, workers: &SessionThreads<'_>, to: Output<'_>) -> ort::Result<()> {
        let kernels = workers.shared.kernels;
        let [_, _, outputs] = self.shape()?;
        match self {
            Self::Int8([quantized, scales, packed, sums, output_scales, bias]) => {
                let [_, _, inputs] = quantized.shape()?;
                let shape = MatrixShape::new(outputs, inputs).map_err(size_error)?;
                let scales = RowScale::rows(scales.slice()?).map_err(size_error)?;
                let x = QuantisedRows::new(quantized.slice()?, scales).map_err(size_error)?;
                let weights = Int8Weights::new(shape, packed.slice()?, sums.slice()?, output_scales.slice()?);
                kernels
                    .linear_int8(workers, x, weights.map_err(size_error)?, bias.slice()?, to)
                    .map_err(size_error)
            }
            Self::Bf16([x, packed, bias]) => {
                let [_, _, inputs] = x.shape()?;
                let shape = MatrixShape::new(outputs, inputs).map_err(size_error)?;
                let weights = Bf16Weights::new(shape, packed.slice()?).map_err(size_error)?;
                kernels.linear_bf16(workers, x.slice()?, weights, bias.slice()?, to).map_err(size_error)
            }
        }
    }
}

fn infer_result(
    context: &mut ShapeInferenceContext,
    bias: usize,
    ty: ort::value::TensorElementType,
) -> ort::Result<()> {
    match known_last_extent(context, bias) {
        Some(outputs) => infer(context, 0, ty, 0, Some(outputs)),
        None => Ok(()),
    }
}

/// Implements an operator with bf16 output.
macro_rules! bf16_output_operator {
    ($operator:ident, $inputs:ident, $is_int8:literal) => {
        impl Operator for $operator {
            type Kernel<'attr> = Bf16OutputKernel;

            fn name(&self) -> &'static str {
                stringify!($operator)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                required_inputs($inputs)
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                required_outputs([Bfloat16])
            }

            fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<Bf16OutputKernel> {
                let gelu = count(context, "gelu")? != 0;
                Ok(Bf16OutputKernel { shared: self.0.clone(), is_int8: $is_int8, gelu })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer_result(context, $inputs.len() - 1, Bfloat16)
            }
        }
    };
}

bf16_output_operator!(LinearQ, INT8_INPUTS, true);
bf16_output_operator!(LinearBf16, BF16_INPUTS, false);

pub(super) struct Bf16OutputKernel {
    shared: OperatorContext,
    is_int8: bool,
    gelu: bool,
}

impl Kernel for Bf16OutputKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let operands = Operands::of(context, self.is_int8)?;
        let mut to = output(context, 0, &operands.shape()?)?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        let to = if self.gelu { Output::GeluBf16(to) } else { Output::Bf16(to) };
        operands.multiply(&SessionThreads { context, shared: &self.shared }, to)
    }
}

/// Implements an operator that adds to the residual stream.
macro_rules! residual_operator {
    ($operator:ident, $inputs:ident, $stream:literal, $is_int8:literal) => {
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
                required_inputs($inputs).into_iter().chain(stream).chain(gate)
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                required_outputs([Float32])
            }

            fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<ResidualKernel> {
                Ok(ResidualKernel { shared: self.0.clone(), is_int8: $is_int8 })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer(context, 0, Float32, $stream, None)
            }
        }
    };
}

residual_operator!(LinearQResidual, INT8_INPUTS, 6, true);
residual_operator!(LinearBf16Residual, BF16_INPUTS, 3, false);

pub(super) struct ResidualKernel {
    shared: OperatorContext,
    is_int8: bool,
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
        operands.multiply(
            &SessionThreads { context, shared: &self.shared },
            Output::Residual(Residual { to, stream, gate }),
        )
    }
}
