//! Errors of judges and their prompts.

use bundle::{Diagnose, ErrorClass, Report};

/// An error of a judge or a list of prompts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program was built without mini's judge, and none was given.
    NotEmbedded,
    /// The description of a judge is invalid.
    Description {
        /// The file.
        file: String,
        /// The problem with it.
        why: String,
    },
    /// The judge's graph has no fixed clip shape.
    ClipShape {
        /// The graph.
        graph: String,
    },
    /// A list of prompts is invalid.
    Prompts {
        /// The file.
        file: String,
        /// The problem with it.
        why: String,
    },
    /// The run was stopped.
    Stopped {
        /// Number of scored clips.
        done: usize,
        /// Number of all clips.
        total: usize,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::NotEmbedded => Report::bad_input(
                "no judge is available",
                "this program was built without the judge of the embedded model",
                "give a judge with `judge` and its prompts with `prompts`",
            ),
            Self::Description { file, why } => Report::bad_input(
                format!("the judge's description {file} cannot be used"),
                why.clone(),
                "describe every output as {\"attributes\": {NAME: {\"values\": [...], \"accuracy\": 0.99}}}",
            ),
            Self::ClipShape { graph } => Report::bad_input(
                format!("the judge {graph} cannot be used"),
                "its input has no fixed number and size of frames",
                "export it with a `clip` of fixed shape [1,F,H,W,3]",
            ),
            Self::Prompts { file, why } => Report::bad_input(
                format!("the prompts in {file} cannot be used"),
                why.clone(),
                "give a JSON list of {\"language\": \"en\" or \"zh\", \"prompt\", \"seed\", \"attributes\"}",
            ),
            Self::Stopped { done, total } => Report::new(
                ErrorClass::Interrupted,
                "stopped while scoring",
                format!("only {done} of {total} clips were read, so there is no score"),
                "run the same command again, with fewer `prompts` if it takes too long",
            ),
        }
    }
}

bundle::display_as_report!(Error);
