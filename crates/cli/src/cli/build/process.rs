//! Starts the process that compiles one component, and follows it.

use crate::Error;
use bundle::{ErrorClass, Report};
use engines::Cancel;
use serde_json::Value;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// The time after which a stopped run is noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The signal that the system ends a process with when memory is short.
const SIGKILL: i32 = 9;

/// Runs the program with `arguments`, and calls `on_line` with each line that it prints. Returns why it failed; `None` if
/// it did not.
///
/// # Errors
/// Returns an error if the process cannot be started, `cancel` is requested, or `on_line` returns an error. The process
/// has ended then.
pub(super) fn run(
    arguments: &[OsString],
    component: &str,
    cancel: &Cancel,
    on_line: &mut dyn FnMut(&Value) -> Result<(), Error>,
) -> Result<Option<Report>, Error> {
    let cannot_start = |error: std::io::Error| {
        Error::Reported(Box::new(Report::failed(
            format!("the compiler of {component} cannot be started"),
            error.to_string(),
            "end other programs, or check that the program file still exists",
        )))
    };
    let program = std::env::current_exe().map_err(cannot_start)?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(cannot_start)?;
    let mut child = EndsWithThis(child);
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.0.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    let mut failure = None;
    loop {
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(line) => match serde_json::from_str::<Value>(&line) {
                Ok(line) if line["event"] == "error" => failure = serde_json::from_value(line).ok(),
                Ok(line) if line["event"] == "engine" => on_line(&line)?,
                _ => tracing::debug!(line, "the compiler printed a line"),
            },
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        cancel.stop().check()?;
    }
    let status = child.0.wait().map_err(cannot_start)?;
    cancel.stop().check()?;
    Ok(failure_of(component, status, failure))
}

/// A process that is ended when this is dropped.
struct EndsWithThis(Child);

impl Drop for EndsWithThis {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a process failed: what it printed, or how it ended.
fn failure_of(component: &str, status: ExitStatus, printed: Option<Report>) -> Option<Report> {
    if status.success() {
        return None;
    }
    if printed.is_some() {
        return printed;
    }
    let (class, why, fix) = match status.signal() {
        Some(SIGKILL) => (
            ErrorClass::DoesNotFit,
            "its process was killed; the system does that when memory runs out".to_owned(),
            "end other programs or use a machine with more memory; engines that are whole are kept",
        ),
        Some(signal) => (
            ErrorClass::Failed,
            format!("its process was ended by signal {signal}"),
            "run it again; if it fails again, report this message with the model and the device",
        ),
        None => (
            ErrorClass::Failed,
            format!("its process ended with {status}, and said nothing"),
            "run it again; if it fails again, report this message with the model and the device",
        ),
    };
    Some(Report::new(class, format!("{component} was not compiled"), why, fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_says_nothing_is_reported_with_how_it_ended() {
        let ended = |raw: i32| failure_of("high_noise", ExitStatus::from_raw(raw), None);
        assert_eq!(ended(0), None);
        let killed = ended(SIGKILL).unwrap();
        assert_eq!(killed.class, ErrorClass::DoesNotFit);
        insta::assert_snapshot!(killed, @"high_noise was not compiled: its process was killed; the system does that when memory runs out (end other programs or use a machine with more memory; engines that are whole are kept)");
        insta::assert_snapshot!(ended(11).unwrap(), @"high_noise was not compiled: its process was ended by signal 11 (run it again; if it fails again, report this message with the model and the device)");
        assert_eq!(ended(1 << 8).unwrap().class, ErrorClass::Failed);
        let printed = Report::missing("no device", "none", "buy one");
        let found = failure_of("high_noise", ExitStatus::from_raw(4 << 8), Some(printed.clone()));
        assert_eq!(found, Some(printed));
    }
}
