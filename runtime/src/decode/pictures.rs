//! Conversion of decoder frames to pictures.

use ndarray::{Array4, ArrayView4};

/// Converts frames `[N,3,H,W]` in -1..1 to pictures `[N,H,W,3]` in 0..1: `(x + 1) / 2`, clamped.
pub fn pictures(frames: ArrayView4<'_, f32>) -> Array4<f32> {
    let picture = frames.permuted_axes([0, 2, 3, 1]);
    let mut out = Array4::zeros(picture.dim());
    ndarray::Zip::from(&mut out).and(picture).par_for_each(|out, &x| *out = clamp_sample(x) * 0.5 + 0.5);
    out
}

/// Clamps a sample to -1..1; NaN becomes -1.
fn clamp_sample(x: f32) -> f32 {
    // The order matters: `max` of NaN and -1 is -1.
    #[expect(clippy::manual_clamp, reason = "clamp would let NaN through")]
    x.max(-1.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    #[test]
    fn nan_is_black_and_samples_are_clamped() {
        let frames = arr1(&[f32::NAN, 7.0, -7.0]).into_shape_with_order((1, 3, 1, 1)).unwrap();
        assert_eq!(pictures(frames.view()).into_raw_vec_and_offset().0, [0.0, 1.0, 0.0]);
    }

    #[test]
    fn pictures_have_the_colour_axis_last() {
        let frames = Array4::from_shape_fn((2, 3, 2, 4), |(n, c, y, x)| {
            ((n * 24 + c * 8 + y * 4 + x) as f32 / 48.0) * 2.0 - 1.0
        });
        let pictures = pictures(frames.view());
        assert_eq!(pictures.dim(), (2, 2, 4, 3));
        assert!((pictures[[1, 1, 3, 2]] - 47.0 / 48.0).abs() < 1e-6);
        assert!((pictures[[0, 1, 0, 1]] - 12.0 / 48.0).abs() < 1e-6);
    }
}
