//! Errors of execution providers and their devices.

use super::list;
use crate::machine::DriverProblem;
use crate::{Device, Provider};
use bundle::{Diagnose, Field, Report};
use std::path::PathBuf;

/// The reason why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The provider does not have the device.
    NoDevice {
        /// The device.
        device: Device,
        /// Those that it has.
        found: Vec<Device>,
    },
    /// There is no NVIDIA driver, or it cannot be used.
    NoDriver {
        /// The provider.
        provider: Provider,
        /// Why.
        problem: DriverProblem,
    },
    /// The NVIDIA driver does not support the version of CUDA that the libraries of the provider are for.
    DriverTooOld {
        /// The provider.
        provider: Provider,
        /// The newest version that it supports.
        found: (u32, u32),
        /// The version that is needed.
        needed: (u32, u32),
    },
    /// The provider does not support the device.
    Capability {
        /// The device.
        device: Device,
        /// Its name.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
        /// The supported ones.
        supported: &'static str,
    },
    /// The provider is not in this build of ONNX Runtime.
    NotInBuild {
        /// The provider.
        provider: Provider,
        /// The folder of ONNX Runtime, if it is known.
        folder: Option<PathBuf>,
    },
    /// The processor is not supported by OpenVINO's plug-in.
    NotIntel,
    /// A library is not there.
    NoLibrary {
        /// The provider.
        provider: Provider,
        /// Its name.
        library: String,
        /// The folders that were searched.
        searched: Vec<PathBuf>,
        /// Whether the folders of the system's loader were searched too.
        and_system: bool,
    },
    /// A library cannot be loaded or registered.
    NotLoaded {
        /// The provider.
        provider: Provider,
        /// Its file.
        library: PathBuf,
        /// The message of the loader or of ONNX Runtime.
        why: String,
    },
    /// ONNX Runtime refuses the device or its options.
    Refused {
        /// The device.
        device: Device,
        /// ONNX Runtime's message.
        why: String,
    },
    /// There is no compiled engine of a graph, and it is not compiled on opening.
    NoEngine {
        /// The graph.
        graph: String,
        /// The device.
        device: Device,
        /// Why the stored engine is not used; `None` if there is none.
        why: Option<String>,
    },
    /// A compiled engine cannot be stored.
    EngineNotStored {
        /// The graph.
        graph: String,
        /// The device.
        device: Device,
        /// The folder of engines.
        folder: PathBuf,
        /// Why.
        why: String,
    },
    /// The device compiles no graphs, or engines cannot be stored.
    NotCompiled {
        /// The graph.
        graph: String,
        /// The device.
        device: Device,
        /// Why.
        why: String,
    },
    /// Nodes of a graph would run on the CPU.
    NodesOnCpu {
        /// The graph.
        graph: String,
        /// The device.
        device: Device,
        /// Operators with the number of their nodes.
        operators: Vec<(String, usize)>,
    },
}

impl ProviderError {
    /// The NVIDIA driver finds no device.
    pub(crate) fn no_nvidia_device(provider: Provider) -> Self {
        Self::NoDriver { provider, problem: DriverProblem::NoDevice }
    }

    /// How to get a library of a provider.
    fn get(provider: Provider, library: &str) -> String {
        if library.starts_with("libnv") && provider == Provider::TensorRt {
            return "install TensorRT 10 for CUDA 13 from NVIDIA, which has libnvinfer.so.10 and \
                    libnvonnxparser.so.10, where the system's loader finds it"
                .into();
        }
        let name = if provider == Provider::TensorRt { Provider::Cuda } else { provider };
        format!("run `scripts/setup.sh {name}` in the checkout")
    }
}

/// What helps against a problem of the NVIDIA driver.
fn driver_fix(problem: &DriverProblem) -> &'static str {
    match problem {
        DriverProblem::Absent { .. } => "install the driver of an NVIDIA GPU, or use `provider` cpu",
        DriverProblem::NoDevice => {
            "run `nvidia-smi`, and give a container access to the GPU when it is started; or use `provider` cpu"
        }
        DriverProblem::Incomplete { .. } | DriverProblem::Failed { .. } => {
            "run `nvidia-smi`, and install the driver again if it fails too; or use `provider` cpu"
        }
    }
}

