//! Access to ONNX Runtime's tensors as slices and to its threads as workers.

use super::OperatorContext;
use super::unwinding::TaskPanic;
use kernels::{SizeError, TaskCounter, TokenRows, Workers};
use ort::operator::{ComputeContext, KernelContext, OperatorInput, OperatorOutput, ShapeInferenceContext};
use ort::value::{
    PrimitiveTensorElementType, Shape, SymbolicDimensions, TensorElementType, ValueRef, ValueRefMut,
    ValueType,
};
use std::num::NonZeroUsize;

/// An error of an operator. Exported graphs do not cause one.
pub(super) fn operator_error(what: impl Into<String>) -> ort::Error {
    ort::Error::new(what)
}

pub(super) fn size_error(error: SizeError) -> ort::Error {
    operator_error(error.to_string())
}

pub(super) fn required_inputs<const N: usize>(types: [TensorElementType; N]) -> [OperatorInput; N] {
    types.map(OperatorInput::required)
}

pub(super) fn required_outputs<const N: usize>(types: [TensorElementType; N]) -> [OperatorOutput; N] {
    types.map(OperatorOutput::required)
}

/// An input of a running operator.
pub(super) struct Input<'a> {
    value: ValueRef<'a>,
    index: usize,
}

/// Returns the product of extents.
pub(super) fn product(what: &str, extents: &[usize]) -> ort::Result<usize> {
    let product = extents.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
    product.ok_or_else(|| operator_error(format!("the extents {extents:?} of {what} are too large")))
}

/// Returns input `index`, which is required.
pub(super) fn input(context: &ComputeContext, index: usize) -> ort::Result<Input<'_>> {
    optional(context, index)?.ok_or_else(|| operator_error(format!("input {index} is missing")))
}

/// Returns input `index`, or `None` if it is absent.
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

    /// Address of the first element.
    pub(super) fn address(&self) -> ort::Result<*const f32> {
        let (_, elements) = self.value.try_extract_tensor::<f32>()?;
        Ok(elements.as_ptr())
    }

    /// Returns the shape, which must have `N` axes.
    pub(super) fn shape<const N: usize>(&self) -> ort::Result<[usize; N]> {
        let wrong =
            |found: &Shape| operator_error(format!("input {} has shape {found:?}, not {N} axes", self.index));
        let ValueType::Tensor { shape, .. } = self.value.dtype() else {
            return Err(operator_error(format!("input {} is not a tensor", self.index)));
        };
        let sizes: Option<Vec<usize>> = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
        sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| wrong(shape))
    }
}

/// Returns the map of tokens to rows of tables `[R,width]` with `elements` elements. Without the optional input `map`,
/// all tokens use the only row. The map has one entry, or one for each of `tokens` tokens.
pub(super) fn token_rows<'a>(
    map: Option<&'a Input<'_>>,
    [elements, width]: [usize; 2],
    tokens: usize,
) -> ort::Result<TokenRows<'a>> {
    let wrong = || operator_error(format!("a table has {elements} values, which are not rows of {width}"));
    let Some(map) = map else {
        return if elements == width { Ok(TokenRows::ONE) } else { Err(wrong()) };
    };
    let rows = map.slice::<i64>()?;
    if rows.len() != 1 && rows.len() != tokens {
        return Err(operator_error(format!(
            "the map of tokens to rows has {} entries for {tokens} tokens",
            rows.len()
        )));
    }
    let table = elements.checked_div(width).unwrap_or(0);
    if table * width != elements {
        return Err(wrong());
    }
    TokenRows::new(rows, table).map_err(|error| operator_error(error.to_string()))
}

/// An output of a running operator.
pub(super) fn output<'a>(
    context: &'a ComputeContext,
    index: usize,
    shape: &[usize],
) -> ort::Result<ValueRefMut<'a>> {
    optional_output(context, index, shape)?
        .ok_or_else(|| operator_error(format!("output {index} is not used")))
}

/// An output of a running operator, or `None` if the node does not have it.
pub(super) fn optional_output<'a>(
    context: &'a ComputeContext,
    index: usize,
    shape: &[usize],
) -> ort::Result<Option<ValueRefMut<'a>>> {
    if index >= context.num_outputs()? {
        return Ok(None);
    }
    let sizes: Option<Vec<i64>> = shape.iter().map(|size| i64::try_from(*size).ok()).collect();
    let sizes =
        sizes.ok_or_else(|| operator_error(format!("the shape {shape:?} of output {index} is too large")))?;
    context.output(index, sizes)
}

/// ONNX Runtime's threads for one run of an operator.
pub(super) struct SessionThreads<'a> {
    pub(super) context: &'a ComputeContext,
    pub(super) shared: &'a OperatorContext,
}

// SAFETY: the counter hands out each index once. `par_for` returns when its calls have returned, and panics of tasks
// are kept until then.
#[expect(unsafe_code, reason = "workers promise to run each task at most once")]
unsafe impl Workers for SessionThreads<'_> {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.shared.threads.get().min(tasks);
        let counter = TaskCounter::new(tasks);
        let panics = TaskPanic::default();
        let task = |index| panics.catch(|| task(index));
        if threads > 1 {
            let dispatched = self.context.par_for(threads, threads, |_| counter.work(&task));
            if let Err(error) = dispatched {
                tracing::warn!(%error, "ONNX Runtime provided no threads; the operator runs on one");
            }
        }
        // Does the remaining tasks: all of them if there are no other threads.
        counter.work(&task);
        panics.resume();
    }

    fn threads(&self) -> NonZeroUsize {
        self.shared.threads
    }
}

/// Returns the last extent of an input during shape inference, if it is known.
pub(super) fn known_last_extent(context: &ShapeInferenceContext, index: usize) -> Option<i64> {
    match context.inputs().get(index)? {
        ValueType::Tensor { shape, .. } => shape.last().copied().filter(|size| *size > 0),
        _ => None,
    }
}

/// Sets the shape of output `index` to that of input `like`, with the last extent replaced by `last`. Symbolic
/// dimensions are kept: ONNX Runtime reuses memory only for shapes that it knows to be equal.
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
    // An extent without number and symbol would be read as -1.
    if shape.iter().zip(&symbols).any(|(size, symbol)| *size < 0 && symbol.is_empty()) {
        return Ok(());
    }
    let (shape, dimension_symbols) = (Shape::new(shape), SymbolicDimensions::new(symbols));
    context.set_output(index, &ValueType::Tensor { ty, shape, dimension_symbols })
}

/// Returns a required attribute of a node.
pub(super) fn attribute<'a, T: ort::operator::FromKernelContext<'a>>(
    context: &KernelContext<'a>,
    name: &str,
) -> ort::Result<T> {
    context.get(name).ok_or_else(|| operator_error(format!("the node lacks the attribute `{name}`")))
}

/// Returns a required attribute that is a non-negative integer.
pub(super) fn count(context: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let value: i64 = attribute(context, name)?;
    usize::try_from(value).ok().ok_or_else(|| operator_error(format!("the attribute `{name}` is {value}")))
}
