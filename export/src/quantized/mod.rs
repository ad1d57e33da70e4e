//! Quantised variants of a bundle: weights and graphs from the results of a calibration.
//!
//! `source` reads the weights of a bundle. `values` converts them for ONNX Runtime kernels, `packed_values` for Rushes
//! kernels, `plain_values` for plain graphs. `graphs` builds the graphs. `variant` writes weights, graphs and the entries
//! for `bundle.json`.

mod graphs;
mod packed_values;
mod plain_values;
pub mod source;
mod values;
#[cfg(test)]
mod values_tests;
pub mod variant;

pub use source::BundleWeights;
pub use variant::{VariantRequest, write_variant};
