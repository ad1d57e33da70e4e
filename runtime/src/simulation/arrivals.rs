//! The file of arrivals: which clips are asked for, and when.

use crate::scheduler::{Priority, Seconds};
use bundle::Field;
use serde::{Deserialize, Serialize};

/// The most jobs of a simulation.
pub const MOST_JOBS: u32 = 1000;

/// The jobs of a simulation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// The jobs, in any order of time.
    pub jobs: Vec<Batch>,
}

/// One job, or several equal ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// When the first one arrives.
    pub at: Seconds,
    /// The kind of clip, a name in the cost file.
    pub clip: String,
    /// How soon it is wanted.
    #[serde(default = "normal")]
    pub priority: Priority,
    /// How many there are.
    #[serde(default = "one")]
    pub count: u32,
    /// Seconds between two of them.
    #[serde(default)]
    pub every: Seconds,
    /// How long after its arrival each is past its deadline.
    #[serde(default)]
    pub deadline: Option<Seconds>,
    /// How long after its arrival each is cancelled.
    #[serde(default)]
    pub cancelled_after: Option<Seconds>,
}

fn normal() -> Priority {
    Priority::Normal
}

fn one() -> u32 {
    1
}

impl Arrivals {
    /// Parses a file of arrivals.
    ///
    /// # Errors
    /// It is not JSON of this form, or has no jobs or more than [`MOST_JOBS`].
    pub fn parse(text: &str, name: &str) -> Result<Self, bundle::Error> {
        let refused =
            |why: String, fix: &str| bundle::Error::value(Field::Arrivals, format!("`{name}`"), why, fix);
        let arrivals: Self = serde_json::from_str(text)
            .map_err(|error| refused(error.to_string(), "follow the example in docs/scheduling.md"))?;
        let jobs: u64 = arrivals.jobs.iter().map(|batch| u64::from(batch.count)).sum();
        if jobs == 0 || jobs > u64::from(MOST_JOBS) {
            let fix = format!("give 1 to {MOST_JOBS} jobs");
            return Err(refused(format!("it has {jobs} jobs"), &fix));
        }
        Ok(arrivals)
    }
}
