//! What can go wrong between a graph file and its outputs.

mod graph;
mod library;
mod tensor;

pub use graph::GraphError;
pub use library::LibraryError;
pub use tensor::TensorError;

use crate::Provider;
use bundle::units::ByteCount;
use bundle::{Diagnose, ErrorClass, Report};

/// Errors of finding ONNX Runtime, opening graphs, running them and planning memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ONNX Runtime cannot be had.
    Library(#[from] LibraryError),
    /// A graph cannot be opened.
    Graph(#[from] GraphError),
    /// The interface of a graph is not what the contract says.
    Contract(#[from] bundle::Error),
    /// The tensors of a run are not those of its graph.
    Tensor(#[from] TensorError),
    /// No graphs are exported for this provider.
    NoGraphsForProvider {
        /// The provider.
        provider: Provider,
    },
    /// An operator failed.
    RunFailed {
        /// The graph.
        graph: String,
        /// What ONNX Runtime said.
        why: String,
    },
    /// An allocation failed.
    OutOfMemory {
        /// The graph.
        graph: String,
        /// The allocation that failed, where known.
        requested: Option<ByteCount>,
    },
    /// The run was stopped on request.
    Cancelled {
        /// The graph.
        graph: String,
    },
    /// What was planned needs more memory than there is.
    DoesNotFit {
        /// The predicted peak.
        needed: ByteCount,
        /// What may be used.
        budget: ByteCount,
        /// The largest parts of the peak, largest first.
        largest: Vec<(String, ByteCount)>,
        /// What would make it fit.
        remedy: Remedy,
    },
}

/// What would make a plan fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// One component at a time, with this peak.
    OneAtATime(ByteCount),
    /// A smaller picture or fewer frames: the weights fit, the activations do not.
    SmallerClip,
    /// More memory: the weights of one component alone are too large.
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
                format!("--ep {provider} cannot be used"),
                "this version runs graphs on the CPU alone; those for CUDA it can only export",
                "use --ep cpu, or leave it out",
            ),
            Self::RunFailed { graph, why } => Report::failed(
                format!("the graph {graph} failed while running"),
                why.clone(),
                "export the checkpoint again with this version of rushes, and report it if that does not help",
            ),
            Self::OutOfMemory { graph, requested } => Report::new(
                ErrorClass::DoesNotFit,
                format!("the graph {graph} ran out of memory"),
                requested.map_or("an allocation failed".into(), |bytes| format!("{bytes} could not be had")),
                "use a smaller --size, fewer --frames or --residency one, or end other programs",
            ),
            Self::Cancelled { graph } => Report::new(
                ErrorClass::Interrupted,
                format!("the run of {graph} was stopped"),
                "it was asked to",
                "start it again when you want it",
            ),
            Self::DoesNotFit { needed, budget, largest, remedy } => Report::new(
                ErrorClass::DoesNotFit,
                format!("{needed} are needed and {budget} may be used"),
                format!(
                    "the largest parts are {}",
                    list(largest.iter().map(|(name, bytes)| format!("{name} {bytes}")))
                ),
                match remedy {
                    Remedy::OneAtATime(peak) => format!("use --residency one, which needs {peak}"),
                    Remedy::SmallerClip => {
                        "use a smaller --size or fewer --frames, or allow more with --memory-budget".into()
                    }
                    Remedy::MoreMemory => {
                        "allow more with --memory-budget where there is more, or use a smaller model".into()
                    }
                },
            ),
        }
    }
}

bundle::display_as_report!(Error);

/// The items as people list them.
fn list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.as_ref().to_owned()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}
