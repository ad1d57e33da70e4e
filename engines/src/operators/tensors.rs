//! ONNX Runtime's tensors as slices, and its threads as workers.

use super::OperatorContext;
use kernels::{SizeError, TaskCounter, Workers};
use ort::operator::{ComputeContext, KernelContext, OperatorInput, OperatorOutput, ShapeInferenceContext};
use ort::value::{
    PrimitiveTensorElementType, Shape, SymbolicDimensions, TensorElementType, ValueRef, ValueRefMut,
    ValueType,
};
use std::num::NonZeroUsize;

/// A problem that no graph of ours has: it says where.
pub(super) fn problem(what: impl Into<String>) -> ort::Error {
    ort::Error::new(what)
}

pub(super) fn size(error: SizeError) -> ort::Error {
    problem(error.to_string())
}

pub(super) fn required<const N: usize>(types: [TensorElementType; N]) -> [OperatorInput; N] {
    types.map(OperatorInput::required)
}

pub(super) fn gives<const N: usize>(types: [TensorElementType; N]) -> [OperatorOutput; N] {
    types.map(OperatorOutput::required)
}

/// An input of a running operator.
pub(super) struct Input<'a> {
    value: ValueRef<'a>,
    index: usize,
}

/// Input `index`, which must be there.
pub(super) fn input(context: &ComputeContext, index: usize) -> ort::Result<Input<'_>> {
    optional(context, index)?.ok_or_else(|| problem(format!("input {index} is missing")))
}

/// Input `index`, if it is there.
pub(super) fn optional(context: &ComputeContext, index: usize) -> ort::Result<Option<Input<'_>>> {
    if index >= context.num_inputs()? {
        return Ok(None);
    }
    Ok(context.input(index)?.map(|value| Input { value, index }))
}

impl Input<'_> {
    pub(super) fn slice<T: PrimitiveTensorElementType>(&self) -> ort::Result<&[T]> {
        Ok(self.value.try_extract_tensor::<T>()?.1)
    }

    /// Where the elements are.
    pub(super) fn address(&self) -> ort::Result<*const f32> {
        let (_, elements) = self.value.try_extract_tensor::<f32>()?;
        Ok(elements.as_ptr())
    }

    /// The extents, which must be as many as asked for.
    pub(super) fn shape<const N: usize>(&self) -> ort::Result<[usize; N]> {
        let wrong =
            |found: &Shape| problem(format!("input {} has shape {found:?}, not {N} axes", self.index));
        let ValueType::Tensor { shape, .. } = self.value.dtype() else {
            return Err(problem(format!("input {} is no tensor", self.index)));
        };
        let sizes: Option<Vec<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| wrong(shape))
    }
}

/// An output of a running operator.
pub(super) fn output<'a>(
    context: &'a ComputeContext,
    index: usize,
    shape: &[usize],
) -> ort::Result<ValueRefMut<'a>> {
    // Tensors are far smaller than the largest i64.
    let shape: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
    context.output(index, shape)?.ok_or_else(|| problem(format!("output {index} is not wanted")))
}

/// ONNX Runtime's threads for one run of an operator.
pub(super) struct Pool<'a> {
    pub(super) context: &'a ComputeContext,
    pub(super) shared: &'a OperatorContext,
}

impl Workers for Pool<'_> {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.shared.threads.get().min(tasks);
        let counter = TaskCounter::new(tasks);
        if threads > 1 {
            let given = self.context.par_for(threads, threads, |_| counter.work(task));
            if let Err(error) = given {
                tracing::warn!(%error, "ONNX Runtime gave no threads; one does the work");
            }
        }
        // Does what is left: everything, where there are no other threads.
        counter.work(task);
    }

    fn threads(&self) -> NonZeroUsize {
        self.shared.threads
    }
}

/// The last extent of an input during inference, if it is known.
pub(super) fn known_last(context: &ShapeInferenceContext, index: usize) -> Option<i64> {
    match context.inputs().get(index)? {
        ValueType::Tensor { shape, .. } => shape.last().copied().filter(|size| *size > 0),
        _ => None,
    }
}

/// Says that output `index` is a tensor of this shape, with the symbols of the input `like` where the extents are the
/// same: ONNX Runtime reuses memory only for shapes that it knows to be equal.
pub(super) fn infer(
    context: &mut ShapeInferenceContext,
    index: usize,
    ty: TensorElementType,
    like: usize,
    last: Option<i64>,
) -> ort::Result<()> {
    let inputs = context.inputs();
    let Some(ValueType::Tensor { shape, dimension_symbols, .. }) = inputs.get(like) else { return Ok(()) };
    if shape.is_empty() {
        return Ok(());
    }
    let (mut shape, mut symbols) = (shape.to_vec(), dimension_symbols.to_vec());
    if let (Some(last), Some(size), Some(symbol)) = (last, shape.last_mut(), symbols.last_mut()) {
        *size = last;
        symbol.clear();
    }
    // An extent without number and symbol would be taken for the number -1.
    if shape.iter().zip(&symbols).any(|(size, symbol)| *size < 0 && symbol.is_empty()) {
        return Ok(());
    }
    let (shape, dimension_symbols) = (Shape::new(shape), SymbolicDimensions::new(symbols));
    context.set_output(index, &ValueType::Tensor { ty, shape, dimension_symbols })
}

/// An attribute of a node, which must be there.
pub(super) fn attribute<'a, T: ort::operator::FromKernelContext<'a>>(
    context: &KernelContext<'a>,
    name: &str,
) -> ort::Result<T> {
    context.get(name).ok_or_else(|| problem(format!("the node lacks the attribute `{name}`")))
}

/// An attribute that counts something.
pub(super) fn count(context: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let value: i64 = attribute(context, name)?;
    usize::try_from(value).ok().ok_or_else(|| problem(format!("the attribute `{name}` is {value}")))
}
