//! The NVIDIA driver: its version and its devices, without ONNX Runtime and without the CUDA libraries.

use super::shared_library::SharedLibrary;
use bundle::units::ByteCount;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::Path;

/// The library of the driver, as the system's loader knows it.
pub(super) const LIBRARY: &str = "libcuda.so.1";

/// More devices than this are not looked at.
const MOST_DEVICES: c_int = 256;

/// The NVIDIA driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDriver {
    /// The version of CUDA that it supports, such as 13.0.
    pub version: (u32, u32),
    /// Its devices; at least one.
    pub devices: Vec<CudaDevice>,
}

/// An NVIDIA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its name.
    pub name: String,
    /// Its compute capability.
    pub capability: (u32, u32),
    /// Its memory.
    pub memory: ByteCount,
}

/// The reason why the NVIDIA driver cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverProblem {
    /// Its library is not there, or cannot be loaded.
    Absent {
        /// The message of the loader.
        why: String,
    },
    /// Its library lacks a function.
    Incomplete {
        /// The function.
        function: &'static str,
    },
    /// It works and finds no device.
    NoDevice,
    /// One of its functions fails.
    Failed {
        /// The function.
        function: &'static str,
        /// Its result.
        code: i32,
    },
}

impl fmt::Display for DriverProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent { why } => write!(f, "there is no NVIDIA driver: {why}"),
            Self::Incomplete { function } => {
                write!(f, "{LIBRARY} is not an NVIDIA driver: it has no function {function}")
            }
            Self::NoDevice => f.write_str("the NVIDIA driver finds no device"),
            Self::Failed { function, code } => {
                write!(f, "the NVIDIA driver does not work: {function} returns {code}")?;
                match meaning(*code) {
                    Some(meaning) => write!(f, ", {meaning}"),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The meaning of a `CUresult`, as `cuda.h` has it, of those that a driver returns where it cannot be used.
fn meaning(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "out of memory",
        3 => "not initialised",
        34 => "it is a library for linking, not a driver",
        35 => "it is too old",
        46 => "the device is busy or unavailable",
        101 => "an invalid device",
        304 => "an error of the operating system",
        802 => "the system is not ready yet",
        803 => "its library and its kernel module have different versions",
        804 => "it does not support this device",
        999 => "an unknown error",
        _ => return None,
    })
}

/// `CUDA_SUCCESS` and `CUDA_ERROR_NO_DEVICE`.
const SUCCESS: c_int = 0;
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// Calls a function of a library that returns a `CUresult`.
macro_rules! call {
    ($library:expr, $name:literal, $($argument:expr => $kind:ty),*) => {{
        match $library.function(const { c_name(concat!($name, "\0")) }) {
            None => Err(DriverProblem::Incomplete { function: $name }),
            Some(address) => {
                // SAFETY: the function has this type in `cuda.h`. Pointers are valid for the call.
                let code = unsafe {
                    let function: unsafe extern "C" fn($($kind),*) -> c_int =
                        std::mem::transmute(address.as_ptr());
                    function($($argument),*)
                };
                match code {
                    SUCCESS => Ok(()),
                    NO_DEVICE => Err(DriverProblem::NoDevice),
                    code => Err(DriverProblem::Failed { function: $name, code }),
                }
            }
        }
    }};
}

/// A name that ends with a zero byte.
const fn c_name(name: &str) -> &CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("not a C string"),
    }
}

impl CudaDriver {
    /// Loads the library of the driver and asks it for its devices.
    ///
    /// # Errors
    /// It cannot be used, or has no device.
    pub fn probe(library: &Path) -> Result<Self, DriverProblem> {
        let driver = Driver::open(library)?;
        let version = driver.version()?;
        let count = driver.count()?;
        let devices = (0..count.min(MOST_DEVICES)).map(|index| driver.describe(index));
        let devices: Vec<CudaDevice> = devices.collect::<Result<_, _>>()?;
        if devices.is_empty() { Err(DriverProblem::NoDevice) } else { Ok(Self { version, devices }) }
    }
}

/// An initialised driver.
#[derive(Debug)]
struct Driver(SharedLibrary);

#[expect(unsafe_code, reason = "calls into the driver")]
impl Driver {
    fn open(library: &Path) -> Result<Self, DriverProblem> {
        let driver = SharedLibrary::open(library).map_err(|why| DriverProblem::Absent { why })?;
        call!(driver, "cuInit", 0 => c_uint)?;
        Ok(Self(driver))
    }

