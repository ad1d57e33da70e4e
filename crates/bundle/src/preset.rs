//! Published recipes of few-step models, by name. A recipe is a list of timesteps, a solver, and guidance.
//!
//! Sources: the schedules of Wan2.2-Lightning and LightX2V (a line from 1000, shifted by 5), FastVideo (FastWan),
//! TurboDiffusion (rCM), and Self-Forcing.

use crate::Field;
use crate::solver::SolverKind;
use crate::timesteps::{GuidanceUntil, ListedSteps, Start, TimestepList};
use crate::units::GuidanceScale;

/// The name of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Wan2.2-Lightning and the LightX2V distillations, without guidance.
    Lightning4,
    /// The same, with guidance 3.5 on the first step only, for more motion.
    Lightning4Guided,
    /// FastWan (DMD) of FastVideo, in three steps.
    FastWan3,
    /// Self-Forcing and its low-rank changes, used without causal attention.
    SelfForcing4,
    /// rCM of TurboDiffusion, in one step.
    Rcm1,
    /// rCM in two steps.
    Rcm2,
    /// rCM in three steps.
    Rcm3,
    /// rCM in four steps.
    Rcm4,
}

crate::named!(
    Preset, Field::Preset, "preset",
    "lightning-4" => Lightning4, "lightning-4-guided" => Lightning4Guided, "fastwan-3" => FastWan3,
    "self-forcing-4" => SelfForcing4, "rcm-1" => Rcm1, "rcm-2" => Rcm2, "rcm-3" => Rcm3, "rcm-4" => Rcm4,
);

/// What a recipe sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Timesteps, solver and start.
    pub steps: ListedSteps,
    /// Guidance scale of all experts.
    pub guidance: GuidanceScale,
    /// The end of guidance.
    pub guidance_until: GuidanceUntil,
}

/// A line of four from 1000 to 250, shifted by 5: 1000, 937.5, 833.33, 625.
const SHIFTED_BY_FIVE: [f32; 4] = [1000.0, 937.5, 833.333_3, 625.0];

/// The angles of the rCM sampler after the first, which is `atan 80` for text-to-video.
const RCM_ANGLES: [f64; 3] = [1.5, 1.4, 1.0];
const RCM_FIRST: f64 = 80.0;

impl Preset {
    /// The recipe.
    pub fn recipe(self) -> Recipe {
        let (values, sampler, start) = match self {
            Self::Lightning4 | Self::Lightning4Guided => {
                (SHIFTED_BY_FIVE.to_vec(), SolverKind::Euler, Start::Noise)
            }
            Self::FastWan3 => (vec![1000.0, 757.0, 522.0], SolverKind::Renoise, Start::Noise),
            Self::SelfForcing4 => (SHIFTED_BY_FIVE.to_vec(), SolverKind::Renoise, Start::Noise),
            Self::Rcm1 => (rcm(1), SolverKind::Renoise, Start::ScaledNoise),
            Self::Rcm2 => (rcm(2), SolverKind::Renoise, Start::ScaledNoise),
            Self::Rcm3 => (rcm(3), SolverKind::Renoise, Start::ScaledNoise),
            Self::Rcm4 => (rcm(4), SolverKind::Renoise, Start::ScaledNoise),
        };
        let list =
            TimestepList::try_new(values).unwrap_or_else(|_| unreachable!("a test makes every recipe"));
        let (guidance, guidance_until) = match self {
            Self::Lightning4Guided => (3.5, GuidanceUntil::FirstStep),
            _ => (1.0, GuidanceUntil::ALL_STEPS),
        };
        Recipe {
            steps: ListedSteps { list, sampler, start },
            guidance: GuidanceScale(guidance),
            guidance_until,
        }
    }
}

/// The first `steps` timesteps of rCM: `1000·sin θ/(cos θ + sin θ)` of its angles θ.
fn rcm(steps: usize) -> Vec<f32> {
    let angles = std::iter::once(RCM_FIRST.atan()).chain(RCM_ANGLES).take(steps);
    #[expect(clippy::cast_possible_truncation, reason = "timesteps are f32")]
    let timestep = |angle: f64| (1000.0 * angle.sin() / (angle.cos() + angle.sin())) as f32;
    angles.map(timestep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_recipe_whose_number_of_steps_its_name_states() {
        for preset in Preset::ALL {
            let Recipe { steps, guidance, guidance_until } = preset.recipe();
            let name = preset.name().replace("-guided", "");
            assert_eq!(name.rsplit('-').next().unwrap().parse::<usize>().unwrap(), steps.list.steps());
            assert!(steps.sampler.follows_lists());
            assert_eq!(guidance.applies(), guidance_until == GuidanceUntil::FirstStep);
            assert_eq!(preset.name().parse::<Preset>().unwrap(), preset);
        }
    }

    #[test]
    fn the_timesteps_are_the_published_ones() {
        let list = |preset: Preset| preset.recipe().steps.list;
        for (found, expected) in list(Preset::Rcm4).timesteps().iter().zip([987.654_3, 933.78, 852.9, 608.98])
        {
            assert!((found.0 - expected).abs() < 0.01, "{found:?} is not {expected}");
        }
        assert_eq!(list(Preset::Rcm2), list(Preset::Rcm4).first(2));
        assert_eq!(list(Preset::FastWan3).to_string(), "1000,757,522");
        for (index, timestep) in list(Preset::Lightning4).timesteps().iter().enumerate() {
            let base = 1.0 - 0.25 * index as f64;
            let shifted = 1000.0 * crate::units::Shift(5.0).apply(base);
            assert!((f64::from(timestep.0) - shifted).abs() < 1e-4, "{timestep:?} is not {shifted}");
        }
    }
}
