//! The sigma grids of the official Wan code and of diffusers, and lists of timesteps.
//!
//! Every grid is a falling line, bent towards high noise by the shift, and a final 0. The implementations differ in the
//! ends of the line, in its precision, and in the rounding of timesteps. The differences are small, but the experts of
//! a bundle are trained for one of the grids.

use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::TimestepList;
use bundle::units::{Shift, Sigma, Timestep};
use serde::{Deserialize, Serialize};

/// Timesteps that the denoisers are trained on.
const TRAIN_STEPS: u16 = 1000;

/// The largest sigma of the official UniPC, from a table in f32.
const OFFICIAL_SIGMA_MAX: f32 = 0.999;

/// diffusers keeps UniPC's first sigma this far from 1, where `ln(1-σ)` is infinite.
const DIFFUSERS_EPSILON: f64 = 1e-6;

/// Noise levels of a run of N steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredSchedule")]
pub struct Schedule {
    /// N+1 values; the last is 0.
    sigmas: Vec<Sigma>,
    /// N values.
    timesteps: Vec<Timestep>,
}

/// A schedule as it is stored, before it is checked.
#[derive(Deserialize)]
struct StoredSchedule {
    sigmas: Vec<Sigma>,
    timesteps: Vec<Timestep>,
}

impl TryFrom<StoredSchedule> for Schedule {
    type Error = &'static str;

    fn try_from(stored: StoredSchedule) -> Result<Self, &'static str> {
        Self::from_parts(stored.sigmas, stored.timesteps)
    }
}

impl Schedule {
    /// Creates the grid that the implementation `kind` uses for `solver`.
    ///
    /// Sigmas that rounding of the shift makes slightly larger than 1 are set to 1. A run of 0 steps has the single
    /// sigma 0 and denoises nothing.
    pub fn new(solver: SolverKind, kind: ScheduleKind, steps: usize, shift: Shift) -> Self {
        match (kind, solver) {
            (ScheduleKind::Official, SolverKind::UniPc) => {
                Self::truncated(shifted(line(f64::from(OFFICIAL_SIGMA_MAX), 0.0, steps), shift))
            }
            (ScheduleKind::Official, SolverKind::DpmPp) => {
                Self::truncated(shifted(line(1.0, 0.0, steps), shift))
            }
            (ScheduleKind::Official, SolverKind::Euler | SolverKind::Renoise) => {
                Self::continuous(distilled_euler(steps, shift))
            }
            (ScheduleKind::Diffusers, SolverKind::UniPc) => Self::truncated(diffusers_unipc(steps, shift)),
            (ScheduleKind::Diffusers, SolverKind::DpmPp) => Self::truncated(diffusers_dpmpp(steps, shift)),
            (ScheduleKind::Diffusers, SolverKind::Euler | SolverKind::Renoise) => {
                Self::continuous(diffusers_euler(steps, shift))
            }
        }
    }

    /// Creates the schedule of a list: each sigma is its timestep over 1000.
    pub fn of_list(list: &TimestepList) -> Self {
        let timesteps = list.timesteps().to_vec();
        let sigmas = timesteps.iter().map(|timestep| Sigma(timestep.0 / f32::from(TRAIN_STEPS)));
        Self { sigmas: sigmas.chain([Sigma(0.0)]).collect(), timesteps }
    }

    /// Creates a schedule from stored values.
    ///
    /// # Errors
    /// Returns the reason if they are not N+1 sigmas in 0..=1 that never rise to a final 0, with N timesteps in 0..=1000.
    pub fn from_parts(sigmas: Vec<Sigma>, timesteps: Vec<Timestep>) -> Result<Self, &'static str> {
        if sigmas.len() != timesteps.len() + 1 {
            return Err("a schedule has one sigma more than timesteps");
        }
        if !sigmas.iter().all(|sigma| (0.0..=1.0).contains(&sigma.0)) {
            return Err("a sigma is not in 0 to 1");
        }
        if sigmas.windows(2).any(|pair| pair[0] < pair[1]) || sigmas.last() != Some(&Sigma(0.0)) {
            return Err("the sigmas do not fall to 0");
        }
        let highest = f32::from(TRAIN_STEPS);
        if !timesteps.iter().all(|timestep| (0.0..=highest).contains(&timestep.0)) {
            return Err("a timestep is not in 0 to 1000");
        }
        Ok(Self { sigmas, timesteps })
    }

    /// Replaces the steps from `step` on by the part of another schedule, that of `solver`, below the sigma of that step:
    /// the sigma itself, then every smaller sigma of `grid`. The same schedule thus continues unchanged.
    ///
    /// Returns `None` if no step is left.
    pub fn continued(&self, step: usize, solver: SolverKind, grid: &Self) -> Option<Self> {
        let (from, timestep) = (*self.sigmas.get(step)?, *self.timesteps.get(step)?);
        let same = grid.sigmas.iter().zip(&grid.timesteps).find(|(sigma, _)| **sigma == from);
        let below = grid.sigmas.iter().zip(&grid.timesteps).filter(|(sigma, _)| **sigma < from);
        let (mut sigmas, mut timesteps) = (self.sigmas[..=step].to_vec(), self.timesteps[..step].to_vec());
        // The denoiser is given the level that the latent has. Whole timesteps stay whole.
        let is_whole = timestep.0.fract() == 0.0;
        timesteps.push(match solver {
            SolverKind::Euler | SolverKind::Renoise => match same {
                Some((_, timestep)) => *timestep,
                None => Timestep(from.0 * f32::from(TRAIN_STEPS)),
            },
            _ if is_whole => timestep,
            _ => Timestep((from.0 * f32::from(TRAIN_STEPS)).trunc()),
        });
        for (sigma, timestep) in below {
            sigmas.push(*sigma);
            timesteps.push(*timestep);
        }
        sigmas.push(Sigma(0.0));
        Some(Self { sigmas, timesteps })
    }

    /// Noise levels: N+1 falling values, the last one 0.
    pub fn sigmas(&self) -> &[Sigma] {
        &self.sigmas
    }

    /// The denoiser's timestep input of each step: N values that never rise.
    pub fn timesteps(&self) -> &[Timestep] {
        &self.timesteps
    }

    /// The number of steps, N.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// Whole-number timesteps, from the sigmas before they are rounded to f32.
    #[expect(clippy::cast_possible_truncation, reason = "sigmas are stored in f32")]
    fn truncated(sigmas: Vec<f64>) -> Self {
        let sigmas = || sigmas.iter().map(|sigma| sigma.min(1.0));
        Self {
            timesteps: sigmas()
                .map(|sigma| Timestep((sigma * f64::from(TRAIN_STEPS)).trunc() as f32))
                .collect(),
            sigmas: sigmas().chain([0.0]).map(|sigma| Sigma(sigma as f32)).collect(),
        }
    }

    /// Timesteps `1000·σ`.
    fn continuous(sigmas: Vec<f32>) -> Self {
        let sigmas = || sigmas.iter().map(|sigma| sigma.min(1.0));
        Self {
            timesteps: sigmas().map(|sigma| Timestep(sigma * f32::from(TRAIN_STEPS))).collect(),
            sigmas: sigmas().chain([0.0]).map(Sigma).collect(),
        }
    }
}

