//! Checks a graph in INT8 or E4M3 against TensorRT's rules for explicit quantisation.
//!
//! Source: TensorRT's documentation. Quantised values are symmetric, a scale has the number format of the activations,
//! weights may have a scale for each output, and both inputs of a product are dequantised directly before it.

use graph::Model;
use graph::proto::{DataType, GraphProto, NodeProto, TensorProto};
use std::collections::{BTreeSet, HashMap};

/// The oldest opset with E4M3.
const OPSET: i64 = 19;
/// Products narrower than this are too small to be quantised.
const NARROWEST: i64 = 16;

/// Returns a sentence for every rule that the graph breaks. Layers in `unquantized` must not be quantised.
/// `activations` is the number format of activations and scales.
pub fn broken_rules(model: &Model, unquantized: &BTreeSet<String>, activations: DataType) -> Vec<String> {
    let mut broken = Vec::new();
    let opset = model.proto.opset_import.iter().find(|opset| opset.domain.is_empty());
    if opset.is_none_or(|opset| opset.version < OPSET) {
        broken.push(format!("operators are older than version {OPSET}"));
    }
    let Some(graph) = &model.proto.graph else { return broken };
    let rules = Rules::new(graph, activations);
    for node in &graph.node {
        match node.op_type.as_str() {
            "QuantizeLinear" => rules.quantize(node, &mut broken),
            "DequantizeLinear" => rules.dequantize(node, unquantized, &mut broken),
            "MatMul" | "Conv" => rules.product(node, &mut broken),
            _ => {}
        }
    }
    broken
}

struct Rules<'a> {
    initializers: HashMap<&'a str, &'a TensorProto>,
    producers: HashMap<&'a str, &'a NodeProto>,
    consumers: HashMap<&'a str, Vec<&'a NodeProto>>,
    activations: DataType,
}

impl<'a> Rules<'a> {
    fn new(graph: &'a GraphProto, activations: DataType) -> Self {
        let mut consumers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
        for node in &graph.node {
            for input in &node.input {
                consumers.entry(input).or_default().push(node);
            }
        }
        Self {
            initializers: graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            producers: graph
                .node
                .iter()
                .flat_map(|node| node.output.iter().map(move |output| (output.as_str(), node)))
                .collect(),
            consumers,
            activations,
        }
    }

    fn readers(&self, node: &NodeProto) -> &[&'a NodeProto] {
        node.output.first().and_then(|output| self.consumers.get(output.as_str())).map_or(&[], Vec::as_slice)
    }

    fn initializer(&self, node: &NodeProto, index: usize) -> Option<&'a TensorProto> {
        node.input.get(index).and_then(|name| self.initializers.get(name.as_str()).copied())
    }

    /// The scale is one number, the zero point a zero of E4M3 or s8.
    fn range(&self, node: &NodeProto, broken: &mut Vec<String>) {
        let is_scalar_of = |tensor: &TensorProto, data_type: DataType| {
            tensor.data_type == i32::from(data_type) && tensor.dims.is_empty()
        };
        let scale = self.initializer(node, 1);
        if !scale.is_some_and(|scale| is_scalar_of(scale, self.activations)) {
            broken.push(format!("{} has no single scale in the number format of the activations", node.name));
        }
        let formats = [DataType::Float8e4m3fn, DataType::Int8];
        let zero = self.initializer(node, 2).is_some_and(|zero| {
            formats.into_iter().any(|format| is_scalar_of(zero, format)) && zero.raw_data == [0]
        });
        if !zero {
            broken.push(format!("{} has a zero point that is not a zero of E4M3 or s8", node.name));
        }
    }

    /// An s8 weight has a scale for each output, along `axis`, and no zero point.
    fn scales_of_outputs(&self, node: &NodeProto, weight: &TensorProto, broken: &mut Vec<String>) {
        let along = node.attribute.iter().find(|attribute| attribute.name == "axis").map(|axis| axis.i);
        let is_product = |op_type: &str| self.readers(node).iter().all(|reader| reader.op_type == op_type);
        let outputs = if is_product("Conv") { 0 } else { 1 };
        let extent = weight.dims.get(usize::from(outputs == 1));
        let fits = self.initializer(node, 1).is_some_and(|scales| {
            scales.data_type == i32::from(self.activations)
                && scales.dims.first() == extent
                && scales.dims.len() == 1
        });
        if along != Some(outputs) || !fits || weight.data_type != i32::from(DataType::Int8) {
            broken.push(format!("{} has no s8 weight with a scale for each output", node.name));
        }
    }

    fn quantize(&self, node: &NodeProto, broken: &mut Vec<String>) {
        self.range(node, broken);
        let is_its_dequantize = |reader: &&NodeProto| {
            reader.op_type == "DequantizeLinear" && reader.input.get(1..3) == node.input.get(1..3)
        };
        let readers = self.readers(node);
        if readers.is_empty() || !readers.iter().all(is_its_dequantize) {
            broken.push(format!("{} is not followed by its DequantizeLinear alone", node.name));
        }
    }

    fn dequantize(&self, node: &NodeProto, unquantized: &BTreeSet<String>, broken: &mut Vec<String>) {
        let source = node.input.first().map_or("", String::as_str);
        let weight = self.initializers.get(source);
        match weight {
            Some(weight) if node.input.len() == 2 => self.scales_of_outputs(node, weight, broken),
            _ => self.range(node, broken),
        }
        let readers = self.readers(node);
        let is_product = |reader: &&NodeProto| matches!(reader.op_type.as_str(), "MatMul" | "Conv");
        if readers.is_empty() || !readers.iter().all(is_product) {
            broken.push(format!("{} does not feed a product directly", node.name));
        }
        if let Some(weight) = weight {
            let is_linear = readers.iter().all(|reader| reader.op_type == "MatMul");
            if is_linear && weight.dims.iter().any(|extent| *extent < NARROWEST) {
                broken.push(format!("{source} is too narrow to be quantised"));
            }
            if unquantized.contains(source.trim_end_matches(".weight")) {
                broken.push(format!("{source} should not be quantised"));
            }
        } else if self.producers.get(source).is_none_or(|before| before.op_type != "QuantizeLinear") {
            broken.push(format!("{} reads neither a quantised weight nor a QuantizeLinear", node.name));
        }
    }

    /// Both inputs are dequantised, or neither.
    fn product(&self, node: &NodeProto, broken: &mut Vec<String>) {
        let dequantized = |name: &String| {
            self.producers.get(name.as_str()).is_some_and(|before| before.op_type == "DequantizeLinear")
        };
        let count = node.input.iter().take(2).filter(|name| dequantized(name)).count();
        if count == 1 {
            broken.push(format!("{} has one input in high precision", node.name));
        }
    }
}
