//! Errors of measuring a model: its own, and those of the crates below with their own words.

use crate::judge;
use bundle::{Diagnose, ErrorClass, Report};

/// What can go wrong while a model is recorded, quantised, judged or timed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A clip cannot be made.
    Runtime(#[from] runtime::Error),
    /// A checkpoint cannot be exported.
    Export(#[from] export::Error),
    /// A model cannot be calibrated or quantised.
    Calibration(#[from] calibration::Error),
    /// A model cannot be judged.
    Judge(#[from] judge::Error),
    /// A callback of the caller failed, which ended the run.
    Callback(Box<dyn Diagnose + Send + Sync>),
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Runtime(error) => error.report(),
            Self::Export(error) => error.report(),
            Self::Calibration(error) => error.report(),
            Self::Judge(error) => error.report(),
            Self::Callback(error) => error.report(),
        }
    }
}

bundle::display_as_report!(Error);

impl Error {
    /// The error of a callback, which ends the run as an error of its own would.
    pub fn callback(error: impl Diagnose + Send + Sync + 'static) -> Self {
        Self::Callback(Box::new(error))
    }

    /// Whether a run was stopped rather than failed.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
    }
}

/// Errors of the crates below the runtime, which pass through it.
macro_rules! through_runtime {
    ($($error:ty),+) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Runtime(error.into())
            }
        })+
    };
}

through_runtime!(bundle::Error, engines::Error, engines::LibraryError, engines::TensorError, prompt::Error);
