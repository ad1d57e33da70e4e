//! Errors of the codecs.

use bundle::{Diagnose, Report};

/// What can go wrong when a tensor is quantised.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A value is infinite or no number, and no scale can hold it.
    NotFinite {
        /// Where it is, counted in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A tensor has fewer axes than were counted on.
    NoSuchAxis {
        /// The axis that should hold the channels.
        axis: usize,
        /// The shape of the tensor.
        shape: Vec<usize>,
    },
    /// A tensor has more or fewer values than its shape says.
    Length {
        /// The shape of the tensor.
        shape: Vec<usize>,
        /// How many values there are.
        found: usize,
    },
}

impl Diagnose for CodecError {
    fn report(&self) -> Report {
        match self {
            Self::NotFinite { index, value } => Report::bad_input(
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
