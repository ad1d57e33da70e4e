//! Errors of the number formats.

use bundle::{Diagnose, Report};

/// An error of quantising a tensor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A value is infinite or NaN.
    NotFinite {
        /// Its index in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The tensor has no such axis.
    NoSuchAxis {
        /// The channel axis.
        axis: usize,
        /// The shape of the tensor.
        shape: Vec<usize>,
    },
    /// The number of values differs from the shape.
    Length {
        /// The shape of the tensor.
        shape: Vec<usize>,
        /// Number of values.
        found: usize,
    },
}

impl Diagnose for CodecError {
    fn report(&self) -> Report {
        match self {
            Self::NotFinite { index, value } => Report::damaged(
                "the tensor cannot be quantised",
                format!("expected finite values, found {value} at index {index}"),
                "check that the checkpoint is whole, and get it again if it is not",
            ),
            Self::NoSuchAxis { axis, shape } => Report::bad_input(
                format!("the tensor cannot be quantised along axis {axis}"),
                format!("its shape {shape:?} has {} axes", shape.len()),
                "name an axis that the tensor has, counted from 0",
            ),
            Self::Length { shape, found } => Report::bad_input(
                format!("the tensor cannot have the shape {shape:?}"),
                format!("it has {found} values"),
                "check that the checkpoint is whole, and get it again if it is not",
            ),
        }
    }
}

bundle::display_as_report!(CodecError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_name_what_was_expected_and_found() {
        assert_eq!(
            CodecError::NotFinite { index: 7, value: f32::NEG_INFINITY }.to_string(),
            "the tensor cannot be quantised: expected finite values, found -inf at index 7 \
             (check that the checkpoint is whole, and get it again if it is not)"
        );
        assert_eq!(
            CodecError::NoSuchAxis { axis: 2, shape: vec![3, 4] }.to_string(),
            "the tensor cannot be quantised along axis 2: its shape [3, 4] has 2 axes \
             (name an axis that the tensor has, counted from 0)"
        );
        assert_eq!(
            CodecError::Length { shape: vec![3, 4], found: 11 }.to_string(),
            "the tensor cannot have the shape [3, 4]: it has 11 values \
             (check that the checkpoint is whole, and get it again if it is not)"
        );
    }
}
