//! The graph of a denoising step: latent, timestep and text states to velocity.

use super::denoiser_block::block;
use super::graph_weights::GraphWeights;
use super::step_ends::{StepStart, TextInput};
use crate::Error;
use bundle::spec::DenoiserSpec;
use graph::Model;

/// Builds the step graph of one expert.
///
/// # Errors
/// Returns an error if a weight is missing or does not match the spec.
pub fn step_graph(spec: &DenoiserSpec, weights: GraphWeights<'_>) -> Result<Model, Error> {
    let mut graph = weights.lowering().builder("step");
    let g = &mut graph;
    let start = StepStart::new(g, spec, weights, TextInput::Whole)?;
    let mut x = start.x.clone();
    for index in 0..spec.layers {
        x = g.scoped(&format!("block.{index}"), |g| block(g, spec, weights, index, &x, &start.conditions))?;
    }
    start.finish(g, spec, weights, &x)?;
    Ok(graph.finish())
}
