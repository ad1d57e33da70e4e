//! Errors of graph building and of graph files.

use bundle::{Diagnose, Report};
use std::path::PathBuf;

/// An error of graph building or of a graph file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operands of a node do not match.
    Shape {
        /// The node, with its scope.
        node: String,
        /// The expected operands.
        expected: String,
        /// Names, formats and shapes of the given operands.
        found: String,
    },
    /// A node of a finished graph breaks the rules of its operator.
    Node {
        /// The node, with its scope.
        node: String,
        /// The rule.
        why: String,
    },
    /// An output is declared in another number format than it is computed in.
    OutputFormat {
        /// The output.
        output: String,
        /// Its declared format.
        declared: String,
        /// The format that it is computed in.
        computed: String,
    },
    /// A dimension is used that no graph input has.
    UnknownSymbol {
        /// The node that needs it.
        node: String,
        /// The symbol.
        symbol: String,
    },
    /// A weight's file, offset or length is wrong.
    ExternalData {
        /// The tensor.
        tensor: String,
        /// The problem.
        why: String,
    },
    /// A file is not an ONNX graph.
    NotAGraph {
        /// The file.
        path: PathBuf,
        /// The error of the decoder.
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
                format!("it needs {expected}, but was given {found}"),
                "check that the config files belong to these weights",
            ),
            Self::Node { node, why } => {
                Report::bug(format!("the graph cannot be built at `{node}`"), why.clone())
            }
            Self::OutputFormat { output, declared, computed } => Report::bug(
                format!("the output `{output}` of the graph cannot be {declared}"),
                format!("it is computed in {computed}"),
            ),
            Self::UnknownSymbol { node, symbol } => Report::bug(
                format!("the graph cannot be built at {node}"),
                format!("no graph input has the extent `{symbol}`"),
            ),
            Self::ExternalData { tensor, why } => Report::bad_input(
                format!("the weight `{tensor}` cannot be used"),
                why.clone(),
                "download the checkpoint again",
            ),
            Self::NotAGraph { path, why } => Report::damaged(
                format!("{} is not an ONNX graph", path.display()),
                why.clone(),
                "copy the whole bundle again, or export the checkpoint again",
            ),
            Self::File(error) => error.report(),
        }
    }
}

bundle::display_as_report!(Error);
