//! Finds the uses of weights in a finished graph and adds outputs with statistics of intermediate values.

use crate::Model;
use crate::builder::signed;
use crate::model::data_type;
use crate::proto::{
    AttributeProto, AttributeType, DimensionProto, DimensionValue, GraphProto, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use bundle::dtype::ElementType;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A use of a weight: a linear layer or convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightUse {
    /// Name of the weight.
    pub weight: String,
    /// `Gemm` or `Conv`.
    pub operator: String,
    /// The input value.
    pub input: String,
    /// The output value.
    pub output: String,
}

/// An attention of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionUse {
    /// Name of the node.
    pub node: String,
    /// Queries, keys and values.
    pub inputs: [String; 3],
}

/// The axis of a value's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelAxis {
    /// The last of `rank` axes.
    Last {
        /// Number of axes.
        rank: usize,
    },
    /// The second of four.
    Second,
}

impl ChannelAxis {
    fn others(self) -> Vec<i64> {
        match self {
            Self::Last { rank } => (0..signed(rank) - 1).collect(),
            Self::Second => vec![0, 2, 3],
        }
    }
}

/// Samples that are taken of a value, evenly spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Samples {
    /// This number of rows; the value has two axes.
    Rows(usize),
    /// This number of elements.
    Elements(usize),
}

/// The statistics of one value, each an output such as `NAME#min`: minimum, maximum, sum and sum of squares of each
/// channel `[K]`; `size`, the number of elements as f32; `samples` `[R,K]` or `[R]`.
pub const STATISTICS: [&str; 6] = ["min", "max", "sum", "square", "size", "samples"];

/// A finished graph with added statistics.
#[derive(Debug)]
pub struct Observed {
    model: Model,
    graph: GraphProto,
    /// The node that computes a value.
    producers: HashMap<String, usize>,
    weights: HashSet<String>,
    observed: BTreeMap<String, String>,
}

