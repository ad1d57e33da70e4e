//! Providers of the GPU build of ONNX Runtime: CUDA and TensorRT.

use super::{Access, DeviceFacts, Found, Machine, TEXT_PROFILE, preload};
use crate::compiled::EngineStore;
use crate::error::ProviderError;
use crate::{Device, Error, OnnxRuntime, OpenOptions, Provider, ort_error};
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider, ArenaExtendStrategy};
use ort::session::builder::SessionBuilder;
use std::path::Path;

/// A provider of the GPU build.
#[derive(Debug)]
pub(super) struct BuiltIn {
    provider: Provider,
    /// Its file.
    library: &'static str,
    /// Libraries that are loaded first, in this order.
    preloads: &'static [&'static str],
}

/// Libraries that CUDA's provider loads by name when an operator first needs them. Only a library that is loaded already
/// is found in the folder of the provider.
const ON_DEMAND: [&str; 2] = ["libnvrtc.so.13", "libcufft.so.12"];

/// The library with the memory of CUDA's devices, which TensorRT computes in too.
const MEMORY: &str = "libonnxruntime_providers_cuda.so";

/// CUDA.
pub(super) static CUDA: BuiltIn = BuiltIn {
    provider: Provider::Cuda,
    library: MEMORY,
    preloads: &[
        "libcudart.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcurand.so.10",
        "libcudnn.so.9",
    ],
};

/// TensorRT.
pub(super) static TENSORRT: BuiltIn = BuiltIn {
    provider: Provider::TensorRt,
    library: "libonnxruntime_providers_tensorrt.so",
    preloads: &[
        "libcudart.so.13",
        "libcublasLt.so.13",
        "libcublas.so.13",
        "libcudnn.so.9",
        "libnvinfer.so.10",
        "libnvonnxparser.so.10",
    ],
};

impl Access for BuiltIn {
    fn find(&self, machine: &Machine) -> Result<Found, ProviderError> {
        machine.driver(self.provider)?;
        let library = match &machine.onnx_runtime {
            // ONNX Runtime loads its providers from its own folder.
            Some(folder) => {
                Some(folder.join(self.library)).filter(|file| file.is_file()).ok_or_else(|| {
                    ProviderError::NotInBuild { provider: self.provider, folder: Some(folder.clone()) }
                })?
            }
            None => machine.library(self.provider, self.library)?,
        };
        let preloads = self.preloads.iter().map(|name| machine.dependency(self.provider, name));
        let mut preloads: Vec<_> = preloads.collect::<Result<_, _>>()?;
        preloads.extend(ON_DEMAND.iter().filter_map(|name| machine.dependency(self.provider, name).ok()));
        Ok(Found { preloads, library })
    }

    /// Loads the libraries, and registers that of CUDA as a plug-in: as such it offers allocators and copies for the
    /// memory of its devices, which a built-in provider does not. Sessions use the built-in one all the same. No test
    /// runs this, because it needs an NVIDIA GPU.
    fn register(&self, runtime: &OnnxRuntime, found: &Found) -> Result<(), ProviderError> {
        if !runtime.providers().iter().any(|name| name == self.provider.onnx_name()) {
            let folder = runtime.path().parent().map(Path::to_owned);
            return Err(ProviderError::NotInBuild { provider: self.provider, folder });
        }
        preload(self.provider, &runtime.machine(), found)?;
        let is_registered = !runtime.with_devices_of(Provider::Cuda, |_, _| ()).is_empty();
        if is_registered {
            return Ok(());
        }
        let memory = found.library.with_file_name(MEMORY);
        runtime.register(Provider::Cuda.name(), &memory).map_err(|why| ProviderError::NotLoaded {
            provider: self.provider,
            library: memory.clone(),
            why,
        })
    }

    fn devices(&self, runtime: &OnnxRuntime) -> Result<Vec<DeviceFacts>, ProviderError> {
        let machine = runtime.machine();
        let facts = machine.driver(self.provider)?.devices.iter().zip(0..).filter_map(|(found, index)| {
            Some(DeviceFacts {
                device: Device::try_new(self.provider, index).ok()?,
                name: found.name.clone(),
                architecture: format!("sm{}{}", found.capability.0, found.capability.1),
                memory: Some(found.memory),
                version: Some(runtime.version().to_owned()),
            })
        });
        Ok(facts.collect())
    }

