//! A graph cannot be opened.

use bundle::{Diagnose, Report};
use std::path::PathBuf;

/// Why a graph cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Its file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Its file is no graph, or only a part of one.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What ONNX Runtime said.
        why: String,
    },
    /// Its weights are absent, too short, or where ONNX Runtime may not read them.
    WeightsUnusable {
        /// The file of the graph.
        path: PathBuf,
        /// What ONNX Runtime said.
        why: String,
    },
    /// ONNX Runtime understands it but cannot run it.
    Refused {
        /// The file.
        path: PathBuf,
        /// What ONNX Runtime said.
        why: String,
    },
    /// An input or output is no tensor, or has a number format that bundles do not use.
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
                "check that the bundle is whole, or export the checkpoint again",
            ),
            Self::Damaged { path, why } => Report::bad_input(
                format!("the graph {} is damaged", path.display()),
                why.clone(),
                EXPORT_AGAIN,
            ),
            Self::WeightsUnusable { path, why } => Report::bad_input(
                format!("the weights of the graph {} cannot be used", path.display()),
                why.clone(),
                "copy the bundle whole, weights included, or export the checkpoint again",
            ),
            Self::Refused { path, why } => Report::bad_input(
                format!("ONNX Runtime cannot run the graph {}", path.display()),
                why.clone(),
                EXPORT_AGAIN,
            ),
            Self::UnsupportedTensor { graph, tensor, found } => Report::bad_input(
                format!("the graph {graph} has `{tensor}` in a form that bundles do not use"),
                format!("it is {found}"),
                EXPORT_AGAIN,
            ),
        }
    }
}

bundle::display_as_report!(GraphError);
