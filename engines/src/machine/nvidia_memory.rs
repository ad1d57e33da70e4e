//! The memory of the devices of a provider.

use super::cuda_driver::{self, CudaMemory};
use super::process_memory;
use crate::Device;
use bundle::units::ByteCount;
use std::path::Path;

/// Free memory of an NVIDIA device; `None` for others, and if the driver does not say.
pub(crate) fn available_memory(device: Device) -> Option<ByteCount> {
    memory(device).map(|memory| memory.free)
}

/// Memory of an NVIDIA device that this process uses. Where the driver does not know this process, as in a container, it
/// is what all processes use: right for differences while the others keep theirs.
pub(crate) fn memory_in_use(device: Device) -> Option<ByteCount> {
    if !device.provider().is_of_nvidia() {
        return None;
    }
    let (driver, nvml) = (Path::new(cuda_driver::LIBRARY), Path::new(process_memory::LIBRARY));
    process_memory::of_this_process(driver, nvml, device.index())
        .or_else(|| memory(device).map(|memory| ByteCount(memory.total.0.saturating_sub(memory.free.0))))
}

fn memory(device: Device) -> Option<CudaMemory> {
    let is_of_nvidia = device.provider().is_of_nvidia();
    is_of_nvidia.then(|| cuda_driver::memory(Path::new(cuda_driver::LIBRARY), device.index()).ok()).flatten()
}
