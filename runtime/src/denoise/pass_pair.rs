//! Runs the two guidance passes of a step at the same time, each on its own device.

use crate::Error;
use bundle::Interrupt;
use engines::{Cancel, Device};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, Builder};

/// Runs two passes at the same time: the first on this thread, the second on a thread of its own, because a thread
/// borrows one session at a time. Each borrows and returns its own session, so no pass waits for a session while it has
/// another, and steps with pairs cannot block each other.
///
/// Each pass gets a request that is made when `cancel` is made, or when the other pass fails: its result would not be
/// used. Returns when both have ended.
///
/// # Errors
/// That of the pass that failed, with its device. If both fail on their own, that of the first.
pub(super) fn run_both<T: Send>(
    devices: [Device; 2],
    cancel: &Cancel,
    first: impl FnOnce(&Cancel) -> Result<T, Error>,
    second: impl FnOnce(&Cancel) -> Result<T, Error> + Send,
) -> Result<[T; 2], Error> {
    let ending = Cancel::new();
    let watch = cancel.watch(Arc::new(Ends(ending.clone())));
    if watch.is_none() {
        ending.cancel();
    }
    let done = thread::scope(|scope| {
        let spawned = Builder::new()
            .name("second-pass".into())
            .spawn_scoped(scope, || ending_other(second(&ending), &ending, devices[1]));
        let thread = spawned.map_err(|error| Error::NoThread { why: error.to_string() })?;
        let first = ending_other(first(&ending), &ending, devices[0]);
        Ok::<_, Error>((first, thread.join().unwrap_or_else(|panic| resume_unwind(panic))))
    })?;
    match done {
        (Ok(first), Ok(second)) => Ok([first, second]),
        // The pass that was ended by the other says only that it was cancelled.
        (Err(first), Err(second)) => Err(if first.is_cancelled() { second } else { first }),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

/// The result of a pass on `device`. A failure ends the other pass.
fn ending_other<T>(result: Result<T, Error>, ending: &Cancel, device: Device) -> Result<T, Error> {
    result.map_err(|error| {
        ending.cancel();
        error.on_device(device)
    })
}

/// Passes a request on.
struct Ends(Cancel);

impl Interrupt for Ends {
    fn interrupt(&self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Diagnose;
    use std::sync::Barrier;

    fn devices() -> [Device; 2] {
        ["cuda:0", "cuda:1"].map(|device| device.parse().unwrap())
    }

    /// Waits until `cancel` is requested.
    fn cancelled(cancel: &Cancel) -> Result<u32, Error> {
        while !cancel.is_cancelled() {
            thread::yield_now();
        }
        Err(engines::Error::Cancelled { graph: "experts/only".into() }.into())
    }

    fn failed() -> Result<u32, Error> {
        Err(Error::Rank { tensor: "velocity".into(), expected: 5, found: 4 })
    }

    #[test]
    fn both_passes_run_at_the_same_time() {
        let both = Barrier::new(2);
        let pass = |value: u32| {
            both.wait();
            Ok(value)
        };
        let done = run_both(devices(), &Cancel::new(), |_| pass(1), |_| pass(2)).unwrap();
        assert_eq!(done, [1, 2]);
    }

    #[test]
    fn a_failure_ends_the_other_pass_and_names_its_device() {
        let error = run_both(devices(), &Cancel::new(), |_| failed(), cancelled).unwrap_err();
        insta::assert_snapshot!(error.report().what, @"`velocity` cannot be used on cuda:0");
        let error = run_both(devices(), &Cancel::new(), cancelled, |_| failed()).unwrap_err();
        insta::assert_snapshot!(error.report().what, @"`velocity` cannot be used on cuda:1");
        let error = run_both(devices(), &Cancel::new(), |_| failed(), |_| failed()).unwrap_err();
        assert!(error.to_string().contains("cuda:0"), "{error}");
        // The device is named once.
        let memory =
            || Err(engines::Error::OutOfMemory { graph: "g".into(), device: devices()[1], requested: None });
        let error = run_both(devices(), &Cancel::new(), cancelled, |_| Ok(memory()?)).unwrap_err();
        insta::assert_snapshot!(error.report().what, @"the graph g ran out of memory on cuda:1");
    }

    #[test]
    fn a_request_ends_both_passes() {
        let before = Cancel::new();
        before.cancel();
        assert!(run_both(devices(), &before, cancelled, cancelled).unwrap_err().is_cancelled());

        let cancel = Cancel::new();
        let both = Barrier::new(3);
        let pass = |ending: &Cancel| {
            both.wait();
            cancelled(ending)
        };
        let error = thread::scope(|scope| {
            let step = scope.spawn(|| run_both(devices(), &cancel, pass, pass));
            both.wait();
            cancel.cancel();
            step.join().unwrap().unwrap_err()
        });
        assert!(error.is_cancelled(), "{error}");
        assert_eq!(cancel.runs_in_flight(), 0);
    }

    #[test]
    fn nothing_is_registered_when_both_have_ended() {
        let cancel = Cancel::new();
        assert!(run_both(devices(), &cancel, |_| failed(), cancelled).is_err());
        assert_eq!(cancel.runs_in_flight(), 0);
        assert!(!cancel.is_cancelled());
    }
}
