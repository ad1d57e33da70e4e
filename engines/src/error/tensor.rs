//! Errors of the tensors of a run.

use super::list;
use bundle::dtype::ElementType;
use bundle::{Diagnose, Report};

/// A mismatch between the tensors of a run and its graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// An input is missing.
    MissingInput {
        /// The graph.
        graph: String,
        /// Name, number format and shape of the input.
        input: String,
        /// The given inputs.
        given: Vec<String>,
    },
    /// The graph has no such input.
    UnknownInput {
        /// The graph.
        graph: String,
        /// The input.
        input: String,
        /// The inputs of the graph.
        known: Vec<String>,
    },
    /// An input is given twice.
    RepeatedInput {
        /// The graph.
        graph: String,
        /// The input.
        input: String,
    },
    /// An input has another number format or shape.
    WrongInput {
        /// The graph.
        graph: String,
        /// Name, number format and shape that the graph requires.
        input: String,
        /// The given number format.
        element: ElementType,
        /// The given shape.
        shape: Vec<usize>,
    },
    /// The graph has no such output.
    MissingOutput {
        /// The graph.
        graph: String,
        /// The requested output.
        output: String,
        /// The outputs that were not taken.
        available: Vec<String>,
    },
    /// A tensor is read in another number format than its own.
    WrongElement {
        /// The requested format.
        expected: ElementType,
        /// The tensor's format.
        found: ElementType,
    },
}

impl Diagnose for TensorError {
    fn report(&self) -> Report {
        match self {
            Self::MissingInput { graph, input, given } => Report::bug(
                format!("the graph {graph} lacks an input"),
                format!("it takes {input}, and was given {}", list(given)),
            ),
            Self::UnknownInput { graph, input, known } => Report::bug(
                format!("the graph {graph} has no input `{input}`"),
                format!("it has {}", list(known)),
            ),
            Self::RepeatedInput { graph, input } => Report::bug(
                format!("the graph {graph} was given `{input}` twice"),
                "an input takes one tensor",
            ),
            Self::WrongInput { graph, input, element, shape } => Report::bug(
                format!("the graph {graph} was given an input of the wrong type or shape"),
                format!("it takes {input}, and was given {element} {shape:?}"),
            ),
            Self::MissingOutput { graph, output, available } => Report::bug(
                format!("the graph {graph} has no output `{output}` to take"),
                format!("the remaining outputs are {}", list(available)),
            ),
            Self::WrongElement { expected, found } => Report::bug(
                format!("a tensor cannot be read as {expected}"),
                format!("its number format is {found}"),
            ),
        }
    }
}

bundle::display_as_report!(TensorError);
