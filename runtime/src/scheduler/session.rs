//! Sessions and units: the component of a model that is open on a device, and what runs on it.

use bundle::routing::ExpertIndex;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of a model. Jobs of one model share its sessions; sessions of different models have nothing in common. A
/// run with one model calls it 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelNumber(pub u32);

impl fmt::Display for ModelNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model {}", self.0)
    }
}

/// A component of a model, in the order in which a clip uses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The text encoder.
    TextEncoder,
    /// An expert, by its position in the routing table.
    Expert(ExpertIndex),
    /// The decoder.
    Decoder,
}

impl Stage {
    /// The expert, if it is one.
    pub fn expert(self) -> Option<ExpertIndex> {
        match self {
            Self::Expert(expert) => Some(expert),
            Self::TextEncoder | Self::Decoder => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TextEncoder => f.write_str("text encoder"),
            Self::Expert(ExpertIndex(index)) => write!(f, "expert {index}"),
            Self::Decoder => f.write_str("decoder"),
        }
    }
}

/// A session as the scheduler sees it: a component of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The model.
    pub model: ModelNumber,
    /// The component.
    pub stage: Stage,
}

impl Session {
    /// Returns true if it runs an expert.
    pub fn is_expert(self) -> bool {
        self.stage.expert().is_some()
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.stage, self.model)
    }
}

/// A unit of work. A job is advanced by one unit at a time, and nothing interrupts a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Encodes the prompts.
    Encode,
    /// A step. Steps are counted from 0, over all experts, from the first one that the job asked for.
    Step {
        /// The expert that the step is routed to.
        expert: ExpertIndex,
        /// The number of the step.
        step: u32,
    },
    /// Decodes a chunk of frames, counted from 0.
    Chunk {
        /// The number of the chunk.
        chunk: u32,
    },
}

impl Unit {
    /// The component that runs the unit.
    pub fn stage(self) -> Stage {
        match self {
            Self::Encode => Stage::TextEncoder,
            Self::Step { expert, .. } => Stage::Expert(expert),
            Self::Chunk { .. } => Stage::Decoder,
        }
    }
}
