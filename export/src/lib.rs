//! Checkpoints in, graphs and bundles out. No ONNX Runtime in here.
//!
//! In reading order: [`checkpoint`] (read and checked as a whole), [`weights`] (scanned, then linked or converted into
//! their place), [`model`] (the graphs over them), [`defaults`] (what a clip is made with when nobody says anything),
//! [`preview_map`] (how latents are shown), [`digests`] (what every file holds), and [`export`], which puts the bundle
//! together; then [`quantized`] (variants that a bundle gets later). [`synthetic`] makes bundles of random weights, for
//! timing.

mod bundle_writer;
pub mod checkpoint;
pub mod defaults;
pub mod digests;
mod error;
pub mod model;
pub mod preview_map;
pub mod quantized;
pub mod synthetic;
pub mod weights;

pub use bundle_writer::{ExportEvent, ExportReport, ExportRequest, export, export_into};
pub use error::Error;
