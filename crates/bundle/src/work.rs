//! Floating-point operations by kind.

use std::ops::{Add, Mul};

/// Floating-point operations of a computation. A multiply-add counts as two. The kinds are kept apart because a device
/// reaches another share of its peak in each.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Matrix products of linear layers.
    pub products: f64,
    /// The two products of attention: queries with keys, and weights with values.
    pub attention: f64,
    /// Convolutions.
    pub convolutions: f64,
}

impl Work {
    /// The operations of all kinds.
    pub fn total(self) -> f64 {
        self.products + self.attention + self.convolutions
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            convolutions: self.convolutions + other.convolutions,
        }
    }
}

impl Mul<f64> for Work {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self {
            products: self.products * times,
            attention: self.attention * times,
            convolutions: self.convolutions * times,
        }
    }
}
