//! Denoising: noise and text states to a clean latent. The second part of the pipeline.
//!
//! [`Denoising`] is the state of a clip between two steps: pure, owned, and ready to be stored. [`StepCache`] lets steps
//! reuse velocities. [`Generator`] runs the steps on the experts. [`Conditioning`] is what a clip is conditioned on.

mod conditioning;
mod denoising;
mod fork;
mod generator;
mod pass_pair;
mod policy;
#[cfg(test)]
mod reuse_tests;
mod rope;
mod step_cache;
mod step_graph;
mod stored;
#[cfg(test)]
pub(crate) mod synthetic;
mod text_input;
mod token_rows;

pub use crate::sampler::RandomPosition;
pub use conditioning::{ChannelMismatch, Conditioning, FrameLevels, ImageConditioning, TextConditioning};
pub use denoising::{DenoiseSettings, Denoising, Snapshot, StepError, StepOutputs, StepRequest};
pub use fork::{ForkChanges, ForkError, GridChange, Variation};
pub use generator::{Generator, StepDone};
pub use policy::{EASYCACHE_MIN_STEPS, EASYCACHE_THRESHOLD, PassAction, Passes, StepPolicy};
pub use rope::RotaryTables;
pub use step_cache::{CachedPass, StepCache};
pub use step_graph::{BATCHED_TOKENS_MAX, GuidanceForm, StepInputs};
pub(crate) use stored::StoredDenoising;
pub use text_input::TextInput;
pub use token_rows::{TokenRows, token_rows};
