//! Differences between two arrays, and the bounds of parity.

use ndarray::{ArrayView, Dimension};

/// The bound of the largest absolute difference of text states.
pub const TEXT_BOUND: f64 = 2e-5;
/// The bound of the relative difference of latents, ‖a−b‖₂ / ‖b‖₂.
pub const LATENT_BOUND: f64 = 2e-4;
/// The bound of the largest absolute difference of frames, whose range is 0..1.
pub const FRAME_BOUND: f64 = 2e-3;

/// Returns the largest absolute difference; infinite if the shapes differ or a value is NaN.
pub fn largest_difference<D: Dimension>(
    found: ArrayView<'_, f32, D>,
    expected: ArrayView<'_, f32, D>,
) -> f64 {
    if found.shape() != expected.shape() {
        return f64::INFINITY;
    }
    found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, |worst, difference| {
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    })
}

/// Returns ‖found−expected‖₂ / ‖expected‖₂; infinite if the shapes differ or a value is NaN.
pub fn relative_difference<D: Dimension>(
    found: ArrayView<'_, f32, D>,
    expected: ArrayView<'_, f32, D>,
) -> f64 {
    if found.shape() != expected.shape() {
        return f64::INFINITY;
    }
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(&expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (difference / norm).sqrt();
    if relative.is_nan() { f64::INFINITY } else { relative }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn nan_and_other_shapes_are_infinitely_different() {
        let good = array![1.0_f32, 2.0];
        assert_eq!(largest_difference(array![1.0, 2.5].view(), good.view()), 0.5);
        assert!(largest_difference(array![1.0, f32::NAN].view(), good.view()).is_infinite());
        assert!(relative_difference(array![f32::NAN, 2.0].view(), good.view()).is_infinite());
        assert!(relative_difference(array![1.0].view(), good.view()).is_infinite());
        assert!(
            (relative_difference(array![1.0, 3.0].view(), good.view()) - (1.0_f64 / 5.0).sqrt()).abs()
                < 1e-12
        );
    }
}
