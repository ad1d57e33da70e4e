//! Keeps sessions apart while the first one registers the operators of Rushes.
//!
//! A session with operators enters their domain into a table of the process. ONNX Runtime reads that table, without a
//! lock, whenever it opens a session. Once the domain is registered, sessions only read.

use std::sync::{PoisonError, RwLock};

/// Orders the opening of sessions in this process.
#[derive(Debug, Default)]
pub(crate) struct FirstOpen {
    /// Whether a session with operators has been opened.
    is_registered: RwLock<bool>,
}

impl FirstOpen {
    /// Creates the order of a process that has opened no session.
    pub(crate) const fn new() -> Self {
        Self { is_registered: RwLock::new(false) }
    }

    /// Opens a session. Until a session with operators is open, such a session is opened alone, and sessions without
    /// operators are opened with each other only; afterwards all are opened concurrently.
    ///
    /// # Errors
    /// Those of `open`. The next session with operators is then opened alone.
    pub(crate) fn open<T, E>(
        &self,
        has_operators: bool,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let is_registered = self.is_registered.read().unwrap_or_else(PoisonError::into_inner);
        if *is_registered {
            drop(is_registered);
            return open();
        }
        if !has_operators {
            return open();
        }
        drop(is_registered);
        let mut is_registered = self.is_registered.write().unwrap_or_else(PoisonError::into_inner);
        if *is_registered {
            drop(is_registered);
            return open();
        }
        let session = open()?;
        *is_registered = true;
        Ok(session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// Returns true if two sessions are being opened at once before `patience` has passed.
    fn overlap(first: &FirstOpen, has_operators: [bool; 2], patience: Duration) -> bool {
        let (opening, overlapped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let both_started = Barrier::new(2);
        let session = |has_operators| {
            both_started.wait();
            let _: Result<(), ()> = first.open(has_operators, || {
                if opening.fetch_add(1, Ordering::SeqCst) == 1 {
                    overlapped.store(true, Ordering::SeqCst);
                }
                let start = Instant::now();
                while !overlapped.load(Ordering::SeqCst) && start.elapsed() < patience {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opening.fetch_sub(1, Ordering::SeqCst);
                // A failure, so that nothing is registered.
                Err(())
            });
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| session(has_operators[0]));
            session(has_operators[1]);
            other.join().unwrap();
        });
        overlapped.into_inner()
    }

    fn is_registered(first: &FirstOpen) -> bool {
        *first.is_registered.read().unwrap()
    }

    #[test]
    fn only_a_session_with_operators_registers_them() {
        let first = FirstOpen::new();
        assert_eq!(first.open(false, || Ok::<_, ()>(1)), Ok(1));
        assert!(!is_registered(&first));
        assert_eq!(first.open(true, || Err::<(), _>(2)), Err(2));
        assert!(!is_registered(&first));
        assert_eq!(first.open(true, || Ok::<_, ()>(3)), Ok(3));
        assert!(is_registered(&first));
        assert_eq!(first.open(false, || Ok::<_, ()>(4)), Ok(4));
        assert!(is_registered(&first));
    }

    #[test]
    fn the_first_session_with_operators_is_opened_alone() {
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(60));
        let first = FirstOpen::new();
        assert!(!overlap(&first, [true, true], short));
        assert!(!overlap(&first, [true, false], short));
        assert!(overlap(&first, [false, false], long));
        first.open(true, || Ok::<_, ()>(())).unwrap();
        for has_operators in [[true, true], [true, false], [false, false]] {
            assert!(overlap(&first, has_operators, long), "{has_operators:?}");
        }
    }
}
