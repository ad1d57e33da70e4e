//! The snapshot of a job that a run goes on from.

use bundle::Field;
use std::fmt;
use std::str::FromStr;

/// The snapshot of a job that a run goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeFrom {
    /// The one after the last step.
    #[default]
    Newest,
    /// The one before the first step of the last expert.
    Boundary,
    /// The one after this many steps.
    Step(usize),
}

impl FromStr for ResumeFrom {
    type Err = bundle::Error;

    /// Parses `newest`, `boundary` or a number of steps.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        match text {
            "newest" => Ok(Self::Newest),
            "boundary" => Ok(Self::Boundary),
            _ => text.parse().map(Self::Step).map_err(|_not_a_number| {
                let rule = "it takes newest, boundary, or a number of steps whose snapshot was kept";
                bundle::Error::value(Field::ResumeFrom, format!("`{text}`"), rule, "use one of these")
            }),
        }
    }
}

impl fmt::Display for ResumeFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::Boundary => f.write_str("boundary"),
            Self::Step(steps) => write!(f, "{steps}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_named_or_numbered() {
        for from in [ResumeFrom::Newest, ResumeFrom::Boundary, ResumeFrom::Step(0), ResumeFrom::Step(12)] {
            assert_eq!(from.to_string().parse::<ResumeFrom>().unwrap(), from);
        }
        for wrong in ["", "-1", "1.5", "last"] {
            assert!(wrong.parse::<ResumeFrom>().unwrap_err().to_string().contains("boundary"), "{wrong}");
        }
    }
}
