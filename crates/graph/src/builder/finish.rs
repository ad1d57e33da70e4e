//! Finishes a graph: its checks, its outputs and the versions of its operators.

use super::{GraphBuilder, signed};
use crate::check::check;
use crate::domain::{MICROSOFT, RUSHES};
use crate::formats::Formats;
use crate::model::data_type;
use crate::opset::needed;
use crate::proto::{
    DimensionProto, DimensionValue, GraphProto, ModelProto, OperatorSetIdProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::{Dim, Error, Model, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the standard operators: 23 is the first with `RMSNormalization`; ONNX Runtime 1.31 reads up to 26.
const OPSET: i64 = 23;
/// Version of the standard operators in plain graphs whose operators and number formats need no younger one.
const PLAIN_OPSET: i64 = 21;
/// Version of the format; ONNX Runtime 1.31 reads up to 13.
const IR_VERSION: i64 = 11;

impl GraphBuilder {
    /// Finishes the graph.
    ///
    /// # Errors
    /// Returns an error if the inputs of a node have formats that its operator does not take, or if an output is
    /// declared in another format than it is computed in.
    pub fn finish(self) -> Result<Model, Error> {
        let value = |tensor: &Tensor| ValueInfoProto {
            name: tensor.name().into(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: data_type(tensor.element()),
                    shape: Some(TensorShapeProto { dim: tensor.shape().iter().map(dimension).collect() }),
                }),
            }),
        };
        let needs_rushes = self.nodes.iter().any(|node| node.domain == RUSHES);
        let graph = GraphProto {
            input: self.inputs.iter().map(value).collect(),
            output: self.outputs.iter().map(value).collect(),
            node: self.nodes,
            name: self.name,
            initializer: self.initializers,
        };
        let graph = if self.is_for_cuda { without_identities(graph) } else { graph };
        let formats = Formats::of(&graph);
        check(&graph, &formats)?;
        let version = needed(&graph, &formats, if self.is_plain { PLAIN_OPSET } else { OPSET });
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
        let mut opsets = vec![opset("", version)];
        if !self.is_plain {
            opsets.push(opset(MICROSOFT, 1));
        }
        if needs_rushes {
            opsets.push(opset(RUSHES, 1));
        }
        Ok(Model {
            proto: ModelProto {
                ir_version: IR_VERSION,
                producer_name: "rushes".into(),
                producer_version: env!("CARGO_PKG_VERSION").into(),
                graph: Some(graph),
                opset_import: opsets,
            },
        })
    }
}

/// Gives the values that `Identity` nodes copy to outputs the names of these outputs, and removes the nodes. Kept are
/// those of inputs and constants, and of values that are an output already.
fn without_identities(mut graph: GraphProto) -> GraphProto {
    let outputs: BTreeSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let computed: BTreeSet<String> = graph.node.iter().flat_map(|node| node.output.clone()).collect();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    graph.node.retain(|node| {
        let ("Identity", [from], [to]) = (node.op_type.as_str(), &node.input[..], &node.output[..]) else {
            return true;
        };
        let is_free = computed.contains(from) && !outputs.contains(from) && !names.contains_key(from);
        if is_free && outputs.contains(to) {
            names.insert(from.clone(), to.clone());
            return false;
        }
        true
    });
    for name in graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if let Some(output) = names.get(name) {
            name.clone_from(output);
        }
    }
    graph
}

fn dimension(dim: &Dim) -> DimensionProto {
    DimensionProto {
        value: Some(match dim.fixed() {
            Some(size) => DimensionValue::DimValue(signed(size)),
            None => DimensionValue::DimParam(dim.to_string()),
        }),
    }
}
