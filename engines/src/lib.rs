//! Opens and runs graphs with ONNX Runtime, and plans which of them may be in memory together.
//!
//! This is the only crate that depends on `ort`. [`OnnxRuntime::load`] finds and loads the library.
//! [`OnnxRuntime::open`] opens a graph as an [`Engine`] and checks it against a
//! [`Signature`](bundle::signature::Signature). [`Engine::run`] takes and returns [`Value`]s. They are opaque tensors,
//! so an output becomes an input without a copy. A [`Cancel`] stops a run.
//!
//! [`residency`] is a pure planner over predicted bytes, [`memory`] reads the memory of the system, [`doctor`] reports
//! what this machine supports.

pub mod cpu;
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
