//! The scheduler: many jobs on the devices of one machine. A pure state machine: events in, commands out.
//!
//! A *wave* takes a group of jobs of one model through its experts together: the steps of all of them on the first
//! expert, then on the next one. An expert is opened where another leaves (a *swap*) once within a wave of two experts
//! and once between two waves, instead of twice per job. Where all experts stay open there are no swaps, and jobs go
//! through one after another.
//!
//! * Devices switch between jobs at unit boundaries: after the encoding, a step, or a chunk of frames.
//! * Previews go first at the next boundary. Those of one model that wait at one boundary are one group.
//! * A swap is the opening of an expert on a device where others, but not this one, were closed since an expert was opened
//!   there last. An expert that comes back after the text encoder or the decoder took its place is none. With models of two
//!   experts, each device has `swaps <= 2 * waves - 1 + 2 * groups`. If the previews are of another model than the wave
//!   that they interrupt, the experts of that wave come back as well: such a group counts four times instead of twice.
//! * A wave takes new jobs until it turns to its second expert, a later wave uses an expert, its time is over, or it is full
//!   ([`Bounds`]). A job that is past its deadline is admitted before all others, and nothing overtakes it. While a job
//!   is past its deadline, groups of previews alternate with units of clips.
//! * Jobs are admitted if their predicted memory fits beside those of the admitted ones on every device. Measured memory
//!   replaces predictions; a job for which there is no room after all ends with [`Outcome::DoesNotFit`].
//! * A cancelled job ends at once, or after the unit that it runs. Its number may arrive again.
//!
//! Jobs bring the placement of their sessions ([`SessionNeed`]). An expert can be on a *pair* of devices, for the two passes
//! of guidance: each device opens it on its own, and a step occupies both. While one device is busy, the other waits for
//! it if it comes first in the settings or the job is a preview; otherwise it does other work. So a step whose expert is
//! open on both waits for one unit of the first device, and then for one of the other.
//!
//! A device has one command at a time. So it does not open the next expert while it runs a unit, even where both fit.
//!
//! In reading order: [`JobRequest`], [`Settings`], [`Event`], [`Command`], [`Scheduler`], [`EventLog`].

mod admission;
mod choice;
mod device;
mod dispatch;
mod error;
mod event;
mod log;
mod machine;
mod progress;
mod request;
mod session;
mod settings;
mod state;
mod types;
mod wave;

pub use device::{DeviceName, Devices};
pub use error::SchedulerError;
pub use event::{Command, Event, Outcome, TimedEvent};
pub use log::{EventLog, LogEntry};
pub use machine::{Counts, Scheduler};
pub use request::{ExpertSteps, JobMemory, JobRequest, Priority, SessionNeed, Work};
pub use session::{ModelNumber, Session, Stage, Unit};
pub use settings::{Bounds, DeviceBudget, Order, Settings};
pub use types::{JobId, Seconds};
