//! Stopping a run from another thread.

use bundle::stop::Stop;
use ort::session::RunOptions;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A request to stop, shared by whoever may make it and every run that obeys it.
///
/// Clones are the same request. It cannot be taken back: a new piece of work takes a new `Cancel`.
#[derive(Clone, Default)]
pub struct Cancel {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: Stop,
    /// The options of every run in flight; terminating them stops the run before its next node.
    running: Mutex<Vec<Arc<RunOptions>>>,
}

impl Cancel {
    /// A request that has not been made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the request. Runs in flight stop before their next node and give [`Error::Cancelled`](crate::Error).
    pub fn cancel(&self) {
        let running = self.running();
        // Set while the list is locked: a run that starts now sees either the flag or the termination.
        self.shared.stop.request();
        for options in running.iter() {
            if let Err(error) = options.terminate() {
                tracing::warn!(%error, "a run could not be asked to stop");
            }
        }
    }

    /// Whether the request has been made.
    pub fn is_cancelled(&self) -> bool {
        self.shared.stop.is_requested()
    }

    /// The same request for work that runs no graph.
    pub fn stop(&self) -> &Stop {
        &self.shared.stop
    }

    /// Puts a run under this request until the guard is dropped; `None` when the request has already been made.
    pub(crate) fn watch(&self, options: &Arc<RunOptions>) -> Option<Watch<'_>> {
        let mut running = self.running();
        if self.is_cancelled() {
            return None;
        }
        running.push(Arc::clone(options));
        Some(Watch { cancel: self, options: Arc::clone(options) })
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<RunOptions>>> {
        // Every change of the list is a single push or retain, so it is whole even after a panic elsewhere.
        self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn runs_in_flight(&self) -> usize {
        self.running().len()
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("requested", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// Takes its run off the list when dropped.
pub(crate) struct Watch<'a> {
    cancel: &'a Cancel,
    options: Arc<RunOptions>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.cancel.running().retain(|options| !Arc::ptr_eq(options, &self.options));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_request() {
        let cancel = Cancel::new();
        let other = cancel.clone();
        assert!(!cancel.is_cancelled());
        other.cancel();
        assert!(cancel.is_cancelled() && cancel.stop().is_requested());
        assert!(!Cancel::new().is_cancelled());
    }
}
