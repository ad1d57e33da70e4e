//! The scheduler at the clock of the machine, and its event log.

use crate::Error;
use crate::scheduler::{
    Command, Counts, Event, EventLog, LogEntry, Scheduler, SchedulerError, Seconds, Settings, TimedEvent,
};
use std::time::Instant;

/// A scheduler whose events have the time at which they are given to it.
#[derive(Debug)]
pub(super) struct TimedScheduler {
    scheduler: Scheduler,
    began: Instant,
    log: Option<EventLog>,
}

impl TimedScheduler {
    pub(super) fn new(settings: Settings) -> Result<Self, SchedulerError> {
        Ok(Self { scheduler: Scheduler::try_new(settings)?, began: Instant::now(), log: None })
    }

    /// Gives an event to the scheduler and returns the commands that follow.
    ///
    /// # Errors
    /// The scheduler refuses the event, which is not in the log then.
    pub(super) fn handle(&mut self, event: Event) -> Result<Vec<Command>, Error> {
        let at = Seconds::try_new(self.began.elapsed().as_secs_f64())?;
        let event = TimedEvent { at, event };
        let commands = self.scheduler.handle(&event)?;
        if let Some(log) = &mut self.log {
            log.entries.push(LogEntry { event, commands: commands.clone() });
        }
        Ok(commands)
    }

    pub(super) fn keep_log(&mut self) {
        let settings = self.scheduler.settings().clone();
        self.log.get_or_insert(EventLog { settings, entries: Vec::new() });
    }

    pub(super) fn log(&self) -> Option<&EventLog> {
        self.log.as_ref()
    }

    pub(super) fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }
}
