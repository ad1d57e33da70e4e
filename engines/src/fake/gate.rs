//! A gate that holds calls until a test opens it.

use crate::Cancel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long [`Gate::wait_for`] waits before it fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds the calls that wait at it ([`Effect::Waits`](super::Effect::Waits)) until it is opened. Clones are the same
/// gate.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    is_open: bool,
    waiting: usize,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets all calls pass, also later ones.
    pub fn open(&self) {
        self.state().is_open = true;
        self.shared.1.notify_all();
    }

    /// The number of calls that wait.
    pub fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Waits until at least `calls` calls wait at the gate.
    ///
    /// # Panics
    /// Panics if that takes longer than a minute.
    pub fn wait_for(&self, calls: usize) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        while state.waiting < calls {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} instead of {calls} calls wait at the gate", state.waiting);
            let woken = self.shared.1.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the gate is open or `cancel` is requested.
    pub(super) fn pass(&self, cancel: Option<&Cancel>) {
        let is_cancelled = || cancel.is_some_and(Cancel::is_cancelled);
        let mut state = self.state();
        state.waiting += 1;
        self.shared.1.notify_all();
        while !state.is_open && !is_cancelled() {
            state = self.shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// Makes waiting calls look at their request again.
    pub(super) fn wake(&self) {
        // A call that has found no request holds the lock until it waits, so it cannot miss this.
        drop(self.state());
        self.shared.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
