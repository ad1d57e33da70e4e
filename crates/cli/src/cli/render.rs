//! All that is printed: results, warnings, errors. The one place that writes to the terminal.

use crate::Error;
use bundle::{Diagnose, Report};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Where results go, and errors as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output, as long as nothing else goes there.
    Output,
    /// Standard error, while standard output carries the clip.
    Error,
}

/// Prints text for people, or a JSON line.
///
/// # Errors
/// Standard output is closed.
pub(super) fn result_on(stream: Stream, as_json: bool, value: &Value, text: &str) -> Result<(), Error> {
    match stream {
        Stream::Output => result(as_json, value, text),
        Stream::Error if as_json => {
            line_on_stderr(value);
            Ok(())
        }
        Stream::Error => {
            note(text);
            Ok(())
        }
    }
}

/// Prints text for people, or a JSON line, to standard output.
///
/// # Errors
/// Standard output is closed.
pub(super) fn result(as_json: bool, value: &Value, text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written = if as_json { writeln!(out, "{value}") } else { writeln!(out, "{}", text.trim_end()) };
    written.and_then(|()| out.flush()).map_err(Error::Stdout)
}

/// One JSON line on standard error.
pub(super) fn line_on_stderr(value: &Value) {
    say(&value.to_string());
}

/// Something the user should know, on standard error.
pub(super) fn note(text: &str) {
    say(text);
}

/// An error: three sentences for people on standard error, or a JSON line where results go.
pub(super) fn error(stream: Stream, as_json: bool, report: &Report) {
    if as_json {
        let line = json!({
            "event": "error",
            "class": report.class,
            "what": report.what,
            "why": report.why,
            "fix": report.fix,
            "exit_code": report.class.exit_code(),
        });
        // When standard output is gone too, the exit code is all that is left to tell.
        let _ = result_on(stream, true, &line, "");
    } else {
        say(&format!("error: {}\n  why: {}\n  fix: {}", report.what, report.why, report.fix));
    }
}

/// A path for programs: JSON has text alone, so bytes that are none become question marks.
pub(super) fn path(path: &Path) -> String {
    path.display().to_string()
}

/// The report of any error.
pub(super) fn report(error: &Error) -> Report {
    error.report()
}

/// A closed standard error is no reason to stop a run.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
