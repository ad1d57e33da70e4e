//! The observed values of a graph: inputs of linear layers and convolutions, outputs of convolutions, queries, keys and
//! values.

use graph::Model;
use graph::observe::{ChannelAxis, Observed, Samples};
use std::collections::BTreeMap;

/// A graph with observation outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedGraph {
    /// The graph with the additional outputs.
    pub model: Model,
    /// The point at which the input of each layer is observed, by the layer's name without `.weight`.
    pub inputs: BTreeMap<String, String>,
    /// The point at which the output of each convolution is observed.
    pub outputs: BTreeMap<String, String>,
    /// All points, each once.
    pub points: Vec<String>,
}

/// Returns the name of the layer of a weight.
fn layer_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Adds observation outputs to a graph. Each run samples `rows` rows of every linear input and `elements` elements of
/// every other value.
pub fn observe(model: Model, rows: usize, elements: usize) -> ObservedGraph {
    let mut observed = Observed::new(model);
    let (mut inputs, mut outputs, mut points) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for layer in observed.weight_uses() {
        let name = layer_of(&layer.weight).to_owned();
        let point = if layer.operator == "Gemm" {
            let channels = ChannelAxis::Last { rank: 2 };
            observed.observe(&name, &layer.input, channels, Samples::Rows(rows))
        } else if layer.weight == "patch_embedding.weight" {
            // Its input is the latent, with five axes, and it is never quantised.
            continue;
        } else {
            let samples = Samples::Elements(elements);
            let output = format!("{name}:out");
            let point = observed.observe(&output, &layer.output, ChannelAxis::Second, samples);
            outputs.insert(name.clone(), point);
            observed.observe(&name, &layer.input, ChannelAxis::Second, samples)
        };
        inputs.insert(name, point);
    }
    for attention in observed.attention_uses() {
        for (value, part) in attention.inputs.iter().zip(["q", "k", "v"]) {
            let name = format!("{}:{part}", attention.node);
            let channels = ChannelAxis::Last { rank: 3 };
            observed.observe(&name, value, channels, Samples::Elements(elements));
        }
    }
    let model = observed.finish();
    for output in model.signature().outputs {
        points.extend(output.name.strip_suffix("#size").map(str::to_owned));
    }
    ObservedGraph { model, inputs, outputs, points }
}
