//! Tensors as opaque handles.

use crate::{GraphError, TensorError};
use bundle::dtype::ElementType;
use ndarray::{Array, ArrayD, ArrayViewD, Dimension};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};
use std::sync::Arc;

/// A tensor on its way into or out of a graph. Cloning shares it.
///
/// It is either made from an array, or the output of a run. An output is the next input without a copy and without
/// ever becoming an array: caches and states stay where ONNX Runtime put them.
///
/// An output lies in the memory pool of the engine that made it, so **the pool of a dropped engine is only returned to
/// the system once the last of its outputs is dropped**. What must outlive its engine should be copied with
/// [`to_f32`](Self::to_f32).
#[derive(Clone)]
pub struct Value {
    held: Arc<Held>,
}

enum Held {
    F32(ArrayD<f32>),
    I64(ArrayD<i64>),
    Output {
        tensor: DynValue,
        element: ElementType,
        shape: Vec<usize>,
        /// The input whose elements these are, where a graph names an input as an output: ONNX Runtime hands such
        /// elements through without owning them, so they live as long as the input's own value.
        _lender: Option<Value>,
    },
}

impl Value {
    /// A tensor of 32-bit floats; takes over the array, and copies it only if it is not in standard layout.
    pub fn from_f32<D: Dimension>(array: Array<f32, D>) -> Self {
        Self::of(Held::F32(standard_layout(array)))
    }

    /// A tensor of 64-bit integers; takes over the array, and copies it only if it is not in standard layout.
    pub fn from_i64<D: Dimension>(array: Array<i64, D>) -> Self {
        Self::of(Held::I64(standard_layout(array)))
    }

    /// The output `name` of a run of `graph` on `inputs`.
    pub(crate) fn from_output(
        graph: &str,
        name: &str,
        tensor: DynValue,
        inputs: &[(&str, &Self)],
    ) -> Result<Self, GraphError> {
        let (element, shape) = match tensor.dtype() {
            ValueType::Tensor { ty, shape, .. } => {
                let shape = shape.iter().map(|&extent| usize::try_from(extent).unwrap_or(0)).collect();
                (element_type(*ty), shape)
            }
            _ => (None, Vec::new()),
        };
        match element {
            Some(element) => {
                let address = address(&tensor, element);
                let lends = |input: &&Self| address.is_some() && input.address() == address;
                let lender = inputs.iter().map(|(_, input)| *input).find(lends).cloned();
                Ok(Self::of(Held::Output { tensor, element, shape, _lender: lender }))
            }
            None => Err(GraphError::UnsupportedTensor {
                graph: graph.into(),
                tensor: name.into(),
                found: tensor.dtype().to_string(),
            }),
        }
    }

    fn of(held: Held) -> Self {
        Self { held: Arc::new(held) }
    }

    /// Number format.
    pub fn element(&self) -> ElementType {
        match &*self.held {
            Held::F32(_) => ElementType::F32,
            Held::I64(_) => ElementType::I64,
            Held::Output { element, .. } => *element,
        }
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        match &*self.held {
            Held::F32(array) => array.shape(),
            Held::I64(array) => array.shape(),
            Held::Output { shape, .. } => shape,
        }
    }

    /// The elements, where they are.
    ///
    /// # Errors
    /// The tensor holds another number format.
    pub fn view_f32(&self) -> Result<ArrayViewD<'_, f32>, TensorError> {
        let other = || TensorError::WrongElement { expected: ElementType::F32, found: self.element() };
        match &*self.held {
            Held::F32(array) => Ok(array.view()),
            Held::I64(_) => Err(other()),
            // It fails only for another element type, as outputs of the CPU provider are readable where they are.
            Held::Output { tensor, .. } => tensor.try_extract_array::<f32>().ok().ok_or_else(other),
        }
    }

    /// A copy of the elements, independent of any engine.
    ///
    /// # Errors
    /// The tensor holds another number format.
    pub fn to_f32(&self) -> Result<ArrayD<f32>, TensorError> {
        self.view_f32().map(|view| view.to_owned())
    }

    /// The same tensor as `ort` takes it; borrows the elements.
    pub(crate) fn as_input(&self) -> ort::Result<SessionInputValue<'_>> {
        match &*self.held {
            Held::F32(array) => TensorRef::from_array_view(array.view()).map(Into::into),
            Held::I64(array) => TensorRef::from_array_view(array.view()).map(Into::into),
            Held::Output { tensor, .. } => Ok(tensor.into()),
        }
    }

    /// Address of the first element.
    fn address(&self) -> Option<usize> {
        match &*self.held {
            Held::F32(array) => Some(array.as_ptr().addr()),
            Held::I64(array) => Some(array.as_ptr().addr()),
            Held::Output { tensor, element, .. } => address(tensor, *element),
        }
    }
}

/// Address of the first element, for the number formats that arrays are made of.
fn address(tensor: &DynValue, element: ElementType) -> Option<usize> {
    match element {
        ElementType::F32 => tensor.try_extract_tensor::<f32>().ok().map(|(_, data)| data.as_ptr().addr()),
        ElementType::I64 => tensor.try_extract_tensor::<i64>().ok().map(|(_, data)| data.as_ptr().addr()),
        _ => None,
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({} {:?})", self.element(), self.shape())
    }
}

/// ONNX Runtime reads the elements in row-major order without gaps.
fn standard_layout<T: Clone, D: Dimension>(array: Array<T, D>) -> ArrayD<T> {
    if array.is_standard_layout() {
        array.into_dyn()
    } else {
        array.as_standard_layout().into_owned().into_dyn()
    }
}

/// The element type in our words; `None` for those that no graph of ours has.
pub(crate) fn element_type(element: TensorElementType) -> Option<ElementType> {
    Some(match element {
        TensorElementType::Float32 => ElementType::F32,
        TensorElementType::Float16 => ElementType::F16,
        TensorElementType::Bfloat16 => ElementType::Bf16,
        TensorElementType::Int64 => ElementType::I64,
        TensorElementType::Int32 => ElementType::I32,
        TensorElementType::Int8 => ElementType::I8,
        TensorElementType::Uint8 => ElementType::U8,
        TensorElementType::Float8E4M3FN => ElementType::F8E4M3,
        TensorElementType::Bool => ElementType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    #[test]
    fn an_array_is_taken_over_without_a_copy() {
        let array = array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let address = array.as_ptr().addr();
        let value = Value::from_f32(array);
        assert_eq!(value.address(), Some(address));
        assert_eq!((value.element(), value.shape()), (ElementType::F32, &[3, 2][..]));
        assert_eq!(value.view_f32().unwrap()[[2, 0]], 5.0);
    }

    #[test]
    fn a_transposed_array_is_put_into_row_major_order() {
        let value = Value::from_f32(array![[1.0f32, 2.0], [3.0, 4.0]].reversed_axes());
        assert_eq!(value.to_f32().unwrap().as_slice(), Some(&[1.0, 3.0, 2.0, 4.0][..]));
    }

    #[test]
    fn integers_are_not_read_as_floats() {
        let value = Value::from_i64(Array2::<i64>::zeros((1, 4)));
        insta::assert_snapshot!(value.to_f32().unwrap_err(), @"a tensor cannot be read as f32: it holds i64 (read it in its own number format)");
        assert_eq!(format!("{value:?}"), "Value(i64 [1, 4])");
    }
}
