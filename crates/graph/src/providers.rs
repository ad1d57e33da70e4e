//! Which operators execution providers take, and in which number formats.
//!
//! The table holds the operators that [`GraphBuilder`](crate::GraphBuilder) writes. Sources: for CUDA the list of
//! kernels of ONNX Runtime (`docs/OperatorKernels.md`, 2026); for TensorRT for RTX 1.7.1, OpenVINO (plug-in 1.8.1) and
//! WebGPU (plug-in 0.4.0) graphs of one node, parsed, built or placed without a GPU. TensorRT 10 cannot be measured
//! without one; its rows are those of TensorRT for RTX without the operators that the parser of TensorRT 10 lacks.

use crate::domain::MICROSOFT;
use crate::formats::Formats;
use crate::proto::{GraphProto, NodeProto};
use crate::{Error, Model};
use bundle::dtype::ElementType::{self, Bf16, F8E4M3, F16, F32, I8, I64};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// An execution provider other than the CPU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accelerator {
    /// CUDA.
    Cuda,
    /// TensorRT.
    TensorRt,
    /// TensorRT for RTX.
    TensorRtRtx,
    /// OpenVINO.
    OpenVino,
    /// WebGPU.
    WebGpu,
}

bundle::named!(
    Accelerator, "cuda" => Cuda, "tensorrt" => TensorRt, "tensorrt-rtx" => TensorRtRtx, "openvino" => OpenVino,
    "webgpu" => WebGpu,
);

/// Operators that a provider takes.
struct Row {
    domain: &'static str,
    /// Their names, separated by spaces.
    operators: &'static str,
    /// The formats of their values.
    formats: &'static [ElementType],
    /// The newest version of ONNX's operators whose nodes have a kernel; none if there is no such limit. ONNX Runtime
    /// matches a kernel to the version in which an operator last changed, and not to later ones.
    newest: Option<i64>,
}

const fn row(operators: &'static str, formats: &'static [ElementType]) -> Row {
    Row { domain: "", operators, formats, newest: None }
}

impl Row {
    const fn until(self, newest: i64) -> Self {
        Self { newest: Some(newest), ..self }
    }

    const fn of_microsoft(self) -> Self {
        Self { domain: MICROSOFT, ..self }
    }
}

const FLOATS: &[ElementType] = &[F32, F16, Bf16];
const NUMBERS: &[ElementType] = &[F32, F16, Bf16, I64];

const CUDA: &[Row] = &[
    row("Add Sub Mul Div Max ReduceSum Concat Expand Gather Reshape Slice Transpose Shape", NUMBERS),
    row("Sqrt Relu Tanh Sigmoid Gelu Softmax Gemm MatMul Conv LayerNormalization RMSNormalization", FLOATS),
    row("Cast", &[F32, F16, Bf16, I64, F8E4M3]),
    row("Floor ReduceMean ReduceL2 DepthToSpace Resize", &[F32, F16]),
    row("Clip", &[F32, F16, I64]),
    row("Range", &[F32, I64]),
    row("Cos Sin", &[F32, F16]).until(21),
    row("ConstantOfShape", NUMBERS).until(19),
    row("Identity", NUMBERS).until(20),
    row("QuantizeLinear DequantizeLinear", &[F32, F16, F8E4M3]).until(22),
    row("MultiHeadAttention", FLOATS).of_microsoft(),
    row("RotaryEmbedding", NUMBERS).of_microsoft(),
];

const TENSORRT: &[Row] = &[
    row("Add Sub Mul Div Max Relu Clip ReduceSum ReduceMean Identity Cast Shape ConstantOfShape", NUMBERS),
    row("Concat Expand Gather Reshape Slice Transpose DepthToSpace", NUMBERS),
    row("Sqrt Cos Sin Tanh Sigmoid Gelu Softmax Gemm MatMul Conv LayerNormalization ReduceL2 Resize", FLOATS),
    row("Range", &[I64]),
    row("QuantizeLinear DequantizeLinear", &[F32, F16, Bf16, I8, F8E4M3]),
];

const TENSORRT_RTX_ONLY: &[Row] =
    &[row("RMSNormalization", FLOATS), row("MultiHeadAttention", FLOATS).of_microsoft()];

/// Without `RotaryEmbedding` of ONNX Runtime: OpenVINO takes it, and computes wrong values for the form of the graphs
/// of the CPU.
const OPENVINO: &[Row] = &[
    row(
        "Add Sub Mul Div Max Relu Clip ReduceSum ReduceMean ReduceL2 Identity Cast Shape ConstantOfShape",
        NUMBERS,
    ),
    row("Concat Expand Gather Reshape Slice Transpose DepthToSpace Resize Gemm MatMul", NUMBERS),
    row("Sqrt Cos Sin Tanh Sigmoid Gelu Softmax Conv LayerNormalization", FLOATS),
    row("Range", &[F32, I64]),
    row("QuantizeLinear DequantizeLinear", &[F32, F16, Bf16, I8, F8E4M3]),
    row("MultiHeadAttention", FLOATS).of_microsoft(),
];

