//! The options that every command accepts.

use super::interrupt::Interrupts;
use super::render;
use crate::Error;
use crate::mini::{self, MiniForm};
use bundle::Field;
use bundle::stop::Stop;
use clap::Args;
use engines::compiled::EngineStore;
use engines::providers::{Machine, ProviderFolders};
use engines::{Device, LoadRequest, OnnxRuntime};
use kernels::{CpuPath, Kernels};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The options that every command accepts.
#[derive(Debug, Clone, Args)]
pub(super) struct GlobalArgs {
    /// Load this ONNX Runtime library [default: that of ORT_DYLIB_PATH, of the program's folder or of the system]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) onnxruntime: Option<PathBuf>,
    /// Search this folder for the libraries of execution providers, each in a folder with its name [default: providers
    /// beside the program, rushes/providers in its lib folder, and the target folder of a checkout]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) providers: Option<PathBuf>,
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
    /// Loads ONNX Runtime for graphs on the CPU, with the Rushes kernels of the selected path.
    ///
    /// # Errors
    /// Returns an error if there is no library, or if this processor lacks the path.
    pub(super) fn onnx_runtime(&self) -> Result<OnnxRuntime, Error> {
        self.onnx_runtime_for([])
    }

    /// Where compiled engines are kept; `None` if the user has no cache folder. Notices are printed to standard error.
    fn engines(&self) -> Option<EngineStore> {
        let folder = mini::cache_folder(self.cache_dir.as_deref())?.join("engines");
        let as_json = self.json;
        Some(EngineStore::new(folder).with_notices(move |notice| {
            if as_json {
                let (state, message) = (notice.name(), notice.to_string());
                render::line_on_stderr(&json!({"event": "engine", "state": state, "message": message}));
            } else {
                render::note(&notice.to_string());
            }
        }))
    }

    /// The arguments that these were parsed from, without `--json`.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let mut found: Vec<OsString> = Vec::new();
        for (flag, path) in [
            ("--onnxruntime", &self.onnxruntime),
            ("--providers", &self.providers),
            ("--cache-dir", &self.cache_dir),
        ] {
            if let Some(path) = path {
                found.extend([flag.into(), path.clone().into_os_string()]);
            }
        }
        if let Some(path) = self.cpu_path {
            found.extend(["--cpu-path".into(), path.name().into()]);
        }
        found
    }

    /// Loads ONNX Runtime for graphs on `devices`, with the Rushes kernels of the selected path.
    ///
    /// # Errors
    /// Returns an error if there is no library, or if this processor lacks the path.
    pub(super) fn onnx_runtime_for(
        &self,
        devices: impl IntoIterator<Item = Device>,
    ) -> Result<OnnxRuntime, Error> {
        let kernels = self.kernels()?;
        let onnx = OnnxRuntime::load_with(&self.load_request().with_devices(devices))?.with_kernels(kernels);
        Ok(match self.engines() {
            Some(store) => onnx.with_engines(store),
            None => onnx,
        })
    }

    /// Which ONNX Runtime is loaded, and where providers are searched.
    pub(super) fn load_request(&self) -> LoadRequest {
        let request = LoadRequest::new(self.onnxruntime.as_deref());
        match &self.providers {
            // The loader is given absolute paths, which do not depend on the working folder.
            Some(folder) => {
                let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
                LoadRequest { folders: ProviderFolders(vec![folder]), ..request }
            }
            None => request,
        }
    }

    /// What decides which devices can be used.
    pub(super) fn machine(&self) -> Machine {
        self.load_request().machine()
    }

    /// Checks the values that depend on the machine.
    ///
    /// # Errors
    /// Returns an error if the folder of the providers is not one.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.providers {
            Some(folder) if !folder.is_dir() => Err(bundle::Error::value(
                Field::ProviderFolder,
                format!("`{}`", folder.display()),
                "it is not a folder",
                "name a folder with a folder for each provider, such as openvino",
            )
            .into()),
            _ => Ok(()),
        }
    }

    /// The folder `given`, or that of the embedded model's bundle in the form that is needed.
    ///
    /// # Errors
    /// Those of `form`; see [`mini::prepare`].
    pub(super) fn bundle_or_mini(
        &self,
        given: Option<&Path>,
        form: impl FnOnce() -> Result<MiniForm, Error>,
        stop: &Stop,
    ) -> Result<PathBuf, Error> {
        match given {
            Some(folder) => Ok(folder.to_owned()),
            None => mini::prepare(self.cache_dir.as_deref(), &form()?, stop, &mut |event| {
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