fn nodes_on_cpu(graph: &str, device: Device, operators: &[(String, usize)]) -> Report {
    Report::missing(
        format!("not all of the graph {graph} can run on {device}"),
        format!(
            "these operators would run on the CPU: {}",
            list(operators.iter().map(|(operator, count)| format!("{count} {operator}")))
        ),
        "allow it with `cpu_nodes`, or `place` the component on cpu",
    )
}

impl Diagnose for ProviderError {
    fn report(&self) -> Report {
        let cannot = |provider: &Provider| format!("{provider} cannot be used");
        let report = match self {
            Self::NoDevice { device, found } if found.is_empty() && device.provider() == Provider::WebGpu => {
                Report::missing(
                    format!("there is no device {device}"),
                    "webgpu finds no GPU",
                    "to compute on a software driver, run `scripts/setup.sh webgpu` in the checkout, and \
                     `source target/providers/webgpu/env.sh` before the program",
                )
            }
            Self::NoDevice { device, found } => Report::missing(
                format!("there is no device {device}"),
                format!("{} offers {}", device.provider(), list(found.iter().map(ToString::to_string))),
                "`rushes doctor` lists the devices of this machine",
            ),
            Self::NoDriver { provider, problem } => {
                Report::missing(cannot(provider), problem.to_string(), driver_fix(problem))
            }
            Self::DriverTooOld { provider, found, needed } => Report::missing(
                cannot(provider),
                format!(
                    "its libraries are for CUDA {}.{}, and the NVIDIA driver supports CUDA {}.{}",
                    needed.0, needed.1, found.0, found.1
                ),
                "install version 580 or newer of the driver, or use `provider` cpu",
            ),
            Self::Capability { device, name, found, supported } => Report::missing(
                format!("{device} cannot be used"),
                format!(
                    "{name} has compute capability {}.{}, and supported are {supported}",
                    found.0, found.1
                ),
                "use `provider` tensorrt or cuda",
            ),
            Self::NotInBuild { provider, folder } => Report::missing(
                cannot(provider),
                match folder {
                    Some(folder) => format!("the ONNX Runtime in {} is a build without it", folder.display()),
                    None => "this ONNX Runtime is a build without it".into(),
                },
                "run `scripts/setup.sh cuda` in the checkout, and leave out `onnx_runtime`",
            ),
            Self::NotIntel => Report::missing(
                cannot(&Provider::OpenVino),
                "its plug-in supports processors of Intel only",
                "use `provider` cpu",
            ),
            Self::NoLibrary { provider, library, searched, and_system } => Report::missing(
                cannot(provider),
                format!(
                    "{library} is in none of {}{}",
                    list(searched.iter().map(|folder| folder.display().to_string())),
                    if *and_system { ", and not where the system's loader looks" } else { "" }
                ),
                Self::get(*provider, library),
            ),
            Self::NotLoaded { provider, library, why } => Report::missing(
                cannot(provider),
                format!("{} cannot be loaded: {why}", library.display()),
                Self::get(*provider, &library.display().to_string()),
            ),
            Self::Refused { device, why } => Report::missing(
                format!("{device} cannot be used"),
                why.clone(),
                "`rushes doctor` says what this machine has",
            ),
            Self::NoEngine { graph, device, why } => Report::missing(
                format!("there is no compiled engine of {graph} for {device}"),
                why.clone().unwrap_or_else(|| {
                    "graphs of this size and for this device are compiled beforehand, not when they are opened".into()
                }),
                "compile it with `rushes build`",
            ),
            Self::EngineNotStored { graph, device, folder, why } => Report::missing(
                format!("the engine of {graph} for {device} cannot be kept in {}", folder.display()),
                why.clone(),
                "check that the folder can be written and has room",
            ),
            Self::NotCompiled { graph, device, why } => Report::bad_input(
                format!("no engine of {graph} can be made for {device}"),
                why.clone(),
                "use a `provider` that compiles graphs: openvino, tensorrt or tensorrt-rtx",
            ),
            Self::NodesOnCpu { graph, device, operators } => nodes_on_cpu(graph, *device, operators),
        };
        report.about(Field::Provider)
    }
}

bundle::display_as_report!(ProviderError);
