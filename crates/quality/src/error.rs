//! Errors of measuring a model. Errors of its dependencies are passed through.

use crate::judge;
use bundle::{Diagnose, ErrorClass, Report};

/// An error of recording, quantising, judging or timing a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A clip cannot be generated.
    Runtime(#[from] runtime::Error),
    /// A checkpoint cannot be exported.
    Export(#[from] export::Error),
    /// A model cannot be calibrated or quantised.
    Calibration(#[from] calibration::Error),
    /// A model cannot be judged.
    Judge(#[from] judge::Error),
    /// A callback of the caller failed and ended the run.
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
    /// Wraps the error of a callback, which ends the run like any other error.
    pub fn callback(error: impl Diagnose + Send + Sync + 'static) -> Self {
        Self::Callback(Box::new(error))
    }

    /// Returns true if the run was stopped by a request rather than by a failure.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
    }
}

/// Converts errors of the runtime's dependencies.
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
