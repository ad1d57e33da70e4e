//! Waves: jobs that go through the experts together.

use super::progress::Progress;
use super::request::Priority;
use super::session::ModelNumber;
use super::settings::{Bounds, Order};
use super::types::{JobId, Seconds};
use bundle::routing::ExpertIndex;

/// What a wave consists of. Waves of previews go before waves of clips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Previews,
    Clips,
}

impl Kind {
    pub(super) fn of(priority: Priority, order: Order) -> Self {
        match (order, priority) {
            (Order::Waves, Priority::Preview) => Self::Previews,
            (Order::Waves, Priority::Normal | Priority::Batch) | (Order::FirstCome, _) => Self::Clips,
        }
    }
}

/// Jobs of one model that go through its experts together. It takes new jobs until it turns to its second expert, or a
/// later wave uses an expert.
#[derive(Debug, Clone)]
pub(super) struct Wave {
    pub(super) kind: Kind,
    pub(super) model: ModelNumber,
    /// The jobs that have not ended, in the order in which they are worked on.
    pub(super) members: Vec<JobId>,
    /// All jobs that it has taken.
    joined: u32,
    /// The expert that it used first.
    first_expert: Option<ExpertIndex>,
    /// When it ran its first step.
    first_step: Option<Seconds>,
    /// True from the time at which it turned to another expert than the first, or a later wave used an expert.
    closed: bool,
}

impl Wave {
    pub(super) fn new(kind: Kind, model: ModelNumber) -> Self {
        Self {
            kind,
            model,
            members: Vec::new(),
            joined: 0,
            first_expert: None,
            first_step: None,
            closed: false,
        }
    }

    /// Returns true if it takes new jobs.
    pub(super) fn is_open(&self, now: Seconds, bounds: &Bounds, most: u32) -> bool {
        let in_time = self.first_step.is_none_or(|first| now.since(first) <= bounds.wave_seconds);
        !self.closed && in_time && self.joined < most
    }

    /// Returns true if the job does not need an expert that comes before the first one of this wave.
    pub(super) fn suits(&self, job: &Progress) -> bool {
        match (job.first_expert(), self.first_expert) {
            (Some(of_job), Some(of_wave)) => of_job >= of_wave,
            (None, _) | (_, None) => true,
        }
    }

    pub(super) fn join(&mut self, job: JobId) {
        self.members.push(job);
        self.joined += 1;
    }

    /// Notes that an expert is about to be used for this wave.
    pub(super) fn use_expert(&mut self, expert: ExpertIndex) {
        let first = *self.first_expert.get_or_insert(expert);
        self.closed |= first != expert;
    }

    /// Takes no further jobs.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Notes that a step is about to run.
    pub(super) fn start_step(&mut self, now: Seconds) {
        self.first_step.get_or_insert(now);
    }
}
