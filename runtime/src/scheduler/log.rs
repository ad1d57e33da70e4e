//! The event log of a run, which gives the same commands when it is replayed.

use super::error::SchedulerError;
use super::event::{Command, TimedEvent};
use super::machine::Scheduler;
use super::settings::Settings;
use serde::{Deserialize, Serialize};

/// The events of a run, and the settings of its scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventLog {
    /// The settings.
    pub settings: Settings,
    /// Events and the commands that followed each.
    pub entries: Vec<LogEntry>,
}

/// An event, and the commands that followed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// The event.
    pub event: TimedEvent,
    /// The commands.
    pub commands: Vec<Command>,
}

impl EventLog {
    /// Gives the events to a new scheduler. Returns the number of the first event that is followed by other commands
    /// than in the log; `None` if all are the same.
    ///
    /// # Errors
    /// The settings or an event cannot belong to a run.
    pub fn replay(&self) -> Result<Option<usize>, SchedulerError> {
        let mut scheduler = Scheduler::try_new(self.settings.clone())?;
        for (number, entry) in self.entries.iter().enumerate() {
            if scheduler.handle(&entry.event)? != entry.commands {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}
