//! The steps whose snapshots a job keeps.

use bundle::Field;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The steps whose snapshots are kept, besides the newest one and the one at the expert boundary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepSteps {
    /// None.
    #[default]
    None,
    /// Those after these numbers of steps.
    Some(Vec<usize>),
    /// All.
    All,
}

impl KeepSteps {
    /// Returns true if no step is kept.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Returns true if the snapshot after `steps` steps is kept. That before the first step is not.
    pub fn contains(&self, steps: usize) -> bool {
        match self {
            Self::None => false,
            Self::Some(kept) => kept.contains(&steps),
            Self::All => steps > 0,
        }
    }

    /// Checks that a clip of `steps` steps makes all that are asked for.
    ///
    /// # Errors
    /// Names the first number that is out of range.
    pub fn check(&self, steps: usize) -> Result<(), bundle::Error> {
        let Self::Some(kept) = self else { return Ok(()) };
        match kept.iter().find(|kept| !(1..=steps).contains(*kept)) {
            None => Ok(()),
            Some(wrong) => {
                let rule = format!("this clip makes the steps 1 to {steps}");
                Err(bundle::Error::value(Field::KeepSteps, wrong, rule, "use steps of that range, or `all`"))
            }
        }
    }
}

impl FromStr for KeepSteps {
    type Err = bundle::Error;

    /// Parses `all`, or numbers of steps separated by commas.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        if text == "all" {
            return Ok(Self::All);
        }
        let refused = || {
            let rule = "it takes `all`, or numbers of steps from 1, separated by commas";
            bundle::Error::value(Field::KeepSteps, format!("`{text}`"), rule, "write it like 10,20")
        };
        let numbers = text.split(',').map(|part| part.parse::<usize>().ok().filter(|number| *number > 0));
        numbers.collect::<Option<Vec<_>>>().map(Self::Some).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_or_numbers_are_kept() {
        let all: KeepSteps = "all".parse().unwrap();
        assert_eq!([0, 1, 50].map(|step| all.contains(step)), [false, true, true]);
        let some: KeepSteps = "10,20".parse().unwrap();
        assert_eq!([9, 10, 20].map(|step| some.contains(step)), [false, true, true]);
        for wrong in ["", "0", "1,", "1, 2", "-1", "ALL", "99999999999999999999999"] {
            let error = wrong.parse::<KeepSteps>().unwrap_err().to_string();
            assert!(error.contains("10,20"), "{wrong}: {error}");
        }
    }

    #[test]
    fn steps_that_a_clip_does_not_make_are_refused() {
        KeepSteps::All.check(1).unwrap();
        KeepSteps::Some(vec![1, 20]).check(20).unwrap();
        let error = KeepSteps::Some(vec![1, 20]).check(19).unwrap_err().to_string();
        assert!(error.contains("20") && error.contains("1 to 19"), "{error}");
    }
}
