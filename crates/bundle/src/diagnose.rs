//! Error reports: what happened, why, what to do, and the exit code.

use crate::Field;
use std::fmt;

/// The class of a failure. It determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// A failure at run time (exit code 1).
    Failed,
    /// A failure that only a fault of the program explains (exit code 1).
    Bug,
    /// Wrong usage or bad input (exit code 2).
    BadInput,
    /// A file that is not what was written: truncated, changed, or unreadable as its format (exit code 2).
    Damaged,
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
            Self::Failed | Self::Bug => 1,
            Self::BadInput | Self::Damaged => 2,
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
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// The class, which determines the exit code.
    pub class: ErrorClass,
    /// The setting that the error is about, if it is about one.
    pub field: Option<Field>,
    /// The failure, with the name of the file, setting or value. If it begins with a setting, then with the name of
    /// `field`.
    pub what: String,
    /// The cause, with the expected and the found value.
    pub why: String,
    /// A suggested fix. Settings in it are names of fields in backquotes.
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
        Self { class, field: None, what: what.into(), why: why.into(), fix: fix.into() }
    }

    /// Wrong usage or bad input.
    pub fn bad_input(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::BadInput, what, why, fix)
    }

    /// A damaged file.
    pub fn damaged(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::Damaged, what, why, fix)
    }

    /// A fault of the program.
    pub fn bug(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            ErrorClass::Bug,
            what,
            why,
            "this is a fault of rushes, not of the input: report it with this message and the command or request",
        )
    }

    /// A failure at run time.
    pub fn failed(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::Failed, what, why, fix)
    }

    /// Something the machine lacks.
    pub fn missing(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(ErrorClass::MissingOnMachine, what, why, fix)
    }

    /// The same report, about a setting.
    #[must_use]
    pub fn about(mut self, field: Field) -> Self {
        self.field = Some(field);
        self
    }

    /// The same report with other names of settings, such as flags: at the start of what happened and why, and in the
    /// fix.
    ///
    /// ```
    /// use bundle::{Field, Report};
    ///
    /// let report = Report::bad_input("size cannot be 0x0", "it is empty", "give a larger `size`");
    /// let report = report.about(Field::Size).with_names(|field| match field {
    ///     Field::Size => "--size",
    ///     _ => field.name(),
    /// });
    /// assert_eq!(report.to_string(), "--size cannot be 0x0: it is empty (give a larger --size)");
    /// ```
    #[must_use]
    pub fn with_names(mut self, name: impl Fn(Field) -> &'static str) -> Self {
        if let Some(field) = self.field {
            for text in [&mut self.what, &mut self.why] {
                if let Some(rest) = text.strip_prefix(field.name()).filter(|rest| rest.starts_with(' ')) {
                    *text = format!("{}{rest}", name(field));
                }
            }
        }
        for field in Field::ALL {
            self.fix = self.fix.replace(&format!("`{field}`"), name(field));
        }
        self
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

impl<E: Diagnose> From<E> for Report {
    fn from(error: E) -> Self {
        error.report()
    }
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
