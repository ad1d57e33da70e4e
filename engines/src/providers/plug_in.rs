//! Providers that are plug-ins: a library that is registered with ONNX Runtime and offers devices.

use super::{Access, DeviceFacts, Found, Machine, TEXT_PROFILE, metadata, preload};
use crate::error::ProviderError;
use crate::{CpuNodes, Device, Error, OnnxRuntime, OpenOptions, Provider, ort_error};
use bundle::variant::Precision;
use ort::session::builder::SessionBuilder;
use std::num::NonZeroUsize;

/// A plug-in.
#[derive(Debug)]
pub(super) struct PlugIn {
    provider: Provider,
    /// The name that it is registered under.
    name: &'static str,
    /// Its file.
    library: &'static str,
    /// Libraries of its folder that are loaded first, in this order.
    preloads: &'static [&'static str],
}

/// OpenVINO. Its library finds the others of its folder itself.
pub(super) static OPENVINO: PlugIn = PlugIn {
    provider: Provider::OpenVino,
    name: "openvino",
    library: "libonnxruntime_providers_openvino_plugin.so",
    preloads: &[],
};

/// WebGPU.
pub(super) static WEBGPU: PlugIn = PlugIn {
    provider: Provider::WebGpu,
    name: "webgpu",
    library: "libonnxruntime_providers_webgpu.so",
    preloads: &[],
};

/// TensorRT for RTX.
pub(super) static TENSORRT_RTX: PlugIn = PlugIn {
    provider: Provider::TensorRtRtx,
    name: "tensorrt-rtx",
    library: "libonnxruntime_providers_nv_tensorrt_rtx.so",
    preloads: &["libcudart.so.13", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"],
};

impl Access for PlugIn {
    fn find(&self, machine: &Machine) -> Result<Found, ProviderError> {
        if self.provider == Provider::OpenVino && !machine.is_intel() {
            return Err(ProviderError::NotIntel);
        }
        if self.provider.is_of_nvidia() {
            machine.driver(self.provider)?;
        }
        let library = machine.library(self.provider, self.library)?;
        let preloads = self.preloads.iter().map(|name| machine.dependency(self.provider, name));
        Ok(Found { preloads: preloads.collect::<Result<_, _>>()?, library })
    }

    fn register(&self, runtime: &OnnxRuntime, found: &Found) -> Result<(), ProviderError> {
        let machine = runtime.machine();
        preload(self.provider, &machine, found)?;
        runtime.register(self.name, &found.library).map_err(|why| {
            machine.explain(self.provider, &why).unwrap_or_else(|| ProviderError::NotLoaded {
                provider: self.provider,
                library: found.library.clone(),
                why,
            })
        })
    }

    fn devices(&self, runtime: &OnnxRuntime) -> Result<Vec<DeviceFacts>, ProviderError> {
        let facts = runtime.with_devices_of(self.provider, |index, device| {
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            Some(metadata::facts(Device::try_new(self.provider, number).ok()?, device))
        });
        Ok(facts.into_iter().flatten().collect())
    }

    fn append(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
    ) -> Result<SessionBuilder, Error> {
        let failed = |error: ort::Error| ProviderError::Refused {
            device: options.device,
            why: ort_error::text(&error),
        };
        let settings = self.settings(options);
        let index = usize::try_from(options.device.index()).unwrap_or(usize::MAX);
        let builder = match runtime.with_device(self.provider, index, |device| {
            builder.with_devices([device], Some(&settings)).map_err(ort::Error::from)
        }) {
            Some(builder) => builder.map_err(failed)?,
            None => return Err(ProviderError::NoDevice { device: options.device, found: Vec::new() }.into()),
        };
        // The nodes that WebGPU leaves to the CPU are looked at once the session is open.
        let is_strict = self.provider != Provider::WebGpu && options.cpu_nodes != CpuNodes::All;
        if !is_strict {
            return Ok(builder);
        }
        Ok(builder.with_disable_cpu_fallback().map_err(|error| failed(error.into()))?)
    }
}

impl PlugIn {
    /// The options of the provider for a session, as ONNX Runtime names them.
    fn settings(&self, options: &OpenOptions) -> Vec<(String, String)> {
        match self.provider {
            Provider::OpenVino => {
                // Its other options are accepted and ignored.
                let hint = match options.precision {
                    Precision::Bf16 => "bf16",
                    Precision::F16 => "f16",
                    Precision::F32 | Precision::Int8 | Precision::Fp8 | Precision::Int8Weights => "f32",
                };
                let threads = options.threads.or_else(|| std::thread::available_parallelism().ok());
                let threads = threads.unwrap_or(NonZeroUsize::MIN);
                let config = format!(
                    r#"{{"CPU":{{"INFERENCE_PRECISION_HINT":"{hint}","INFERENCE_NUM_THREADS":"{threads}"}}}}"#
                );
                vec![(format!("{}.load_config", self.provider.onnx_name()), config)]
            }
            // In the layout that it prefers, convolutions from 6, 9, 15, 18, … channels to 4, 8, 12, … are silently
            // wrong: from a multiple of 3 that is none of 4, to a multiple of 4 (plug-in 0.4.0).
            Provider::WebGpu => {
                vec![(format!("{}.preferredLayout", self.provider.onnx_name()), "NCHW".to_owned())]
            }
            Provider::TensorRtRtx if options.shape.is_none() => {
                let name = self.provider.onnx_name();
                TEXT_PROFILE.map(|(key, shape)| (format!("{name}.nv_{key}"), shape.to_owned())).into()
            }
            _ => Vec::new(),
        }
    }
}
