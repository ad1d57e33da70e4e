//! Opens and runs graphs with ONNX Runtime, and plans which of them may be in memory together.
//!
//! This is the only crate that depends on `ort`. [`OnnxRuntime::load`] finds and loads the library.
//! [`OnnxRuntime::open`] opens a graph as an [`Engine`] and checks it against a
//! [`Signature`](bundle::signature::Signature). [`Engine::run`] takes and returns [`Value`]s. They are opaque tensors,
//! so an output becomes an input without a copy. A [`Cancel`] stops a run.
//!
//! A [`Device`] is where graphs run, a [`Placement`] says which component runs where, and [`MemoryBudgets`] how much
//! memory of each device may be used. [`residency`] is a pure planner over predicted bytes, [`memory`] reads the memory
//! of the system, [`doctor`] reports what this machine supports.
//!
//! The feature `fake` adds the module `fake`: a [`Backend`] for tests that computes nothing.

mod accelerator;
mod backend;
mod budget;
pub mod compiled;
mod copies;
pub mod cpu;
mod cpu_device;
mod device;
mod device_memory;
mod device_run;
mod device_tensor;
pub mod doctor;
mod element;
mod engine;
mod engine_compiler;
mod error;
mod eviction;
#[cfg(feature = "fake")]
pub mod fake;
mod first_open;
mod io_binding;
mod library;
mod machine;
pub mod memory;
mod node_assignment;
mod node_placement;
mod onnx_backend;
mod onnx_runtime;
mod onnx_session;
mod open_options;
mod operators;
mod ort_error;
mod out_of_memory;
mod outputs;
mod place;
pub mod placement;
mod pool;
pub mod providers;
pub mod residency;
pub mod sessions;
mod tensors;
mod value;

pub use backend::{Backend, BackendInfo, Executable, GraphSource};
pub use budget::MemoryBudgets;
pub use bundle::Cancel;
pub use copies::{Copied, CopyCounts};
pub use device::{BestDevice, Compilation, Device, DeviceChoice, Provider};
pub use element::Element;
pub use engine::Engine;
pub use error::{Error, GraphError, LibraryError, ProviderError, Remedy, TensorError};
pub use library::Origin;
pub use node_placement::NodePlacement;
pub use onnx_runtime::{LoadRequest, OnnxRuntime};
pub use open_options::{CpuNodes, EngineShape, FirstUse, GraphContent, OpenOptions, WeightMemory};
pub use outputs::Outputs;
pub use place::{GuidanceDevices, Place};
pub use placement::{Placement, PlacementRequest};
pub use value::Value;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
