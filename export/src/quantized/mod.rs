//! Quantised variants of a bundle: numbers that calibration computed, lowered into weights and graphs.
//!
//! `source` reads the weights of a bundle, `values` turns them into what is stored, `file` writes one safetensors
//! file, `variant` puts weights, graphs and `bundle.json` together.

mod file;
pub mod source;
mod values;
pub mod variant;

pub use source::BundleWeights;
pub(crate) use values::{INPUT_FACTORS, SCALES};
pub use variant::write_variant;
