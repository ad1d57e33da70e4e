//! Errors of the tensors of a run.

use super::list;
use crate::Device;
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
    /// A run did not return an output of its graph.
    AbsentOutput {
        /// The graph.
        graph: String,
        /// Name, number format and shape in the signature.
        output: String,
        /// The outputs that were returned.
        returned: Vec<String>,
    },
    /// An output has another number format or shape than in the signature.
    WrongOutput {
        /// The graph.
        graph: String,
        /// Name, number format and shape in the signature.
        output: String,
        /// The number format found.
        element: ElementType,
        /// The shape found.
        shape: Vec<usize>,
    },
    /// A tensor is read in another number format than its own.
    WrongElement {
        /// The requested format.
        expected: ElementType,
        /// The tensor's format.
        found: ElementType,
    },
    /// The elements of a tensor are read, and the processor cannot access them.
    NotInHostMemory {
        /// The device or memory that holds them.
        memory: String,
    },
    /// A tensor cannot be copied from the memory of a device.
    NotCopied {
        /// The device.
        device: Device,
        /// ONNX Runtime's message.
        why: String,
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
            Self::AbsentOutput { graph, output, returned } => Report::failed(
                format!("the graph {graph} did not return an output"),
                format!("{output} was expected, and it returned {}", list(returned)),
                "check the bundle with `rushes inspect` and `verify`; if it is whole, report this message",
            ),
            Self::WrongOutput { graph, output, element, shape } => Report::failed(
                format!("the graph {graph} returned an output of the wrong type or shape"),
                format!("{output} was expected, and it is {element} {shape:?}"),
                "check the bundle with `rushes inspect` and `verify`; if it is whole, report this message",
            ),
            Self::WrongElement { expected, found } => Report::bug(
                format!("a tensor cannot be read as {expected}"),
                format!("its number format is {found}"),
            ),
            Self::NotInHostMemory { memory } => Report::bug(
                "a tensor cannot be read in place",
                format!("its elements are in the memory of {memory}"),
            ),
            Self::NotCopied { device, why } => Report::failed(
                format!("a tensor cannot be copied from the memory of {device}"),
                why.clone(),
                "run the command again; if it fails again, use another `provider`",
            ),
        }
    }
}

bundle::display_as_report!(TensorError);
