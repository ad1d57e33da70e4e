//! The common face of errors: what happened, why, what to do, and the exit code.

use std::fmt;

/// What kind of failure this is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Something went wrong while running (exit code 1).
    Failed,
    /// Wrong usage or bad input (exit code 2).
    BadInput,
    /// It does not fit into memory (exit code 3).
    DoesNotFit,
    /// The machine lacks a library, a plugin or a driver (exit code 4).
    MissingOnMachine,
    /// The user stopped the run (exit code 130).
    Interrupted,
}

impl ErrorClass {
    /// The process exit code of this class.
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

/// An error as a person reads it: one sentence of what, one of why, one of what to do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Decides the exit code.
    pub class: ErrorClass,
    /// What went wrong, with the name of the thing.
    pub what: String,
    /// Why, with the numbers: expected and found.
    pub why: String,
    /// What the user can do about it.
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

    /// A failure while running.
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

/// Implemented by the error of every crate, so that one place can print them all.
pub trait Diagnose: std::error::Error {
    /// The error as a person reads it.
    fn report(&self) -> Report;
}

/// Implements [`std::fmt::Display`] for an error through its [`Diagnose::report`], so that its text is written once.
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
