//! What this machine can run, and why not.

use crate::memory::{self, Memory};
use crate::{LibraryError, OnnxRuntime};
use std::path::Path;

pub use crate::cpu::{Cpu, InstructionSet};

/// What was found on this machine.
#[derive(Debug)]
pub struct Examination {
    /// The processor.
    pub cpu: Cpu,
    /// Memory that this process may use, where the system tells.
    pub memory: Option<Memory>,
    /// ONNX Runtime, or why it cannot be had.
    pub onnx_runtime: Result<OnnxRuntime, LibraryError>,
}

/// Examines this machine. `explicit` is the path of ONNX Runtime, as the user named it.
pub fn examine(explicit: Option<&Path>) -> Examination {
    Examination { cpu: Cpu::detect(), memory: memory::memory(), onnx_runtime: OnnxRuntime::load(explicit) }
}
