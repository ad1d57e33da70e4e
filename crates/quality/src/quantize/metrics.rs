//! Measures of the difference between two results.

use ndarray::{Array3, Array4, ArrayView, ArrayView3, Axis, Dimension};

/// Returns `‖a − b‖ / ‖b‖`, or `‖a‖` if `b` is 0.
pub fn relative_error<D: Dimension>(a: ArrayView<'_, f32, D>, b: ArrayView<'_, f32, D>) -> f64 {
    let (mut error, mut signal) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b.iter()) {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        signal += f64::from(*b).powi(2);
    }
    if signal > 0.0 { (error / signal).sqrt() } else { error.sqrt() }
}

/// Returns the cosine of the angle between two tensors, or 1 if one of them is 0.
pub fn cosine<D: Dimension>(a: ArrayView<'_, f32, D>, b: ArrayView<'_, f32, D>) -> f64 {
    let (mut product, mut sum_a, mut sum_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b.iter()) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        product += a * b;
        sum_a += a * a;
        sum_b += b * b;
    }
    let length = (sum_a * sum_b).sqrt();
    if length > 0.0 { product / length } else { 1.0 }
}

/// The PSNR of equal pictures, in decibels. 8-bit pictures are indistinguishable above 60 dB.
pub const PSNR_MAX: f64 = 120.0;

/// Returns the peak signal-to-noise ratio of values in 0..1, in decibels, at most [`PSNR_MAX`].
pub fn psnr<D: Dimension>(a: ArrayView<'_, f32, D>, b: ArrayView<'_, f32, D>) -> f64 {
    let squares: f64 = a.iter().zip(b.iter()).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let mean = squares / a.len().max(1) as f64;
    if mean > 0.0 { (-10.0 * mean.log10()).min(PSNR_MAX) } else { PSNR_MAX }
}

/// Side of the windows of [`ssim`].
const WINDOW: usize = 8;

/// Returns the structural similarity of two clips `[F,H,W,3]` in 0..1: on luma, with 8×8 windows at a stride of 4 and
/// equal weights.
///
/// Source: Wang et al. 2004, with K1 = 0.01 and K2 = 0.03.
pub fn ssim(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_u32);
    for (a, b) in a.outer_iter().zip(b.outer_iter()) {
        let (a, b) = (luma(a), luma(b));
        let (height, width) = a.dim();
        let starts = |size: usize| (0..=size.saturating_sub(WINDOW)).step_by(WINDOW / 2);
        for y in starts(height) {
            for x in starts(width) {
                let (bottom, right) = ((y + WINDOW).min(height), (x + WINDOW).min(width));
                let window = ndarray::s![y..bottom, x..right];
                sum += similarity(a.slice(window).iter().zip(b.slice(window).iter()));
                count += 1;
            }
        }
    }
    sum / f64::from(count.max(1))
}

fn luma(picture: ArrayView3<'_, f32>) -> ndarray::Array2<f64> {
    let weights = [0.2126, 0.7152, 0.0722];
    picture.map_axis(Axis(2), |pixel| pixel.iter().zip(weights).map(|(v, w)| f64::from(*v) * w).sum())
}

fn similarity<'a>(pairs: impl Iterator<Item = (&'a f64, &'a f64)>) -> f64 {
    let (mut n, mut sum_a, mut sum_b, mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (a, b) in pairs {
        n += 1.0;
        sum_a += a;
        sum_b += b;
        aa += a * a;
        bb += b * b;
        ab += a * b;
    }
    let (mean_a, mean_b) = (sum_a / n, sum_b / n);
    let (var_a, var_b, both) = (aa / n - mean_a * mean_a, bb / n - mean_b * mean_b, ab / n - mean_a * mean_b);
    let (c1, c2) = (0.01_f64.powi(2), 0.03_f64.powi(2));
    ((2.0 * mean_a * mean_b + c1) * (2.0 * both + c2))
        / ((mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2))
}

/// Returns `8·|a − b|`, clamped to 0..1. The factor makes small differences visible.
pub fn difference(a: ArrayView3<'_, f32>, b: ArrayView3<'_, f32>) -> Array3<f32> {
    let mut out = a.to_owned();
    out.zip_mut_with(&b, |a, b| *a = ((*a - b).abs() * 8.0).min(1.0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(value: impl Fn(usize, usize) -> f32) -> Array4<f32> {
        Array4::from_shape_fn((2, 16, 16, 3), |(_, y, x, _)| value(y, x))
    }

    #[test]
    fn equal_clips_have_the_best_scores_and_noise_lowers_them() {
        let picture = clip(|y, x| ((y * x) % 7) as f32 / 7.0);
        assert_eq!((psnr(picture.view(), picture.view()), ssim(&picture, &picture)), (PSNR_MAX, 1.0));
        let noisy = clip(|y, x| (((y * x) % 7) as f32 / 7.0) + if (x + y) % 2 == 0 { 0.1 } else { -0.1 });
        let ratio = psnr(noisy.view(), picture.view());
        assert!((ratio - 20.0).abs() < 1e-4, "{ratio}");
        assert!(ssim(&noisy, &picture) < 0.95);
        assert!((relative_error(noisy.view(), noisy.view())).abs() < 1e-12);
        assert!(cosine(noisy.view(), picture.view()) < 1.0);
    }
}
