//! The memory of an NVIDIA device that this process uses, from NVML, the management library of the driver.

use super::cuda_driver::{self, BUS_ID};
use super::shared_library::SharedLibrary;
use bundle::units::ByteCount;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::Path;

/// The library, as the system's loader knows it.
pub(super) const LIBRARY: &str = "libnvidia-ml.so.1";

/// More processes on one device than this are not looked at.
const MOST_PROCESSES: usize = 1024;

/// `nvmlProcessInfo_v2_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Process {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The memory of device `index` that this process uses; `None` if NVML does not say. In a container it may know
/// processes by other numbers.
pub(super) fn of_this_process(driver: &Path, nvml: &Path, index: u32) -> Option<ByteCount> {
    let bus_id = cuda_driver::bus_id(driver, index).ok()?;
    let library = SharedLibrary::open(nvml).ok()?;
    initialise(&library)?;
    let found = processes(&library, &bus_id);
    shut_down(&library);
    used_by(&found?, std::process::id())
}

fn used_by(processes: &[Process], pid: u32) -> Option<ByteCount> {
    // NVML_VALUE_NOT_AVAILABLE has all bits set.
    let of_process = processes.iter().filter(|process| process.pid == pid && process.memory != u64::MAX);
    of_process.map(|process| process.memory).reduce(u64::saturating_add).map(ByteCount)
}

#[expect(unsafe_code, reason = "a call into the management library")]
fn initialise(library: &SharedLibrary) -> Option<()> {
    let address = library.function(c"nvmlInit_v2")?;
    // SAFETY: the function has this type in `nvml.h`.
    let code = unsafe {
        let initialise: unsafe extern "C" fn() -> c_int = std::mem::transmute(address.as_ptr());
        initialise()
    };
    (code == 0).then_some(())
}

#[expect(unsafe_code, reason = "a call into the management library")]
fn shut_down(library: &SharedLibrary) {
    if let Some(address) = library.function(c"nvmlShutdown") {
        // SAFETY: the function has this type in `nvml.h`, and the library is initialised. It counts initialisations.
        unsafe {
            let shut_down: unsafe extern "C" fn() -> c_int = std::mem::transmute(address.as_ptr());
            shut_down();
        }
    }
}

#[expect(unsafe_code, reason = "calls into the management library")]
fn processes(library: &SharedLibrary, bus_id: &[u8; BUS_ID]) -> Option<Vec<Process>> {
    let by_bus_id = library.function(c"nvmlDeviceGetHandleByPciBusId_v2")?;
    let list = library.function(c"nvmlDeviceGetComputeRunningProcesses_v3")?;
    let mut device: *mut c_void = std::ptr::null_mut();
    let mut found = vec![Process::default(); MOST_PROCESSES];
    let mut count = c_uint::try_from(MOST_PROCESSES).ok()?;
    // SAFETY: the functions have these types in `nvml.h`. The address ends with a zero byte, and `count` is the length
    // of the list, of which the library writes at most so many entries.
    unsafe {
        let by_bus_id: unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int =
            std::mem::transmute(by_bus_id.as_ptr());
        if by_bus_id(bus_id.as_ptr().cast(), &raw mut device) != 0 {
            return None;
        }
        let list: unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut Process) -> c_int =
            std::mem::transmute(list.as_ptr());
        if list(device, &raw mut count, found.as_mut_ptr()) != 0 {
            return None;
        }
    }
    found.truncate(usize::try_from(count).ok()?);
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_one_process_is_summed() {
        let process = |pid, memory| Process { pid, memory, ..Process::default() };
        let all = [process(7, 10), process(8, 20), process(7, 5), process(9, u64::MAX)];
        assert_eq!(used_by(&all, 7), Some(ByteCount(15)));
        assert_eq!(used_by(&all, 9), None);
        assert_eq!(used_by(&all, 10), None);
    }
}
