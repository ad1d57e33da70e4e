//! A job that has arrived: what is done of its work, and what it needs next.

use super::device::{DeviceName, Devices};
use super::error::SchedulerError;
use super::event::Outcome;
use super::request::{JobRequest, SessionNeed};
use super::session::{ModelNumber, Session, Stage, Unit};
use super::settings::Settings;
use super::types::{JobId, Seconds};
use bundle::routing::ExpertIndex;
use bundle::units::ByteCount;

/// A job that has arrived and has not ended.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub(super) request: JobRequest,
    pub(super) model: ModelNumber,
    /// Its place in the order of arrival. No other arrival has it, not even one of the same number.
    pub(super) order: u64,
    /// When it is past its deadline.
    pub(super) deadline: Seconds,
    pub(super) encoded: bool,
    pub(super) steps: u32,
    pub(super) chunks: u32,
    /// True from the command of its first chunk: its caches are held.
    pub(super) decoding: bool,
    /// True while a unit runs.
    pub(super) running: bool,
    /// How it ends when the unit that runs is done.
    pub(super) ending: Option<Outcome>,
    /// The device of its last unit.
    pub(super) last_device: DeviceName,
}

impl Progress {
    /// Checks a job that arrives.
    ///
    /// # Errors
    /// Its work has no unit, steps out of order, a component without memory or with a device that has no budget; its
    /// sessions are of several models; or another component than an expert is on a pair.
    pub(super) fn new(
        request: JobRequest,
        order: u64,
        now: Seconds,
        settings: &Settings,
    ) -> Result<Self, SchedulerError> {
        let work = &request.work;
        let refused = |why: String| SchedulerError::Work { job: request.id, why };
        if work.steps.windows(2).any(|pair| pair[0].expert >= pair[1].expert) {
            return Err(refused("its experts are not in the order of the routing table".to_owned()));
        }
        if work.steps.iter().any(|part| part.steps == 0) {
            return Err(refused("an expert has no steps".to_owned()));
        }
        let steps: u64 = work.steps.iter().map(|part| u64::from(part.steps)).sum();
        if u32::try_from(steps).is_err() {
            return Err(refused(format!("{steps} steps are too many")));
        }
        let Some(first) = work.stages().next() else { return Err(refused("it has no units".to_owned())) };
        for stage in work.stages() {
            let stated = request.memory.sessions.iter().filter(|need| need.session.stage == stage).count();
            if stated != 1 {
                return Err(refused(format!(
                    "the memory of the {stage} is stated {stated} times instead of once"
                )));
            }
        }
        let (Some(model), Some(need)) = (request.memory.model(), request.memory.of(first)) else {
            return Err(refused("it has no sessions".to_owned()));
        };
        for SessionNeed { session, devices, .. } in &request.memory.sessions {
            if session.model != model {
                return Err(refused(format!("it has sessions of {model} and {}", session.model)));
            }
            if let Some(unknown) = devices.iter().find(|device| settings.budget(*device).is_none()) {
                return Err(refused(format!("it places the {session} on {unknown}, which has no budget")));
            }
            if devices.is_pair() && !session.is_expert() {
                return Err(refused(format!(
                    "it places the {session} on {devices}, but only an expert can be on a pair of devices"
                )));
            }
        }
        let after = request.deadline.unwrap_or_else(|| settings.bounds.deadline(request.priority));
        Ok(Self {
            model,
            order,
            deadline: now + after,
            encoded: !work.encode,
            steps: 0,
            chunks: 0,
            decoding: false,
            running: false,
            ending: None,
            last_device: need.devices.first(),
            request,
        })
    }

    pub(super) fn id(&self) -> JobId {
        self.request.id
    }

    /// The next unit; none if all are done.
    pub(super) fn next(&self) -> Option<Unit> {
        let work = &self.request.work;
        if !self.encoded {
            return Some(Unit::Encode);
        }
        let mut end = 0;
        for part in &work.steps {
            end += part.steps;
            if self.steps < end {
                return Some(Unit::Step { expert: part.expert, step: self.steps });
            }
        }
        (self.chunks < work.chunks).then_some(Unit::Chunk { chunk: self.chunks })
    }

    /// Counts the unit that ran.
    pub(super) fn advance(&mut self) {
        match self.next() {
            Some(Unit::Encode) => self.encoded = true,
            Some(Unit::Step { .. }) => self.steps += 1,
            Some(Unit::Chunk { .. }) => self.chunks += 1,
            None => {}
        }
    }

    /// The session that runs a unit of the job.
    pub(super) fn session(&self, unit: Unit) -> Session {
        Session { model: self.model, stage: unit.stage() }
    }

    /// The components that remaining units need, in order.
    fn remaining(&self) -> impl Iterator<Item = Stage> + '_ {
        let next = self.next().map(Unit::stage);
        self.request.work.stages().filter(move |stage| next.is_some_and(|next| *stage >= next))
    }

    /// The first component that is an expert and that remaining units need.
    pub(super) fn first_expert(&self) -> Option<ExpertIndex> {
        self.remaining().find_map(Stage::expert)
    }

    /// The sessions on a device that remaining units need, in order.
    pub(super) fn remaining_on(&self, device: DeviceName) -> impl Iterator<Item = Session> + '_ {
        let here = self.remaining().filter(move |stage| self.uses(*stage, device));
        here.map(|stage| Session { model: self.model, stage })
    }

    /// Where a component is placed.
    pub(super) fn devices(&self, stage: Stage) -> Option<Devices> {
        self.request.memory.of(stage).map(|need| need.devices)
    }

    /// Returns true if a component is placed on a device.
    pub(super) fn uses(&self, stage: Stage, device: DeviceName) -> bool {
        self.devices(stage).is_some_and(|devices| devices.contains(device))
    }

    /// The memory of a component on each of its devices while it runs this job.
    pub(super) fn session_bytes(&self, stage: Stage) -> ByteCount {
        self.request.memory.of(stage).map_or(ByteCount(0), |need| need.bytes)
    }

    /// Raises the predicted memory of a component to what was measured.
    pub(super) fn measured(&mut self, stage: Stage, bytes: ByteCount) {
        let mut needs = self.request.memory.sessions.iter_mut();
        if let Some(need) = needs.find(|need| need.session.stage == stage) {
            need.bytes = need.bytes.max(bytes);
        }
    }

    /// Its state on a device: latents, and the caches if it decodes there or is `about_to_decode`.
    pub(super) fn state_on(&self, device: DeviceName, about_to_decode: bool) -> ByteCount {
        let memory = &self.request.memory;
        let is_used = self.request.work.stages().any(|stage| self.uses(stage, device));
        let latents = if is_used { memory.latents } else { ByteCount(0) };
        let decodes = (self.decoding || about_to_decode) && self.uses(Stage::Decoder, device);
        latents + if decodes { memory.caches } else { ByteCount(0) }
    }

    /// Where both jobs need the same session and place it differently: the session, and the devices of this job and of
    /// the other one.
    pub(super) fn contradiction(&self, other: &Self) -> Option<(Session, Devices, Devices)> {
        let stages = self.request.work.stages().filter(|_| self.model == other.model);
        stages.filter(|stage| other.request.work.stages().any(|needed| needed == *stage)).find_map(|stage| {
            let (given, placed) = (self.devices(stage)?, other.devices(stage)?);
            (given != placed).then_some((Session { model: self.model, stage }, given, placed))
        })
    }

    pub(super) fn is_overdue(&self, now: Seconds) -> bool {
        self.deadline < now
    }
}