/// `steps` values from `from` towards `to`, without `to` itself: NumPy's `linspace(from, to, steps + 1)[:-1]`.
#[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
fn line(from: f64, to: f64, steps: usize) -> Vec<f64> {
    let stride = (to - from) / steps as f64;
    (0..steps).map(|i| i as f64 * stride + from).collect()
}

fn shifted(sigmas: Vec<f64>, shift: Shift) -> Vec<f64> {
    sigmas.into_iter().map(|sigma| shift.apply(sigma)).collect()
}

/// [`Shift::apply`] with the rounding of f32 tensors.
#[expect(clippy::cast_possible_truncation, reason = "the reference rounds here")]
fn shifted_in_f32(sigma: f32, shift: Shift) -> f32 {
    shift.0 as f32 * sigma / (1.0 + (shift.0 - 1.0) as f32 * sigma)
}

/// `UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift)`. With very large shifts, later sigmas that would
/// exceed the first are set equal to it.
fn diffusers_unipc(steps: usize, shift: Shift) -> Vec<f64> {
    let mut sigmas = shifted(line(1.0, 1.0 / f64::from(TRAIN_STEPS), steps), shift);
    if sigmas.first().is_some_and(|first| (first - 1.0).abs() < DIFFUSERS_EPSILON) {
        let first = sigmas[0] - DIFFUSERS_EPSILON;
        sigmas[0] = first;
        sigmas.iter_mut().for_each(|sigma| *sigma = sigma.min(first));
    }
    sigmas
}

/// `DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=shift)`: the line is linear in `1-σ` and starts at its
/// far end, so the largest sigma before the shift is 0.999.
fn diffusers_dpmpp(steps: usize, shift: Shift) -> Vec<f64> {
    let alpha_min = 1.0 / f64::from(TRAIN_STEPS);
    let rising_from_one = line(1.0, alpha_min, steps);
    let alphas = rising_from_one.into_iter().skip(1).chain((steps > 0).then_some(alpha_min));
    let mut sigmas = shifted(alphas.map(|alpha| 1.0 - alpha).collect(), shift);
    sigmas.reverse();
    sigmas
}

/// `FlowMatchEulerDiscreteScheduler(shift=shift)`: the ends are shifted when the scheduler is created, and the line
/// between them again when the steps are set. Unlike the others it includes the smallest sigma before the final 0.
#[expect(clippy::cast_possible_truncation, reason = "sigmas are stored in f32")]
fn diffusers_euler(steps: usize, shift: Shift) -> Vec<f32> {
    let train_steps = f64::from(TRAIN_STEPS);
    let end = |sigma: f32| f64::from(shifted_in_f32(sigma, shift)) * train_steps;
    let (first, last) = (end(1.0), end(1.0 / f32::from(TRAIN_STEPS)));
    let mut timesteps = line(first, last, steps.saturating_sub(1).max(1));
    if steps > 1 {
        timesteps.push(last);
    }
    timesteps.truncate(steps);
    timesteps.into_iter().map(|timestep| shift.apply(timestep / train_steps) as f32).collect()
}

/// The Euler scheduler of the four-step distilled checkpoints (Wan2.2-Lightning), in f32.
#[expect(clippy::cast_possible_truncation, reason = "the reference rounds here")]
fn distilled_euler(steps: usize, shift: Shift) -> Vec<f32> {
    line(f64::from(TRAIN_STEPS), 0.0, steps)
        .into_iter()
        .map(|timestep| shifted_in_f32(timestep as f32 / f32::from(TRAIN_STEPS), shift))
        .collect()
}
