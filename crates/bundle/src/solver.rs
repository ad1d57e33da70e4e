//! Solvers and sigma grids by name.

use crate::Field;
use serde::{Deserialize, Serialize};

/// The largest number of denoising steps: one per training timestep.
pub const MAX_STEPS: usize = 1000;

/// The update rule that turns velocities into the next latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverKind {
    /// UniPC of order 2, B(h) form, predicting x0.
    UniPc,
    /// DPM-Solver++ 2M, midpoint.
    DpmPp,
    /// Euler.
    Euler,
    /// The predicted clean latent with fresh noise of the next level, as DMD, rCM and consistency models are sampled.
    Renoise,
}

impl SolverKind {
    /// Returns true if the solver can follow a [list of timesteps](crate::timesteps::TimestepList).
    pub fn follows_lists(self) -> bool {
        matches!(self, Self::Euler | Self::Renoise)
    }
}

/// The code base whose sigma grid is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// The grid of the official Wan2.2 code.
    Official,
    /// The grid of diffusers.
    Diffusers,
}

crate::named!(
    SolverKind, Field::Sampler, "sampler",
    "unipc" => UniPc, "dpmpp" => DpmPp, "euler" => Euler, "renoise" => Renoise,
);
crate::named!(ScheduleKind, Field::Schedule, "schedule", "official" => Official, "diffusers" => Diffusers);
