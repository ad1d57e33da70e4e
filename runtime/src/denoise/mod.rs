//! Noise and text states to a clean latent: the second of the three parts of the pipeline.

mod generator;
mod rope;
mod text_input;

pub use generator::{BATCHED_TOKENS_MAX, Generator, Guided, StepDone};
pub use rope::RotaryTables;
pub use text_input::TextInput;
