//! Runs the pipeline to measure a model.
//!
//! [`record`] makes clips for calibration, [`quantize`] adds quantised variants and says what they cost, [`judge`] scores
//! how well a model follows its prompts, [`mod@bench`] times graphs, [`fit_preview_map`] fits the linear map of previews.

pub mod bench;
mod error;
pub mod fit_preview_map;
pub mod judge;
pub mod quantize;
pub mod record;

pub use error::Error;
