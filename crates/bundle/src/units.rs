//! Numbers with units.

pub use crate::frame_rate::FrameRate;

use crate::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Noise level of a latent: `x = (1-σ)·x0 + σ·noise`, in 0..=1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sigma(pub f32);

/// Noise level as the denoiser receives it, in 0..=1000. Not always `1000·σ`: some schedules truncate it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestep(pub f32);

/// Scale of classifier-free guidance; 1 means none.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GuidanceScale(pub f32);

impl GuidanceScale {
    /// Returns true if the unconditional pass is needed.
    pub fn applies(self) -> bool {
        self.0 != 1.0
    }

    /// Parses `HIGH` or `HIGH,LOW`: one scale per expert, from the noisiest down.
    ///
    /// # Errors
    /// Returns an error if a part is not a finite number.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Error> {
        let wrong = || {
            Error::value(
                Field::Guidance,
                format!("`{text}`"),
                "it takes one finite number per expert, the noisiest first",
                "write it like 4 or 4,3",
            )
        };
        text.split(',')
            .map(|part| match part.trim().parse::<f32>() {
                Ok(scale) if scale.is_finite() => Ok(Self(scale)),
                _ => Err(wrong()),
            })
            .collect()
    }
}

/// Shift of the sigma grid towards high noise: `σ' = s·σ / (1 + (s-1)·σ)`, above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shift(pub f64);

impl Shift {
    /// Creates a shift, which must be finite and above 0.
    ///
    /// # Errors
    /// Returns an error for any other number.
    pub fn try_new(value: f64) -> Result<Self, Error> {
        if value.is_finite() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(Error::value(
                Field::Shift,
                value,
                "a shift is a finite number above 0",
                "use the default by leaving it out",
            ))
        }
    }

    /// Returns the shifted sigma.
    pub fn apply(self, sigma: f64) -> f64 {
        self.0 * sigma / (1.0 + (self.0 - 1.0) * sigma)
    }
}

/// Seed of the initial noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

/// A number of bytes. Displayed with a decimal unit, such as `57.1 GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl std::ops::Add for ByteCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for ByteCount {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self(0), std::ops::Add::add)
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
        #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
        let bytes = self.0 as f64;
        match units.into_iter().find(|(_, size)| bytes >= *size) {
            Some((unit, size)) => write!(f, "{:.1} {unit}", bytes / size),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl std::str::FromStr for ByteCount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim();
        let unit = lower[digits.len()..].trim();
        let refused = || {
            Error::value(
                Field::MemoryBudget,
                format!("`{text}`"),
                "it is not a number of bytes",
                "write it like 8GB, 500MB or 8GiB",
            )
        };
        let scale: u32 = match unit {
            "" | "b" => 1,
            "k" | "kb" => 1000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "ki" | "kib" => 1 << 10,
            "mi" | "mib" => 1 << 20,
            "gi" | "gib" => 1 << 30,
            _ => return Err(refused()),
        };
        // A whole number is exact; one with a fraction is not beyond 2^53.
        if let Ok(whole) = digits.parse::<u64>() {
            return Ok(Self(whole.saturating_mul(scale.into())));
        }
        match digits.parse::<f64>() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "positive, whole bytes"
            )]
            Ok(value) if value.is_finite() && value >= 0.0 => Ok(Self((value * f64::from(scale)) as u64)),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_parsed_and_printed_with_units() {
        assert_eq!("1.5GB".parse::<ByteCount>().unwrap(), ByteCount(1_500_000_000));
        assert_eq!("2 GiB".parse::<ByteCount>().unwrap(), ByteCount(2_147_483_648));
        assert_eq!("12".parse::<ByteCount>().unwrap().to_string(), "12 bytes");
        assert_eq!(ByteCount(57_150_000_000).to_string(), "57.1 GB");
        for wrong in ["", "GB", "-1GB", "4 parsecs", "nan"] {
            assert!(wrong.parse::<ByteCount>().is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn guidance_is_a_list_from_the_noisiest_expert_down() {
        assert_eq!(GuidanceScale::parse_list("4, 3").unwrap(), [GuidanceScale(4.0), GuidanceScale(3.0)]);
        for wrong in ["", "4;3", "inf", "4,,3"] {
            assert!(GuidanceScale::parse_list(wrong).is_err(), "{wrong} was accepted");
        }
        assert!(!GuidanceScale(1.0).applies());
        assert!(GuidanceScale(0.0).applies());
    }

    #[test]
    fn shift_does_not_move_the_ends_of_the_grid() {
        for shift in [0.5, 1.0, 5.0, 12.0] {
            let shift = Shift::try_new(shift).unwrap();
            assert_eq!(shift.apply(0.0), 0.0);
            assert_eq!(shift.apply(1.0), 1.0);
        }
        assert!(Shift::try_new(0.0).is_err());
        assert!(Shift::try_new(f64::NAN).is_err());
    }
}
