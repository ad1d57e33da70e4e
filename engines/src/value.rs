//! Opaque tensors.

use crate::{GraphError, TensorError};
use bundle::dtype::ElementType;
use ndarray::{Array, ArrayD, ArrayViewD, Dimension};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};
use std::sync::Arc;

/// An input or output tensor of a graph. Clones share the elements.
///
/// A value is created from an array or is the output of a run. An output can be passed as an input without a copy:
/// caches and states stay in ONNX Runtime's memory.
///
/// An output is in the memory pool of its engine, so **the pool of a dropped engine is only returned to the system once
/// its last output is dropped**. Copy outputs that must outlive the engine with [`to_f32`](Self::to_f32).
#[derive(Clone)]
pub struct Value {
    data: Arc<Data>,
}

enum Data {
    F32(ArrayD<f32>),
    I64(ArrayD<i64>),
    Output {
        tensor: DynValue,
        element: ElementType,
        shape: Vec<usize>,
        /// The input that owns the elements, if a graph names an input as an output. ONNX Runtime passes such elements
        /// through without owning them, so the input's value must be kept alive.
        _owner: Option<Value>,
    },
}

impl Value {
    /// Creates a tensor of 32-bit floats. Takes ownership of the array and copies it only if it is not in standard
    /// layout.
    pub fn from_f32<D: Dimension>(array: Array<f32, D>) -> Self {
        Self::new(Data::F32(standard_layout(array)))
    }

    /// Creates a tensor of 64-bit integers. Takes ownership of the array and copies it only if it is not in standard
    /// layout.
    pub fn from_i64<D: Dimension>(array: Array<i64, D>) -> Self {
        Self::new(Data::I64(standard_layout(array)))
    }

    /// Creates the value of output `name` of a run of `graph` on `inputs`.
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
                let is_owner = |input: &&Self| address.is_some() && input.address() == address;
                let owner = inputs.iter().map(|(_, input)| *input).find(is_owner).cloned();
                Ok(Self::new(Data::Output { tensor, element, shape, _owner: owner }))
            }
            None => Err(GraphError::UnsupportedTensor {
                graph: graph.into(),
                tensor: name.into(),
                found: tensor.dtype().to_string(),
            }),
        }
    }

    fn new(data: Data) -> Self {
        Self { data: Arc::new(data) }
    }

    /// The number format.
    pub fn element(&self) -> ElementType {
        match &*self.data {
            Data::F32(_) => ElementType::F32,
            Data::I64(_) => ElementType::I64,
            Data::Output { element, .. } => *element,
        }
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        match &*self.data {
            Data::F32(array) => array.shape(),
            Data::I64(array) => array.shape(),
            Data::Output { shape, .. } => shape,
        }
    }

    /// Returns a view of the elements.
    ///
    /// # Errors
    /// The tensor has another number format.
    pub fn view_f32(&self) -> Result<ArrayViewD<'_, f32>, TensorError> {
        let other = || TensorError::WrongElement { expected: ElementType::F32, found: self.element() };
        match &*self.data {
            Data::F32(array) => Ok(array.view()),
            Data::I64(_) => Err(other()),
            // Fails only for another element type: outputs of the CPU provider can be read in place.
            Data::Output { tensor, .. } => tensor.try_extract_array::<f32>().ok().ok_or_else(other),
        }
    }

    /// Returns a copy of the elements, independent of any engine.
    ///
    /// # Errors
    /// The tensor has another number format.
    pub fn to_f32(&self) -> Result<ArrayD<f32>, TensorError> {
        self.view_f32().map(|view| view.to_owned())
    }

    /// Returns the tensor as an `ort` input. Borrows the elements.
    pub(crate) fn as_input(&self) -> ort::Result<SessionInputValue<'_>> {
        match &*self.data {
            Data::F32(array) => TensorRef::from_array_view(array.view()).map(Into::into),
            Data::I64(array) => TensorRef::from_array_view(array.view()).map(Into::into),
            Data::Output { tensor, .. } => Ok(tensor.into()),
        }
    }

    /// Address of the first element.
    fn address(&self) -> Option<usize> {
        match &*self.data {
            Data::F32(array) => Some(array.as_ptr().addr()),
            Data::I64(array) => Some(array.as_ptr().addr()),
            Data::Output { tensor, element, .. } => address(tensor, *element),
        }
    }
}

/// Address of the first element, for f32 and i64.
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

/// Converts to row-major order without gaps, as ONNX Runtime requires.
fn standard_layout<T: Clone, D: Dimension>(array: Array<T, D>) -> ArrayD<T> {
    if array.is_standard_layout() {
        array.into_dyn()
    } else {
        array.as_standard_layout().into_owned().into_dyn()
    }
}

/// Converts an element type; `None` for types that bundles do not use.
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
    fn an_array_in_standard_layout_is_not_copied() {
        let array = array![[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let address = array.as_ptr().addr();
        let value = Value::from_f32(array);
        assert_eq!(value.address(), Some(address));
        assert_eq!((value.element(), value.shape()), (ElementType::F32, &[3, 2][..]));
        assert_eq!(value.view_f32().unwrap()[[2, 0]], 5.0);
    }

    #[test]
    fn a_transposed_array_is_converted_to_row_major_order() {
        let value = Value::from_f32(array![[1.0f32, 2.0], [3.0, 4.0]].reversed_axes());
        assert_eq!(value.to_f32().unwrap().as_slice(), Some(&[1.0, 3.0, 2.0, 4.0][..]));
    }

    #[test]
    fn integers_cannot_be_read_as_floats() {
        let value = Value::from_i64(Array2::<i64>::zeros((1, 4)));
        insta::assert_snapshot!(value.to_f32().unwrap_err(), @"a tensor cannot be read as f32: its number format is i64 (this is a fault of rushes, not of the input: report it with this message and the command or request)");
        assert_eq!(format!("{value:?}"), "Value(i64 [1, 4])");
    }
}
