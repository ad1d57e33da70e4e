//! The values of `--seed`.

use bundle::units::Seed;
use bundle::{Error, Field};
use std::hash::{BuildHasher, Hasher};
use std::str::FromStr;

/// The value of `--seed` of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeedChoice {
    /// A given seed.
    Given(Seed),
    /// A new seed each time: `-1`.
    Any,
}

impl SeedChoice {
    /// Returns the given seed, or a new one with each call.
    pub(super) fn seed(self) -> Seed {
        match self {
            Self::Given(seed) => seed,
            // Short enough to type.
            Self::Any => Seed(std::hash::RandomState::new().build_hasher().finish() >> 32),
        }
    }
}

impl FromStr for SeedChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "-1" {
            return Ok(Self::Any);
        }
        let rule = format!("expected a whole number from 0 to {}", u64::MAX);
        let fix = "leave it out, or use -1, for a new seed each time";
        let refused = |_error| Error::value(Field::Seed, format!("`{text}`"), rule, fix);
        text.parse().map(|seed| Self::Given(Seed(seed))).map_err(refused)
    }
}

/// Parses the first seed of a calibration. It is never random: an interrupted calibration is resumed by its seeds.
pub(super) fn first_seed(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_error| {
        let rule = format!("expected a whole number from 0 to {}", u64::MAX);
        let fix =
            "leave it out for 0; it cannot be random, because an interrupted calibration is resumed by its seeds";
        Error::value(Field::Seed, format!("`{text}`"), rule, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_one_is_a_new_seed_each_time() {
        let any: SeedChoice = "-1".parse().unwrap();
        let seeds: std::collections::BTreeSet<u64> = (0..8).map(|_| any.seed().0).collect();
        assert!(seeds.len() > 1 && seeds.iter().all(|seed| *seed < 1 << 32), "{seeds:?}");
        assert_eq!("7".parse::<SeedChoice>().unwrap().seed(), Seed(7));
        assert_eq!(u64::MAX.to_string().parse::<SeedChoice>().unwrap().seed(), Seed(u64::MAX));
    }

    #[test]
    fn other_seeds_are_refused_by_name() {
        for wrong in ["-2", "", "1.5", "0x10", "18446744073709551616", "seven", "- 1"] {
            let error = wrong.parse::<SeedChoice>().unwrap_err().to_string();
            assert!(error.starts_with("seed cannot be") && error.contains("use -1"), "{error}");
        }
        assert_eq!(first_seed("3").unwrap(), 3);
        assert!(first_seed("-1").unwrap_err().to_string().contains("resumed by its seeds"));
    }
}
