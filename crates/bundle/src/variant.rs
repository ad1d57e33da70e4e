//! The variants that the graphs of a component come in: target, precision and kernels.

use crate::Error;
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
    /// The execution providers that it is for.
    #[serde(alias = "dialect")]
    pub target: Target,
    /// What it computes in.
    pub precision: Precision,
    /// The kernels that compute it.
    #[serde(default, alias = "operators", skip_serializing_if = "KernelLibrary::is_onnx_runtime")]
    pub kernels: KernelLibrary,
}

impl Variant {
    /// The variant for the CPU in this precision and with these kernels.
    pub const fn cpu(precision: Precision, kernels: KernelLibrary) -> Self {
        Self { target: Target::Cpu, precision, kernels }
    }

    /// The name used in file names: `cpu-int8`, or `cpu-int8-rushes`.
    pub fn name(self) -> String {
        format!("{}-{}", self.target, self.weights_name())
    }

    /// The name of its weights, which several targets may share: `int8`, or `int8-rushes`.
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

/// How the weights of a graph are stored, and what it computes in.
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
                "unknown precision; expected one of f32, f16, bf16, int8, fp8 and int8-weights",
                "use one of these",
            )
        })
    }
}

/// The library of kernels that computes a graph on the CPU.
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

/// The execution providers that a graph is written for, and so which operators it may use.
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
