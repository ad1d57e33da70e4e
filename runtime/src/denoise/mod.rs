//! Denoising: noise and text states to a clean latent. The second part of the pipeline.
//!
//! [`Denoising`] is the state of a clip between two steps: pure, owned, and ready to be stored. [`Generator`] runs the
//! steps on the experts. [`Conditioning`] is what a clip is conditioned on.

mod conditioning;
mod denoising;
mod fork;
mod generator;
mod pass_pair;
mod policy;
mod rope;
mod step_graph;
#[cfg(test)]
pub(crate) mod synthetic;
mod text_input;
mod token_rows;

pub use conditioning::{ChannelMismatch, Conditioning, FrameLevels, ImageConditioning, TextConditioning};
pub(crate) use denoising::StoredDenoising;
pub use denoising::{
    DenoiseSettings, Denoising, RandomPosition, Snapshot, StepError, StepOutputs, StepRequest,
};
pub use fork::{ForkChanges, ForkError, GridChange, Variation};
pub use generator::{Generator, StepDone};
pub use policy::{PassAction, Passes, StepPolicy};
pub use rope::RotaryTables;
pub use step_graph::{BATCHED_TOKENS_MAX, GuidanceForm, StepInputs};
pub use text_input::TextInput;
pub use token_rows::{TokenRows, token_rows};
