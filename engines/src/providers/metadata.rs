//! What a plug-in says about its devices.

use super::DeviceFacts;
use crate::{Device, Provider};
use ort::AsPointer;
use std::ffi::{CStr, c_char};

/// What is known about device `device` of a plug-in.
pub(super) fn facts(device: Device, described: &ort::device::Device<'_>) -> DeviceFacts {
    let name = value(described, c"FULL_DEVICE_NAME").unwrap_or_else(|| hardware_name(described));
    let architecture = value(described, c"DEVICE_ARCHITECTURE").unwrap_or_default();
    DeviceFacts {
        device,
        name: if device.provider() == Provider::WebGpu { webgpu_name(&name, described) } else { name },
        architecture,
        memory: None,
        version: value(described, c"version"),
    }
}

/// The kind and the vendor of the hardware: plug-ins need not name it.
fn hardware_name(described: &ort::device::Device<'_>) -> String {
    let hardware = described.hardware_device();
    let vendor = hardware.vendor().unwrap_or_default();
    format!("{vendor} {:?}", hardware.ty()).trim().to_owned()
}

/// A processor that WebGPU offers stands for a software driver.
fn webgpu_name(name: &str, described: &ort::device::Device<'_>) -> String {
    match described.hardware_device().ty() {
        ort::memory::DeviceType::CPU => "software driver".into(),
        _ => name.to_owned(),
    }
}

/// A value of the metadata of a device.
#[expect(unsafe_code, reason = "`ort` has no call for metadata")]
fn value(described: &ort::device::Device<'_>, key: &CStr) -> Option<String> {
    let api = ort::api();
    // SAFETY: the device lives for the call. Its metadata and the values in it belong to the library that offers it,
    // which stays registered; a key that is not there has a null value.
    let text: *const c_char = unsafe {
        let pairs = (api.EpDevice_EpMetadata)(described.ptr());
        if pairs.is_null() {
            return None;
        }
        (api.GetKeyValue)(pairs, key.as_ptr())
    };
    if text.is_null() {
        return None;
    }
    // SAFETY: values are NUL-terminated.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
