//! Opens graphs through ONNX Runtime and runs them; plans what may be in memory at once.
//!
//! The only crate that names `ort`. [`OnnxRuntime::load`] finds the library (see `library.rs` for where it looks),
//! [`OnnxRuntime::open`] opens a graph as an [`Engine`] and holds it to its contract, [`Engine::run`] takes and gives
//! [`Value`]s: opaque tensors, so that an output becomes the next input without a copy. A [`Cancel`] stops a run.
//!
//! [`residency`] is a pure planner over predicted bytes, [`memory`] asks the system, [`doctor`] says what this machine
//! can run.

mod cpu;
pub mod doctor;
mod engine;
mod error;
mod inputs;
mod library;
pub mod memory;
mod onnx_runtime;
mod operators;
mod ort_error;
mod provider;
pub mod residency;
mod value;

pub use bundle::Cancel;
pub use engine::{Engine, OpenOptions, Outputs, WeightMemory};
pub use error::{Error, GraphError, LibraryError, Remedy, TensorError};
pub use library::Origin;
pub use onnx_runtime::OnnxRuntime;
pub use provider::Provider;
pub use value::Value;
