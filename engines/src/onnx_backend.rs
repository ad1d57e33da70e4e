//! ONNX Runtime as what opens graphs.

use crate::machine::{self, DeviceFacts};
use crate::onnx_session::{OnnxSession, open_on_cpu};
use crate::providers::best_device;
use crate::{
    Backend, BackendInfo, BestDevice, Device, Error, Executable, GraphError, GraphSource, OnnxRuntime,
    OpenOptions, Provider, WeightMemory, accelerator, memory, ort_error,
};
use bundle::units::ByteCount;
use bundle::variant::Target;
use graph::Model;
use std::path::Path;

/// The setting for the folder of the external weights of a graph in memory.
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Returns the folder of the weights and the graph with its bf16 linear layers in place; none if it has no such layers
/// or cannot be read, and ONNX Runtime then says what is wrong with the file. Also none if the folder is not UTF-8,
/// which the setting has to be.
fn weights_in_place(path: &Path) -> Option<(String, Vec<u8>)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.to_str()?.to_owned();
    let mut graph = Model::read(path).ok()?;
    (graph.use_weights_in_place() > 0).then(|| (folder, graph.to_bytes()))
}

impl Backend for OnnxRuntime {
    fn info(&self) -> BackendInfo {
        BackendInfo { version: self.version().to_owned(), cpu_path: self.kernels().path() }
    }

    fn target(&self, device: Device) -> Result<Target, Error> {
        self.use_provider(device)?;
        Ok(device.target())
    }

    fn facts(&self, device: Device) -> Option<DeviceFacts> {
        let devices = self.devices_of(device.provider()).ok()?;
        devices.into_iter().find(|facts| facts.device == device)
    }

    fn best_device(&self, has_graphs: &dyn Fn(Target) -> bool) -> BestDevice {
        best_device(&self.machine(), has_graphs)
    }

    fn open(&self, graph: GraphSource<'_>, options: &OpenOptions) -> Result<Box<dyn Executable>, Error> {
        if options.device.provider() != Provider::Cpu {
            self.use_provider(options.device)?;
            let memory = self.device_memory(options.device)?;
            let _exclusive = memory.as_ref().and_then(|memory| memory.exclusive_run());
            return accelerator::open(self, graph, options);
        }
        let session = match graph {
            GraphSource::File(path) => {
                if let Err(source) = std::fs::File::open(path) {
                    return Err(GraphError::Unreadable { path: path.to_owned(), source }.into());
                }
                let in_place =
                    (options.weights == WeightMemory::Mapped).then(|| weights_in_place(path)).flatten();
                open_on_cpu(self, options, path, |mut builder| match &in_place {
                    None => builder.commit_from_file(path),
                    Some((folder, graph)) => {
                        builder.with_config_entry(WEIGHTS_FOLDER, folder)?.commit_from_memory(graph)
                    }
                })
            }
            GraphSource::Memory { name, bytes } => {
                open_on_cpu(self, options, Path::new(name), |mut builder| builder.commit_from_memory(bytes))
            }
        };
        Ok(Box::new(OnnxSession::new(graph.name(), options.device, session?, None, None)?))
    }

    fn check_engine(&self, graph: GraphSource<'_>, options: &OpenOptions) -> Result<(), Error> {
        accelerator::check(self, graph, options)
    }

    fn memory_in_use(&self, device: Device) -> Option<ByteCount> {
        match device {
            Device::CPU => memory::resident_anonymous(),
            device => machine::memory_in_use(device),
        }
    }

    fn available_memory(&self, device: Device) -> Option<ByteCount> {
        match device {
            Device::CPU => memory::memory().map(|memory| memory.available),
            device => machine::available_memory(device),
        }
    }

    fn return_freed_memory(&self, _device: Device) {
        memory::return_freed_memory();
    }
}

impl OnnxRuntime {
    /// Writes the graph in the file `graph`, as optimised by ONNX Runtime, to the file `optimized`, weights included.
    ///
    /// # Errors
    /// The file or its weights are missing or damaged, or ONNX Runtime cannot run it.
    pub fn write_optimized(&self, graph: &Path, optimized: &Path) -> Result<(), Error> {
        let options = OpenOptions::cpu(None, WeightMemory::Mapped);
        let session = open_on_cpu(self, &options, graph, |builder| {
            builder.with_optimized_model_path(optimized)?.commit_from_file(graph)
        });
        session.map(drop)
    }

    /// Writes the graph in the file `graph`, as ONNX Runtime runs it on an accelerator, to the file `optimized`: with the
    /// nodes that copy between its memory and host memory in the middle of a run.
    ///
    /// # Errors
    /// See [`Self::write_optimized`], or the device cannot be used.
    pub fn write_optimized_on(&self, device: Device, graph: &Path, optimized: &Path) -> Result<(), Error> {
        self.use_provider(device)?;
        let options = OpenOptions { device, ..OpenOptions::cpu(None, WeightMemory::Mapped) };
        let failed = |error: ort::Error| ort_error::open_error(graph, device, &error);
        let builder =
            accelerator::session_builder(self, &options, None)?.with_optimized_model_path(optimized);
        let mut builder = builder.map_err(|error| failed(error.into()))?;
        builder.commit_from_file(graph).map(drop).map_err(failed)
    }
}
