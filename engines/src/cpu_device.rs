//! The device that sessions on the CPU are pinned to.
//!
//! ONNX Runtime chooses the device of a session that names none, and `ort` asks it to. It then prefers any registered
//! plug-in that offers a CPU to its own CPU provider, which has other kernels and none for the operators of Rushes.

use crate::{LibraryError, OnnxRuntime};
use ort::device::Device;

/// ONNX Runtime's name of its CPU provider.
const CPU_PROVIDER: &str = "CPUExecutionProvider";

impl OnnxRuntime {
    /// Calls `use_device` with the device of the CPU provider. No plug-in is registered meanwhile.
    ///
    /// # Errors
    /// The library offers no such device, or several.
    pub(crate) fn with_cpu_device<T>(
        &self,
        use_device: impl FnOnce(Device<'_>) -> T,
    ) -> Result<T, LibraryError> {
        let _unchanged = self.unchanged_devices();
        let devices = self.environment().devices();
        let device = only_cpu(devices.map(|device| (device.ep().unwrap_or("unnamed").to_owned(), device)))?;
        Ok(use_device(device))
    }
}

/// Returns the only item whose name is that of the CPU provider.
fn only_cpu<T>(devices: impl IntoIterator<Item = (String, T)>) -> Result<T, LibraryError> {
    let (of_cpu, others): (Vec<_>, Vec<_>) = devices.into_iter().partition(|(name, _)| name == CPU_PROVIDER);
    let count = of_cpu.len();
    match (of_cpu.into_iter().next(), count) {
        (Some((_, device)), 1) => Ok(device),
        (Some(_), count) => Err(LibraryError::SeveralCpuDevices { count }),
        (None, _) => {
            Err(LibraryError::NoCpuDevice { found: others.into_iter().map(|(name, _)| name).collect() })
        }
    }
}

#[cfg(test)]
mod tests;
