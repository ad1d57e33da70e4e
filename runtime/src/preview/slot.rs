//! A queue of length one: a newer item replaces one that was not taken yet.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Holds the newest item that was not taken yet.
#[derive(Debug)]
pub(super) struct Slot<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    newest: Option<T>,
    closed: bool,
}

impl<T> Slot<T> {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { newest: None, closed: false }), changed: Condvar::new() }
    }

    /// Puts an item in without waiting. Returns the item that it replaces.
    pub(super) fn put(&self, item: T) -> Option<T> {
        let older = self.lock().newest.replace(item);
        self.changed.notify_one();
        older
    }

    /// Waits for an item. Returns `None` once the slot is closed and empty.
    pub(super) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.newest.is_some() || state.closed {
                return state.newest.take();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes the slot. Removes and returns the waiting item if it is `unwanted`.
    pub(super) fn close(&self, unwanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        state.closed = true;
        self.changed.notify_all();
        state.newest.take_if(|item| unwanted(item))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every change is a single assignment, so the state is consistent even after a panic in another thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_newer_item_replaces_an_older_one() {
        let slot = Slot::new();
        assert_eq!(slot.put(1), None);
        assert_eq!(slot.put(2), Some(1));
        assert_eq!(slot.take(), Some(2));
        slot.put(3);
        assert_eq!(slot.close(|_| false), None);
        assert_eq!(slot.take(), Some(3));
        assert_eq!(slot.take(), None);
    }

    #[test]
    fn a_waiting_thread_receives_items_and_the_end() {
        let slot = Arc::new(Slot::new());
        let taker = {
            let slot = Arc::clone(&slot);
            std::thread::spawn(move || std::iter::from_fn(|| slot.take()).last())
        };
        slot.put(7);
        slot.close(|_| false);
        assert_eq!(taker.join().unwrap(), Some(7));
        slot.put(8);
        assert_eq!(slot.close(|item| *item == 8), Some(8));
        assert_eq!(slot.take(), None);
    }
}
