//! Errors of opening a graph.

use bundle::{Diagnose, Report};
use std::path::PathBuf;

/// The reason why a graph cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Its file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// Its file is not a graph, or is incomplete.
    Damaged {
        /// The file.
        path: PathBuf,
        /// ONNX Runtime's message.
        why: String,
    },
    /// Its weights are missing, too short, or outside the folders that ONNX Runtime may read.
    WeightsUnusable {
        /// The file of the graph.
        path: PathBuf,
        /// ONNX Runtime's message.
        why: String,
    },
    /// ONNX Runtime lacks an operator of it, or does not read its version of the format.
    Unsupported {
        /// The file.
        path: PathBuf,
        /// ONNX Runtime's message.
        why: String,
    },
    /// ONNX Runtime can read it, but it is not a valid graph.
    Refused {
        /// The file.
        path: PathBuf,
        /// ONNX Runtime's message.
        why: String,
    },
    /// An input or output is not a tensor, or has an unsupported number format.
    UnsupportedTensor {
        /// The graph.
        graph: String,
        /// The input or output.
        tensor: String,
        /// Its type.
        found: String,
    },
}

impl Diagnose for GraphError {
    fn report(&self) -> Report {
        const EXPORT_AGAIN: &str = "export the checkpoint again with this version of rushes";
        match self {
            Self::Unreadable { path, source } => Report::bad_input(
                format!("the graph {} cannot be read", path.display()),
                source.to_string(),
                "check that the bundle is whole and that you may read it",
            ),
            Self::Damaged { path, why } => {
                Report::damaged(format!("the graph {} is damaged", path.display()), why.clone(), EXPORT_AGAIN)
            }
            Self::WeightsUnusable { path, why } => Report::damaged(
                format!("the weights of the graph {} cannot be used", path.display()),
                why.clone(),
                "copy the bundle whole, weights included, or export the checkpoint again",
            ),
            Self::Unsupported { path, why } => Report::missing(
                format!("this ONNX Runtime cannot run the graph {}", path.display()),
                why.clone(),
                "use the ONNX Runtime that `make setup` in the checkout gets, and name its file with `onnx_runtime`",
            ),
            Self::Refused { path, why } => Report::damaged(
                format!("ONNX Runtime cannot run the graph {}", path.display()),
                why.clone(),
                EXPORT_AGAIN,
            ),
            Self::UnsupportedTensor { graph, tensor, found } => Report::damaged(
                format!("the graph {graph} has `{tensor}` of an unsupported type"),
                format!("its type is {found}"),
                EXPORT_AGAIN,
            ),
        }
    }
}

bundle::display_as_report!(GraphError);
