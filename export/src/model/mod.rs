//! The models as graphs over named weights: text encoder, denoiser, decoder, tiny decoder.
//!
//! Names of weights are those of diffusers. Sizes come from the specs. [`Lowering`] selects the operators for a target.

mod branch;
mod causal_convolution;
mod channels_last;
mod decoder;
mod denoiser;
mod denoiser_block;
mod float_decoder;
mod graph_weights;
mod integer_decoder;
mod kernel_branch;
mod kernel_decoder;
mod kernel_step;
mod lowering;
mod modulation;
mod quantized_kernel;
mod quantized_linear;
mod quantized_operands;
mod step_ends;
mod text_encoder;
mod tiny_decoder;

pub(crate) use branch::tensor_name as branch_tensor_name;
pub use branch::{BranchProduct, Branches, LayerBranch};
pub use causal_convolution::Chunk;
pub use denoiser::step_graph;
pub use float_decoder::{decoder_graph, decoder_trunk_graph, decoder_upsampler_graph};
pub use graph_weights::GraphWeights;
pub use integer_decoder::integer_decoder_graph;
pub use kernel_branch::{FusedBranch, FusedBranches, FusedRank};
pub use kernel_decoder::kernel_decoder_graph;
pub use kernel_step::{KernelLowering, kernel_step_graph};
pub use lowering::Lowering;
pub use text_encoder::text_encoder_graph;
pub use tiny_decoder::tiny_decoder_graph;

#[cfg(test)]
mod decoder_tests;
