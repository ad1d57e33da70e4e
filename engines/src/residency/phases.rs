//! What is open on a device while each component of a clip runs.

use super::{MemoryNeed, Residency, Role};
use crate::eviction::{self, Candidate};
use bundle::units::ByteCount;

/// What is open on a device while a component runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The component that runs.
    pub role: Role,
    /// What is open, in order of use: the component, the decoder of previews, and what was not closed for them.
    pub open: Vec<Role>,
    /// The most memory that is used until the next component is opened.
    pub used: ByteCount,
}

/// The phases of the first clip of a process, in which nothing is open at first. Sessions are closed by the rule of
/// [`Sessions`](crate::sessions::Sessions): as few as possible, when memory is short, or after use with
/// [`Residency::One`].
pub(super) fn phases(needs: &[(Role, MemoryNeed)], wanted: Residency, limit: ByteCount) -> Vec<Phase> {
    let held = |open: &[usize]| open.iter().map(|&index| needs[index].1.held()).sum::<ByteCount>();
    let mut open: Vec<usize> = Vec::new();
    let mut phases = Vec::new();
    for (running, _) in needs.iter().filter(|(role, _)| *role != Role::Previews) {
        let is_used = |index: usize| running.is_beside(&needs[index].0);
        if wanted == Residency::One {
            open.retain(|&index| is_used(index));
        }
        let mut used = ByteCount(0);
        for index in (0..needs.len()).filter(|&index| is_used(index)) {
            if open.contains(&index) {
                continue;
            }
            let total = held(&open) + needs[index].1.total();
            let shortage = ByteCount(total.0.saturating_sub(limit.0));
            let idle: Vec<usize> = open.iter().copied().filter(|&index| !is_used(index)).collect();
            let candidates: Vec<Candidate> =
                idle.iter().map(|&index| candidate(index, &needs[index])).collect();
            let leaving = eviction::choose(stage(index), &candidates, shortage).unwrap_or_default();
            open.retain(|open| !leaving.iter().any(|&leaves| idle[leaves] == *open));
            used = used.max(held(&open) + needs[index].1.total());
            open.push(index);
        }
        open.sort_unstable();
        let roles = open.iter().map(|&index| needs[index].0.clone()).collect();
        phases.push(Phase { role: running.clone(), open: roles, used: used.max(held(&open)) });
    }
    phases
}

/// Roles are in order of use.
fn stage(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn candidate(index: usize, (role, need): &(Role, MemoryNeed)) -> Candidate {
    Candidate {
        stage: stage(index),
        makes_steps: role.is_expert() || *role == Role::Previews,
        last_used: index as u64,
        frees: need.held(),
    }
}
