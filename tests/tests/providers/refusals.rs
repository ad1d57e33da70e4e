//! What is refused where a provider is there.

use crate::support::with_provider;
use engines::{Device, OnnxRuntime, Provider};

/// Refuses a device beyond those of the provider, with the ones that it has.
fn refuses_further_devices(runtime: &OnnxRuntime, provider: Provider) {
    let devices = runtime.devices_of(provider).unwrap();
    let beyond = Device::try_new(provider, u32::try_from(devices.len()).unwrap()).unwrap();
    let error = runtime.use_provider(beyond).unwrap_err().to_string();
    let last = devices.last().unwrap().device.to_string();
    assert!(error.contains(&format!("there is no device {beyond}")) && error.contains(&last), "{error}");
}

#[test]
fn smoke_devices_that_openvino_does_not_have_are_refused() {
    let Some((runtime, _)) = with_provider("devices beyond OpenVINO's", Provider::OpenVino) else { return };
    refuses_further_devices(&runtime, Provider::OpenVino);
}

#[test]
fn devices_that_webgpu_does_not_have_are_refused() {
    let Some((runtime, _)) = with_provider("devices beyond WebGPU's", Provider::WebGpu) else { return };
    refuses_further_devices(&runtime, Provider::WebGpu);
}

#[test]
fn devices_that_cuda_does_not_have_are_refused() {
    let Some((runtime, _)) = with_provider("devices beyond CUDA's", Provider::Cuda) else { return };
    refuses_further_devices(&runtime, Provider::Cuda);
}

/// Every device has a name, and OpenVINO's facts name its version, which compiled engines depend on.
#[test]
fn smoke_devices_of_openvino_are_described() {
    let Some((runtime, device)) = with_provider("facts of OpenVINO's device", Provider::OpenVino) else {
        return;
    };
    let devices = runtime.devices_of(Provider::OpenVino).unwrap();
    let facts = devices.iter().find(|facts| facts.device == device).unwrap();
    assert!(!facts.name.is_empty(), "{facts:?}");
    assert!(facts.version.as_ref().is_some_and(|version| !version.is_empty()), "{facts:?}");
}
