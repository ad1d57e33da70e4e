//! Linear layers over bf16 weights that are used as they are stored. See `graph::Model::use_weights_in_place`.

use super::OperatorContext;
use super::tensors::{
    SessionThreads, input, optional, output, product, required_inputs, required_outputs, size_error,
};
use half::bf16;
use kernels::{MatrixShape, StoredBf16};
use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType::{Bfloat16, Float32};
use ort::value::{Shape, SymbolicDimensions, ValueType};

/// A product in f32: x f32 `[L,K]`, weights bf16 `[N,K]`, optionally a bias f32 `[N]`, to f32 `[L,N]`.
pub(super) struct LinearStored(pub(super) OperatorContext);

impl Operator for LinearStored {
    type Kernel<'attr> = LinearStoredKernel;

    fn name(&self) -> &'static str {
        "LinearStored"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required_inputs([Float32, Bfloat16]).into_iter().chain([OperatorInput::optional(Float32)])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        required_outputs([Float32])
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<LinearStoredKernel> {
        Ok(LinearStoredKernel(self.0.clone()))
    }

    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = context.inputs();
        let (
            Some(ValueType::Tensor { shape: x, dimension_symbols, .. }),
            Some(ValueType::Tensor { shape, .. }),
        ) = (inputs.first(), inputs.get(1))
        else {
            return Ok(());
        };
        let ([rows, _], [outputs, _]) = (&x[..], &shape[..]) else { return Ok(()) };
        let symbol = dimension_symbols.first().cloned().unwrap_or_default();
        // An extent without number and symbol would be read as -1.
        if *outputs < 0 || *rows < 0 && symbol.is_empty() {
            return Ok(());
        }
        let (shape, dimension_symbols) =
            (Shape::new([*rows, *outputs]), SymbolicDimensions::new([symbol, String::new()]));
        context.set_output(0, &ValueType::Tensor { ty: Float32, shape, dimension_symbols })
    }
}

pub(super) struct LinearStoredKernel(OperatorContext);

impl Kernel for LinearStoredKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let (x, weights, bias) = (input(context, 0)?, input(context, 1)?, optional(context, 2)?);
        let ([rows, _], [outputs, inputs]) = (x.shape()?, weights.shape()?);
        product("the result", &[rows, outputs])?;
        let shape = MatrixShape::new(outputs, inputs).map_err(size_error)?;
        let weights = StoredBf16::new(shape, weights.slice::<bf16>()?).map_err(size_error)?;
        let bias = bias.as_ref().map(|bias| bias.slice()).transpose()?;
        let mut to = output(context, 0, &[rows, outputs])?;
        let (_, to) = to.try_extract_tensor_mut::<f32>()?;
        let workers = SessionThreads { context, shared: &self.0 };
        let kernels = self.0.kernels;
        kernels.linear_stored_bf16(&workers, x.slice()?, weights, bias, to).map_err(size_error)
    }
}
