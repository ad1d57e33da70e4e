//! Linear layers that use the bf16 weights of their file where they are, without a widened copy.
//!
//! Graphs for the CPU compute in f32: a bf16 weight passes a `Cast` before its `Gemm`. ONNX Runtime folds the `Cast`
//! when it opens the graph, and holds twice the size of the file in memory. The operator `LinearStored` of the domain
//! `rushes` takes the weight as it is stored.

use crate::Model;
use crate::domain::RUSHES;
use crate::model::{data_type, external_of};
use crate::proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use bundle::dtype::ElementType;
use std::collections::{BTreeMap, BTreeSet};

/// A linear layer whose weight is widened first.
struct Widened {
    /// Position of its `Gemm`.
    node: usize,
    /// The bf16 weight.
    weight: String,
}

impl Model {
    /// Replaces every linear layer that widens a bf16 weight of an external file by one that uses the weight in place.
    /// Returns how many were replaced.
    ///
    /// Weights at odd offsets of their file, whose values would not be aligned, are left alone.
    pub fn use_weights_in_place(&mut self) -> usize {
        let Some(graph) = &mut self.proto.graph else { return 0 };
        let layers = widened_layers(graph);
        for Widened { node, weight } in &layers {
            let node = &mut graph.node[*node];
            node.op_type = "LinearStored".into();
            node.domain = RUSHES.into();
            node.attribute.clear();
            node.input[1].clone_from(weight);
        }
        if layers.is_empty() {
            return 0;
        }
        let used: BTreeSet<String> = graph.node.iter().flat_map(|node| node.input.clone()).collect();
        let is_used = |node: &NodeProto| node.output.iter().any(|output| used.contains(output));
        let outputs: BTreeSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
        let is_output = |node: &NodeProto| node.output.iter().any(|name| outputs.contains(name.as_str()));
        graph.node.retain(|node| node.op_type != "Cast" || is_used(node) || is_output(node));
        let opsets = &mut self.proto.opset_import;
        if !opsets.iter().any(|opset| opset.domain == RUSHES) {
            opsets.push(OperatorSetIdProto { domain: RUSHES.into(), version: 1 });
        }
        layers.len()
    }
}

fn widened_layers(graph: &GraphProto) -> Vec<Widened> {
    let weights: BTreeMap<&str, &TensorProto> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let to_f32 = i64::from(data_type(ElementType::F32));
    let casts = graph.node.iter().filter(|node| {
        node.op_type == "Cast"
            && node.domain.is_empty()
            && attribute(node, "to").is_some_and(|to| to.i == to_f32)
    });
    let sources: BTreeMap<&str, &str> = casts
        .filter_map(|cast| Some((cast.output.first()?.as_str(), cast.input.first()?.as_str())))
        .collect();
    let layer = |(index, node): (usize, &NodeProto)| {
        let [_, wide, bias @ ..] = &node.input[..] else { return None };
        let weight = weights.get(*sources.get(wide.as_str())?)?;
        let [outputs, _] = weight.dims[..] else { return None };
        let is_bias = |name: &String| {
            let name = sources.get(name.as_str()).copied().unwrap_or(name);
            weights.get(name).is_some_and(|bias| bias.dims == [outputs])
        };
        let fits = node.op_type == "Gemm"
            && node.domain.is_empty()
            && is_plain_product(node)
            && weight.data_type == data_type(ElementType::Bf16)
            && external_of(weight).is_some_and(|data| data.offset.is_multiple_of(2))
            && bias.iter().all(is_bias);
        fits.then(|| Widened { node: index, weight: weight.name.clone() })
    };
    graph.node.iter().enumerate().filter_map(layer).collect()
}

/// Returns true for `x·Wᵀ + b`.
fn is_plain_product(gemm: &NodeProto) -> bool {
    attribute(gemm, "transB").is_some_and(|transposed| transposed.i == 1)
        && gemm.attribute.iter().all(|attribute| match attribute.name.as_str() {
            "transB" => true,
            "transA" => attribute.i == 0,
            "alpha" | "beta" => attribute.f == 1.0,
            _ => false,
        })
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dim, ExternalData, GraphBuilder, Tensor};

    /// `x [L,4]` times a weight `[3,4]`, with a bias in the format of the weight.
    fn layer(element: ElementType, offset: u64, transposes: bool) -> Model {
        let mut graph = GraphBuilder::new("layer");
        let x = graph.input("x", ElementType::F32, &[Dim::symbol("L"), 4.into()]);
        let mut weight = |name: &str, shape: &[usize], offset| {
            let length = (shape.iter().product::<usize>() * element.bytes()) as u64;
            let data = ExternalData { location: "weights/w".into(), offset, length };
            let stored = graph.external(name, element, shape, &data).unwrap();
            graph.cast(&stored, ElementType::F32)
        };
        let (w, b) = (weight("w", &[3, 4], offset), weight("b", &[3], offset + 100));
        let y: Tensor = graph.linear(&x, &w, Some(&b)).unwrap();
        graph.output("y", &y).unwrap();
        let mut model = graph.finish().unwrap();
        if !transposes {
            let nodes = &mut model.proto.graph.as_mut().unwrap().node;
            nodes.iter_mut().for_each(|node| node.attribute.retain(|attribute| attribute.name != "transB"));
        }
        model
    }

    #[test]
    fn a_widened_weight_is_used_in_place() {
        let mut model = layer(ElementType::Bf16, 8, true);
        let before = model.external_data();
        assert_eq!(model.use_weights_in_place(), 1);
        insta::assert_snapshot!(model.dump());
        assert_eq!(model.external_data(), before);
        assert!(model.proto.opset_import.iter().any(|opset| opset.domain == RUSHES));
        // Nothing is left to replace.
        let after = model.clone();
        assert_eq!(model.use_weights_in_place(), 0);
        assert_eq!(model, after);
    }

    #[test]
    fn other_layers_are_left_alone() {
        for mut model in [
            layer(ElementType::F32, 8, true),
            layer(ElementType::F16, 8, true),
            layer(ElementType::Bf16, 7, true),
            layer(ElementType::Bf16, 8, false),
        ] {
            let before = model.clone();
            assert_eq!(model.use_weights_in_place(), 0);
            assert_eq!(model, before);
        }
    }
}
