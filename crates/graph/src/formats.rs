//! The number format of every value of a graph, by the rules of its operators.
//!
//! Source: the type constraints of ONNX's operators, of ONNX Runtime's in the domain `com.microsoft`, and of those of
//! Rushes in `engines`. Only operators that [`GraphBuilder`](crate::GraphBuilder) writes are known.

use crate::domain::{MICROSOFT, RUSHES};
use crate::model::element_of;
use crate::proto::{GraphProto, NodeProto};
use bundle::dtype::ElementType;
use std::collections::HashMap;

/// The number formats of the values of a graph, inferred node by node.
#[derive(Debug, Default)]
pub(crate) struct Formats<'a> {
    known: HashMap<&'a str, ElementType>,
    /// The nodes whose inputs do not have the formats that their operators need, and what is wrong.
    pub(crate) problems: Vec<(&'a NodeProto, String)>,
}

impl<'a> Formats<'a> {
    /// Infers the formats of a graph. The outputs of a node with a problem have none.
    pub(crate) fn of(graph: &'a GraphProto) -> Self {
        let mut formats = Self::default();
        for input in &graph.input {
            let tensor = input.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref());
            let element = tensor.and_then(|tensor| element_of(tensor.elem_type));
            formats.known.extend(element.map(|element| (input.name.as_str(), element)));
        }
        for initializer in &graph.initializer {
            let element = element_of(initializer.data_type);
            formats.known.extend(element.map(|element| (initializer.name.as_str(), element)));
        }
        for node in &graph.node {
            let outputs = formats.inputs(node).and_then(|inputs| outputs(node, &inputs));
            match outputs {
                Ok(outputs) => {
                    formats.known.extend(node.output.iter().map(String::as_str).zip(outputs));
                }
                Err(why) => formats.problems.push((node, why)),
            }
        }
        formats
    }

    /// The format of a value; none if it is not known.
    pub(crate) fn get(&self, value: &str) -> Option<ElementType> {
        self.known.get(value).copied()
    }

    /// The formats of the inputs of a node; none for an input that is left out.
    fn inputs(&self, node: &NodeProto) -> Result<Vec<Option<ElementType>>, String> {
        let input = |name: &String| match self.get(name) {
            _ if name.is_empty() => Ok(None),
            Some(element) => Ok(Some(element)),
            None => Err(format!("no node before it computes `{name}`")),
        };
        node.input.iter().map(input).collect()
    }
}

/// Returns the formats of the outputs of a node from those of its inputs.
fn outputs(node: &NodeProto, inputs: &[Option<ElementType>]) -> Result<Vec<ElementType>, String> {
    use ElementType::{Bf16, F32, I8, I32, I64, U8};
    let all = inputs.iter().flatten().copied();
    let at = |index: usize| inputs.get(index).copied().flatten();
    let first = at(0).ok_or("it has no input")?;
    let one = match (node.domain.as_str(), node.op_type.as_str()) {
        (
            "",
            "Add" | "Sub" | "Mul" | "Div" | "Max" | "MatMul" | "Gemm" | "Conv" | "LayerNormalization"
            | "RMSNormalization" | "Concat" | "Softmax" | "Sqrt" | "Cos" | "Sin" | "Relu" | "Tanh"
            | "Sigmoid" | "Gelu" | "Floor" | "Clip" | "Range" | "Identity" | "Transpose" | "DepthToSpace",
        )
        | (MICROSOFT, "MultiHeadAttention") => expect(inputs, all.map(|_| first))?,
        ("", "Reshape" | "Slice" | "Expand" | "Gather" | "ReduceSum" | "ReduceMean" | "ReduceL2") => {
            let indices = all.skip(1).map(|_| I64);
            expect(inputs, [first].into_iter().chain(indices))?
        }
        ("", "Resize") => expect(inputs, [first, F32])?,
        ("", "Cast") => cast_format(node)?,
        ("", "Shape") => I64,
        // Without a value, it gives f32 zeros.
        ("", "ConstantOfShape") => {
            expect(inputs, [I64])?;
            F32
        }
        ("", "QuantizeLinear") => {
            let quantized = at(2).ok_or("it has no zero point")?;
            expect(inputs, [first, first, quantized])?;
            quantized
        }
        ("", "DequantizeLinear") => {
            let real = at(1).ok_or("it has no scale")?;
            let zero_point = all.skip(2).map(|_| first);
            expect(inputs, [first, real].into_iter().chain(zero_point))?;
            real
        }
        (MICROSOFT, "RotaryEmbedding") => expect(inputs, [first, I64, first, first])?,
        (MICROSOFT, "MatMulIntegerToFloat") => {
            expect(inputs, [U8, I8, F32, F32, U8].into_iter().chain(all.skip(5).map(|_| F32)))?;
            F32
        }
        (MICROSOFT, "MatMulNBits") => expect(inputs, [F32, U8].into_iter().chain(all.skip(2).map(|_| F32)))?,
        (MICROSOFT, "QLinearConv") => expect(inputs, [U8, F32, U8, I8, F32, I8, F32, U8, I32])?,
        (RUSHES, "NormQuant") => return Ok(vec![U8, F32, Bf16]),
        (RUSHES, "RowQuant") => return Ok(vec![U8, F32]),
        (RUSHES, "ChannelNormQuant") => U8,
        (RUSHES, "NormBf16" | "LinearQ" | "LinearBf16" | "SelfAttention" | "CrossAttention") => Bf16,
        (RUSHES, "LinearQResidual" | "LinearBf16Residual" | "CausalConvolution") => F32,
        (domain, operator) => {
            let domain = if domain.is_empty() { "of ONNX" } else { domain };
            return Err(format!("the operator {operator} ({domain}) is not known"));
        }
    };
    Ok(vec![one])
}

/// Returns the first expected format if the inputs that are there have the expected ones.
fn expect(
    inputs: &[Option<ElementType>],
    expected: impl IntoIterator<Item = ElementType>,
) -> Result<ElementType, String> {
    let found: Vec<ElementType> = inputs.iter().flatten().copied().collect();
    let expected: Vec<ElementType> = expected.into_iter().collect();
    match expected.first() {
        Some(first) if found == expected => Ok(*first),
        _ => Err(format!("its inputs are {}, not {}", listed(&found), listed(&expected))),
    }
}

fn listed(formats: &[ElementType]) -> String {
    let names: Vec<String> = formats.iter().map(ElementType::to_string).collect();
    names.join(", ")
}

/// Returns the format that a `Cast` converts to.
fn cast_format(node: &NodeProto) -> Result<ElementType, String> {
    let to = node.attribute.iter().find(|attribute| attribute.name == "to");
    let number = to.and_then(|to| i32::try_from(to.i).ok());
    number.and_then(element_of).ok_or_else(|| "it converts to an unknown format".into())
}
