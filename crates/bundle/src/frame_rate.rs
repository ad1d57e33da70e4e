//! Frame rates as exact fractions, such as 24000/1001.

use crate::{Error, Field};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Frames per second as a fraction in lowest terms, from 1 to 240, with a denominator of at most 1001.
///
/// In JSON a whole rate is a number, any other rate a string such as `"24000/1001"`. Numbers such as 23.976 are also
/// read.
///
/// ```
/// use bundle::units::FrameRate;
///
/// let rate: FrameRate = "23.976".parse()?;
/// assert_eq!(rate.fraction(), (24_000, 1001));
/// assert_eq!(rate.to_string(), "24000/1001");
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    frames: u32,
    seconds: u32,
}

/// NTSC rates before their reduction by 1000/1001. Rounded decimals of the reduced rates are read as the exact rate.
const NTSC: [u64; 8] = [12, 15, 24, 30, 48, 60, 120, 240];

/// The largest number of decimals.
const DECIMALS: usize = 9;

impl FrameRate {
    /// The highest accepted rate.
    pub const MAX: u32 = 240;
    /// The rate that Wan was trained with.
    pub const WAN: Self = Self { frames: 16, seconds: 1 };
    /// The largest accepted denominator.
    pub const MAX_DENOMINATOR: u32 = 1001;

    /// Creates a whole rate of 1 to 240 frames per second.
    ///
    /// # Errors
    /// Returns an error for any other number.
    pub fn try_new(frames_per_second: u32) -> Result<Self, Error> {
        Self::reduced(frames_per_second.into(), 1)
            .ok_or_else(|| out_of_range(Field::FrameRate, frames_per_second))
    }

    /// Parses a rate such as `24`, `23.976` or `24000/1001`. Rounded NTSC rates, such as 29.97, become the exact rate.
    /// `field` is the setting that the text was given for, used in errors.
    ///
    /// # Errors
    /// Returns an error if the text is not a rate, if the rate is out of range, or, with the nearest valid rate, if the
    /// denominator is above 1001.
    pub fn parse(field: Field, text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let (frames, seconds) = match text.split_once('/') {
            Some((frames, seconds)) => frames.parse().ok().zip(seconds.parse().ok()),
            None => decimal(text),
        }
        .filter(|(_, seconds)| *seconds > 0)
        .ok_or_else(|| {
            let fix = "write it like 24, 23.976 or 24000/1001";
            Error::value(field, format!("`{text}`"), "it is not a number of frames per second", fix)
        })?;
        if frames < seconds || frames > u64::from(Self::MAX).saturating_mul(seconds) {
            return Err(out_of_range(field, text));
        }
        Self::reduced(frames, seconds).ok_or_else(|| {
            let rule = format!("its denominator as a fraction is above {}", Self::MAX_DENOMINATOR);
            let fix = format!("the nearest valid rate is {}", nearest(frames, seconds));
            Error::value(field, format!("`{text}`"), rule, fix)
        })
    }

    /// Reduces to lowest terms. Returns none if the result is out of range.
    fn reduced(frames: u64, seconds: u64) -> Option<Self> {
        let common = greatest_common_divisor(frames, seconds);
        let (frames, seconds) = (frames.checked_div(common)?, seconds.checked_div(common)?);
        let in_range = seconds > 0
            && seconds <= u64::from(Self::MAX_DENOMINATOR)
            && (seconds..=u64::from(Self::MAX) * seconds).contains(&frames);
        if !in_range {
            return None;
        }
        Some(Self { frames: u32::try_from(frames).ok()?, seconds: u32::try_from(seconds).ok()? })
    }

    /// Returns the fraction in lowest terms: (frames, seconds).
    pub fn fraction(self) -> (u32, u32) {
        (self.frames, self.seconds)
    }

    /// Returns the next whole number of frames per second: 24 for 24000/1001. For uses that need not be exact, such as
    /// the distance between key frames.
    pub fn nominal(self) -> u32 {
        self.frames.div_ceil(self.seconds)
    }

    /// Returns the frames per second as a float.
    pub fn per_second(self) -> f64 {
        f64::from(self.frames) / f64::from(self.seconds)
    }

    /// Returns the timestamp of frame `number` in units of 1/`units` s, rounded down.
    pub fn timestamp(self, number: u64, units: u64) -> u64 {
        let exact = u128::from(number) * u128::from(units) * u128::from(self.seconds);
        u64::try_from(exact / u128::from(self.frames)).unwrap_or(u64::MAX)
    }

    /// [`Self::timestamp`], rounded to the nearest unit.
    pub fn nearest_timestamp(self, number: u64, units: u64) -> u64 {
        // floor((floor(2x) + 1) / 2) is x rounded.
        self.timestamp(number, units.saturating_mul(2)).div_ceil(2)
    }
}

/// Parses a decimal number into numerator and power of ten.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || whole.len() > 9
        || digits.len() > DECIMALS
        || !is_number(whole)
        || !is_number(digits)
    {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(digits.len()).ok()?);
    let value =
        whole.parse::<u64>().ok()? * scale + if digits.is_empty() { 0 } else { digits.parse().ok()? };
    // An NTSC rate is recognised from two decimals.
    let ntsc = NTSC.iter().find(|rate| {
        let rounded = (2 * **rate * 1000 * scale + 1001) / 2002;
        digits.len() >= 2 && rounded == value && value % scale != 0
    });
    Some(ntsc.map_or((value, scale), |rate| (rate * 1000, 1001)))
}

