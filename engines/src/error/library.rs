//! Errors of loading ONNX Runtime.

use super::list;
use crate::library::{OLDEST_VERSION, Origin};
use bundle::{Diagnose, Field, Report};
use std::path::PathBuf;

/// The reason why ONNX Runtime cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// It is in none of the searched locations.
    NotFound {
        /// Every searched file, in order. A bare name is a request to the system's loader.
        tried: Vec<PathBuf>,
    },
    /// The given path does not exist, or is a folder without the library.
    Absent {
        /// The source of the path.
        origin: Origin,
        /// The path.
        path: PathBuf,
    },
    /// The system's loader refuses the file.
    Unloadable {
        /// The file.
        path: PathBuf,
        /// The loader's message.
        why: String,
    },
    /// The file is a different library.
    NotOnnxRuntime {
        /// The file.
        path: PathBuf,
    },
    /// The library is older than required.
    TooOld {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// The process has already loaded another library.
    AnotherIsLoaded {
        /// The loaded library.
        loaded: PathBuf,
        /// The requested library.
        asked: PathBuf,
    },
    /// The library is loaded but does not start.
    DoesNotStart {
        /// The library's message.
        why: String,
    },
    /// The library offers no device of its CPU provider.
    NoCpuDevice {
        /// The providers of the devices that it offers.
        found: Vec<String>,
    },
    /// The library offers several devices as those of its CPU provider.
    SeveralCpuDevices {
        /// Their number.
        count: usize,
    },
}

impl Diagnose for LibraryError {
    fn report(&self) -> Report {
        const GET_IT: &str = "get it with `make setup` in the checkout, or name the file with `onnx_runtime`";
        match self {
            Self::NotFound { tried } => Report::missing(
                "ONNX Runtime was not found",
                format!("looked for {}", list(tried.iter().map(|path| path.display().to_string()))),
                GET_IT,
            ),
            Self::Absent { origin, path } => Report::missing(
                format!("ONNX Runtime is not at {}", path.display()),
                format!("{origin} names that path, and it has no libonnxruntime.so"),
                GET_IT,
            )
            .about(Field::OnnxRuntime),
            Self::Unloadable { path, why } => Report::missing(
                format!("{} cannot be loaded", path.display()),
                why.clone(),
                "use a build of ONNX Runtime for this machine: `make setup` in the checkout gets one",
            ),
            Self::NotOnnxRuntime { path } => Report::missing(
                format!("{} is not ONNX Runtime", path.display()),
                "it is a library without the function OrtGetApiBase",
                GET_IT,
            ),
            Self::TooOld { path, found } => Report::missing(
                format!("ONNX Runtime at {} is too old", path.display()),
                format!("it is version {found}, and {OLDEST_VERSION} or newer is needed"),
                GET_IT,
            ),
            Self::AnotherIsLoaded { loaded, asked } => Report::bad_input(
                format!("ONNX Runtime cannot be loaded from {}", asked.display()),
                format!("this process has loaded {} already", loaded.display()),
                "use one library per process",
            ),
            Self::DoesNotStart { why } => Report::missing(
                "ONNX Runtime does not start",
                why.clone(),
                "use the version that `make setup` in the checkout gets",
            ),
            Self::NoCpuDevice { found } => Report::missing(
                "ONNX Runtime offers no CPU device",
                format!("CPUExecutionProvider is not among the providers of its devices: {}", list(found)),
                "use the ONNX Runtime that `make setup` in the checkout gets, and name its file with `onnx_runtime`",
            ),
            Self::SeveralCpuDevices { count } => Report::missing(
                "ONNX Runtime offers more than one CPU device",
                format!("{count} devices are named CPUExecutionProvider, and a graph runs on one"),
                "remove plug-ins that use this name, and use the ONNX Runtime that `make setup` in the checkout gets",
            ),
        }
    }
}

bundle::display_as_report!(LibraryError);
