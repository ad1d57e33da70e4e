//! How well a model follows its prompts: the fixed prompts are turned into clips, and a judge reads back what it sees.
//!
//! A [`Judge`] is a small classifier with one output per attribute (subject, colour, …). [`prompts`] says what each clip
//! should show, [`scoring`] makes the clips and has them read, [`score`] counts. [`embedded`] holds mini's own judge and
//! prompts, which were trained and drawn without any model of ours.

mod classifier;
pub mod embedded;
mod error;
pub mod prompts;
pub mod score;
pub mod scoring;

pub use classifier::{Attribute, ClipShape, Judge, JudgeFiles, Reading};
pub use error::Error;
