//! Denoising: noise and text states to a clean latent. The second part of the pipeline.

mod generator;
mod rope;
mod text_input;
mod token_rows;

pub use generator::{BATCHED_TOKENS_MAX, Conditioning, Generator, StepDone};
pub use rope::RotaryTables;
pub use text_input::TextInput;
pub use token_rows::{TokenRows, token_rows};
