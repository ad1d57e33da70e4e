//! The seam between sessions and what runs graphs: ONNX Runtime, or a fake in tests.

use crate::machine::DeviceFacts;
use crate::{BestDevice, Cancel, Device, Error, NodePlacement, OpenOptions, Outputs, Value};
use bundle::signature::Signature;
use bundle::units::ByteCount;
use bundle::variant::Target;
use kernels::CpuPath;
use std::path::Path;

/// Opens graphs. [`OnnxRuntime`](crate::OnnxRuntime) is the implementation that computes.
pub trait Backend: std::fmt::Debug + Send + Sync {
    /// What decides bits besides the graph and its inputs.
    fn info(&self) -> BackendInfo;

    /// The target whose graphs a device runs. Makes the provider of the device ready.
    ///
    /// # Errors
    /// The device cannot be used on this machine. There is no silent fallback to the CPU.
    fn target(&self, device: Device) -> Result<Target, Error>;

    /// What is known about a device of an accelerator whose provider is ready; `None` for the CPU.
    fn facts(&self, device: Device) -> Option<DeviceFacts> {
        let _ = device;
        None
    }

    /// The best device for a bundle that has graphs for the targets of `has_graphs`.
    fn best_device(&self, has_graphs: &dyn Fn(Target) -> bool) -> BestDevice {
        let _ = has_graphs;
        BestDevice { device: Device::CPU, why: String::new() }
    }

    /// Opens a graph. May be called from several threads.
    ///
    /// # Errors
    /// The graph is missing, damaged or not supported, or memory is short ([`Error::OutOfMemory`]).
    fn open(&self, graph: GraphSource<'_>, options: &OpenOptions) -> Result<Box<dyn Executable>, Error>;

    /// Checks that a graph can be opened without an engine, or that there is one. Reads little and opens nothing.
    ///
    /// # Errors
    /// The graph needs a compiled engine, and there is none that looks whole.
    fn check_engine(&self, graph: GraphSource<'_>, options: &OpenOptions) -> Result<(), Error> {
        let _ = (graph, options);
        Ok(())
    }

    /// Memory of a device that this process uses; `None` if it cannot be measured.
    fn memory_in_use(&self, device: Device) -> Option<ByteCount>;

    /// Memory of a device that may still be used; `None` if it cannot be measured.
    fn available_memory(&self, device: Device) -> Option<ByteCount>;

    /// Returns memory that closed graphs have freed to the system.
    fn return_freed_memory(&self, device: Device);
}

/// An open graph. Dropping it closes the graph.
pub trait Executable: std::fmt::Debug + Send {
    /// The graph's inputs and outputs.
    fn signature(&self) -> &Signature;

    /// On which providers its nodes run; `None` if all run on the CPU.
    fn nodes(&self) -> Option<&NodePlacement> {
        None
    }

    /// Makes room in the memory pool of the graph for runs that need `bytes` in total, as one block that is not touched.
    ///
    /// It changes only how much memory runs use, so it may be skipped: a pool that grows run by run is split into
    /// blocks whose remainders fit nothing else.
    fn reserve(&mut self, bytes: ByteCount) {
        let _ = bytes;
    }

    /// Runs the graph. The caller has checked `inputs` against the signature.
    ///
    /// # Errors
    /// An operator fails, memory is short ([`Error::OutOfMemory`]), or `cancel` was requested before the run ended.
    fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, Error>;
}

/// What decides the bits of a run besides the graph, its inputs and the options it is opened with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    /// Version of ONNX Runtime.
    pub version: String,
    /// Instruction set of the Rushes kernels.
    pub cpu_path: CpuPath,
}

/// Where a graph is read from.
#[derive(Debug, Clone, Copy)]
pub enum GraphSource<'a> {
    /// A file. External weights are in the same folder.
    File(&'a Path),
    /// Bytes in memory, weights included. Errors refer to the graph as `name`.
    Memory {
        /// The name in errors.
        name: &'a str,
        /// The graph.
        bytes: &'a [u8],
    },
}

impl GraphSource<'_> {
    /// The name in errors.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Memory { name, .. } => (*name).to_owned(),
        }
    }
}
