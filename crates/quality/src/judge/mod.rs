//! Scores how well a model follows its prompts: a classifier reads the clips of fixed prompts.
//!
//! A [`Judge`] is a small classifier with one output per attribute (subject, colour, …). [`prompts`] lists the expected
//! attributes of each clip, [`scoring`] generates and reads the clips, [`score`] counts. [`embedded`] contains mini's
//! judge and prompts, which were made without any Rushes model.

mod classifier;
pub mod embedded;
mod error;
pub mod prompts;
pub mod score;
pub mod scoring;

pub use classifier::{Attribute, ClipShape, Judge, JudgeFiles, Reading};
pub use error::Error;
