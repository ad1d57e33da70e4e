//! Drives a scheduler through simulated time.

use crate::scheduler::{
    Command, Counts, DeviceName, Event, EventLog, JobId, LogEntry, Scheduler, SchedulerError, Seconds,
    Session, Settings, TimedEvent, Unit,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What carries commands out.
pub trait World {
    /// Carries a command out. It is not called for [`Command::Finish`], which has no answer.
    fn perform(&mut self, command: &Command) -> Performed;
}

/// A command that was carried out.
#[derive(Debug, Clone)]
pub struct Performed {
    /// How long it took.
    pub seconds: Seconds,
    /// Its answer.
    pub event: Event,
}

/// What a device did for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It opened a session.
    Load {
        /// The session.
        session: Session,
        /// True if another expert had left for it.
        swap: bool,
    },
    /// It ran a unit.
    Run {
        /// The unit.
        unit: Unit,
        /// True if another device ran the other half of the unit, which has a span of its own.
        in_pair: bool,
    },
}

/// A time in which a device did one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The device.
    pub device: DeviceName,
    /// The job that it was for.
    pub job: JobId,
    /// What it did.
    pub activity: Activity,
    /// The start.
    pub from: Seconds,
    /// The end.
    pub to: Seconds,
}

/// A simulation that has ended.
#[derive(Debug, Clone)]
pub struct SimulatedRun {
    /// Every event with its commands.
    pub log: EventLog,
    /// What the devices did, in the order in which it began.
    pub spans: Vec<Span>,
    /// What the scheduler counted.
    pub counts: Counts,
}

/// Gives events from outside (arrivals, cancellations, ticks) and the answers of the world to a scheduler, in the order of
/// their times, until nothing is left. Events of the same time keep their order; `outside` may be in any.
///
/// # Errors
/// The scheduler refuses its settings or an event.
pub fn simulate(
    settings: Settings,
    outside: Vec<TimedEvent>,
    world: &mut impl World,
) -> Result<SimulatedRun, SchedulerError> {
    let mut scheduler = Scheduler::try_new(settings.clone())?;
    let mut queue = BinaryHeap::new();
    let mut events = outside;
    for (number, event) in events.iter().enumerate() {
        queue.push(Reverse((event.at, number)));
    }
    let mut entries = Vec::new();
    let mut spans = Vec::new();
    while let Some(Reverse((_, number))) = queue.pop() {
        let Some(event) = events.get(number).cloned() else { break };
        let commands = scheduler.handle(&event)?;
        for command in &commands {
            if matches!(command, Command::Finish { .. }) {
                continue;
            }
            let Performed { seconds, event: answer } = world.perform(command);
            let to = event.at + seconds;
            let done = match *command {
                Command::Load { job, session, swap, .. } => Some((job, Activity::Load { session, swap })),
                Command::Run { job, unit, pair, .. } => {
                    Some((job, Activity::Run { unit, in_pair: pair.is_some() }))
                }
                Command::Evict { .. } | Command::Finish { .. } => None,
            };
            if let Some((job, activity)) = done {
                spans.extend(command.occupies().map(|device| Span {
                    device,
                    job,
                    activity,
                    from: event.at,
                    to,
                }));
            }
            queue.push(Reverse((to, events.len())));
            events.push(TimedEvent { at: to, event: answer });
        }
        entries.push(LogEntry { event, commands });
    }
    let log = EventLog { settings, entries };
    Ok(SimulatedRun { log, spans, counts: scheduler.counts() })
}
