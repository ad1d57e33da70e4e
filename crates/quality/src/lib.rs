//! Measures models by running the pipeline.
//!
//! [`record`] records clips for calibration, [`quantize`] adds quantised variants and reports their quality, [`judge`]
//! scores how well clips follow their prompts, [`mod@bench`] times graphs, [`fit_preview_map`] fits the linear map of
//! previews, [`step_ratios`] measures how velocities change from step to step.

pub mod bench;
mod error;
pub mod fit_preview_map;
pub mod judge;
pub mod quantize;
pub mod record;
pub mod step_ratios;

pub use error::Error;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
