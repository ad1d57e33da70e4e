//! Errors of the scheduler: events that contradict its state.

use super::device::{DeviceName, Devices};
use super::session::Session;
use super::types::{JobId, Seconds};
use bundle::{Diagnose, Report};

/// An event that the scheduler refuses. Its state is the same as before.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The settings contradict themselves.
    Settings(Box<Report>),
    /// The number of the job is that of one that has not ended.
    Duplicate(JobId),
    /// No job has this number.
    Unknown(JobId),
    /// The work of an arrived job cannot be done.
    Work {
        /// The job.
        job: JobId,
        /// The reason.
        why: String,
    },
    /// A job places a session elsewhere than a job that arrived earlier and has not ended.
    Placement {
        /// The job.
        job: JobId,
        /// The session.
        session: Session,
        /// Where it places the session.
        given: Devices,
        /// Where the session is placed.
        placed: Devices,
        /// The earlier job.
        by: JobId,
    },
    /// A unit ended that was not running.
    NotRunning(JobId),
    /// A session was opened or closed that no command was about.
    NotAsked {
        /// The device.
        device: DeviceName,
        /// The session.
        session: Session,
    },
    /// The time of an event is before that of the last one.
    TimeFell {
        /// The time of the last event.
        last: Seconds,
        /// The time of this one.
        given: Seconds,
    },
}

impl Diagnose for SchedulerError {
    fn report(&self) -> Report {
        match self {
            Self::Settings(report) => report.as_ref().clone(),
            Self::Duplicate(job) => Report::bad_input(
                format!("{job} cannot be added"),
                "another job that has not ended has the same number",
                "give each job its own number",
            ),
            Self::Work { job, why } => Report::bad_input(
                format!("{job} cannot be added"),
                why.clone(),
                "correct the work or the placement of the job",
            ),
            Self::Placement { job, session, given, placed, by } => Report::bad_input(
                format!("{job} cannot be added"),
                format!("it places the {session} on {given}, and {by} on {placed}"),
                format!("use the same placement, or wait until {by} has ended"),
            ),
            Self::Unknown(job) => {
                Report::bug(format!("an event names {job}"), "no job with this number has arrived")
            }
            Self::NotRunning(job) => {
                Report::bug(format!("a unit of {job} ended"), "none of its units was running")
            }
            Self::NotAsked { device, session } => Report::bug(
                format!("the {session} was opened or closed on {device}"),
                "the scheduler did not ask for it",
            ),
            Self::TimeFell { last, given } => Report::bug(
                format!("an event happened at {} s", given.get()),
                format!("the one before it happened at {} s", last.get()),
            ),
        }
    }
}

bundle::display_as_report!(SchedulerError);
