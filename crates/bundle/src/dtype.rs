//! Number formats of tensors.

use crate::Field;
use serde::{Deserialize, Serialize};

/// The number format of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 16-bit float (IEEE half).
    F16,
    /// 16-bit float with the exponent of an f32.
    Bf16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// 8-bit float with 4 exponent bits (E4M3, no infinities).
    F8E4M3,
    /// Boolean.
    Bool,
}

crate::named!(
    ElementType,
    "f32" => F32, "f16" => F16, "bf16" => Bf16, "i64" => I64, "i32" => I32, "i8" => I8, "u8" => U8,
    "f8e4m3" => F8E4M3, "bool" => Bool,
);

impl ElementType {
    /// Returns the bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::Bool => 1,
        }
    }
}

/// The number format that weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 16-bit brain float.
    Bf16,
}

crate::named!(WeightType, Field::Weights, "weight type", "f32" => F32, "f16" => F16, "bf16" => Bf16);

impl WeightType {
    /// Returns the weight type that is stored in an element type; none if there is none.
    pub fn of(element: ElementType) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|weights| weights.element() == element)
    }

    /// Returns the element type of the stored tensors.
    pub fn element(self) -> ElementType {
        match self {
            Self::F32 => ElementType::F32,
            Self::F16 => ElementType::F16,
            Self::Bf16 => ElementType::Bf16,
        }
    }
}
