//! `--threads`: how many were asked for, and how many are used.

use bundle::Error;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// A number of threads, as it was typed and as it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threads {
    asked: NonZeroUsize,
    used: NonZeroUsize,
}

impl Threads {
    /// At most as many as `available`. The threads of a graph wait for one another at every operator, so one that has no
    /// core of its own holds all others up.
    fn at_most(asked: NonZeroUsize, available: NonZeroUsize) -> Self {
        Self { asked, used: asked.min(available) }
    }

    /// How many are used.
    pub(super) fn used(self) -> NonZeroUsize {
        self.used
    }

    /// What the user should know.
    pub(super) fn note(self) -> Option<String> {
        let Self { asked, used } = self;
        (used < asked).then(|| {
            format!("--threads {asked}: {used} are used, one for each core that this process may use; more would be slower")
        })
    }
}

impl FromStr for Threads {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let asked = text.parse::<usize>().ok().and_then(NonZeroUsize::new).ok_or_else(|| {
            Error::value(
                "--threads",
                format!("`{text}`"),
                "it is a whole number from 1 up",
                "leave it out for one thread on each core that this process may use",
            )
        })?;
        // By affinity and control groups, not by the machine. Where the system does not say, what was asked for is used.
        let available = std::thread::available_parallelism().unwrap_or(asked);
        Ok(Self::at_most(asked, available))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_threads_than_cores_are_not_used_and_that_is_said() {
        let number = |number| NonZeroUsize::new(number).unwrap();
        let threads = |asked| Threads::at_most(number(asked), number(2));
        assert_eq!(threads(1).used(), number(1));
        assert_eq!(threads(2).note(), None);
        assert_eq!(threads(1000).used(), number(2));
        insta::assert_snapshot!(threads(1000).note().unwrap(), @"--threads 1000: 2 are used, one for each core that this process may use; more would be slower");
    }

    #[test]
    fn what_is_no_number_of_threads_is_refused_by_name() {
        for wrong in ["0", "-1", "2.5", "", "all", "99999999999999999999999"] {
            let error = wrong.parse::<Threads>().unwrap_err().to_string();
            assert!(error.starts_with("--threads cannot be"), "{error}");
        }
    }
}
