//! Quantising of rows, and norms fused with it.

use super::OperatorContext;
use super::tensors::{
    SessionThreads, attribute, count, infer, input, optional, optional_output, output, required_inputs,
    required_outputs, size_error, token_rows,
};
use half::bf16;
use kernels::{Norm, QuantisedRowsMut, Range, RowScale};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Bfloat16, Float32, Int64, Uint8};

/// `x` f32 `[B,L,D]`, `mul` and `add` f32 `[D]` → quantised values u8 `[B,L,D]`, scales and zero points f32 `[B,L,2]`,
/// and optionally the rows before they are quantised, bf16 `[B,L,D]`. With the optional input `rows` i64 `[1,M]`, `mul` and `add` are tables `[R,D]`, and token `l` uses row `rows[l]`, or
/// the only entry.
pub(super) struct NormQuant(pub(super) OperatorContext);
/// `x` f32 `[B,L,D]`, `mul` and `add` f32 `[D]` → bf16 `[B,L,D]`. With `rows` as for [`NormQuant`].
pub(super) struct NormBf16(pub(super) OperatorContext);
/// `x` f32 `[B,L,K]` → quantised values u8 `[B,L,K]`, scales and zero points f32 `[B,L,2]`.
pub(super) struct RowQuantF32(pub(super) OperatorContext);
/// The same for bf16.
pub(super) struct RowQuantBf16(pub(super) OperatorContext);

/// The inputs of a norm.
fn norm_inputs() -> impl IntoIterator<Item = OperatorInput> {
    required_inputs([Float32, Float32, Float32]).into_iter().chain([OperatorInput::optional(Int64)])
}

/// Infers quantised values and scales from the shape of the first input.
fn infer_quantized(context: &mut ShapeInferenceContext) -> ort::Result<()> {
    infer(context, 0, Uint8, 0, None)?;
    infer(context, 1, Float32, 0, Some(2))
}

/// Runs `write` on the first two outputs of a quantising operator.
fn with_quantized_outputs(
    context: &ComputeContext,
    shape: [usize; 3],
    write: impl FnOnce(QuantisedRowsMut<'_>) -> Result<(), kernels::SizeError>,
) -> ort::Result<()> {
    let mut values = output(context, 0, &shape)?;
    let mut scales = output(context, 1, &[shape[0], shape[1], 2])?;
    let (_, values) = values.try_extract_tensor_mut::<u8>()?;
    let (_, scales) = scales.try_extract_tensor_mut::<f32>()?;
    let scales = RowScale::rows_mut(scales).map_err(size_error)?;
    write(QuantisedRowsMut { quantised: values, scales }).map_err(size_error)
}

impl Operator for NormQuant {
    type Kernel<'attr> = NormKernel;

    fn name(&self) -> &'static str {
        "NormQuant"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        norm_inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        required_outputs([Uint8, Float32]).into_iter().chain([OperatorOutput::optional(Bfloat16)])
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<NormKernel> {
        Ok(NormKernel { shared: self.0.clone(), epsilon: attribute(context, "epsilon")?, quantizes: true })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer_quantized(context)?;
        // Fails if the node does not have this output, which is not stated here.
        let _ = infer(context, 2, Bfloat16, 0, None);
        Ok(())
    }
}

impl Operator for NormBf16 {
    type Kernel<'attr> = NormKernel;

    fn name(&self) -> &'static str {
        "NormBf16"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        norm_inputs()
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        required_outputs([Bfloat16])
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<NormKernel> {
        Ok(NormKernel { shared: self.0.clone(), epsilon: attribute(context, "epsilon")?, quantizes: false })
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        infer(context, 0, Bfloat16, 0, None)
    }
}

pub(super) struct NormKernel {
    shared: OperatorContext,
    epsilon: f32,
    quantizes: bool,
}

impl Kernel for NormKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, mul, add) = (input(context, 0)?, input(context, 1)?, input(context, 2)?);
        let map = optional(context, 3)?;
        let shape: [usize; 3] = x.shape()?;
        let (mul, add) = (mul.slice()?, add.slice()?);
        let rows = token_rows(map.as_ref(), [mul.len(), shape[2]], shape[1])?;
        let norm = Norm { mul, add, rows, epsilon: self.epsilon };
        let (workers, kernels, x) =
            (SessionThreads { context, shared: &self.shared }, self.shared.kernels, x.slice()?);
        if self.quantizes {
            let Some(mut rounded) = optional_output(context, 2, &shape)? else {
                return with_quantized_outputs(context, shape, |to| {
                    kernels.norm_quantise(&workers, x, norm, to)
                });
            };
            let (_, rounded) = rounded.try_extract_tensor_mut::<bf16>()?;
            return with_quantized_outputs(context, shape, |to| {
                kernels.norm_quantise_and_round(&workers, x, norm, to, rounded)
            });
        }
        let mut to = output(context, 0, &shape)?;
        let (_, to) = to.try_extract_tensor_mut::<bf16>()?;
        kernels.norm_bf16(&workers, x, norm, to).map_err(size_error)
    }
}

/// Implements `RowQuant` for one input type.
macro_rules! row_quant {
    ($operator:ident, $kernel:ident, $element:ty, $type:ident, $quantise:ident) => {
        impl Operator for $operator {
            type Kernel<'attr> = $kernel;

            fn name(&self) -> &'static str {
                "RowQuant"
            }

            fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
                required_inputs([$type])
            }

            fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
                required_outputs([Uint8, Float32])
            }

            fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<$kernel> {
                let range =
                    if count(context, "asymmetric")? == 0 { Range::Symmetric } else { Range::Asymmetric };
                Ok($kernel { shared: self.0.clone(), range })
            }

            fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
                infer_quantized(context)
            }
        }

        pub(super) struct $kernel {
            shared: OperatorContext,
            range: Range,
        }

        impl Kernel for $kernel {
            fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
                let x = input(context, 0)?;
                let (shape, x) = (x.shape()?, x.slice::<$element>()?);
                let workers = SessionThreads { context, shared: &self.shared };
                let (kernels, range) = (self.shared.kernels, self.range);
                with_quantized_outputs(context, shape, |to| kernels.$quantise(&workers, x, range, to))
            }
        }
    };
}

row_quant!(RowQuantF32, RowQuantF32Kernel, f32, Float32, quantise_f32);
row_quant!(RowQuantBf16, RowQuantBf16Kernel, bf16, Bfloat16, quantise_bf16);
