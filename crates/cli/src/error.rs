//! Errors of the command line: its own, and those of the crates below with their own words.

use bundle::{Diagnose, ErrorClass, Report};

/// What can go wrong in a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A clip cannot be made.
    Runtime(#[from] runtime::Error),
    /// A clip cannot be written.
    Media(#[from] media::Error),
    /// A model cannot be recorded, quantised, judged or timed.
    Quality(#[from] quality::Error),
    /// No folder is known for the user's cache.
    NoCacheFolder,
    /// The program was built without the embedded model, and no bundle was named.
    NoEmbeddedModel,
    /// The user stopped the run.
    Interrupted {
        /// During what.
        phase: &'static str,
        /// What is left on disk, as a sentence.
        kept: String,
    },
    /// A result could not be written to standard output.
    Stdout(#[source] std::io::Error),
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Runtime(error) => error.report(),
            Self::Media(error) => error.report(),
            Self::Quality(error) => error.report(),
            Self::NoCacheFolder => Report::missing(
                "there is no place for the embedded model",
                "neither a home folder nor a cache folder is known",
                "name one with --cache-dir, or give a bundle with --bundle",
            ),
            Self::NoEmbeddedModel => Report::bad_input(
                "there is no model to run",
                "this program was built without the embedded one",
                "give a bundle with --bundle; `rushes export` makes one from a checkpoint",
            ),
            Self::Interrupted { phase, kept } => Report::new(
                ErrorClass::Interrupted,
                format!("stopped while {phase}"),
                kept.clone(),
                "run the same command with the same --seed to get the whole clip",
            ),
            Self::Stdout(error) => Report::failed(
                "the result could not be printed",
                error.to_string(),
                "keep the reader of standard output open until the end",
            ),
        }
    }
}

bundle::display_as_report!(Error);

impl Error {
    /// Whether a run was stopped rather than failed.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
    }
}

/// Errors that pass through another crate's.
macro_rules! through {
    ($($outer:ident($($error:ty),+)),+) => {
        $($(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$outer(error.into())
            }
        })+)+
    };
}

through!(
    Runtime(bundle::Error, engines::Error, engines::LibraryError, engines::TensorError, prompt::Error),
    Quality(export::Error, calibration::Error, quality::judge::Error)
);