    fn append(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
    ) -> Result<SessionBuilder, Error> {
        self.append_with(runtime, builder, options, &[])
    }

    fn append_compiling(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
        engine: &Path,
    ) -> Result<SessionBuilder, Error> {
        let timing = runtime.engines().map(EngineStore::timing_folder);
        self.append_with(runtime, builder, options, &compiling_options(options, engine, timing.as_deref()))
    }
}

/// The options of TensorRT for a session that compiles its graph and writes the engine. Its path is relative to the file
/// `engine`, so the folder may be moved. `timing` is where TensorRT keeps what it has measured, for all engines.
fn compiling_options(options: &OpenOptions, engine: &Path, timing: Option<&Path>) -> Vec<(String, String)> {
    let on = |key: &str| (key.to_owned(), "1".to_owned());
    let path = |key: &str, path: &Path| (key.to_owned(), path.display().to_string());
    let mut found = vec![
        on("trt_engine_cache_enable"),
        on("trt_dump_ep_context_model"),
        path("trt_ep_context_file_path", engine),
        ("trt_ep_context_embed_mode".to_owned(), "0".to_owned()),
    ];
    if let Some(timing) = timing {
        found.extend([on("trt_timing_cache_enable"), path("trt_timing_cache_path", timing)]);
    }
    if options.shape.is_none() {
        found.extend(TEXT_PROFILE.map(|(key, shape)| (format!("trt_{key}"), shape.to_owned())));
    }
    found
}

impl BuiltIn {
    fn append_with(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
        extra: &[(String, String)],
    ) -> Result<SessionBuilder, Error> {
        let index = i32::try_from(options.device.index()).unwrap_or(i32::MAX);
        let provider = match self.provider {
            Provider::TensorRt => {
                let provider = ep::TensorRT::default()
                    .with_device_id(index)
                    .with_arbitrary_config("trt_load_user_initializer", "1");
                let provider = extra
                    .iter()
                    .fold(provider, |provider, (key, value)| provider.with_arbitrary_config(key, value));
                provider.build()
            }
            // Products in f32 would be in TF32 otherwise, which has the precision of f16. The pool would double with
            // each extension otherwise.
            _ => ep::CUDA::default()
                .with_device_id(index)
                .with_tf32(false)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .build(),
        };
        Ok(with_provider(builder, provider.error_on_failure()).map_err(|error| {
            let explained = runtime.machine().explain(self.provider, error.message());
            explained.unwrap_or_else(|| ProviderError::Refused {
                device: options.device,
                why: ort_error::text(&error),
            })
        })?)
    }
}

fn with_provider(
    builder: SessionBuilder,
    provider: ep::ExecutionProviderDispatch,
) -> ort::Result<SessionBuilder> {
    // Weights are as large as they are, and stay: the pool would round them up.
    let builder = builder.with_config_entry("session.use_device_allocator_for_initializers", "1")?;
    Ok(builder.with_execution_providers([provider])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineShape, WeightMemory};

    #[test]
    fn engines_of_tensorrt_are_written_beside_their_graph_and_share_the_timing_cache() {
        let engine = Path::new("engines/tensorrt-1.part/whole/engine.onnx");
        let text = OpenOptions::cpu(None, WeightMemory::Mapped);
        let found = compiling_options(&text, engine, Some(Path::new("engines/timing")));
        let lines: Vec<String> = found.iter().map(|(key, value)| format!("{key}={value}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        trt_engine_cache_enable=1
        trt_dump_ep_context_model=1
        trt_ep_context_file_path=engines/tensorrt-1.part/whole/engine.onnx
        trt_ep_context_embed_mode=0
        trt_timing_cache_enable=1
        trt_timing_cache_path=engines/timing
        trt_profile_min_shapes=ids:1x1
        trt_profile_opt_shapes=ids:1x64
        trt_profile_max_shapes=ids:1x512
        ");
        let shape = EngineShape { frames: 5, height: 60, width: 104, batch: 1 };
        let step = OpenOptions { shape: Some(shape), ..text };
        assert_eq!(compiling_options(&step, engine, None), found[..4]);
    }
}