/// `MultiHeadAttention` is taken too, with errors of 9e-2 on a software driver.
const WEBGPU: &[Row] = &[
    row("Add Sub Mul Div Max Sqrt Relu Tanh Sigmoid Gelu Softmax Clip Gemm MatMul Conv", &[F32, F16]),
    row("LayerNormalization RMSNormalization ReduceSum ReduceMean ReduceL2 Identity Cast", &[F32, F16]),
    row("Concat Expand Gather Reshape Slice Transpose DepthToSpace Resize", &[F32, F16]),
    row("Cos Sin", &[F32, F16]).until(21),
    row("RotaryEmbedding", &[F32, F16, I64]).of_microsoft(),
];

impl Accelerator {
    fn rows(self) -> impl Iterator<Item = &'static Row> {
        let (rows, more): (&[Row], &[Row]) = match self {
            Self::Cuda => (CUDA, &[]),
            Self::TensorRt => (TENSORRT, &[]),
            Self::TensorRtRtx => (TENSORRT, TENSORRT_RTX_ONLY),
            Self::OpenVino => (OPENVINO, &[]),
            Self::WebGpu => (WEBGPU, &[]),
        };
        rows.iter().chain(more)
    }

    /// True if nodes that compute integers only, such as shapes, may run on the CPU beside it.
    fn leaves_integers(self) -> bool {
        matches!(self, Self::Cuda | Self::WebGpu)
    }
}

/// Returns the names of the nodes of a graph that compute integers or truth values only, such as shapes.
pub fn integer_nodes(model: &Model) -> BTreeSet<String> {
    let Some(graph) = &model.proto.graph else { return BTreeSet::new() };
    let formats = Formats::of(graph);
    let is_integer = |output: &String| {
        formats.get(output).is_some_and(|format| matches!(format, I64 | ElementType::I32 | ElementType::Bool))
    };
    let nodes = graph.node.iter().filter(|node| node.output.iter().all(is_integer));
    nodes.map(|node| node.name.clone()).collect()
}

/// A node that a provider does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The node, with its scope.
    pub node: String,
    /// Its operator, with the domain if it is not ONNX's.
    pub operator: String,
    /// The formats of its values.
    pub formats: Vec<ElementType>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formats: Vec<String> = self.formats.iter().map(ElementType::to_string).collect();
        write!(f, "{} ({} in {})", self.node, self.operator, formats.join(", "))
    }
}

/// Returns the nodes of a graph that a provider does not take, in the order of the graph. Nodes of operators that are
/// not in the table are among them.
///
/// # Errors
/// Returns an error if the model has no graph.
pub fn refused(model: &Model, by: Accelerator) -> Result<Vec<Refused>, Error> {
    let Some(graph) = &model.proto.graph else {
        let path = Path::new("model").to_owned();
        return Err(Error::NotAGraph { path, why: "it contains no graph".into() });
    };
    let opset = model.proto.opset_import.iter().find(|opset| opset.domain.is_empty());
    let version = opset.map_or(0, |opset| opset.version);
    Ok(refused_nodes(graph, version, by))
}

fn refused_nodes(graph: &GraphProto, version: i64, by: Accelerator) -> Vec<Refused> {
    let formats = Formats::of(graph);
    let mut refused = Vec::new();
    for node in &graph.node {
        let found = formats_of(node, &formats);
        let has_problem = formats.problems.iter().any(|(other, _)| std::ptr::eq(*other, node));
        let only_integers = node.output.iter().all(|output| formats.get(output) == Some(I64));
        let takes = |row: &Row| {
            row.domain == node.domain
                && row.operators.split(' ').any(|operator| operator == node.op_type)
                && row.newest.is_none_or(|newest| version <= newest)
                && found.iter().all(|format| row.formats.contains(format))
        };
        if has_problem || !(by.rows().any(takes) || (only_integers && by.leaves_integers())) {
            let domain = if node.domain.is_empty() { "" } else { "." };
            refused.push(Refused {
                node: node.name.clone(),
                operator: format!("{}{domain}{}", node.domain, node.op_type),
                formats: found,
            });
        }
    }
    refused
}

/// Returns the formats of the data of a node: of its first input, its outputs, and its inputs that are not integers.
/// Other integers are shapes, axes and indices.
fn formats_of(node: &NodeProto, formats: &Formats<'_>) -> Vec<ElementType> {
    let inputs = node
        .input
        .iter()
        .enumerate()
        .filter_map(|(index, name)| formats.get(name).filter(|format| index == 0 || *format != I64));
    let mut found: Vec<_> = inputs.chain(node.output.iter().filter_map(|name| formats.get(name))).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
#[path = "providers_tests.rs"]
mod tests;
