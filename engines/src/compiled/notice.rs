//! What a user is told about compiled engines.

use crate::Device;
use bundle::units::ByteCount;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A notice about a compiled engine.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineNotice {
    /// A graph is being compiled.
    Compiling {
        /// What is compiled: the component and its part, or the file of the graph.
        graph: String,
        /// The device.
        device: Device,
    },
    /// A graph was compiled, and its engine is stored.
    Stored {
        /// What is compiled: the component and its part, or the file of the graph.
        graph: String,
        /// The device.
        device: Device,
        /// The length of its files.
        bytes: ByteCount,
        /// How long it took.
        took: Duration,
    },
    /// Another run is compiling the graph; this one waits.
    Waiting {
        /// What is compiled: the component and its part, or the file of the graph.
        graph: String,
    },
    /// An engine is not used, and was moved aside if possible.
    SetAside {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        why: String,
    },
    /// A graph was compiled in memory, and is compiled again by the next run.
    NotStored {
        /// What is compiled: the component and its part, or the file of the graph.
        graph: String,
        /// Why.
        why: String,
    },
}

impl EngineNotice {
    /// Returns true if something is wrong.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::SetAside { .. } | Self::NotStored { .. })
    }

    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Compiling { .. } => "compiling",
            Self::Stored { .. } => "stored",
            Self::Waiting { .. } => "waiting",
            Self::SetAside { .. } => "set_aside",
            Self::NotStored { .. } => "not_stored",
        }
    }
}

impl fmt::Display for EngineNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiling { graph, device } => write!(f, "compiling {graph} for {device}"),
            Self::Stored { graph, device, bytes, took } => {
                let seconds = took.as_secs_f64();
                write!(f, "compiled {graph} for {device}: {bytes}, {seconds:.1} s; later runs open it")
            }
            Self::Waiting { graph } => write!(f, "another run is compiling {graph}; waiting for it"),
            Self::SetAside { folder, why } => {
                write!(f, "warning: the compiled engine {} is not used: {why}", folder.display())
            }
            Self::NotStored { graph, why } => {
                write!(
                    f,
                    "warning: the engine of {graph} is not stored, and is compiled again by each run: {why}"
                )
            }
        }
    }
}
