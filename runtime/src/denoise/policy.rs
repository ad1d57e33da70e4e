//! What a step computes: each guidance pass is computed, taken from an earlier step, or left out.

use serde::{Deserialize, Serialize};

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

/// The guidance passes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// The pass with the prompt.
    pub conditional: PassAction,
    /// The pass with the negative prompt. Left out where the expert's guidance scale is 1.
    pub unconditional: PassAction,
}

impl Passes {
    /// The number of passes that a policy spared: those that are reused or left out although guidance needs them.
    pub fn saved(self, is_guided: bool) -> usize {
        let spared = |action| usize::from(action != PassAction::Compute);
        spared(self.conditional) + if is_guided { spared(self.unconditional) } else { 0 }
    }
}

/// Decides what a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepPolicy {
    /// Every pass that guidance needs is computed.
    #[default]
    ComputeAll,
}

impl StepPolicy {
    /// The passes of a step whose expert is guided or not.
    pub fn passes(self, is_guided: bool) -> Passes {
        match self {
            Self::ComputeAll => Passes {
                conditional: PassAction::Compute,
                unconditional: if is_guided { PassAction::Compute } else { PassAction::Skip },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unconditional_pass_is_left_out_without_guidance() {
        let compute = PassAction::Compute;
        let passes = |is_guided| StepPolicy::ComputeAll.passes(is_guided);
        assert_eq!(passes(true), Passes { conditional: compute, unconditional: compute });
        assert_eq!(passes(false), Passes { conditional: compute, unconditional: PassAction::Skip });
        assert_eq!((passes(true).saved(true), passes(false).saved(false)), (0, 0));
        let reused = Passes { conditional: PassAction::Reuse, unconditional: PassAction::Skip };
        assert_eq!((reused.saved(true), reused.saved(false)), (2, 1));
    }
}
