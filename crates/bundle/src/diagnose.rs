//! Error reports: what happened, why, what to do, and the exit code.

use std::fmt;

/// The class of a failure. It determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// A failure at run time (exit code 1).
    Failed,
    /// Wrong usage or bad input (exit code 2).
    BadInput,
    /// Not enough memory (exit code 3).
    DoesNotFit,
    /// The machine lacks a library, a plugin or a driver (exit code 4).
    MissingOnMachine,
    /// The user stopped the run (exit code 130).
    Interrupted,
}

impl ErrorClass {
    /// Returns the process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::BadInput => 2,
            Self::DoesNotFit => 3,
            Self::MissingOnMachine => 4,
            Self::Interrupted => 130,
        }
    }
}

/// An error as shown to the user: one sentence each on what happened, why, and what to do.
///
/// ```
/// use bundle::{ErrorClass, Report};
///
/// let report = Report::bad_input("cannot read clip.y4m", "it is empty", "give another file");
/// assert_eq!(report.class, ErrorClass::BadInput);
/// assert_eq!(report.class.exit_code(), 2);
/// assert_eq!(report.to_string(), "cannot read clip.y4m: it is empty (give another file)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The class, which determines the exit code.
    pub class: ErrorClass,
    /// The failure, with the name of the file, flag or value.
    pub what: String,
    /// The cause, with the expected and the found value.
    pub why: String,
    /// A suggested fix.
    pub fix: String,
}

impl Report {
    /// A report of the given class.
    pub fn new(
        class: ErrorClass,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { class, what: what.into(), why: why.into(), fix: fix.into() }
    }

    /// Wrong usage or bad input.
    pub fn bad_input(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::BadInput, what, why, fix)
    }

    /// A failure at run time.
    pub fn failed(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::Failed, what, why, fix)
    }

    /// Something the machine lacks.
    pub fn missing(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::MissingOnMachine, what, why, fix)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.what, self.why, self.fix)
    }
}

/// Implemented by the error type of every crate, so that all errors are printed in one place.
///
/// ```
/// use bundle::{Diagnose, ErrorClass, Report};
///
/// #[derive(Debug)]
/// struct NoCamera;
///
/// impl Diagnose for NoCamera {
///     fn report(&self) -> Report {
///         Report::missing("no camera", "/dev/video0 does not exist", "connect a camera")
///     }
/// }
///
/// bundle::display_as_report!(NoCamera);
/// impl std::error::Error for NoCamera {}
///
/// assert_eq!(NoCamera.report().class, ErrorClass::MissingOnMachine);
/// assert_eq!(NoCamera.to_string(), "no camera: /dev/video0 does not exist (connect a camera)");
/// ```
pub trait Diagnose: std::error::Error {
    /// Returns the report that is shown to the user.
    fn report(&self) -> Report;
}

/// Implements [`std::fmt::Display`] for an error with the text of its [`Diagnose::report`].
#[macro_export]
macro_rules! display_as_report {
    ($error:ty) => {
        impl ::std::fmt::Display for $error {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::Display::fmt(&$crate::Diagnose::report(self), f)
            }
        }
    };
}
