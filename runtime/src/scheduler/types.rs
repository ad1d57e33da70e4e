//! Numbers of jobs, and times.

use bundle::Field;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;

/// The number of a job. Each job has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// A time in seconds since the start of the scheduler, or a length of time. Finite and not negative.
///
/// ```
/// use runtime::scheduler::Seconds;
///
/// assert!(Seconds::try_new(1.5)? < Seconds::try_new(2.0)?);
/// assert!(Seconds::try_new(f64::NAN).is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Seconds(f64);

impl Seconds {
    /// No time.
    pub const ZERO: Self = Self(0.0);

    /// Takes a number of seconds.
    ///
    /// # Errors
    /// It is not finite, or negative.
    pub fn try_new(seconds: f64) -> Result<Self, bundle::Error> {
        if seconds.is_finite() && seconds >= 0.0 {
            // Turns -0 into 0.
            return Ok(Self(seconds + 0.0));
        }
        let fix = "write a finite number from 0, like 12.5";
        Err(bundle::Error::value(Field::Seconds, seconds, "it is not a length of time", fix))
    }

    /// The number of seconds.
    pub fn get(self) -> f64 {
        self.0
    }

    /// The time from `earlier` to this one; zero if that is later.
    pub fn since(self, earlier: Self) -> Self {
        Self((self.0 - earlier.0).max(0.0))
    }
}

impl std::ops::Add for Seconds {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self((self.0 + other.0).min(f64::MAX))
    }
}

impl std::iter::Sum for Seconds {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::ZERO, std::ops::Add::add)
    }
}

impl PartialEq for Seconds {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl TryFrom<f64> for Seconds {
    type Error = bundle::Error;
    fn try_from(seconds: f64) -> Result<Self, bundle::Error> {
        Self::try_new(seconds)
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}
