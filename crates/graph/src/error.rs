//! Errors of graph building and of graph files.

use bundle::{Diagnose, Report};
use std::path::PathBuf;

/// What can go wrong with a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operands of a node do not fit each other.
    Shape {
        /// The node, with its scope.
        node: String,
        /// What it needs.
        expected: String,
        /// What it was given: names, formats and shapes.
        found: String,
    },
    /// A dimension is used whose size no graph input tells.
    UnknownSymbol {
        /// The node that needs it.
        node: String,
        /// The symbol.
        symbol: String,
    },
    /// A weight's file, offset or length cannot be right.
    ExternalData {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        why: String,
    },
    /// A file is no ONNX graph.
    NotAGraph {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        why: String,
    },
    /// A file could not be read or written.
    File(#[from] bundle::Error),
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Shape { node, expected, found } => Report::bad_input(
                format!("the graph cannot be built at {node}"),
                format!("it needs {expected} and was given {found}"),
                "check that the config files belong to these weights",
            ),
            Self::UnknownSymbol { node, symbol } => Report::bad_input(
                format!("the graph cannot be built at {node}"),
                format!("no graph input tells the size of `{symbol}`"),
                "declare an input with that extent",
            ),
            Self::ExternalData { tensor, why } => Report::bad_input(
                format!("the weight `{tensor}` cannot be used"),
                why.clone(),
                "get the checkpoint again",
            ),
            Self::NotAGraph { path, why } => Report::bad_input(
                format!("{} is no ONNX graph", path.display()),
                why.clone(),
                "export the checkpoint again",
            ),
            Self::File(error) => error.report(),
        }
    }
}

bundle::display_as_report!(Error);
