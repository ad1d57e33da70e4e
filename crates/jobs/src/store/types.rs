//! The state of a job in a store, and the orders that are given about it.

use crate::request::Request;
use bundle::Report;
use media::{OutputResult, OutputSpec};
use runtime::scheduler::JobId;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for an owner, or for its turn.
    Queued,
    /// The owner has begun it.
    Running,
    /// It made the steps that it was asked for, and the others can be made (`jobs resume`, `jobs keep`).
    Stopped,
    /// All outputs are complete.
    Done,
    /// It failed, and can be tried again (`jobs retry`).
    Failed,
    /// Somebody cancelled it. It can go on (`jobs resume`).
    Cancelled,
}

bundle::named!(
    State, "queued" => Queued, "running" => Running, "stopped" => Stopped, "done" => Done, "failed" => Failed,
    "cancelled" => Cancelled,
);

impl State {
    /// Returns true if nothing more happens unless somebody asks for it.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// A job as the store knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRow {
    /// Its number.
    pub id: JobId,
    /// Its state.
    pub state: State,
    /// What it was asked for.
    pub request: Request,
    /// How far it is. It may be behind by a second while it runs.
    pub progress: Progress,
    /// When it was submitted, in seconds since 1970.
    pub submitted: f64,
    /// When it began to run last.
    pub started: Option<f64>,
    /// When it ended last.
    pub ended: Option<f64>,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// `text`, `denoise` or `decode`; empty before it runs.
    pub phase: String,
    /// The expert of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// Steps that are done.
    pub steps_done: usize,
    /// Steps that the job makes.
    pub steps: usize,
    /// Frames that are written.
    pub frames_done: usize,
    /// Frames of the clip.
    pub frames: usize,
    /// Estimated seconds until the job ends; `None` before there is an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<f64>,
    /// Why nothing happens, such as a full disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// [`State::Stopped`], [`State::Done`], [`State::Failed`] or [`State::Cancelled`].
    pub state: State,
    /// The error of a failed job. Settings are named by their field names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Report>,
    /// The outputs, complete ones first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputResult>,
    /// Warnings of the run, such as a snapshot that could not be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Steps that are done.
    pub steps_done: usize,
    /// When it ended, in seconds since 1970.
    pub ended: f64,
}

/// Something that is to be done about a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobOrder {
    /// End it within its current step, if it is queued or running, or give up a stopped one. What was stored is kept.
    Cancel,
    /// Queue a failed or cancelled job again.
    Retry {
        /// True to begin at the first step instead of the newest snapshot.
        from_start: bool,
    },
    /// Queue a stopped or cancelled job again, to make the rest of its steps.
    Resume {
        /// Stop again after this many steps.
        stop_after: Option<usize>,
    },
    /// Queue a take again, to make the whole clip.
    Keep {
        /// The outputs of the clip.
        outputs: Vec<OutputSpec>,
    },
}

/// An order without an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingOrder {
    /// Its number.
    pub number: u64,
    /// The job.
    pub job: JobId,
    /// What is to be done.
    pub order: JobOrder,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It was carried out.
    Done,
    /// It was not, because the state of the job has changed.
    Refused {
        /// Why.
        why: String,
    },
}

/// The process that owns a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// Its process id.
    pub pid: u32,
    /// The boot of the machine that it runs in.
    pub boot_id: String,
    /// When it became the owner.
    #[serde(skip)]
    pub since: SystemTime,
    /// When it renewed the lease last.
    #[serde(skip)]
    pub heartbeat: SystemTime,
}
