//! What this machine has for accelerators, read without ONNX Runtime: processor, NVIDIA driver, libraries.

mod cuda_driver;
mod folders;
mod loader_folders;
mod nvidia_memory;
mod process_memory;
mod shared_library;

pub use cuda_driver::{CudaDevice, CudaDriver, DriverProblem};
pub use folders::ProviderFolders;
pub(crate) use nvidia_memory::{available_memory, memory_in_use};

use crate::cpu::Cpu;
use crate::error::ProviderError;
use crate::{Device, Provider, ort_error};
use bundle::units::ByteCount;
use std::path::{Path, PathBuf};

/// The version of CUDA that the libraries of the providers are for.
const CUDA: (u32, u32) = (13, 0);

/// What a search for providers looks at.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where the libraries of providers are.
    pub folders: ProviderFolders,
    /// The folders of the system's loader, which may have the libraries that providers are built on.
    pub loader: Vec<PathBuf>,
    /// The folder of ONNX Runtime, if it is known. Built-in providers are in it.
    pub onnx_runtime: Option<PathBuf>,
    /// The content of `/proc/cpuinfo`.
    pub cpu_info: String,
    /// The NVIDIA driver, or why there is none.
    pub cuda: Result<CudaDriver, DriverProblem>,
}

impl Machine {
    /// This machine, as it is now, with the usual folders of providers.
    pub fn examine() -> Self {
        Self::with_folders(ProviderFolders::of_process())
    }

    /// This machine, as it is now, with other folders of providers.
    pub fn with_folders(folders: ProviderFolders) -> Self {
        Self {
            folders,
            loader: loader_folders::of_process(),
            onnx_runtime: None,
            cpu_info: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            cuda: CudaDriver::probe(Path::new(cuda_driver::LIBRARY)),
        }
    }

    /// Returns true if the processor is one of Intel.
    pub fn is_intel(&self) -> bool {
        self.cpu_info.contains("GenuineIntel")
    }

    /// The NVIDIA driver, for a provider that needs it.
    ///
    /// # Errors
    /// It cannot be used, or is too old for the libraries of the provider.
    pub(crate) fn driver(&self, provider: Provider) -> Result<&CudaDriver, ProviderError> {
        let driver = self
            .cuda
            .as_ref()
            .map_err(|problem| ProviderError::NoDriver { provider, problem: problem.clone() })?;
        if driver.version < CUDA {
            return Err(ProviderError::DriverTooOld { provider, found: driver.version, needed: CUDA });
        }
        Ok(driver)
    }

    /// An NVIDIA device.
    ///
    /// # Errors
    /// The driver cannot be used, or has no such device.
    pub(crate) fn cuda_device(&self, device: Device) -> Result<&CudaDevice, ProviderError> {
        let devices = &self.driver(device.provider())?.devices;
        let index = usize::try_from(device.index()).unwrap_or(usize::MAX);
        devices.get(index).ok_or_else(|| ProviderError::NoDevice {
            device,
            found: (0..)
                .take(devices.len())
                .filter_map(|index| Device::try_new(device.provider(), index).ok())
                .collect(),
        })
    }

    /// A library of a provider.
    ///
    /// # Errors
    /// It is in none of the provider's folders.
    pub(crate) fn library(&self, provider: Provider, name: &str) -> Result<PathBuf, ProviderError> {
        self.folders.file(provider, name).ok_or_else(|| self.no_library(provider, name, false))
    }

    /// A library that a provider is built on: in its folders, or one that is installed in the system.
    ///
    /// # Errors
    /// It is in none of these folders.
    pub(crate) fn dependency(&self, provider: Provider, name: &str) -> Result<PathBuf, ProviderError> {
        let of_system = || self.loader.iter().map(|folder| folder.join(name)).find(|file| file.is_file());
        self.folders
            .file(provider, name)
            .or_else(of_system)
            .ok_or_else(|| self.no_library(provider, name, true))
    }

    fn no_library(&self, provider: Provider, name: &str, and_system: bool) -> ProviderError {
        let searched = self.folders.of(provider).collect();
        ProviderError::NoLibrary { provider, library: name.to_owned(), searched, and_system }
    }

    /// The error of a provider whose library could not be loaded, from the message of the loader or of ONNX Runtime.
    /// `None` if the message is about something else.
    ///
    /// The loader names the first library that it does not find, in the order in which a file lists them.
    pub(crate) fn explain(&self, provider: Provider, message: &str) -> Option<ProviderError> {
        if ort_error::says_no_device(message) {
            return Some(ProviderError::no_nvidia_device(provider));
        }
        if message.contains("is not enabled in this build")
            || message.contains("is not supported in this build")
        {
            return Some(ProviderError::NotInBuild { provider, folder: self.onnx_runtime.clone() });
        }
        let (before, _) = message.split_once(": cannot open shared object file")?;
        let name = before.rsplit([' ', '/', '\n']).next().filter(|name| name.contains(".so"))?;
        // The driver has more libraries than its own, such as libnvidia-ml.so.1.
        Some(if name == cuda_driver::LIBRARY || name.starts_with("libnvidia-") {
            let why = format!("{name}: cannot open shared object file");
            ProviderError::NoDriver { provider, problem: DriverProblem::Absent { why } }
        } else {
            self.no_library(provider, name, true)
        })
    }
}

/// A device of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The device.
    pub device: Device,
    /// Its name, such as `NVIDIA H200`.
    pub name: String,
    /// What compiled engines depend on, such as `sm90`.
    pub architecture: String,
    /// Its memory, if known.
    pub memory: Option<ByteCount>,
    /// The version of the provider, if known.
    pub version: Option<String>,
}

impl DeviceFacts {
    /// The version of the provider, as engines are found by it.
    pub(crate) fn version_word(&self) -> String {
        self.version.clone().unwrap_or_else(|| "unknown".into())
    }

    /// The architecture, as engines are found by it. Those of OpenVINO are code for the instruction sets of the processor.
    pub(crate) fn architecture_word(&self) -> String {
        let stated = if self.architecture.is_empty() { "unknown" } else { &self.architecture };
        if self.device.provider() != Provider::OpenVino {
            return stated.to_owned();
        }
        let sets = Cpu::detect().instruction_sets.into_iter().filter(|(_, present)| *present);
        let sets: String = sets.map(|(set, _)| format!(" {set}")).collect();
        format!("{stated}{sets}")
    }
}

#[cfg(test)]
mod tests;
