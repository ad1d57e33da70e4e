//! The tensors of a run are not those of its graph.

use super::list;
use bundle::dtype::ElementType;
use bundle::{Diagnose, Report};

/// What is wrong with the tensors of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// An input is missing.
    MissingInput {
        /// The graph.
        graph: String,
        /// Name, number format and shape of the input.
        input: String,
        /// The inputs that were given.
        given: Vec<String>,
    },
    /// The graph does not know an input.
    UnknownInput {
        /// The graph.
        graph: String,
        /// The input.
        input: String,
        /// The inputs that the graph has.
        known: Vec<String>,
    },
    /// An input is there twice.
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
        /// Name, number format and shape that the graph asks for.
        input: String,
        /// The number format that was given.
        element: ElementType,
        /// The shape that was given.
        shape: Vec<usize>,
    },
    /// The graph has no such output.
    MissingOutput {
        /// The graph.
        graph: String,
        /// The output that was asked for.
        output: String,
        /// Those that it has and that were not taken.
        available: Vec<String>,
    },
    /// A tensor holds another number format than the one it is read as.
    WrongElement {
        /// What was asked for.
        expected: ElementType,
        /// What it holds.
        found: ElementType,
    },
}

impl Diagnose for TensorError {
    fn report(&self) -> Report {
        const FIT_INPUTS: &str = "give the graph exactly the inputs of its signature";
        match self {
            Self::MissingInput { graph, input, given } => Report::failed(
                format!("the graph {graph} lacks an input"),
                format!("it takes {input}, and was given {}", list(given)),
                FIT_INPUTS,
            ),
            Self::UnknownInput { graph, input, known } => Report::failed(
                format!("the graph {graph} has no input `{input}`"),
                format!("it has {}", list(known)),
                FIT_INPUTS,
            ),
            Self::RepeatedInput { graph, input } => Report::failed(
                format!("the graph {graph} was given `{input}` twice"),
                "an input takes one tensor",
                FIT_INPUTS,
            ),
            Self::WrongInput { graph, input, element, shape } => Report::failed(
                format!("the graph {graph} was given an input that does not fit"),
                format!("it takes {input}, and was given {element} {shape:?}"),
                FIT_INPUTS,
            ),
            Self::MissingOutput { graph, output, available } => Report::failed(
                format!("the graph {graph} gave no output `{output}`"),
                format!("those left are {}", list(available)),
                "take each output of its signature once",
            ),
            Self::WrongElement { expected, found } => Report::failed(
                format!("a tensor cannot be read as {expected}"),
                format!("it holds {found}"),
                "read it in its own number format",
            ),
        }
    }
}

bundle::display_as_report!(TensorError);
