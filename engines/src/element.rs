//! The number formats of tensors, in Rust and in ONNX Runtime.

use bundle::dtype::ElementType;
use half::{bf16, f16};
use ort::value::TensorElementType;

/// A Rust type of the elements of a [`Value`](crate::Value).
pub trait Element: sealed::Primitive {
    /// Its number format.
    const ELEMENT: ElementType;
}

mod sealed {
    use ort::value::PrimitiveTensorElementType;
    use std::fmt::Debug;

    /// What a tensor in host memory requires of its elements.
    pub trait Primitive: PrimitiveTensorElementType + Clone + Debug + Send + Sync + 'static {}
}

/// Implements [`Element`] for a type.
macro_rules! elements {
    ($($type:ty => $element:ident),+ $(,)?) => {$(
        impl sealed::Primitive for $type {}

        impl Element for $type {
            const ELEMENT: ElementType = ElementType::$element;
        }
    )+};
}

elements!(f32 => F32, f16 => F16, bf16 => Bf16, i64 => I64, i8 => I8, u8 => U8);

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
