//! Differences between two arrays, and the bounds that parity is judged by.

use ndarray::{ArrayView, Dimension};

/// Largest absolute difference of text states.
pub const TEXT_BOUND: f64 = 2e-5;
/// Relative difference of latents, ‖a−b‖₂ / ‖b‖₂.
pub const LATENT_BOUND: f64 = 2e-4;
/// Largest absolute difference of frames, whose range is 0..1.
pub const FRAME_BOUND: f64 = 2e-3;

/// Largest absolute difference; infinite where the shapes differ or a value is not a number.
pub fn largest_difference<D: Dimension>(ours: ArrayView<'_, f32, D>, theirs: ArrayView<'_, f32, D>) -> f64 {
    if ours.shape() != theirs.shape() {
        return f64::INFINITY;
    }
    ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, |worst, difference| {
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    })
}

/// ‖ours−theirs‖₂ / ‖theirs‖₂; infinite where the shapes differ or a value is not a number.
pub fn relative_difference<D: Dimension>(ours: ArrayView<'_, f32, D>, theirs: ArrayView<'_, f32, D>) -> f64 {
    if ours.shape() != theirs.shape() {
        return f64::INFINITY;
    }
    let square = |value: f64| value * value;
    let difference: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = theirs.iter().map(|b| square(f64::from(*b))).sum();
    let relative = (difference / norm).sqrt();
    if relative.is_nan() { f64::INFINITY } else { relative }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_comparison_never_passes_on_what_is_no_number() {
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
