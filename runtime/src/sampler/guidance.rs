//! Classifier-free guidance: combines the two velocities of an expert.

use bundle::units::GuidanceScale;
use ndarray::{Array4, Zip};

/// `v = v_uncond + g·(v_cond - v_uncond)`, all `[C,T,h,w]`.
pub fn guide(unconditional: &Array4<f32>, conditional: &Array4<f32>, scale: GuidanceScale) -> Array4<f32> {
    Zip::from(unconditional).and(conditional).map_collect(|u, c| u + scale.0 * (c - u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_extrapolates_from_the_unconditional_velocity() {
        let velocity = |x| Array4::from_elem((1, 1, 1, 2), x);
        let guided = |scale| guide(&velocity(1.0), &velocity(3.0), GuidanceScale(scale));
        assert_eq!(guided(0.0), velocity(1.0));
        assert_eq!(guided(1.0), velocity(3.0));
        assert_eq!(guided(4.0), velocity(9.0));
    }
}
