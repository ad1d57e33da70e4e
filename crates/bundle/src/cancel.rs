//! Stopping a run from another thread.

use crate::stop::Stop;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Work that can be stopped from another thread before its next check of [`Cancel::is_cancelled`].
pub trait Interrupt: Send + Sync {
    /// Requests the work to stop.
    fn interrupt(&self);
}

/// A stop request, shared by the caller and every run under it.
///
/// Clones share the request. It cannot be reset: a new run takes a new `Cancel`.
///
/// ```
/// let cancel = bundle::Cancel::new();
/// let clone = cancel.clone();
/// clone.cancel();
/// assert!(cancel.is_cancelled());
/// ```
#[derive(Clone, Default)]
pub struct Cancel {
    shared: Arc<Request>,
}

#[derive(Default)]
struct Request {
    stop: Stop,
    /// Every run in flight. Each stops at the next point where it can be interrupted.
    running: Mutex<Vec<Arc<dyn Interrupt>>>,
}

impl Cancel {
    /// Creates a request that has not been made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop and interrupts the runs in flight.
    pub fn cancel(&self) {
        let running = self.running();
        // Set while the list is locked: a run that starts now is stopped by the flag or by the interruption.
        self.shared.stop.request();
        for run in running.iter() {
            run.interrupt();
        }
    }

    /// Returns true once the stop has been requested.
    pub fn is_cancelled(&self) -> bool {
        self.shared.stop.is_requested()
    }

    /// The same request, for work without an ONNX Runtime session.
    pub fn stop(&self) -> &Stop {
        &self.shared.stop
    }

    /// Registers a run until the guard is dropped. Returns `None` if the stop has already been requested.
    pub fn watch(&self, run: Arc<dyn Interrupt>) -> Option<Watch<'_>> {
        let mut running = self.running();
        if self.is_cancelled() {
            return None;
        }
        running.push(Arc::clone(&run));
        Some(Watch { cancel: self, run })
    }

    /// Number of runs that the request would interrupt now.
    pub fn runs_in_flight(&self) -> usize {
        self.running().len()
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<dyn Interrupt>>> {
        // Every change of the list is a single push or retain, so it is valid even after a panic elsewhere.
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("requested", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// Unregisters its run when dropped.
pub struct Watch<'a> {
    cancel: &'a Cancel,
    run: Arc<dyn Interrupt>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.cancel.running().retain(|run| !Arc::ptr_eq(run, &self.run));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Interrupt for Flag {
        fn interrupt(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn clones_share_the_request() {
        let cancel = Cancel::new();
        let other = cancel.clone();
        assert!(!cancel.is_cancelled());
        other.cancel();
        assert!(cancel.is_cancelled() && cancel.stop().is_requested());
        assert!(!Cancel::new().is_cancelled());
    }

    #[test]
    fn only_runs_in_flight_are_interrupted() {
        let cancel = Cancel::new();
        let (ended, running) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
        drop(cancel.watch(Arc::clone(&ended) as Arc<dyn Interrupt>));
        let watch = cancel.watch(Arc::clone(&running) as Arc<dyn Interrupt>);
        assert_eq!(cancel.runs_in_flight(), 1);
        cancel.cancel();
        assert!(!ended.0.load(Ordering::SeqCst) && running.0.load(Ordering::SeqCst));
        drop(watch);
        assert_eq!(cancel.runs_in_flight(), 0);
        assert!(cancel.watch(running).is_none());
    }
}
