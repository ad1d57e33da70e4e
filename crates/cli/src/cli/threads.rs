//! The value of `--threads`: the requested number, and the number that is used.

use crate::Error;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// A requested number of threads, and the number that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threads {
    requested: NonZeroUsize,
    used: NonZeroUsize,
}

impl Threads {
    /// Uses at most `available` threads. The threads of a graph wait for each other at every operator, so one thread
    /// without its own core slows down all others.
    fn at_most(requested: NonZeroUsize, available: NonZeroUsize) -> Self {
        Self { requested, used: requested.min(available) }
    }

    /// The number of threads that is used.
    pub(super) fn used(self) -> NonZeroUsize {
        self.used
    }

    /// A notice to the user if fewer threads are used than requested.
    pub(super) fn note(self) -> Option<String> {
        let Self { requested, used } = self;
        (used < requested).then(|| {
            format!("--threads {requested}: {used} are used, one per core that this process may use; more would be slower")
        })
    }
}

impl FromStr for Threads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let requested = text.parse::<usize>().ok().and_then(NonZeroUsize::new).ok_or_else(|| {
            Error::argument(
                "--threads",
                format!("`{text}`"),
                "expected a whole number from 1 up",
                "leave it out for one thread per core that this process may use",
            )
        })?;
        // Respects affinity and control groups. If the system cannot report it, the requested number is used.
        let available = std::thread::available_parallelism().unwrap_or(requested);
        Ok(Self::at_most(requested, available))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_cores_are_not_used_and_reported() {
        let number = |number| NonZeroUsize::new(number).unwrap();
        let threads = |requested| Threads::at_most(number(requested), number(2));
        assert_eq!(threads(1).used(), number(1));
        assert_eq!(threads(2).note(), None);
        assert_eq!(threads(1000).used(), number(2));
        insta::assert_snapshot!(threads(1000).note().unwrap(), @"--threads 1000: 2 are used, one per core that this process may use; more would be slower");
    }

    #[test]
    fn a_wrong_number_of_threads_is_refused_by_name() {
        for wrong in ["0", "-1", "2.5", "", "all", "99999999999999999999999"] {
            let error = wrong.parse::<Threads>().unwrap_err().to_string();
            assert!(error.starts_with("--threads cannot be"), "{error}");
        }
    }
}
