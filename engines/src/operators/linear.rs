//! Linear layers, with what follows them.

use super::OperatorContext;
use super::tensors::{Input, Pool, count, gives, infer, input, known_last, optional, output, required, size};
use half::bf16;
use kernels::{Bf16Weights, Gate, Int8Weights, MatrixShape, Output, QuantisedRows, Residual, RowScale};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Bfloat16, Float32, Int8, Int32, Uint8};

/// Inputs of a product of bytes: codes u8 `[B,L,K]`, their scales f32 `[B,L,2]`, weights s8 `[N/16,K/4,64]`, their sums
/// i32 `[N]` and scales f32 `[N]`, bias f32 `[N]`.
const OF_BYTES: [ort::value::TensorElementType; 6] = [Uint8, Float32, Int8, Int32, Float32, Float32];
/// Inputs of a product of bf16: x `[B,L,K]`, weights `[N/16,K/2,32]`, bias f32 `[N]`.
const OF_HALVES: [ort::value::TensorElementType; 3] = [Bfloat16, Bfloat16, Float32];

/// A product of bytes to bf16 `[B,L,N]`, through GELU where the attribute `gelu` is 1.
pub(super) struct LinearQ(pub(super) OperatorContext);
/// A product of bytes, times a gate f32 `[N]` where there is one, added to a stream f32 `[B,L,N]` in its place.
pub(super) struct LinearQResidual(pub(super) OperatorContext);
/// A product of bf16 to bf16, as [`LinearQ`].
pub(super) struct LinearBf16(pub(super) OperatorContext);
/// A product of bf16, as [`LinearQResidual`].
pub(super) struct LinearBf16Residual(pub(super) OperatorContext);

/// The operands of a product, of either format.
enum Operands<'a> {
    Bytes([Input<'a>; 6]),
    Halves([Input<'a>; 3]),
}

impl<'a> Operands<'a> {
    fn of(context: &'a ComputeContext, is_bytes: bool) -> ort::Result<Self> {
        let at = |index| input(context, index);
        Ok(if is_bytes {
            Self::Bytes([at(0)?, at(1)?, at(2)?, at(3)?, at(4)?, at(5)?])
        } else {
            Self::Halves([at(0)?, at(1)?, at(2)?])
        })
    }

    fn count(&self) -> usize {
        match self {
            Self::Bytes(inputs) => inputs.len(),
            Self::Halves(inputs) => inputs.len(),
        }
    }

    /// The shape of the result.
    fn shape(&self) -> ort::Result<[usize; 3]> {
        let (x, bias) = match self {
            Self::Bytes([x, .., bias]) | Self::Halves([x, _, bias]) => (x, bias),
        };
        let ([batch, rows, _], [outputs]) = (x.shape()?, bias.shape()?);
        Ok([batch, rows, outputs])
    }

    fn multiply(&self, workers: &Pool<'_>, to: Output<'_>) -> ort::Result<()> {
        let kernels = workers.shared.kernels;
        let [_, _, outputs] = self.shape()?;
        match self {
            Self::Bytes([codes, scales, packed, sums, of_outputs, bias]) => {
                let [_, _, inputs] = codes.shape()?;
                let shape = MatrixShape { outputs, inputs };
                let scales = RowScale::rows(scales.slice()?).map_err(size)?;
                let x = QuantisedRows::new(codes.slice()?, scales).map_err(size)?;
                let weights = Int8Weights::new(shape, packed.slice()?, sums.slice()?, of_outputs.slice()?);
                kernels.linear_int8(workers, x, weights.map_err(size)?, bias.slice()?, to).map_err(size)
            }
            Self::Halves([x, packed, bias]) => {
                let [_, _, inputs] = x.shape()?;
                let weights =
                    Bf16Weights::new(MatrixShape { outputs, inputs }, packed.slice()?).map_err(size)?;
                kernels.linear_bf16(workers, x.slice()?, weights, bias.slice()?, to).map_err(size)
            }
        }
    }
}

fn infer_result(
    context: &mut ShapeInferenceContext,
    bias: usize,
    ty: ort::value::TensorElementType,
) -> ort::Result<()> {
    match known_last(context, bias) {
        Some(outputs) => infer(context, 0, ty, 0, Some(outputs)),
        None => Ok(()),
    }
}

/// The operators that give bf16.
macro_rules! to_halves {
    ($operator:ident, $inputs:ident, $is_bytes:literal) => {
        impl Operator for $operator {
            type Kernel<'attr> = ToHalves;

            fn name(&self) -> &'static str {
                stringify!($operator)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                required($inputs)
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                gives([Bfloat16])
            }

            fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<ToHalves> {
                let gelu = count(context, "gelu")? != 0;
                Ok(ToHalves { shared: self.0.clone(), is_bytes: $is_bytes, gelu })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer_result(context, $inputs.len() - 1, Bfloat16)
            }
        }
    };
}

to_halves!(LinearQ, OF_BYTES, true);
to_halves!(LinearBf16, OF_HALVES, false);

pub(super) struct ToHalves {
    shared: OperatorContext,
    is_bytes: bool,
    gelu: bool,
}

impl Kernel for ToHalves {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let operands = Operands::of(context, self.is_bytes)?;
        let mut to = output(context, 0, &operands.shape()?)?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        let to = if self.gelu { Output::GeluBf16(to) } else { Output::Bf16(to) };
        operands.multiply(&Pool { context, shared: &self.shared }, to)
    }
}

/// The operators that add to a stream.
macro_rules! to_stream {
    ($operator:ident, $inputs:ident, $stream:literal, $is_bytes:literal) => {
        impl Operator for $operator {
            type Kernel<'attr> = ToStream;

            /// The stream is updated where it lies.
            const INPLACES: &[(u32, u32)] = &[($stream, 0)];

            fn name(&self) -> &'static str {
                stringify!($operator)
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                let stream = [OperatorInput::required(Float32), OperatorInput::optional(Float32)];
                required($inputs).into_iter().chain(stream)
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                gives([Float32])
            }

            fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<ToStream> {
                Ok(ToStream { shared: self.0.clone(), is_bytes: $is_bytes })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer(context, 0, Float32, $stream, None)
            }
        }
    };
}

to_stream!(LinearQResidual, OF_BYTES, 6, true);
to_stream!(LinearBf16Residual, OF_HALVES, 3, false);

pub(super) struct ToStream {
    shared: OperatorContext,
    is_bytes: bool,
}

impl Kernel for ToStream {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let operands = Operands::of(context, self.is_bytes)?;
        let stream = input(context, operands.count())?;
        let gate = optional(context, operands.count() + 1)?;
        let gate = match &gate {
            Some(gate) => Gate::Each(gate.slice()?),
            None => Gate::Open,
        };
        let at = stream.address()?;
        let mut to = output(context, 0, &operands.shape()?)?;
        let (_, to) = to.try_extract_tensor_mut::<f32>()?;
        // Where ONNX Runtime gives the stream's own memory, there must not be two slices of it.
        let is_same = std::ptr::eq(at, to.as_ptr());
        let stream = if is_same { None } else { Some(stream.slice()?) };
        operands.multiply(
            &Pool { context, shared: &self.shared },
            Output::Residual(Residual { to, stream, gate }),
        )
    }
}
