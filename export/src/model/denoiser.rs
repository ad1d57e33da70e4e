//! The graph of a denoising step: latent, timestep and text states to velocity.

use super::denoiser_block::{block, token_vectors};
use super::graph_weights::GraphWeights;
use super::step_ends::{StepInputs, StepStart, TextInput};
use crate::Error;
use bundle::spec::DenoiserSpec;
use graph::{GraphBuilder, Model};

/// Builds the step graph of one expert.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn step_graph(spec: &DenoiserSpec, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder("step");
    let g = &mut graph;
    let inputs = StepInputs::new(g, spec, weights, TextInput::Whole)?;
    let mut of_blocks = Vec::with_capacity(spec.layers);
    for index in 0..spec.layers {
        let build = |g: &mut GraphBuilder| token_vectors(g, spec, weights, index, &inputs.modulation);
        of_blocks.push(g.scoped(&format!("block.{index}"), build)?);
    }
    let start = StepStart::new(g, spec, weights, inputs)?;
    let mut x = start.x.clone();
    for (index, vectors) in of_blocks.iter().enumerate() {
        let build = |g: &mut GraphBuilder| block(g, spec, weights, (index, vectors), &x, &start.conditions);
        x = g.scoped(&format!("block.{index}"), build)?;
    }
    start.finish(g, spec, weights, &x)?;
    Ok(graph.finish()?)
}
