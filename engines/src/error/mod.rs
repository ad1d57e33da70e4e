//! Errors of loading ONNX Runtime, opening graphs and running them.

mod graph;
mod library;
mod tensor;

pub use graph::GraphError;
pub use library::LibraryError;
pub use tensor::TensorError;

use crate::Provider;
use bundle::units::ByteCount;
use bundle::{Diagnose, ErrorClass, Field, Report};

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
    /// This version cannot run graphs on the provider.
    NoGraphsForProvider {
        /// The provider.
        provider: Provider,
    },
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
        /// Size of the failed allocation, if known.
        requested: Option<ByteCount>,
    },
    /// The run was cancelled.
    Cancelled {
        /// The graph.
        graph: String,
    },
    /// The plan needs more memory than the budget.
    DoesNotFit {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Keep one component in memory at a time, with this peak.
    OneAtATime(ByteCount),
    /// A smaller frame size or fewer frames: the weights fit, the activations do not.
    SmallerClip,
    /// More memory: the weights of a single component are too large.
    MoreMemory,
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Library(error) => error.report(),
            Self::Graph(error) => error.report(),
            Self::Contract(error) => error.report(),
            Self::Tensor(error) => error.report(),
            Self::NoGraphsForProvider { provider } => Report::bad_input(
                format!("{} {provider} cannot be used", Field::Provider),
                "this version runs graphs on the CPU only; graphs for CUDA can only be exported",
                "use `provider` cpu, or leave it out",
            )
            .about(Field::Provider),
            Self::RunRefused { graph, why } => {
                Report::bug(format!("ONNX Runtime refuses the inputs of the graph {graph}"), why.clone())
            }
            Self::RunFailed { graph, why } => Report::failed(
                format!("the graph {graph} failed while running"),
                why.clone(),
                "check the bundle with `rushes inspect` and `verify`; if it is whole, report this message with the model and \
                 the size of the clip",
            ),
            Self::OutOfMemory { graph, requested } => Report::new(
                ErrorClass::DoesNotFit,
                format!("the graph {graph} ran out of memory"),
                requested
                    .map_or("an allocation failed".into(), |bytes| format!("{bytes} could not be allocated")),
                "use a smaller `size`, fewer `frames` or `residency` one, or end other programs",
            ),
            Self::Cancelled { graph } => Report::new(
                ErrorClass::Interrupted,
                format!("the run of {graph} was stopped"),
                "it was cancelled",
                "run the command again",
            ),
            Self::DoesNotFit { needed, budget, largest, remedy } => Report::new(
                ErrorClass::DoesNotFit,
                format!("{needed} are needed and {budget} may be used"),
                format!(
                    "the largest parts are {}",
                    list(largest.iter().map(|(name, bytes)| format!("{name} {bytes}")))
                ),
                match remedy {
                    Remedy::OneAtATime(peak) => format!("use `residency` one, which needs {peak}"),
                    Remedy::SmallerClip => {
                        "use a smaller `size` or fewer `frames`, or raise `memory_budget`".into()
                    }
                    Remedy::MoreMemory => {
                        "raise `memory_budget` if the machine has more, or use a smaller model".into()
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
