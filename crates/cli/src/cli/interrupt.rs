//! Signals that ask the program to end: Ctrl-C, `kill`, a closed terminal.
//!
//! A command that has to clean up receives the request through [`Interrupts::cancel`]. It ends as soon as it can and
//! leaves no partial files. Before that, and on a second signal, the process ends immediately. The exit code is always
//! 130. A signal that was ignored when the program started, for example by `nohup`, stays ignored.

use super::CommandLine;
use super::render::{self, Stream};
use bundle::{ErrorClass, Report};
use engines::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The signals that ask the program to end.
const SIGNALS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// Signals within this time of the first are one request: a terminal that closes sends several.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// Receives signals as requests to end. [`Interrupts::default`] receives none, for programs with handlers of their own.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    cancel: Cancel,
    /// True while the command ends itself on request. Locked while a signal is handled, and from then on if it ends the
    /// process: the command then cannot begin what would have to be cleaned up.
    is_graceful: Arc<Mutex<bool>>,
    /// What a second signal leaves, if that is not nothing.
    left: Arc<OnceLock<Report>>,
}

impl Interrupts {
    /// Starts a thread that receives the signals of this process.
    pub fn listen(line: &CommandLine) -> Self {
        let CommandLine { stream, as_json, .. } = *line;
        let interrupts = Self::default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let received: Vec<i32> =
            SIGNALS.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0).collect();
        match Signals::new(received) {
            Ok(mut signals) => {
                let receiver = interrupts.clone();
                std::thread::spawn(move || receiver.handle(signals.forever(), stream, as_json));
            }
            Err(error) => tracing::warn!(%error, "signals will end the process immediately"),
        }
        interrupts
    }

    /// Returns the request that the next signal makes. From now on the command ends itself.
    pub(super) fn cancel(&self) -> Cancel {
        *self.graceful() = true;
        self.cancel.clone()
    }

    /// As [`Self::cancel`]. A second signal ends the process with this report, which says what is left.
    pub(super) fn cancel_leaving(&self, left: Report) -> Cancel {
        // One command runs in a process.
        let _ = self.left.set(left);
        self.cancel()
    }

    /// What a signal reports that ends the process immediately.
    fn at_once(&self) -> Report {
        self.left.get().cloned().unwrap_or_else(|| render::report(&bundle::Error::Stopped))
    }

    /// From now on a signal ends the process immediately, because there is nothing left to clean up.
    ///
    /// # Errors
    /// Returns an error if a signal was received before.
    pub(super) fn end_immediately(&self) -> Result<(), bundle::Error> {
        *self.graceful() = false;
        self.cancel.stop().check()
    }

    fn graceful(&self) -> MutexGuard<'_, bool> {
        self.is_graceful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, signals: impl Iterator<Item = i32>, stream: Stream, as_json: bool) {
        let mut first: Option<Instant> = None;
        for _ in signals {
            let is_same = first.is_some_and(|first| first.elapsed() < SAME_REQUEST);
            let is_graceful = self.graceful();
            if *is_graceful && !is_same && first.is_none() {
                first = Some(Instant::now());
                self.cancel.cancel();
            } else if !(*is_graceful && is_same) {
                render::error(stream, as_json, &self.at_once());
                // Other threads may be running in libraries, so their destructors are not run.
                low_level::exit(i32::from(ErrorClass::Interrupted.exit_code()));
            }
        }
    }
}

/// The signals that a process ignores, from its `/proc/PID/status`: signal `n` is bit `n - 1`. 0 if there is no mask.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        // From a process under nohup; the standard library ignores SIGPIPE.
        let status = "Name:\trushes\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        let bit = |signal: i32| 1 << (signal - 1);
        assert_eq!(ignored(status), bit(SIGHUP) | bit(signal_hook::consts::SIGPIPE));
        assert_eq!(ignored("SigIgn:\tffffffffffffffff"), u64::MAX);
        assert_eq!((ignored(""), ignored("SigIgn:\tnothing")), (0, 0));
    }

    #[test]
    fn a_signal_cancels_the_command() {
        let interrupts = Interrupts::default();
        let cancel = interrupts.cancel();
        interrupts.handle([SIGINT].into_iter(), Stream::Output, false);
        assert!(cancel.is_cancelled());
        assert!(interrupts.end_immediately().is_err());
    }

    #[test]
    fn a_second_signal_reports_what_is_left() {
        let interrupts = Interrupts::default();
        interrupts.cancel();
        assert!(interrupts.at_once().why.contains("nothing incomplete was kept"));
        interrupts.cancel_leaving(Report::new(
            ErrorClass::Interrupted,
            "stopped",
            "the job is stored",
            "go on",
        ));
        assert_eq!(interrupts.at_once().why, "the job is stored");
    }

    #[test]
    fn signals_of_a_closing_terminal_are_one_request() {
        let interrupts = Interrupts::default();
        let cancel = interrupts.cancel();
        // A second request would end this process.
        interrupts.handle([SIGHUP, SIGHUP, SIGTERM].into_iter(), Stream::Output, false);
        assert!(cancel.is_cancelled());
    }
}
