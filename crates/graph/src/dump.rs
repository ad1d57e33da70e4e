//! A stable text form of graphs, for snapshots and inspection.

use crate::Model;
use crate::model::element_of;
use crate::proto::{AttributeProto, AttributeType, NodeProto, TensorProto};
use std::fmt::Write;

impl Model {
    /// Returns one line for each input, weight, node and output.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let signature = self.signature();
        // Writing into a String cannot fail.
        let mut line = |line: String| {
            let _ = writeln!(text, "{line}");
        };
        for input in &signature.inputs {
            line(format!("input {input}"));
        }
        if let Some(graph) = &self.proto.graph {
            for tensor in &graph.initializer {
                line(show_initializer(tensor));
            }
            for node in &graph.node {
                line(show_node(node));
            }
        }
        for output in &signature.outputs {
            line(format!("output {output}"));
        }
        text
    }
}

fn show_initializer(tensor: &TensorProto) -> String {
    let kind = if tensor.data_location == 1 { "weight" } else { "constant" };
    let element = element_of(tensor.data_type).map_or("?".into(), |element| element.to_string());
    let dims: Vec<String> = tensor.dims.iter().map(i64::to_string).collect();
    let location: Vec<String> =
        tensor.external_data.iter().map(|entry| format!(" {}={}", entry.key, entry.value)).collect();
    format!("{kind} {} {element} [{}]{}", tensor.name, dims.join(","), location.concat())
}

fn show_node(node: &NodeProto) -> String {
    let attributes: Vec<String> = node.attribute.iter().map(show_attribute).collect();
    let attributes =
        if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) };
    format!("{} = {}({}){attributes}", node.output.join(", "), node.op_type, node.input.join(", "))
}

fn show_attribute(attribute: &AttributeProto) -> String {
    let value = match attribute.r#type() {
        AttributeType::Float => attribute.f.to_string(),
        AttributeType::Int => attribute.i.to_string(),
        AttributeType::String => String::from_utf8_lossy(&attribute.s).into_owned(),
        AttributeType::Ints => format!("{:?}", attribute.ints),
        AttributeType::Undefined => "?".into(),
    };
    format!("{}={value}", attribute.name)
}
