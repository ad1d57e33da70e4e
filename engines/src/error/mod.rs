//! Errors of loading ONNX Runtime, opening graphs and running them.

mod graph;
mod library;
mod provider;
mod tensor;

pub use graph::GraphError;
pub use library::LibraryError;
pub use provider::ProviderError;
pub use tensor::TensorError;

use crate::{Device, PlacementRequest};
use bundle::units::ByteCount;
use bundle::{Diagnose, ErrorClass, Report};

/// An error of loading ONNX Runtime, opening or running a graph, or planning memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ONNX Runtime cannot be loaded.
    Library(#[from] LibraryError),
    /// A graph cannot be opened.
    Graph(#[from] GraphError),
    /// The interface of a graph differs from the expected signature.
    Contract(#[from] bundle::Error),
    /// The tensors of a run do not match its graph.
    Tensor(#[from] TensorError),
    /// A device cannot be used.
    Provider(#[from] ProviderError),
    /// ONNX Runtime refuses the inputs of a run.
    RunRefused {
        /// The graph.
        graph: String,
        /// ONNX Runtime's message.
        why: String,
    },
    /// An operator failed.
    RunFailed {
        /// The graph.
        graph: String,
        /// ONNX Runtime's message.
        why: String,
    },
    /// An allocation failed.
    OutOfMemory {
        /// The graph.
        graph: String,
        /// The device whose memory is short. A graph on another device may also run out of the memory of the CPU.
        device: Device,
        /// Size of the failed allocation, if known.
        requested: Option<ByteCount>,
    },
    /// A session does not fit the memory budget of its device.
    NoRoom {
        /// The component.
        component: String,
        /// The device.
        device: Device,
        /// What the session needs.
        needed: ByteCount,
        /// The memory that may be used.
        budget: ByteCount,
        /// What other sessions use.
        charged: ByteCount,
        /// The part of it that belongs to results of closed sessions.
        held: ByteCount,
    },
    /// A thread asks for a session while it has one.
    SecondLease {
        /// The component.
        component: String,
    },
    /// The run was cancelled.
    Cancelled {
        /// The graph.
        graph: String,
    },
    /// The plan needs more memory of a device than its budget.
    DoesNotFit {
        /// The device.
        device: Device,
        /// The predicted peak.
        needed: ByteCount,
        /// The memory that may be used.
        budget: ByteCount,
        /// The largest parts of the peak, in descending order.
        largest: Vec<(String, ByteCount)>,
        /// A change that would make it fit.
        remedy: Remedy,
    },
}

/// A change that would make a plan fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Keep one component in memory at a time, with this peak.
    OneAtATime(ByteCount),
    /// Place a component on another device, which has room for it.
    Place(PlacementRequest),
    /// A smaller frame size or fewer frames: the weights fit, the activations do not.
    SmallerClip,
    /// More memory: the weights of a single component are too large for the device.
    MoreMemory,
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Library(error) => error.report(),
            Self::Graph(error) => error.report(),
            Self::Contract(error) => error.report(),
            Self::Tensor(error) => error.report(),
            Self::Provider(error) => error.report(),
            Self::RunRefused { graph, why } => {
                Report::bug(format!("ONNX Runtime refuses the inputs of the graph {graph}"), why.clone())
            }
            Self::RunFailed { graph, why } => Report::failed(
                format!("the graph {graph} failed while running"),
                why.clone(),
                "check the bundle with `rushes inspect` and `verify`; if it is whole, report this message with the model and \
                 the size of the clip",
            ),
            Self::OutOfMemory { graph, device, requested } => Report::new(
                ErrorClass::DoesNotFit,
                format!("the graph {graph} ran out of memory on {device}"),
                requested
                    .map_or("an allocation failed".into(), |bytes| format!("{bytes} could not be allocated")),
                format!(
                    "use a smaller `size`, fewer `frames` or `residency` one, or end other programs{}",
                    if *device == Device::CPU { String::new() } else { format!(" that use {device}") }
                ),
            ),
            Self::NoRoom { component, device, needed, budget, charged, held } => Report::new(
                ErrorClass::DoesNotFit,
                format!("{component} needs {needed} on {device}, and {budget} may be used"),
                match (charged.0, held.0) {
                    (0, _) => "nothing else is open there".into(),
                    (_, 0) => format!("{charged} are in use by what cannot be closed"),
                    _ => format!("{charged} are in use, {held} of them by results that are not written yet"),
                },
                "use a smaller `size` or fewer `frames`, or raise `memory_budget`",
            ),
            Self::SecondLease { component } => Report::bug(
                format!("{component} cannot be used"),
                "the thread has another session, and may have one at a time",
            ),
            Self::Cancelled { graph } => Report::new(
                ErrorClass::Interrupted,
                format!("the run of {graph} was stopped"),
                "it was cancelled",
                "run the command again",
            ),
            Self::DoesNotFit { device, needed, budget, largest, remedy } => Report::new(
                ErrorClass::DoesNotFit,
                format!("{needed} are needed on {device} and {budget} may be used"),
                format!(
                    "the largest parts are {}",
                    list(largest.iter().map(|(name, bytes)| format!("{name} {bytes}")))
                ),
                match remedy {
                    Remedy::OneAtATime(peak) => format!("use `residency` one, which needs {peak}"),
                    Remedy::Place(request) => format!("use `place` {request}, where it fits"),
                    Remedy::SmallerClip => {
                        "use a smaller `size` or fewer `frames`, or raise `memory_budget`".into()
                    }
                    Remedy::MoreMemory => {
                        "raise `memory_budget` if the device has more, or use a smaller model".into()
                    }
                },
            ),
        }
    }
}

bundle::display_as_report!(Error);

/// Joins items with commas.
fn list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.as_ref().to_owned()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}
