//! Errors of judges and of the prompts that they score.

use bundle::{Diagnose, ErrorClass, Report};

/// What can be wrong with a judge or a list of prompts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program was built without mini's judge, and none was named.
    NotEmbedded,
    /// The description beside the judge's graph is not what it should be.
    Description {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The judge's graph reads clips of no fixed shape.
    ClipShape {
        /// The graph.
        graph: String,
    },
    /// A list of prompts is not what it should be.
    Prompts {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The run was stopped.
    Stopped {
        /// Clips that were scored.
        done: usize,
        /// Clips of the list.
        of: usize,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::NotEmbedded => Report::bad_input(
                "there is no judge to read clips with",
                "this program was built without the one of the embedded model",
                "name a judge with --judge and its prompts with --prompts",
            ),
            Self::Description { file, why } => Report::bad_input(
                format!("the judge's description {file} cannot be used"),
                why.clone(),
                "describe every output as {\"attributes\": {NAME: {\"values\": [...], \"accuracy\": 0.99}}}",
            ),
            Self::ClipShape { graph } => Report::bad_input(
                format!("the judge {graph} cannot be used"),
                "it does not say how many frames of which size it reads",
                "export it with a `clip` of fixed shape [1,F,H,W,3]",
            ),
            Self::Prompts { file, why } => Report::bad_input(
                format!("the prompts in {file} cannot be used"),
                why.clone(),
                "give a JSON list of {\"language\": \"en\" or \"zh\", \"prompt\", \"seed\", \"attributes\"}",
            ),
            Self::Stopped { done, of } => Report::new(
                ErrorClass::Interrupted,
                "stopped while scoring",
                format!("{done} of {of} clips were read, which is no score"),
                "run the same command again, with fewer --prompts if it takes too long",
            ),
        }
    }
}

bundle::display_as_report!(Error);
