//! What a step computes: each guidance pass is computed, taken from an earlier step, or left out.

use bundle::settings::SolverKind;
use bundle::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a guidance pass of a step gets its velocity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassAction {
    /// The expert computes it.
    Compute,
    /// The velocity of an earlier step is used again.
    Reuse,
    /// The pass is left out.
    Skip,
}

/// The guidance passes of a step. Either all that guidance needs are computed, or all are reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// The pass with the prompt.
    pub conditional: PassAction,
    /// The pass with the negative prompt. Left out where the step is not guided.
    pub unconditional: PassAction,
}

impl Passes {
    /// The passes of a step that is guided or not, and that reuses velocities or not.
    pub fn new(is_guided: bool, is_reused: bool) -> Self {
        let conditional = if is_reused { PassAction::Reuse } else { PassAction::Compute };
        Self { conditional, unconditional: if is_guided { conditional } else { PassAction::Skip } }
    }

    /// Returns true if velocities of an earlier step are used again.
    pub fn is_reused(self) -> bool {
        self.conditional == PassAction::Reuse
    }

    /// The number of passes that a policy spared: those that are reused or left out although guidance needs them.
    pub fn saved(self, is_guided: bool) -> usize {
        let spared = |action| usize::from(action != PassAction::Compute);
        spared(self.conditional) + if is_guided { spared(self.unconditional) } else { 0 }
    }
}

/// Decides what a step computes.
///
/// # Examples
/// ```
/// use runtime::denoise::StepPolicy;
///
/// assert_eq!("off".parse::<StepPolicy>()?, StepPolicy::ComputeAll);
/// assert_eq!("easycache=0.1".parse::<StepPolicy>()?, StepPolicy::EasyCache { threshold: 0.1 });
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepPolicy {
    /// Every pass that guidance needs is computed.
    #[default]
    ComputeAll,
    /// Velocities are reused while the predicted change is small, see [`StepCache`](super::StepCache).
    EasyCache {
        /// The predicted relative change of a velocity from which on it is computed again; above 0 and at most 1.
        threshold: f32,
    },
}

/// The threshold of `easycache` without a number.
pub const EASYCACHE_THRESHOLD: f32 = 0.15;
/// The fewest steps of a clip whose steps can be reused.
pub const EASYCACHE_MIN_STEPS: usize = 12;

const OFF: &str = "off";
const EASYCACHE: &str = "easycache";

impl StepPolicy {
    /// Returns true if every pass is computed.
    pub fn is_compute_all(&self) -> bool {
        *self == Self::ComputeAll
    }

    /// Checks the policy for a clip of `steps` steps of a solver.
    ///
    /// # Errors
    /// The threshold is out of range. Or steps would be reused, and they are too few, or the solver adds noise to each.
    pub fn check(self, steps: usize, solver: SolverKind) -> Result<(), Error> {
        let Self::EasyCache { threshold } = self else { return Ok(()) };
        let refused = |rule: String| {
            let fix = "set `step_cache` to off, or choose other `steps`";
            Err(Error::value(Field::StepCache, self, rule, fix))
        };
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(wrong(self));
        }
        if solver == SolverKind::Renoise {
            return refused(
                "renoise adds fresh noise in every step, so no velocity fits the next one".into(),
            );
        }
        if steps < EASYCACHE_MIN_STEPS {
            let rule = format!(
                "the clip has {steps} steps; with fewer than {EASYCACHE_MIN_STEPS} each changes too much to be reused"
            );
            return refused(rule);
        }
        Ok(())
    }
}

fn wrong(given: impl fmt::Display) -> Error {
    let rule = "expected off, easycache, or easycache=T with a threshold T above 0 and at most 1";
    Error::value(
        Field::StepCache,
        format!("`{given}`"),
        rule,
        "use easycache, or a smaller number for less change",
    )
}

impl FromStr for StepPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, threshold) = match text.split_once('=') {
            Some((name, number)) => (name, number.trim().parse::<f32>().ok()),
            None => (text, Some(EASYCACHE_THRESHOLD)),
        };
        match (name, threshold) {
            (OFF, _) if name == text => Ok(Self::ComputeAll),
            (EASYCACHE, Some(threshold)) if threshold > 0.0 && threshold <= 1.0 => {
                Ok(Self::EasyCache { threshold })
            }
            _ => Err(wrong(text)),
        }
    }
}

impl fmt::Display for StepPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ComputeAll => f.write_str(OFF),
            Self::EasyCache { threshold } => write!(f, "{EASYCACHE}={threshold}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unconditional_pass_is_left_out_without_guidance() {
        let compute = PassAction::Compute;
        let passes = |is_guided| Passes::new(is_guided, false);
        assert_eq!(passes(true), Passes { conditional: compute, unconditional: compute });
        assert_eq!(passes(false), Passes { conditional: compute, unconditional: PassAction::Skip });
        assert_eq!((passes(true).saved(true), passes(false).saved(false)), (0, 0));
        let reused = |is_guided: bool| Passes::new(is_guided, true).saved(is_guided);
        assert_eq!((reused(true), reused(false)), (2, 1));
    }

    #[test]
    fn policies_are_written_and_read() {
        for policy in [StepPolicy::ComputeAll, StepPolicy::EasyCache { threshold: 0.025 }] {
            assert_eq!(policy.to_string().parse::<StepPolicy>().unwrap(), policy);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<StepPolicy>(&json).unwrap(), policy);
        }
        let default = StepPolicy::EasyCache { threshold: EASYCACHE_THRESHOLD };
        assert_eq!("easycache".parse::<StepPolicy>().unwrap(), default);
        for text in
            ["", "on", "off=1", "easycache=", "easycache=0", "easycache=nan", "easycache=1.5", "magcache"]
        {
            assert!(text.parse::<StepPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn few_steps_and_fresh_noise_are_refused() {
        let cache = StepPolicy::EasyCache { threshold: 0.05 };
        cache.check(12, SolverKind::UniPc).unwrap();
        StepPolicy::ComputeAll.check(1, SolverKind::Renoise).unwrap();
        insta::assert_snapshot!(cache.check(11, SolverKind::Euler).unwrap_err(), @"step_cache cannot be easycache=0.05: the clip has 11 steps; with fewer than 12 each changes too much to be reused (set `step_cache` to off, or choose other `steps`)");
        insta::assert_snapshot!(cache.check(40, SolverKind::Renoise).unwrap_err(), @"step_cache cannot be easycache=0.05: renoise adds fresh noise in every step, so no velocity fits the next one (set `step_cache` to off, or choose other `steps`)");
        assert!(StepPolicy::EasyCache { threshold: f32::NAN }.check(40, SolverKind::UniPc).is_err());
    }
}