/// Returns the rate with at most three decimals that is nearest to a fraction in range.
fn nearest(frames: u64, seconds: u64) -> String {
    let thousandths = (u128::from(frames) * 2000 + u128::from(seconds)) / (2 * u128::from(seconds));
    let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn out_of_range(field: Field, given: impl fmt::Display) -> Error {
    let rule = format!("a clip plays at 1 to {} frames per second", FrameRate::MAX);
    Error::value(field, given, rule, "use the default by leaving it out")
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Prints `24`, or `24000/1001`.
impl fmt::Display for FrameRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            1 => write!(f, "{}", self.frames),
            seconds => write!(f, "{}/{seconds}", self.frames),
        }
    }
}

impl FromStr for FrameRate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(Field::FrameRate, text)
    }
}

impl Serialize for FrameRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.seconds {
            1 => serializer.serialize_u32(self.frames),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for FrameRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyRate)
    }
}

/// Reads a rate from a JSON number or string.
struct AnyRate;

impl Visitor<'_> for AnyRate {
    type Value = FrameRate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames per second, 1 to {}, like 24, 23.976 or \"24000/1001\"", FrameRate::MAX)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<FrameRate, E> {
        FrameRate::reduced(value, 1)
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<FrameRate, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<FrameRate, E> {
        FrameRate::parse(Field::FrameRate, value).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fraction(text: &str) -> (u32, u32) {
        text.parse::<FrameRate>().unwrap_or_else(|error| panic!("{error}")).fraction()
    }

    #[test]
    fn rates_are_parsed_exactly() {
        for (text, expected) in [
            ("16", (16, 1)),
            ("24.0", (24, 1)),
            ("24.", (24, 1)),
            (" 25 ", (25, 1)),
            ("12.5", (25, 2)),
            ("50/2", (25, 1)),
            ("30000/1001", (30000, 1001)),
            ("23.976", (24000, 1001)),
            ("23.98", (24000, 1001)),
            ("23.976023976", (24000, 1001)),
            ("29.97", (30000, 1001)),
            ("29.970", (30000, 1001)),
            ("29.97003", (30000, 1001)),
            ("47.952", (48000, 1001)),
            ("59.94", (60000, 1001)),
            ("119.88", (120_000, 1001)),
            ("239.76", (240_000, 1001)),
            ("14.985", (15000, 1001)),
            ("23.97", (2397, 100)),
            ("29.9", (299, 10)),
            ("1", (1, 1)),
            ("240", (240, 1)),
        ] {
            assert_eq!(fraction(text), expected, "{text}");
        }
    }

    #[test]
    fn invalid_rates_are_refused_with_the_setting_and_a_fix() {
        let refusal = |text: &str| FrameRate::parse(Field::OutputFrameRate, text).unwrap_err().to_string();
        insta::assert_snapshot!(refusal("12.34567"), @"output_frame_rate cannot be `12.34567`: its denominator as a fraction is above 1001 (the nearest valid rate is 12.346)");
        insta::assert_snapshot!(refusal("99999/5003"), @"output_frame_rate cannot be `99999/5003`: its denominator as a fraction is above 1001 (the nearest valid rate is 19.988)");
        insta::assert_snapshot!(refusal("fast"), @"output_frame_rate cannot be `fast`: it is not a number of frames per second (write it like 24, 23.976 or 24000/1001)");
        for text in ["", ".", ".5", "-1", "24fps", "1e2", "24/0", "0/0", "/", "1/2/3", "nan", "inf", "24,5"] {
            assert!(refusal(text).contains("not a number of frames"), "{text}: {}", refusal(text));
        }
        for text in ["0", "0.5", "241", "240.001", "1/2", "16777216", "18446744073709551615/1"] {
            assert!(refusal(text).contains("1 to 240 frames per second"), "{text}: {}", refusal(text));
        }
        // The suggested rate is valid.
        assert_eq!(fraction("12.346"), (6173, 500));
    }

    #[test]
    fn json_keeps_whole_rates_as_numbers_and_others_exactly() {
        for (json, back) in [
            ("16", "16"),
            ("24.0", "24"),
            ("23.976", r#""24000/1001""#),
            (r#""30000/1001""#, r#""30000/1001""#),
            (r#""25""#, "25"),
        ] {
            let rate: FrameRate = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&rate).unwrap(), back);
        }
        for wrong in ["0", "-1", "241", "16777216", "1e300", "null", "true", "[24]", r#""fast""#, "0.1"] {
            assert!(serde_json::from_str::<FrameRate>(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn timestamps_do_not_drift() {
        let rate: FrameRate = "29.97".parse().unwrap();
        assert_eq!(rate.nominal(), 30);
        assert_eq!(rate.timestamp(30_000, 1), 1001);
        assert_eq!(rate.timestamp(1, 90_000), 3003);
        assert_eq!((rate.timestamp(2, 1000), rate.nearest_timestamp(2, 1000)), (66, 67));
        assert_eq!(rate.timestamp(107_892, 1_000_000_000), 3_599_996_400_000);
    }

    proptest! {
        #[test]
        fn a_rate_survives_printing_and_parsing(frames in 1_u64..240_240, seconds in 1_u64..=1001) {
            if let Some(rate) = FrameRate::reduced(frames, seconds) {
                prop_assert_eq!(rate.to_string().parse::<FrameRate>().unwrap(), rate);
                let json = serde_json::to_string(&rate).unwrap();
                prop_assert_eq!(serde_json::from_str::<FrameRate>(&json).unwrap(), rate);
                for number in [0, 1, 7, 1000] {
                    let exact = number as f64 * 1000.0 / rate.per_second();
                    prop_assert!((rate.timestamp(number, 1000) as f64 - exact.floor()).abs() <= 1.0);
                    prop_assert!((rate.nearest_timestamp(number, 1000) as f64 - exact).abs() <= 0.5 + 1e-6);
                }
            }
        }
    }
}
