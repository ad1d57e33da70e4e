//! Quantised variants of a bundle: numbers that calibration computed, lowered into weights and graphs.
//!
//! `source` reads the weights of a bundle, `values` turns them into what ONNX Runtime kernels read, `packed_values` into what
//! our own read, `variant` puts weights, graphs and `bundle.json` together.

mod packed_values;
pub mod source;
mod values;
pub mod variant;

pub use source::BundleWeights;
pub(crate) use values::{INPUT_FACTORS, SCALES};
pub use variant::{VariantRequest, write_variant};
