//! What goes into the scheduler and what comes out of it.

use super::device::DeviceName;
use super::request::JobRequest;
use super::session::{Session, Unit};
use super::types::{JobId, Seconds};
use bundle::units::ByteCount;
use serde::{Deserialize, Serialize};

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A job has arrived. A number that ended may arrive again, as a new job.
    Arrived(JobRequest),
    /// The unit of a job is done.
    UnitDone {
        /// The job.
        job: JobId,
        /// The measured memory of the session after the unit, if it was measured. On a pair, the larger of both.
        session_bytes: Option<ByteCount>,
    },
    /// The unit of a job has failed. The job ends.
    UnitFailed {
        /// The job.
        job: JobId,
    },
    /// A session is open.
    Loaded {
        /// Its device.
        device: DeviceName,
        /// The session.
        session: Session,
        /// Its measured memory, if it was measured.
        bytes: Option<ByteCount>,
    },
    /// A session could not be opened. The job that it was opened for ends.
    LoadFailed {
        /// Its device.
        device: DeviceName,
        /// The session.
        session: Session,
    },
    /// A session is closed.
    Evicted {
        /// Its device.
        device: DeviceName,
        /// The session.
        session: Session,
    },
    /// Somebody does not want a job any more.
    Cancelled {
        /// The job.
        job: JobId,
    },
    /// Time has passed.
    Tick,
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// When it happened. Times of a log do not fall.
    pub at: Seconds,
    /// What happened.
    pub event: Event,
}

/// What is to be done. Each device does one thing at a time, and its end is reported with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Open a session. Answered with [`Event::Loaded`] or [`Event::LoadFailed`].
    Load {
        /// The device to open it on.
        device: DeviceName,
        /// The session.
        session: Session,
        /// The job that needs it first.
        job: JobId,
        /// True if another expert has left the device for this one. On a pair, each device has its own.
        swap: bool,
    },
    /// Close a session. Answered with [`Event::Evicted`].
    Evict {
        /// Its device.
        device: DeviceName,
        /// The session.
        session: Session,
    },
    /// Run a unit of a job. Answered with [`Event::UnitDone`] or [`Event::UnitFailed`].
    Run {
        /// The device of the session that runs it. On a pair, that of the conditional pass.
        device: DeviceName,
        /// The other device of a pair, which has the same session open and runs the unconditional pass. It is as busy as
        /// `device` until the unit ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pair: Option<DeviceName>,
        /// The job.
        job: JobId,
        /// The unit.
        unit: Unit,
    },
    /// A job has ended: free its state. Not answered.
    Finish {
        /// The device of its last unit, or of its first one if it never ran.
        device: DeviceName,
        /// The job.
        job: JobId,
        /// How it ended.
        outcome: Outcome,
    },
}

impl Command {
    /// The device; of a pair, the first.
    pub fn device(&self) -> DeviceName {
        match self {
            Self::Load { device, .. }
            | Self::Evict { device, .. }
            | Self::Run { device, .. }
            | Self::Finish { device, .. } => *device,
        }
    }

    /// The devices that are busy until the command is answered: none for [`Command::Finish`], two for a unit on a pair.
    pub fn occupies(&self) -> impl Iterator<Item = DeviceName> {
        let (device, pair) = match self {
            Self::Load { device, .. } | Self::Evict { device, .. } => (Some(*device), None),
            Self::Run { device, pair, .. } => (Some(*device), *pair),
            Self::Finish { .. } => (None, None),
        };
        device.into_iter().chain(pair)
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of its units are done.
    Done,
    /// A unit or the opening of a session failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It does not fit in the memory of a device.
    DoesNotFit {
        /// The memory that its largest stage needs on the device.
        needed: ByteCount,
        /// The budget of the device.
        budget: ByteCount,
    },
}
