//! Errors of the command line, and those of the crates that it uses.

use bundle::{Diagnose, ErrorClass, Report};

/// An error of a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A clip cannot be generated.
    Runtime(#[from] runtime::Error),
    /// A clip cannot be written.
    Media(#[from] media::Error),
    /// A model cannot be recorded, quantised, scored or timed.
    Quality(#[from] quality::Error),
    /// An argument that only the command line has is out of range or unknown.
    Argument {
        /// The flag.
        flag: &'static str,
        /// The given value.
        given: String,
        /// The rule that it breaks.
        rule: String,
        /// Values that are accepted.
        fix: String,
    },
    /// The record of a clip cannot be read.
    Record(#[from] media::clip_record::Error),
    /// A contact sheet cannot be made.
    ContactSheet(#[from] media::ContactSheetError),
    /// A queue of jobs cannot be used.
    Jobs(#[from] jobs::Error),
    /// The server cannot run.
    Server(#[from] server::Error),
    /// The folder of the server's data is unknown.
    NoServerFolder,
    /// The process that makes the jobs refused an order.
    Order {
        /// The job.
        id: runtime::scheduler::JobId,
        /// The reason.
        why: String,
        /// The command that shows the job.
        look: String,
    },
    /// The folder of the user's cache is unknown.
    NoCacheFolder,
    /// The folder of the user's data is unknown.
    NoDataFolder,
    /// There is no folder for compiled engines.
    NoEngineFolder,
    /// An error that another process has reported.
    Reported(Box<Report>),
    /// The program was built without the embedded model, and no bundle was given.
    NoEmbeddedModel,
    /// The user interrupted the run.
    Interrupted {
        /// The phase that was interrupted, such as `denoising`.
        phase: &'static str,
        /// A sentence about the files that were kept.
        kept: String,
        /// The command that goes on with the job, if it is kept.
        go_on: Option<String>,
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
            Self::Argument { flag, given, rule, fix } => {
                Report::bad_input(format!("{flag} cannot be {given}"), rule.clone(), fix.clone())
            }
            Self::Record(error) => error.report(),
            Self::ContactSheet(error) => error.report(),
            Self::Jobs(error) => error.report(),
            Self::Server(error) => error.report(),
            Self::NoServerFolder => Report::missing(
                "the server has no folder for its data",
                "neither HOME nor XDG_DATA_HOME is an absolute path",
                "give a folder with --data-dir",
            ),
            Self::Order { id, why, look } => Report::bad_input(
                format!("the order for {id} was not carried out"),
                why.clone(),
                format!("look at it with `{look}`"),
            ),
            Self::NoDataFolder => Report::missing(
                "the queue has no folder",
                "neither HOME nor XDG_DATA_HOME is an absolute path",
                "give a folder with --store",
            ),
            Self::NoCacheFolder => Report::missing(
                "the embedded model has no cache folder",
                "neither HOME nor XDG_CACHE_HOME is an absolute path",
                "give a folder with --cache-dir, or a bundle with --bundle",
            ),
            Self::NoEngineFolder => Report::missing(
                "there is no folder for compiled engines",
                "neither HOME nor XDG_CACHE_HOME is an absolute path",
                "give a folder with --cache-dir",
            ),
            Self::Reported(report) => (**report).clone(),
            Self::NoEmbeddedModel => Report::bad_input(
                "there is no model to run",
                "this program was built without the embedded model, and no bundle was given",
                "give a bundle with --bundle (`rushes export` creates one from a checkpoint), or build the program in its repository \
                 with the feature embed-mini, as `make preview` does",
            ),
            Self::Interrupted { phase, kept, go_on } => Report::new(
                ErrorClass::Interrupted,
                format!("stopped while {phase}"),
                kept.clone(),
                match go_on {
                    Some(command) => format!("go on with `{command}`"),
                    None => "run the same command with the same --seed to get the whole clip".to_owned(),
                },
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
    /// An argument that breaks a rule.
    pub(crate) fn argument(
        flag: &'static str,
        given: impl ToString,
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Argument { flag, given: given.to_string(), rule: rule.into(), fix: fix.into() }
    }

    /// Returns true if the run was interrupted rather than failed.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
    }
}

/// Converts the errors of lower crates by way of the crate that wraps them.
macro_rules! from_wrapped {
    ($($outer:ident($($error:ty),+)),+) => {
        $($(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$outer(error.into())
            }
        })+)+
    };
}

from_wrapped!(
    Runtime(bundle::Error, engines::Error, engines::LibraryError, engines::TensorError, prompt::Error),
    Quality(export::Error, calibration::Error, quality::judge::Error),
    Server(server::ConfigError)
);