    fn version(&self) -> Result<(u32, u32), DriverProblem> {
        let mut version = 0;
        call!(self.0, "cuDriverGetVersion", &raw mut version => *mut c_int)?;
        let version = u32::try_from(version).unwrap_or(0);
        Ok((version / 1000, version % 1000 / 10))
    }

    fn count(&self) -> Result<c_int, DriverProblem> {
        let mut count = 0;
        call!(self.0, "cuDeviceGetCount", &raw mut count => *mut c_int)?;
        Ok(count)
    }

    fn device(&self, index: c_int) -> Result<c_int, DriverProblem> {
        let mut device = 0;
        call!(self.0, "cuDeviceGet", &raw mut device => *mut c_int, index => c_int)?;
        Ok(device)
    }

    fn describe(&self, index: c_int) -> Result<CudaDevice, DriverProblem> {
        const NAME: usize = 256;
        let device = self.device(index)?;
        let mut name = [0_u8; NAME];
        call!(self.0, "cuDeviceGetName",
            name.as_mut_ptr().cast() => *mut c_char, NAME as c_int - 1 => c_int, device => c_int)?;
        let mut memory = 0_usize;
        call!(self.0, "cuDeviceTotalMem_v2", &raw mut memory => *mut usize, device => c_int)?;
        let mut capability = [0_u32; 2];
        for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
            let mut found = 0;
            call!(self.0, "cuDeviceGetAttribute",
                &raw mut found => *mut c_int, attribute => c_int, device => c_int)?;
            *value = u32::try_from(found).unwrap_or(0);
        }
        Ok(CudaDevice {
            name: text(&name),
            capability: (capability[0], capability[1]),
            memory: bytes(memory),
        })
    }

    /// The address of a device on its bus, which NVML knows it by.
    fn bus_id(&self, index: c_int) -> Result<[u8; BUS_ID], DriverProblem> {
        let device = self.device(index)?;
        let mut id = [0_u8; BUS_ID];
        call!(self.0, "cuDeviceGetPCIBusId",
            id.as_mut_ptr().cast() => *mut c_char, BUS_ID as c_int - 1 => c_int, device => c_int)?;
        Ok(id)
    }

    /// Free and total memory. Uses the primary context of the device, which ONNX Runtime uses too, and makes it for the
    /// time of the call where it is not in use.
    fn memory(&self, index: c_int) -> Result<(usize, usize), DriverProblem> {
        let device = self.device(index)?;
        let mut context: *mut c_void = std::ptr::null_mut();
        call!(self.0, "cuDevicePrimaryCtxRetain", &raw mut context => *mut *mut c_void, device => c_int)?;
        let measured = self.memory_in(context);
        call!(self.0, "cuDevicePrimaryCtxRelease_v2", device => c_int)?;
        measured
    }

    fn memory_in(&self, context: *mut c_void) -> Result<(usize, usize), DriverProblem> {
        call!(self.0, "cuCtxPushCurrent_v2", context => *mut c_void)?;
        let (mut free, mut total) = (0_usize, 0_usize);
        let measured =
            call!(self.0, "cuMemGetInfo_v2", &raw mut free => *mut usize, &raw mut total => *mut usize);
        let mut popped: *mut c_void = std::ptr::null_mut();
        call!(self.0, "cuCtxPopCurrent_v2", &raw mut popped => *mut *mut c_void)?;
        measured.map(|()| (free, total))
    }
}

/// The longest address on a bus, with its zero byte.
pub(super) const BUS_ID: usize = 64;

/// Memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CudaMemory {
    /// Free memory.
    pub(super) free: ByteCount,
    /// All of it.
    pub(super) total: ByteCount,
}

/// The memory of device `index` of the driver in `library`.
///
/// # Errors
/// The driver cannot be used, or does not have the device.
pub(super) fn memory(library: &Path, index: u32) -> Result<CudaMemory, DriverProblem> {
    let (free, total) = Driver::open(library)?.memory(number(index))?;
    Ok(CudaMemory { free: bytes(free), total: bytes(total) })
}

/// The address of device `index` on its bus, NUL-terminated.
///
/// # Errors
/// The driver cannot be used, or does not have the device.
pub(super) fn bus_id(library: &Path, index: u32) -> Result<[u8; BUS_ID], DriverProblem> {
    Driver::open(library)?.bus_id(number(index))
}

/// No driver has a device for what does not fit.
fn number(index: u32) -> c_int {
    c_int::try_from(index).unwrap_or(c_int::MAX)
}

fn bytes(count: usize) -> ByteCount {
    ByteCount(u64::try_from(count).unwrap_or(u64::MAX))
}

/// The text before the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests;
