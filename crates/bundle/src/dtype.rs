//! Number formats of tensors, and the precisions and targets that graphs come in.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// Truth value.
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 | Self::U8 | Self::F8E4M3 | Self::Bool => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::F8E4M3 => "f8e4m3",
            Self::Bool => "bool",
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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

impl WeightType {
    /// The element type of the stored tensors.
    pub fn element(self) -> ElementType {
        match self {
            Self::F32 => ElementType::F32,
            Self::F16 => ElementType::F16,
            Self::Bf16 => ElementType::Bf16,
        }
    }
}

impl std::str::FromStr for WeightType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(Error::value(
                "--weights",
                text,
                "weights are stored as f32, f16 or bf16",
                "use one of these",
            )),
        }
    }
}

/// The precision of a graph variant: how its weights are stored and what it computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 weights and arithmetic.
    F32,
    /// f16 weights; on the CPU widened to f32 when the graph is opened.
    F16,
    /// bf16 weights; on the CPU widened to f32 when the graph is opened.
    Bf16,
    /// 8-bit integers.
    Int8,
    /// 8-bit floats.
    Fp8,
    /// 8-bit weights, f32 arithmetic.
    #[serde(rename = "int8-weights")]
    Int8Weights,
}

impl Precision {
    /// Every precision, in the order in which they are shown.
    pub const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Fp8, Self::Int8Weights];

    /// The name used in flags and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Int8Weights => "int8-weights",
        }
    }
}

impl From<WeightType> for Precision {
    fn from(weights: WeightType) -> Self {
        match weights {
            WeightType::F32 => Self::F32,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            Error::value(
                "--precision",
                text,
                "it is no precision that graphs come in",
                "use f32, f16, bf16, int8, fp8 or int8-weights",
            )
        })
    }
}

/// Which kernels a graph for the CPU is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelLibrary {
    /// Those of ONNX Runtime alone: portable.
    #[default]
    #[serde(alias = "stock")]
    OnnxRuntime,
    /// Those of `rushes-kernels`, as operators of the domain `rushes`, with ONNX Runtime's for what is small.
    #[serde(alias = "own")]
    Rushes,
}

impl KernelLibrary {
    /// The name used in flags and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::Rushes => "rushes",
        }
    }

    /// Whether it is [`KernelLibrary::OnnxRuntime`], which files do not mention.
    pub fn is_onnx_runtime(&self) -> bool {
        *self == Self::OnnxRuntime
    }
}

impl fmt::Display for KernelLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KernelLibrary {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::OnnxRuntime, Self::Rushes].into_iter().find(|kernels| kernels.name() == text).ok_or_else(
            || {
                Error::value(
                    "--kernels",
                    text,
                    "unknown kernels; expected rushes or onnxruntime",
                    "use rushes or onnxruntime",
                )
            },
        )
    }
}

/// The set of operators that a graph is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// For the CPU execution provider: fused attention and normalisation, f32 arithmetic.
    Cpu,
    /// For the CUDA execution provider: fused attention, arithmetic in the number format of the weights, which is bf16
    /// unless another is asked for, and no operator that lacks a bf16 kernel there. Inputs and outputs stay f32.
    Cuda,
    /// Standard ONNX operators alone, for TensorRT and every other provider that fuses by itself.
    #[serde(alias = "tensorrt")]
    Plain,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Plain];

    /// The name used in flags and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Plain => "plain",
        }
    }

    /// How weights are stored when nothing else is asked for.
    pub fn weights(self) -> WeightType {
        match self {
            Self::Cpu => WeightType::F32,
            Self::Cuda | Self::Plain => WeightType::Bf16,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = Self::ALL.into_iter().find(|target| target.name() == text);
        // TensorRT reads plain graphs.
        named.or((text == "tensorrt").then_some(Self::Plain)).ok_or_else(|| {
            Error::value(
                "--target",
                text,
                "unknown target; expected cpu, cuda, plain or tensorrt",
                "use cpu, cuda or plain; tensorrt is another name for plain",
            )
        })
    }
}
