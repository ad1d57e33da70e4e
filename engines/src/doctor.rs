//! A report on this machine: processor, memory, ONNX Runtime, execution providers and their devices.

use crate::memory::{self, Memory};
use crate::providers::{self, DeviceFacts, DriverProblem};
use crate::{Device, Error, LibraryError, LoadRequest, OnnxRuntime, Provider};

pub use crate::cpu::{Cpu, InstructionSet};

/// The report.
#[derive(Debug)]
pub struct Examination {
    /// The processor.
    pub cpu: Cpu,
    /// Memory that this process may use, if the system reports it.
    pub memory: Option<Memory>,
    /// The version of CUDA that the NVIDIA driver supports, or why there is no driver.
    pub nvidia_driver: Result<(u32, u32), DriverProblem>,
    /// ONNX Runtime, or the reason why it cannot be loaded.
    pub onnx_runtime: Result<OnnxRuntime, LibraryError>,
    /// The accelerators: each provider but the CPU, with its devices, or what is missing. Empty without ONNX Runtime.
    pub accelerators: Vec<(Provider, Result<Vec<DeviceFacts>, Error>)>,
}

impl Examination {
    /// The devices that graphs can run on, the CPU first.
    pub fn devices(&self) -> Vec<DeviceFacts> {
        let cpu = DeviceFacts {
            device: Device::CPU,
            name: self.cpu.name.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            memory: self.memory.map(|memory| memory.total),
            version: self.onnx_runtime.as_ref().ok().map(|onnx| onnx.version().to_owned()),
        };
        let found = self.accelerators.iter().filter_map(|(_, devices)| devices.as_ref().ok());
        std::iter::once(cpu).chain(found.flatten().cloned()).collect()
    }
}

/// Examines this machine. Loads the libraries of the providers that can be used.
pub fn examine(request: &LoadRequest) -> Examination {
    let machine = request.machine();
    let first = |provider| Device::try_new(provider, 0).ok();
    let usable = Provider::ALL
        .into_iter()
        .filter_map(first)
        .filter(|device| providers::check(*device, &machine).is_ok());
    let onnx_runtime = OnnxRuntime::load_with(&request.clone().with_devices(usable));
    let accelerators = onnx_runtime.iter().flat_map(|onnx| {
        Provider::ALL.into_iter().filter_map(first).filter(|device| *device != Device::CPU).map(|device| {
            let devices = onnx.use_provider(device).and_then(|()| onnx.devices_of(device.provider()));
            (device.provider(), devices)
        })
    });
    let accelerators = accelerators.collect();
    Examination {
        cpu: Cpu::detect(),
        memory: memory::memory(),
        nvidia_driver: machine.cuda.map(|driver| driver.version),
        onnx_runtime,
        accelerators,
    }
}
