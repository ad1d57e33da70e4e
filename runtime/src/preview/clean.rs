//! What a step says of the end: the clean latent, were the step's velocity to hold until there.

use bundle::units::Sigma;
use ndarray::{Array4, ArrayView4, Zip};

/// `x0 = x - σ·v`: the clean latent `[C,T,h,w]` that velocity `v` at noise level `σ` points to.
///
/// Source: flow matching, `x = (1-σ)·x0 + σ·noise` and `v = noise - x0`.
pub fn predicted_clean(x: ArrayView4<'_, f32>, velocity: ArrayView4<'_, f32>, sigma: Sigma) -> Array4<f32> {
    Zip::from(x).and(velocity).map_collect(|x, v| x - sigma.0 * v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_velocity_of_a_straight_path_points_to_its_end(
            end in -3.0_f32..3.0, noise in -3.0_f32..3.0, sigma in 0.0_f32..1.0,
        ) {
            let of = |value| Array4::from_elem((1, 1, 1, 1), value);
            let x = of((1.0 - sigma) * end + sigma * noise);
            let clean = predicted_clean(x.view(), of(noise - end).view(), Sigma(sigma));
            prop_assert!((clean[[0, 0, 0, 0]] - end).abs() < 1e-5);
        }
    }
}
