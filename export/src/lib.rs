//! Exports checkpoints to bundles. Does not use ONNX Runtime.
//!
//! | Modules | Contents |
//! |---|---|
//! | [`checkpoint`] | checkpoints, read and checked as a whole |
//! | [`weights`] | weights: scanned, then linked or converted into the bundle |
//! | [`model`] | the graphs |
//! | [`lora`] | LoRA files: read, matched with a model, and turned into changes of its weights |
//! | [`defaults`] | default settings |
//! | [`preview_map`] | the linear map of previews |
//! | [`digests`], `file_data` | digests of files, without reading holes |
//! | [`export`], `export_request` | puts the bundle together; what it is asked for and what it tells |
//! | [`attach`](attach()), `bindings` | a bundle from graphs without weights and the weights that they are for |
//! | [`branched`] | bundles whose experts have LoRAs as branches |
//! | [`quantized`] | quantised variants of an existing bundle |
//! | [`synthetic`] | bundles of random weights, for benchmarks |

mod attach;
mod bindings;
pub mod branched;
mod bundle_writer;
pub mod checkpoint;
pub mod defaults;
mod differences;
pub mod digests;
mod error;
mod export_request;
mod file_data;
pub mod lora;
pub mod model;
pub mod pieces;
mod pointer;
pub mod preview_map;
pub mod quantized;
pub mod synthetic;
pub mod weights;

pub use attach::{AttachRequest, attach};
pub use bundle_writer::{export, export_into};
pub use differences::Differences;
pub use error::Error;
pub use export_request::{ExportEvent, ExportReport, ExportRequest};
