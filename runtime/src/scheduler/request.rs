//! What the scheduler is told about a job when it arrives.

use super::device::Devices;
use super::session::{ModelNumber, Session, Stage};
use super::types::{JobId, Seconds};
use bundle::routing::ExpertIndex;
use bundle::units::ByteCount;
use serde::{Deserialize, Serialize};

/// How soon a job is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Goes first at the next step boundary. For short jobs that somebody waits for.
    Preview,
    /// Joins the next wave.
    Normal,
    /// Joins a wave after all normal jobs that wait.
    Batch,
}

bundle::named!(Priority, "preview" => Preview, "normal" => Normal, "batch" => Batch);

/// A job that has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// Its number.
    pub id: JobId,
    /// How soon it is wanted.
    pub priority: Priority,
    /// The work that remains.
    pub work: Work,
    /// Its sessions, their devices, and its predicted memory.
    pub memory: JobMemory,
    /// How long after its arrival it is past its deadline; the default of its priority if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Seconds>,
}

/// The work of a job that remains: all of it for a new one, less for one that is resumed or forked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// True if the prompts must be encoded.
    pub encode: bool,
    /// The steps of each expert, from the noisiest down.
    pub steps: Vec<ExpertSteps>,
    /// Chunks of frames to decode.
    pub chunks: u32,
}

/// Steps of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSteps {
    /// The expert.
    pub expert: ExpertIndex,
    /// The number of steps, at least 1.
    pub steps: u32,
}

impl Work {
    /// The components that the work needs, in order.
    pub fn stages(&self) -> impl Iterator<Item = Stage> + '_ {
        let encode = self.encode.then_some(Stage::TextEncoder);
        let experts = self.steps.iter().map(|part| Stage::Expert(part.expert));
        encode.into_iter().chain(experts).chain((self.chunks > 0).then_some(Stage::Decoder))
    }

    /// Units in total.
    pub fn units(&self) -> u64 {
        let steps: u64 = self.steps.iter().map(|part| u64::from(part.steps)).sum();
        u64::from(self.encode) + steps + u64::from(self.chunks)
    }
}

/// The sessions of a job: where they are placed, and its predicted memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobMemory {
    /// Each session that the work needs. All are of one model.
    pub sessions: Vec<SessionNeed>,
    /// Latents and solver history. They are counted on every device that the job uses, from its admission to its end.
    pub latents: ByteCount,
    /// Caches of the decoder, held on its device from the first chunk to the end of the job.
    pub caches: ByteCount,
}

impl JobMemory {
    /// The model of the job; `None` if it has no sessions.
    pub fn model(&self) -> Option<ModelNumber> {
        self.sessions.first().map(|need| need.session.model)
    }

    /// What is stated about a component.
    pub fn of(&self, stage: Stage) -> Option<&SessionNeed> {
        self.sessions.iter().find(|need| need.session.stage == stage)
    }
}

/// What a job needs of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionNeed {
    /// The session.
    pub session: Session,
    /// Where it is placed. Only an expert may be on a pair.
    pub devices: Devices,
    /// Weights and activations while it runs this job, on each of the devices.
    pub bytes: ByteCount,
}
