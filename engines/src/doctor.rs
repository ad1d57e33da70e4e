//! A report on this machine: processor, memory, ONNX Runtime.

use crate::memory::{self, Memory};
use crate::{LibraryError, OnnxRuntime};
use std::path::Path;

pub use crate::cpu::{Cpu, InstructionSet};

/// The report.
#[derive(Debug)]
pub struct Examination {
    /// The processor.
    pub cpu: Cpu,
    /// Memory that this process may use, if the system reports it.
    pub memory: Option<Memory>,
    /// ONNX Runtime, or the reason why it cannot be loaded.
    pub onnx_runtime: Result<OnnxRuntime, LibraryError>,
}

/// Examines this machine. `explicit` is the path of ONNX Runtime from the user.
pub fn examine(explicit: Option<&Path>) -> Examination {
    Examination { cpu: Cpu::detect(), memory: memory::memory(), onnx_runtime: OnnxRuntime::load(explicit) }
}
