//! Variants of a component's graphs: target, precision and kernels.

use crate::Field;
use crate::dtype::WeightType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One form of a component's graphs.
///
/// ```
/// use bundle::variant::{KernelLibrary, Precision, Target, Variant};
///
/// let variant = Variant::cpu(Precision::Int8, KernelLibrary::Rushes);
/// assert_eq!(variant.target, Target::Cpu);
/// assert_eq!(variant.name(), "cpu-int8-rushes");
/// assert_eq!(variant.to_string(), "cpu int8 on Rushes kernels");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Variant {
    /// The execution providers that it is written for.
    #[serde(alias = "dialect")]
    pub target: Target,
    /// The number format of weights and arithmetic.
    pub precision: Precision,
    /// The kernels that it uses.
    #[serde(default, alias = "operators", skip_serializing_if = "KernelLibrary::is_onnx_runtime")]
    pub kernels: KernelLibrary,
}

impl Variant {
    /// Returns the variant for the CPU with this precision and these kernels.
    pub const fn cpu(precision: Precision, kernels: KernelLibrary) -> Self {
        Self { target: Target::Cpu, precision, kernels }
    }

    /// Returns the name used in file names: `cpu-int8`, or `cpu-int8-rushes`.
    pub fn name(self) -> String {
        format!("{}-{}", self.target, self.weights_name())
    }

    /// Returns the name of its weights, which several targets may share: `int8`, or `int8-rushes`.
    pub fn weights_name(self) -> String {
        match self.kernels {
            KernelLibrary::OnnxRuntime => self.precision.to_string(),
            KernelLibrary::Rushes => format!("{}-rushes", self.precision),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = match self.kernels {
            KernelLibrary::OnnxRuntime => "",
            KernelLibrary::Rushes => " on Rushes kernels",
        };
        write!(f, "{} {}{kernels}", self.target, self.precision)
    }
}

/// The number format of a graph's weights and arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 weights and arithmetic.
    F32,
    /// f16 weights; widened to f32 on the CPU when the graph is opened.
    F16,
    /// bf16 weights; Rushes kernels compute in bf16, ONNX Runtime kernels on the CPU widen to f32.
    Bf16,
    /// 8-bit integers.
    Int8,
    /// 8-bit floats.
    Fp8,
    /// 8-bit weights, f32 arithmetic.
    #[serde(rename = "int8-weights")]
    Int8Weights,
}

crate::named!(
    Precision, Field::Precision, "precision",
    "f32" => F32, "f16" => F16, "bf16" => Bf16, "int8" => Int8, "fp8" => Fp8, "int8-weights" => Int8Weights,
);

impl From<WeightType> for Precision {
    fn from(weights: WeightType) -> Self {
        match weights {
            WeightType::F32 => Self::F32,
            WeightType::F16 => Self::F16,
            WeightType::Bf16 => Self::Bf16,
        }
    }
}

/// The library of kernels that computes a graph on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelLibrary {
    /// ONNX Runtime kernels only; portable.
    #[default]
    #[serde(alias = "stock")]
    OnnxRuntime,
    /// Rushes kernels, as operators of the domain `rushes`; ONNX Runtime kernels for small operators.
    #[serde(alias = "own")]
    Rushes,
}

crate::named!(KernelLibrary, Field::Kernels, "kernels", "onnxruntime" => OnnxRuntime, "rushes" => Rushes);

impl KernelLibrary {
    /// Returns true for [`KernelLibrary::OnnxRuntime`], the default, which is omitted in files.
    pub fn is_onnx_runtime(&self) -> bool {
        *self == Self::OnnxRuntime
    }
}

/// The execution providers that a graph is written for. They determine the operators that it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// For the CPU execution provider: fused attention and normalisation, f32 arithmetic.
    Cpu,
    /// For the CUDA execution provider: fused attention, arithmetic in the number format of the weights (bf16 by
    /// default), and only operators with a bf16 kernel there. Inputs and outputs are f32.
    Cuda,
    /// Standard ONNX operators only, for TensorRT and other providers that fuse operators themselves.
    #[serde(alias = "tensorrt")]
    Plain,
}

// TensorRT reads plain graphs.
crate::named!(Target, Field::Target, "target", "cpu" => Cpu, "cuda" => Cuda, "plain" | "tensorrt" => Plain);

impl Target {
    /// Returns the default number format of weights.
    pub fn weights(self) -> WeightType {
        match self {
            Self::Cpu => WeightType::F32,
            Self::Cuda | Self::Plain => WeightType::Bf16,
        }
    }
}