impl Observed {
    /// Starts from a finished graph.
    pub fn new(mut model: Model) -> Self {
        let graph = model.proto.graph.take().unwrap_or_default();
        let producers = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.output.iter().map(move |name| (name.clone(), index)))
            .collect();
        let weights = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
        Self { model, graph, producers, weights, observed: BTreeMap::new() }
    }

    /// Returns every linear layer and convolution, in execution order.
    pub fn weight_uses(&self) -> Vec<WeightUse> {
        let uses = self.graph.node.iter().filter(|node| matches!(node.op_type.as_str(), "Gemm" | "Conv"));
        uses.filter_map(|node| {
            Some(WeightUse {
                weight: self.weight_behind(node.input.get(1)?)?,
                operator: node.op_type.clone(),
                input: node.input.first()?.clone(),
                output: node.output.first()?.clone(),
            })
        })
        .collect()
    }

    /// Returns every attention, in execution order.
    pub fn attention_uses(&self) -> Vec<AttentionUse> {
        let uses = self.graph.node.iter().filter(|node| node.op_type == "MultiHeadAttention");
        uses.filter_map(|node| {
            let [q, k, v, ..] = node.input.as_slice() else { return None };
            Some(AttentionUse { node: node.name.clone(), inputs: [q.clone(), k.clone(), v.clone()] })
        })
        .collect()
    }

    /// Returns the weight behind a value, through casts, slices and reshapes.
    fn weight_behind(&self, value: &str) -> Option<String> {
        let weight = self.behind(value, &["Cast", "Slice", "Reshape"]);
        self.weights.contains(weight).then(|| weight.to_owned())
    }

    /// Returns the value before any reshapes.
    fn origin<'a>(&'a self, value: &'a str) -> &'a str {
        self.behind(value, &["Reshape"])
    }

    /// Follows the first inputs of nodes of the given operators. In a damaged graph they may form a cycle, which is
    /// left after as many steps as there are nodes.
    fn behind<'a>(&'a self, mut value: &'a str, operators: &[&str]) -> &'a str {
        for _ in &self.graph.node {
            let node = self.producers.get(value).map(|index| &self.graph.node[*index]);
            let node = node.filter(|node| operators.contains(&node.op_type.as_str()));
            match node.and_then(|node| node.input.first()) {
                Some(input) if !self.weights.contains(value) => value = input,
                _ => break,
            }
        }
        value
    }

    /// Adds statistics of a value under `name`. If it is already observed, returns the existing name.
    pub fn observe(&mut self, name: &str, value: &str, channels: ChannelAxis, samples: Samples) -> String {
        let origin = self.origin(value).to_owned();
        if let Some(known) = self.observed.get(&origin) {
            return known.clone();
        }
        self.observed.insert(origin, name.to_owned());
        let axes = self.integers(&format!("observe axes {:?}", channels.others()), &channels.others());
        for (statistic, operator) in
            [("min", "ReduceMin"), ("max", "ReduceMax"), ("sum", "ReduceSum"), ("square", "ReduceSumSquare")]
        {
            let inputs = [value, axes.as_str()];
            self.node(operator, &inputs, &format!("{name}#{statistic}"), vec![int("keepdims", 0)]);
            self.output(&format!("{name}#{statistic}"), &["K"]);
        }
        self.node("Size", &[value], &format!("{name}#elements"), Vec::new());
        let to_f32 = vec![int("to", i64::from(data_type(ElementType::F32)))];
        self.node("Cast", &[&format!("{name}#elements")], &format!("{name}#size"), to_f32);
        self.output(&format!("{name}#size"), &[]);
        self.sample(name, value, samples);
        name.to_owned()
    }

    /// Takes the elements or rows `⌊i·n/R⌋` of all `n`.
    fn sample(&mut self, name: &str, value: &str, samples: Samples) {
        let named = |part: &str| format!("{name}#{part}");
        let (flat, count, shape): (String, usize, &[&str]) = match samples {
            Samples::Rows(count) => (value.to_owned(), count, &["R", "K"]),
            Samples::Elements(count) => {
                let all = self.integers("observe shape [-1]", &[-1]);
                self.node("Reshape", &[value, &all], &named("flat"), Vec::new());
                (named("flat"), count, &["R"])
            }
        };
        let steps: Vec<i64> = (0..signed(count)).collect();
        let steps = self.integers(&format!("observe 0..{count}"), &steps);
        let parts = self.integers(&format!("observe {count}"), &[signed(count)]);
        self.node("Shape", &[&flat], &named("rows"), vec![int("start", 0), int("end", 1)]);
        self.node("Mul", &[&steps, &named("rows")], &named("scaled"), Vec::new());
        self.node("Div", &[&named("scaled"), &parts], &named("indices"), Vec::new());
        self.node("Gather", &[&flat, &named("indices")], &named("samples"), vec![int("axis", 0)]);
        self.output(&named("samples"), shape);
    }

    fn node(&mut self, op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: format!("{output} {op_type}"),
            op_type: op_type.to_owned(),
            attribute,
            domain: String::new(),
        });
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> String {
        if self.weights.insert(name.to_owned()) {
            self.graph.initializer.push(TensorProto {
                dims: vec![signed(values.len())],
                data_type: data_type(ElementType::I64),
                name: name.to_owned(),
                raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                ..TensorProto::default()
            });
        }
        name.to_owned()
    }

    fn output(&mut self, name: &str, shape: &[&str]) {
        let dim = shape
            .iter()
            .map(|symbol| DimensionProto {
                value: Some(DimensionValue::DimParam(format!("{name} {symbol}"))),
            })
            .collect();
        self.graph.output.push(ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: data_type(ElementType::F32),
                    shape: Some(TensorShapeProto { dim }),
                }),
            }),
        });
    }

    /// Returns the graph with its new outputs.
    pub fn finish(self) -> Model {
        let mut model = self.model;
        model.proto.graph = Some(self.graph);
        model
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: value,
        r#type: AttributeType::Int.into(),
        ..AttributeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dim, ExternalData, GraphBuilder};

    #[test]
    fn a_cycle_of_a_damaged_graph_has_no_weight_behind_it() {
        let node = |op_type: &str, inputs: &[&str], output: &str| NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: op_type.to_owned(),
            ..NodeProto::default()
        };
        let nodes =
            vec![node("Reshape", &["b"], "a"), node("Reshape", &["a"], "b"), node("Gemm", &["x", "a"], "y")];
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        let model = Model { proto: crate::proto::ModelProto { graph: Some(graph), ..Default::default() } };
        let mut observed = Observed::new(model);
        assert_eq!(observed.weight_uses(), []);
        observed.observe("a", "a", ChannelAxis::Second, Samples::Elements(2));
    }

    #[test]
    fn layers_that_share_an_input_are_observed_once() {
        let mut g = GraphBuilder::new("test");
        let x = g.input("x", ElementType::F32, &[2.into(), Dim::symbol("L"), 4.into()]);
        let data = |offset| ExternalData { location: "w.bin".into(), offset, length: 4 * 4 * 2 };
        for (index, name) in ["a.weight", "b.weight"].into_iter().enumerate() {
            let stored = g.external(name, ElementType::F16, &[4, 4], &data(index as u64)).unwrap();
            let weight = g.cast(&stored, ElementType::F32);
            let y = g.linear(&x, &weight, None).unwrap();
            g.output(&format!("y{index}"), &y).unwrap();
        }
        let mut observed = Observed::new(g.finish().unwrap());
        let uses = observed.weight_uses();
        assert_eq!(uses.iter().map(|u| u.weight.as_str()).collect::<Vec<_>>(), ["a.weight", "b.weight"]);
        let rank = ChannelAxis::Last { rank: 2 };
        assert_eq!(observed.observe("a", &uses[0].input, rank, Samples::Rows(3)), "a");
        assert_eq!(observed.observe("b", &uses[1].input, rank, Samples::Rows(3)), "a");
        let model = observed.finish();
        let outputs: Vec<_> =
            model.signature().outputs.into_iter().skip(2).map(|output| output.name).collect();
        assert_eq!(outputs, STATISTICS.map(|statistic| format!("a#{statistic}")));
    }
}
