//! A predicted time, as a range.

use std::fmt;
use std::ops::{Add, Mul};

/// A time in seconds between two bounds. It is shown as a range with at most two digits, never to the second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Span {
    /// The shortest time.
    pub least: f64,
    /// The longest time.
    pub most: f64,
}

impl Span {
    /// The middle of the range on a scale of ratios.
    pub fn middle(self) -> f64 {
        (self.least * self.most).sqrt()
    }

    /// The longer of two computations at the same time.
    #[must_use]
    pub fn beside(self, other: Self) -> Self {
        Self { least: self.least.max(other.least), most: self.most.max(other.most) }
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { least: self.least + other.least, most: self.most + other.most }
    }
}

impl std::iter::Sum for Span {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

impl Mul<f64> for Span {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { least: self.least * times, most: self.most * times }
    }
}

/// The largest units, each used from twice its length.
const UNITS: [(&str, f64); 3] = [("hours", 3600.0), ("minutes", 60.0), ("s", 1.0)];

impl fmt::Display for Span {
    /// Prints it like `about 5 to 8 s`, in the largest unit of which the middle has two.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let middle = self.middle();
        if self.most < 0.1 {
            return f.write_str("less than 0.1 s");
        }
        let (unit, length) = UNITS.into_iter().find(|(_, length)| middle >= 2.0 * length).unwrap_or(UNITS[2]);
        let [least, most] = [self.least, self.most].map(|seconds| rounded(seconds / length));
        if least == most {
            write!(f, "about {most} {unit}")
        } else {
            write!(f, "about {least} to {most} {unit}")
        }
    }
}

/// A number with two digits, without zeros after the point.
fn rounded(number: f64) -> String {
    if number < 10.0 {
        let tenths = (number * 10.0).round() / 10.0;
        return if tenths < 0.1 { "0.1".into() } else { tenths.to_string() };
    }
    let scale = 10_f64.powf(number.log10().floor() - 1.0);
    format!("{:.0}", (number / scale).round() * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(least: f64, most: f64) -> String {
        Span { least, most }.to_string()
    }

    #[test]
    fn times_are_ranges_of_two_digits_in_a_fitting_unit() {
        assert_eq!(shown(0.01, 0.05), "less than 0.1 s");
        assert_eq!(shown(0.04, 0.16), "about 0.1 to 0.2 s");
        assert_eq!(shown(2.51, 4.19), "about 2.5 to 4.2 s");
        assert_eq!(shown(4.98, 5.02), "about 5 s");
        assert_eq!(shown(61.4, 98.7), "about 61 to 99 s");
        assert_eq!(shown(110.0, 260.0), "about 1.8 to 4.3 minutes");
        assert_eq!(shown(1000.0, 1904.0), "about 17 to 32 minutes");
        assert_eq!(shown(6000.0, 12_000.0), "about 1.7 to 3.3 hours");
        assert_eq!(shown(1_234_567.0, 2_345_678.0), "about 340 to 650 hours");
    }

    #[test]
    fn spans_add_up_and_overlap() {
        let [one, two] = [Span { least: 1.0, most: 4.0 }, Span { least: 2.0, most: 3.0 }];
        assert_eq!(one + two, Span { least: 3.0, most: 7.0 });
        assert_eq!([one, two].into_iter().sum::<Span>(), one + two);
        assert_eq!(one.beside(two), Span { least: 2.0, most: 4.0 });
        assert_eq!(one * 3.0, Span { least: 3.0, most: 12.0 });
        assert_eq!(one.middle(), 2.0);
    }
}
