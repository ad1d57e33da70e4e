//! Parsers of values that only the commands of the queue have.

use crate::Error;
use ::jobs::store::State;
use bundle::Field;
use bundle::units::ByteCount;
use runtime::scheduler::{JobId, Priority, Seconds};

/// The number of a job, from 1.
pub(super) fn job_id(text: &str) -> Result<JobId, Error> {
    text.parse().ok().filter(|number| *number > 0).map(JobId).ok_or_else(|| {
        let fix = "`rushes jobs list` shows the numbers";
        Error::argument("the number of a job", format!("`{text}`"), "expected a whole number from 1", fix)
    })
}

/// The value of `--priority`.
pub(super) fn priority(text: &str) -> Result<Priority, bundle::Error> {
    Priority::ALL.into_iter().find(|priority| priority.name() == text).ok_or_else(|| {
        let names = Priority::ALL.map(Priority::name).join(", ");
        let rule = format!("unknown priority; expected one of {names}");
        bundle::Error::value(Field::Priority, format!("`{text}`"), rule, "use one of these")
    })
}

/// The value of `--deadline`, in seconds.
pub(super) fn deadline(text: &str) -> Result<Seconds, bundle::Error> {
    text.parse().ok().and_then(|seconds| Seconds::try_new(seconds).ok()).ok_or_else(|| {
        let rule = "expected a number of seconds from 0";
        let fix = "write it like 600; leave it out for that of the `priority`";
        bundle::Error::value(Field::Deadline, format!("`{text}`"), rule, fix)
    })
}

/// The value of `--state`.
pub(super) fn state(text: &str) -> Result<State, Error> {
    State::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
        let names = State::ALL.map(State::name).join(", ");
        Error::argument(
            "--state",
            format!("`{text}`"),
            format!("expected one of {names}"),
            "use one of these",
        )
    })
}

/// The value of `--store-budget`.
pub(in crate::cli) fn store_budget(text: &str) -> Result<ByteCount, bundle::Error> {
    text.parse().map_err(|_error: bundle::Error| {
        let rule = "it is not a number of bytes";
        bundle::Error::value(
            Field::StoreBudget,
            format!("`{text}`"),
            rule,
            "write it like 20GB, 500MB or 8GiB",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render;

    #[test]
    fn values_are_parsed() {
        assert_eq!(job_id("7").unwrap(), JobId(7));
        assert_eq!(Priority::ALL.map(|kind| priority(kind.name()).unwrap()), Priority::ALL);
        assert_eq!(State::ALL.map(|kind| state(kind.name()).unwrap()), State::ALL);
        assert_eq!(deadline("1.5").unwrap(), Seconds::try_new(1.5).unwrap());
        assert_eq!(store_budget("20GB").unwrap(), ByteCount(20_000_000_000));
    }

    #[test]
    fn other_values_are_refused_by_name() {
        for text in ["0", "-1", "seven", "", "1.5", "18446744073709551616"] {
            assert!(job_id(text).unwrap_err().to_string().starts_with("the number of a job cannot be"));
        }
        for text in ["-1", "inf", "nan", "", "soon", "1e999"] {
            assert!(deadline(text).unwrap_err().to_string().starts_with("deadline cannot be"), "{text}");
        }
        insta::assert_snapshot!(render::report(&priority("high").unwrap_err()), @"--priority cannot be `high`: unknown priority; expected one of preview, normal, batch (use one of these)");
        insta::assert_snapshot!(state("ready").unwrap_err(), @"--state cannot be `ready`: expected one of queued, running, stopped, done, failed, cancelled (use one of these)");
        insta::assert_snapshot!(render::report(&store_budget("much").unwrap_err()), @"--store-budget cannot be `much`: it is not a number of bytes (write it like 20GB, 500MB or 8GiB)");
        insta::assert_snapshot!(render::report(&deadline("soon").unwrap_err()), @"--deadline cannot be `soon`: expected a number of seconds from 0 (write it like 600; leave it out for that of the --priority)");
    }
}
