//! Changes on the way of a clip, as data.

use crate::denoise::{ForkChanges, GridChange, StepPolicy, Variation};
use crate::sampler::Schedule;
use crate::steps::{StepChoice, check_no_grid};
use bundle::settings::{ScheduleKind, SolverKind, check_steps};
use bundle::timesteps::{TimestepChoice, TimestepList, check_list_solver};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Changes after some of the steps. `None` keeps a setting.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkSpec {
    /// The number of steps before the change.
    pub after: usize,
    /// Another prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Another negative prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// Other guidance scales, one for each expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<Vec<GuidanceScale>>,
    /// Another end of guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_until: Option<Sigma>,
    /// Another grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridSpec>,
    /// Another policy of what steps compute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<StepPolicy>,
    /// Fresh noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variation: Option<VariationSpec>,
}

impl fmt::Display for ForkSpec {
    /// Names the changes, as "after step 9: guidance 5, 5".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut changes = Vec::new();
        if self.prompt.is_some() {
            changes.push("another prompt".to_owned());
        }
        if self.negative.is_some() {
            changes.push("another negative prompt".to_owned());
        }
        if let Some(scales) = &self.guidance {
            let scales: Vec<String> = scales.iter().map(|scale| scale.0.to_string()).collect();
            changes.push(format!("guidance {}", scales.join(", ")));
        }
        if let Some(Sigma(sigma)) = self.guidance_until {
            changes.push(format!("guidance until sigma {sigma}"));
        }
        match &self.grid {
            Some(GridSpec { sampler, timesteps: Some(list), .. }) => {
                changes.push(format!("the rest of the timesteps {list} of {sampler}"));
            }
            Some(GridSpec { sampler, schedule, steps, shift, timesteps: None }) => {
                let shift = shift.0;
                changes.push(format!("the rest of {steps} steps of {sampler} ({schedule}, shift {shift})"));
            }
            None => {}
        }
        if let Some(policy) = self.step_cache {
            changes.push(format!("step cache {policy}"));
        }
        if let Some(VariationSpec { strength, seed }) = self.variation {
            changes.push(format!("{strength} of fresh noise from seed {}", seed.0));
        }
        write!(f, "after step {}: {}", self.after, changes.join("; "))
    }
}

impl ForkSpec {
    /// The changes of the state of a clip. `noise_scale` is a factor on fresh noise, as on the initial noise.
    pub fn changes(&self, noise_scale: f32) -> ForkChanges {
        ForkChanges {
            guidance: self.guidance.clone(),
            guidance_until: self.guidance_until,
            grid: self.grid.as_ref().map(GridSpec::change),
            policy: self.step_cache,
            variation: self.variation.map(|VariationSpec { strength, seed }| Variation {
                strength,
                seed,
                noise_scale,
            }),
        }
    }

    /// Returns true if nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self { after: self.after, ..Self::default() }
    }
}

/// Another grid of a fork. See [`GridChange`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridSpec {
    /// Solver.
    pub sampler: SolverKind,
    /// Sigma grid.
    pub schedule: ScheduleKind,
    /// Steps of the whole grid, or of the list of timesteps.
    pub steps: usize,
    /// Shift of the grid; not used if there is a list of timesteps.
    pub shift: Shift,
    /// A list of timesteps, in place of the grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<TimestepList>,
}

impl GridSpec {
    /// The noise levels of the whole grid.
    pub fn levels(&self) -> Schedule {
        match &self.timesteps {
            Some(list) => Schedule::of_list(list),
            None => Schedule::new(self.sampler, self.schedule, self.steps, self.shift),
        }
    }

    /// This grid with other settings. `None` keeps a setting; a list of timesteps replaces those of the grid.
    ///
    /// # Errors
    /// A value is out of range, or there is a part of a grid beside a list.
    pub fn with(&self, changes: &GridChanges) -> Result<Self, bundle::Error> {
        let GridChanges { sampler, schedule, steps, shift, timesteps } = changes.clone();
        let sampler = sampler.unwrap_or(self.sampler);
        let list = match timesteps {
            None => self.timesteps.clone(),
            Some(TimestepChoice::Grid) => None,
            Some(TimestepChoice::List(list)) => Some(list),
        };
        if let Some(list) = &list {
            check_list_solver(sampler)?;
            check_no_grid(&StepChoice { steps, shift, schedule, ..StepChoice::default() }, list)?;
        }
        let steps = list.as_ref().map_or(steps.unwrap_or(self.steps), TimestepList::steps);
        Ok(Self {
            sampler,
            schedule: schedule.unwrap_or(self.schedule),
            steps: check_steps(steps)?,
            shift: shift.map_or(Ok(self.shift), Shift::try_new)?,
            timesteps: list,
        })
    }

    /// The change of the grid.
    pub fn change(&self) -> GridChange {
        GridChange { solver: self.sampler, schedule: self.levels() }
    }
}

/// Other settings of a grid. `None` keeps a setting.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GridChanges {
    /// Solver.
    pub sampler: Option<SolverKind>,
    /// Sigma grid.
    pub schedule: Option<ScheduleKind>,
    /// Steps of the whole grid.
    pub steps: Option<usize>,
    /// Shift of the grid.
    pub shift: Option<f64>,
    /// A list of timesteps, or a grid in place of one.
    pub timesteps: Option<TimestepChoice>,
}

impl GridChanges {
    /// Returns true if nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Fresh noise of a fork. See [`Variation`](crate::denoise::Variation).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariationSpec {
    /// Share of the fresh noise, 0..=1.
    pub strength: f64,
    /// Its seed.
    pub seed: Seed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(timesteps: Option<&str>) -> GridSpec {
        GridSpec {
            sampler: SolverKind::Euler,
            schedule: ScheduleKind::Official,
            steps: 8,
            shift: Shift(5.0),
            timesteps: timesteps.map(|list| list.parse().unwrap()),
        }
    }

    #[test]
    fn a_list_replaces_a_grid_and_a_grid_a_list() {
        let list = GridChanges { timesteps: Some("1000,500".parse().unwrap()), ..GridChanges::default() };
        let changed = grid(None).with(&list).unwrap();
        assert_eq!((changed.steps, changed.levels().sigmas()[1].0), (2, 0.5));
        let back = GridChanges {
            timesteps: Some(TimestepChoice::Grid),
            steps: Some(20),
            sampler: Some(SolverKind::UniPc),
            ..GridChanges::default()
        };
        assert_eq!(changed.with(&back).unwrap().levels().steps(), 20);
        assert_eq!(grid(None).with(&GridChanges::default()).unwrap(), grid(None));
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let refused = |changes: GridChanges| grid(Some("1000,500")).with(&changes).unwrap_err().to_string();
        assert!(refused(GridChanges { steps: Some(3), ..GridChanges::default() }).starts_with("steps"));
        assert!(refused(GridChanges { shift: Some(3.0), ..GridChanges::default() }).starts_with("shift"));
        let unipc = GridChanges { sampler: Some(SolverKind::UniPc), ..GridChanges::default() };
        assert!(refused(unipc).starts_with("sampler"));
    }
}
