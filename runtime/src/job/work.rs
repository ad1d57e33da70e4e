//! The work that is left of a job.

use super::fork_spec::ForkSpec;
use super::running::{Job, Phase};
use crate::denoise::{Denoising, ForkChanges};
use crate::sampler::Schedule;
use bundle::routing::{ExpertIndex, Routing};
use std::borrow::Cow;

/// What the next unit of work of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextUnit {
    /// Prompts are encoded.
    Encode,
    /// A step is made.
    Step,
    /// A chunk of frames is decoded.
    Chunk,
}

/// The experts of the steps that are left after `done` steps, in order. `schedule` is that of the first step, and
/// `forks` are all that the clip has. `stop_after` ends it early.
pub fn experts_left(
    schedule: &Schedule,
    routing: &Routing,
    forks: &[ForkSpec],
    done: usize,
    stop_after: Option<usize>,
) -> Vec<ExpertIndex> {
    let schedule = forked(schedule, forks, stop_after);
    let timesteps = schedule.timesteps();
    let last = last_step(timesteps.len(), stop_after);
    timesteps.get(done..last).unwrap_or_default().iter().map(|at| routing.expert_at(*at)).collect()
}

/// The schedule with the grids of the forks.
fn forked<'a>(schedule: &'a Schedule, forks: &[ForkSpec], stop_after: Option<usize>) -> Cow<'a, Schedule> {
    let mut schedule = Cow::Borrowed(schedule);
    for fork in forks {
        let is_made = fork.after < last_step(schedule.steps(), stop_after);
        let Some(grid) = fork.grid.as_ref().filter(|_| is_made) else {
            continue;
        };
        let continued = schedule.continued(fork.after, grid.sampler, &grid.levels());
        schedule = continued.map_or(schedule, Cow::Owned);
    }
    schedule
}

fn last_step(steps: usize, stop_after: Option<usize>) -> usize {
    stop_after.map_or(steps, |stop| stop.min(steps))
}

impl Job {
    /// What the next call of [`Self::advance`] does; `None` if the job has ended.
    pub fn next_unit(&self) -> Option<NextUnit> {
        match self.phase {
            Phase::Ended => None,
            Phase::Encode => Some(NextUnit::Encode),
            Phase::Decode(..) => Some(NextUnit::Chunk),
            Phase::Start | Phase::Denoise(_) if self.needs_text() => Some(NextUnit::Encode),
            Phase::Start | Phase::Denoise(_) if self.steps_left() == 0 => Some(NextUnit::Chunk),
            Phase::Start | Phase::Denoise(_) => Some(NextUnit::Step),
        }
    }

    /// The number of steps that this run still makes.
    pub fn steps_left(&self) -> usize {
        if matches!(self.phase, Phase::Ended | Phase::Decode(..)) {
            return 0;
        }
        let stop_after = self.spec().stop_after;
        let schedule = forked(&self.plan().schedule, &self.spec().forks, stop_after);
        last_step(schedule.steps(), stop_after).saturating_sub(self.denoising().steps_done())
    }

    /// The number of latent frames that are still to be decoded.
    pub fn chunks_left(&self) -> usize {
        let frames = self.plan().latent.frames;
        match &self.phase {
            Phase::Ended => 0,
            Phase::Decode(_, run) => frames.saturating_sub(run.frames_done()),
            Phase::Start | Phase::Encode | Phase::Denoise(_) => frames,
        }
    }

    /// Returns true if text states must be computed before the next step.
    fn needs_text(&self) -> bool {
        let Some(text) = &self.text else { return true };
        let done = self.denoising().steps_done();
        let is_due = |fork: &&ForkSpec| fork.after == done && self.steps_left() > 0;
        let due = self.spec().forks.iter().skip(self.next_fork).take_while(is_due);
        let mut state = Cow::Borrowed(self.denoising());
        for fork in due {
            if fork.prompt.is_some() || fork.negative.is_some() {
                return true;
            }
            let changes = ForkChanges { variation: None, ..fork.changes(1.0) };
            // One that cannot be made ends the job when it is due.
            if let Ok(forked) = Denoising::fork(state.snapshot(), changes) {
                state = Cow::Owned(forked);
            }
        }
        state.needs_unconditional() && text.negative.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fork_spec::GridSpec;
    use super::*;
    use crate::denoise::synthetic::{denoising, step};
    use bundle::settings::{ScheduleKind, SolverKind};
    use bundle::units::{Shift, Timestep};
    use proptest::prelude::*;

    /// The experts of the steps that a clip makes, with forks applied as a job applies them.
    fn experts_made(mut state: Denoising, forks: &[ForkSpec], stop_after: Option<usize>) -> Vec<ExpertIndex> {
        let (mut made, mut next_fork) = (Vec::new(), 0);
        while state.steps_done() < last_step(state.steps(), stop_after) {
            if let Some(fork) = forks.get(next_fork).filter(|fork| fork.after == state.steps_done()) {
                state = Denoising::fork(state.snapshot(), fork.changes(1.0)).unwrap();
                next_fork += 1;
                continue;
            }
            made.push(state.next().unwrap().expert);
            step(&mut state);
        }
        made
    }

    proptest! {
        #[test]
        fn the_experts_that_are_left_are_those_of_the_steps_that_are_made(
            solver in 0..SolverKind::ALL.len(), steps in 1_usize..12, boundary in 1_u16..1000, stop in prop::option::of(1_usize..14),
            forks in prop::collection::btree_map(0_usize..12, prop::option::of((0..SolverKind::ALL.len(), 1_usize..12)), 0..3),
        ) {
            let solver = SolverKind::ALL[solver];
            let forks: Vec<ForkSpec> = forks
                .into_iter()
                .map(|(after, grid)| ForkSpec {
                    after,
                    prompt: Some("another".into()),
                    grid: grid.map(|(solver, steps)| GridSpec {
                        sampler: SolverKind::ALL[solver],
                        schedule: ScheduleKind::Official,
                        steps,
                        shift: Shift(3.0),
                        timesteps: None,
                    }),
                    ..ForkSpec::default()
                })
                .collect();
            let state = denoising(solver, ScheduleKind::Official, steps, 1, boundary, 3);
            let (schedule, routing) = (state.schedule().clone(), Routing::pair(Timestep(boundary.into())).unwrap());
            let made = experts_made(state, &forks, stop);
            for done in 0..=made.len() {
                prop_assert_eq!(experts_left(&schedule, &routing, &forks, done, stop), &made[done..]);
            }
            prop_assert!(experts_left(&schedule, &routing, &forks, made.len() + 1, stop).is_empty());
        }
    }
}
