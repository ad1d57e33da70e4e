//! Prints results, notices and errors. No other module writes to standard output or standard error.

use super::flags::flag;
use crate::Error;
use bundle::{Diagnose, Report};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// The stream of results, and of errors as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Output,
    /// Standard error, if the clip is written to standard output.
    Error,
}

/// Prints a result to `stream`, as text or as a JSON line.
///
/// # Errors
/// Returns an error if standard output is closed.
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

/// Prints a result to standard output, as text or as a JSON line.
///
/// # Errors
/// Returns an error if standard output is closed.
pub(super) fn result(as_json: bool, value: &Value, text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written =
        if as_json { writeln!(out, "{value}") } else { writeln!(out, "{}", printable(text.trim_end())) };
    written.and_then(|()| out.flush()).map_err(Error::Stdout)
}

/// Prints one JSON line to standard error.
pub(super) fn line_on_stderr(value: &Value) {
    print_to_stderr(&value.to_string());
}

/// Prints a notice to standard error. Control characters, which may come from a file, are shown as `�`.
pub(super) fn note(text: &str) {
    print_to_stderr(&printable(text));
}

/// The text without control characters but line breaks.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Prints an error: three lines of text to standard error, or a JSON line to the stream of results.
pub(super) fn error(stream: Stream, as_json: bool, report: &Report) {
    if as_json {
        let line = json!({
            "event": "error",
            "class": report.class,
            "field": report.field,
            "what": report.what,
            "why": report.why,
            "fix": report.fix,
            "exit_code": report.class.exit_code(),
        });
        // If standard output is closed too, only the exit code reports the error.
        let _ = result_on(stream, true, &line, "");
    } else {
        print_to_stderr(&format!("error: {}\n  why: {}\n  fix: {}", report.what, report.why, report.fix));
    }
}

/// A path as JSON text; bytes that are not UTF-8 become replacement characters.
pub(super) fn path(path: &Path) -> String {
    path.display().to_string()
}

/// A path as a word of a shell command.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain =
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A report with the names of flags.
pub(super) fn named(report: Report) -> Report {
    report.with_names(flag)
}

/// The report of an error, which names settings by their flags.
pub(super) fn report(error: &impl Diagnose) -> Report {
    error.report().with_names(flag)
}

/// Prints to standard error. A closed standard error does not stop a run.
fn print_to_stderr(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
