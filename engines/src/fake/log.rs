//! The log of calls, and the rules that every log keeps.

use crate::Device;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A graph that is or was open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenGraph {
    /// Number of the session, from 0, in the order of opening.
    pub session: u64,
    /// Name of the graph.
    pub graph: Arc<str>,
    /// The device.
    pub device: Device,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A graph could not be opened.
    OpenFailed {
        /// Name of the graph.
        graph: String,
        /// The device.
        device: Device,
    },
    /// A graph was opened.
    Opened(OpenGraph),
    /// A run began.
    RunBegan(OpenGraph),
    /// A run ended with outputs, right or wrong.
    Ran(OpenGraph),
    /// A run ended with an error.
    RunFailed(OpenGraph),
    /// A graph was closed.
    Closed(OpenGraph),
    /// A note of the test, see [`FakeBackend::note`](super::FakeBackend::note).
    Note(String),
}

/// An entry of the log. Entries are in the order in which the events happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The virtual time.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}

/// Checks that every session ran only between its opening and its closing, one run at a time, and was closed at most
/// once.
///
/// # Errors
/// Describes the first entry that breaks a rule.
pub fn check_log(log: &[LogEntry]) -> Result<(), String> {
    // True for each open session that is running.
    let mut open: BTreeMap<u64, bool> = BTreeMap::new();
    for (index, LogEntry { event, .. }) in log.iter().enumerate() {
        let is_right = match event {
            Event::Opened(graph) => open.insert(graph.session, false).is_none(),
            Event::RunBegan(graph) => open.insert(graph.session, true) == Some(false),
            Event::Ran(graph) | Event::RunFailed(graph) => open.insert(graph.session, false) == Some(true),
            Event::Closed(graph) => open.remove(&graph.session) == Some(false),
            Event::OpenFailed { .. } | Event::Note(_) => true,
        };
        if !is_right {
            return Err(format!("entry {index} cannot happen: {event:?}"));
        }
    }
    Ok(())
}
