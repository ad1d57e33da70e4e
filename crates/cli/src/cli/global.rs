//! The options that every command accepts.

use super::interrupt::Interrupts;
use super::render;
use crate::{Error, mini};
use bundle::stop::Stop;
use clap::Args;
use engines::OnnxRuntime;
use kernels::{CpuPath, Kernels};
use std::path::{Path, PathBuf};

/// The options that every command accepts.
#[derive(Debug, Clone, Args)]
pub(super) struct GlobalArgs {
    /// Load this ONNX Runtime library [default: that of ORT_DYLIB_PATH, of the program's folder or of the system]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) onnxruntime: Option<PathBuf>,
    /// Keep generated files, such as the bundle of the embedded model, in this folder [default: rushes in the
    /// user's cache folder]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) cache_dir: Option<PathBuf>,
    /// Print results and errors as JSON lines on standard output, or on standard error if the clip is written to
    /// standard output
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,
    /// Instructions of the Rushes kernels: amx, avx512-vnni, vnni-256, avx2 or scalar [default: the fastest of
    /// this processor]
    #[arg(long, global = true, value_name = "NAME", value_parser = cpu_path, help_heading = "Global options")]
    pub(super) cpu_path: Option<CpuPath>,
    /// Signals that ask the program to end.
    #[arg(skip)]
    pub(super) interrupts: Interrupts,
}

fn cpu_path(name: &str) -> Result<CpuPath, Error> {
    let path = name.parse::<CpuPath>();
    path.map_err(|error| refused_path(name, &error))
}

fn refused_path(name: &str, error: &kernels::PathError) -> Error {
    let fix = "leave it out for the fastest path of this machine; `rushes doctor` names it";
    Error::argument("--cpu-path", format!("`{name}`"), error.to_string(), fix)
}

impl GlobalArgs {
    /// Loads ONNX Runtime, with the Rushes kernels of the selected path.
    ///
    /// # Errors
    /// Returns an error if there is no library, or if this processor lacks the path.
    pub(super) fn onnx_runtime(&self) -> Result<OnnxRuntime, Error> {
        let kernels = self.kernels()?;
        Ok(OnnxRuntime::load(self.onnxruntime.as_deref())?.with_kernels(kernels))
    }

    /// The folder `given`, or that of the embedded model's bundle.
    ///
    /// # Errors
    /// See [`mini::prepare`].
    pub(super) fn bundle_or_mini(&self, given: Option<&Path>, stop: &Stop) -> Result<PathBuf, Error> {
        match given {
            Some(folder) => Ok(folder.to_owned()),
            None => mini::prepare(self.cache_dir.as_deref(), stop, &mut |event| {
                if !self.json {
                    render::note(&event.to_string());
                }
            }),
        }
    }

    /// The Rushes kernels of the selected path.
    ///
    /// # Errors
    /// Returns an error if this processor lacks the path.
    pub(super) fn kernels(&self) -> Result<Kernels, Error> {
        let Some(path) = self.cpu_path else { return Ok(Kernels::best()) };
        Kernels::of(path).map_err(|error| refused_path(path.name(), &error))
    }
}
