//! Execution providers of accelerators: what each needs on this machine, and how it is added to a session.
//!
//! There are two ways to a provider. A *plug-in* is a library that is registered with ONNX Runtime and then offers
//! devices (`plug_in`). A *built-in* provider is part of the GPU build of ONNX Runtime (`built_in`). Both are behind
//! `Access`.

mod best;
mod built_in;
mod metadata;
mod plug_in;
mod ready;

pub use crate::machine::{CudaDevice, CudaDriver, DeviceFacts, DriverProblem, Machine, ProviderFolders};
pub use best::best_device;

use crate::error::ProviderError;
use crate::{Device, Error, OnnxRuntime, OpenOptions, Provider};
use ort::session::builder::SessionBuilder;
use std::path::{Path, PathBuf};

/// How a provider is reached.
pub(crate) trait Access: std::fmt::Debug + Sync {
    /// Looks for everything that the provider needs on this machine, without ONNX Runtime. Loads no provider.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    fn find(&self, machine: &Machine) -> Result<Found, ProviderError>;

    /// Makes the provider known to ONNX Runtime. Called once in a process, if it succeeds.
    ///
    /// # Errors
    /// A library cannot be loaded.
    fn register(&self, runtime: &OnnxRuntime, found: &Found) -> Result<(), ProviderError>;

    /// The devices that the provider has, in the order of their indices. It is registered.
    ///
    /// # Errors
    /// They cannot be listed.
    fn devices(&self, runtime: &OnnxRuntime) -> Result<Vec<DeviceFacts>, ProviderError>;

    /// Adds a device of the provider to the options of a session. It is registered, and has the device.
    ///
    /// # Errors
    /// ONNX Runtime refuses the device or its options.
    fn append(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
    ) -> Result<SessionBuilder, Error>;

    /// As [`Self::append`], for a session that compiles its graph and writes the engine to the file `engine`.
    ///
    /// # Errors
    /// As [`Self::append`].
    fn append_compiling(
        &self,
        runtime: &OnnxRuntime,
        builder: SessionBuilder,
        options: &OpenOptions,
        engine: &Path,
    ) -> Result<SessionBuilder, Error> {
        let _ = engine;
        self.append(runtime, builder, options)
    }
}

/// The files of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Libraries that are loaded before the provider, in order.
    pub preloads: Vec<PathBuf>,
    /// The library of the provider.
    pub library: PathBuf,
}

/// Loads the libraries that are loaded before a provider.
fn preload(provider: Provider, machine: &Machine, found: &Found) -> Result<(), ProviderError> {
    found.preloads.iter().try_for_each(|path| {
        ort::util::preload_dylib(path).map_err(|error| {
            let why =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            machine.explain(provider, &why).unwrap_or_else(|| ProviderError::NotLoaded {
                provider,
                library: path.clone(),
                why,
            })
        })
    })
}

/// The shapes of the prompt's token ids that engines of a text encoder run, as TensorRT's options name them: smallest,
/// best and largest. They are for graphs without a shape of the clip.
const TEXT_PROFILE: [(&str, &str); 3] = [
    ("profile_min_shapes", "ids:1x1"),
    ("profile_opt_shapes", "ids:1x64"),
    ("profile_max_shapes", "ids:1x512"),
];

/// The way to a provider; `None` for the CPU, which needs nothing.
pub(crate) fn access(provider: Provider) -> Option<&'static dyn Access> {
    match provider {
        Provider::Cpu => None,
        Provider::Cuda => Some(&built_in::CUDA),
        Provider::TensorRt => Some(&built_in::TENSORRT),
        Provider::TensorRtRtx => Some(&plug_in::TENSORRT_RTX),
        Provider::OpenVino => Some(&plug_in::OPENVINO),
        Provider::WebGpu => Some(&plug_in::WEBGPU),
    }
}

/// Looks whether a device may be used on this machine, without ONNX Runtime.
///
/// # Errors
/// What is missing, and how to get it; or the provider does not have or not support the device.
pub fn check(device: Device, machine: &Machine) -> Result<(), Error> {
    let provider = device.provider();
    let Some(access) = access(provider) else { return Ok(()) };
    if provider.is_of_nvidia() {
        let found = machine.cuda_device(device)?;
        if provider == Provider::TensorRtRtx && !is_for_rtx(found.capability) {
            return Err(ProviderError::Capability {
                device,
                name: found.name.clone(),
                found: found.capability,
                supported: "8.6, 8.9, and 12.0 or newer",
            }
            .into());
        }
    }
    Ok(access.find(machine).map(drop)?)
}

/// The compute capabilities that the plug-in of TensorRT for RTX accepts, in its own words: 8.6, 8.9, and 12.0 or newer.
fn is_for_rtx(capability: (u32, u32)) -> bool {
    matches!(capability, (8, 6 | 9)) || capability >= (12, 0)
}
