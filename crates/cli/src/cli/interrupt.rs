//! Signals that ask the program to end: Ctrl-C, `kill`, a closed terminal.
//!
//! A command that has something to put in order takes the request by [`Interrupts::cancel`] and ends as soon as it can,
//! with nothing half-written left. Before that, and on a second signal, the process ends at once. Either way the exit
//! code is 130. A signal that was ignored when the program started, as `nohup` does, stays ignored.

use super::render::{self, Stream};
use bundle::{Diagnose, ErrorClass};
use engines::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The signals that ask.
const ASKING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// Signals within this time of the first are the same request: a terminal that closes sends several.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// Requests to end that come as signals.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupts {
    cancel: Cancel,
    /// Whether a command ends by itself when it is asked to.
    in_order: Arc<AtomicBool>,
}

impl Interrupts {
    /// Listens from now on, on a thread of its own.
    pub(super) fn listen(stream: Stream, as_json: bool) -> Self {
        let interrupts = Self::default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let listened: Vec<i32> =
            ASKING.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0).collect();
        match Signals::new(listened) {
            Ok(mut signals) => {
                let asked = interrupts.clone();
                std::thread::spawn(move || asked.obey(signals.forever(), stream, as_json));
            }
            Err(error) => tracing::warn!(%error, "signals will end the process at once"),
        }
        interrupts
    }

    /// The request that the next signal makes. From now on the command ends by itself.
    pub(super) fn cancel(&self) -> Cancel {
        self.in_order.store(true, Ordering::SeqCst);
        self.cancel.clone()
    }

    /// Says that there is nothing to put in order any more: from now on a signal ends the process at once.
    ///
    /// # Errors
    /// One has come already.
    pub(super) fn at_once(&self) -> Result<(), bundle::Error> {
        self.in_order.store(false, Ordering::SeqCst);
        self.cancel.stop().check()
    }

    fn obey(&self, signals: impl Iterator<Item = i32>, stream: Stream, as_json: bool) {
        let mut first: Option<Instant> = None;
        for _ in signals {
            let is_same = first.is_some_and(|first| first.elapsed() < SAME_REQUEST);
            let is_in_order = self.in_order.load(Ordering::SeqCst);
            if is_in_order && !is_same && first.is_none() {
                first = Some(Instant::now());
                self.cancel.cancel();
            } else if !(is_in_order && is_same) {
                render::error(stream, as_json, &bundle::Error::Stopped.report());
                // Other threads may be at work in libraries, so nothing of them is taken down.
                low_level::exit(i32::from(ErrorClass::Interrupted.exit_code()));
            }
        }
    }
}

/// The signals that a process ignores, one bit each from 1 on, out of its `/proc/PID/status`; none where it does not say.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        // As nohup has it, with the SIGPIPE that the standard library ignores.
        let status = "Name:\trushes\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        let bit = |signal: i32| 1 << (signal - 1);
        assert_eq!(ignored(status), bit(SIGHUP) | bit(signal_hook::consts::SIGPIPE));
        assert_eq!(ignored("SigIgn:\tffffffffffffffff"), u64::MAX);
        assert_eq!((ignored(""), ignored("SigIgn:\tnothing")), (0, 0));
    }

    #[test]
    fn a_request_is_seen_by_the_command() {
        let interrupts = Interrupts::default();
        let cancel = interrupts.cancel();
        interrupts.obey([SIGINT].into_iter(), Stream::Output, false);
        assert!(cancel.is_cancelled());
        assert!(interrupts.at_once().is_err());
    }

    #[test]
    fn a_terminal_that_closes_asks_once() {
        let interrupts = Interrupts::default();
        let cancel = interrupts.cancel();
        // A second request would end this process.
        interrupts.obey([SIGHUP, SIGHUP, SIGTERM].into_iter(), Stream::Output, false);
        assert!(cancel.is_cancelled());
    }
}
