//! The state machine: takes an event, and returns the commands that follow.

use super::device::DeviceName;
use super::error::SchedulerError;
use super::event::{Command, Event, Outcome, TimedEvent};
use super::progress::Progress;
use super::request::JobRequest;
use super::session::Session;
use super::settings::Settings;
use super::state::{Activity, DeviceState, State};
use super::types::{JobId, Seconds};
use super::wave::Kind;
use bundle::Diagnose;
use bundle::units::ByteCount;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a scheduler has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Openings of an expert where another one left, on all devices together. An expert on a pair is opened on both.
    pub swaps: u64,
    /// Openings of sessions.
    pub loads: u64,
    /// Waves of normal and batch jobs.
    pub waves: u64,
    /// Groups of previews of one model, each served at one step boundary.
    pub preview_groups: u64,
}

/// Decides which unit of which job each device runs, and which sessions are open. It has no clock, thread, file or
/// session: [`handle`](Self::handle) takes what happened and returns what is to be done.
#[derive(Debug, Clone)]
pub struct Scheduler {
    pub(super) state: State,
    /// Jobs that have arrived and are in no wave.
    pub(super) waiting: Vec<JobId>,
    /// Numbers of jobs that ended and have not arrived again.
    ended: BTreeSet<JobId>,
    /// All arrivals.
    arrived: u64,
    /// Units of clips since the last group of previews ended.
    pub(super) clip_units: u32,
    pub(super) counts: Counts,
    pub(super) commands: Vec<Command>,
}

impl Scheduler {
    /// Creates a scheduler without jobs and without open sessions.
    ///
    /// # Errors
    /// The settings contradict themselves.
    pub fn try_new(settings: Settings) -> Result<Self, SchedulerError> {
        settings.check().map_err(|error| SchedulerError::Settings(Box::new(error.report())))?;
        Ok(Self {
            state: State::new(settings),
            waiting: Vec::new(),
            ended: BTreeSet::new(),
            arrived: 0,
            clip_units: u32::MAX,
            counts: Counts::default(),
            commands: Vec::new(),
        })
    }

    /// Takes an event and returns the commands that follow, in the order in which they are to be started. The same
    /// events give the same commands.
    ///
    /// A job that is cancelled after it ended is not an error: the two may cross.
    ///
    /// # Errors
    /// The event contradicts the state, which does not change.
    pub fn handle(&mut self, event: &TimedEvent) -> Result<Vec<Command>, SchedulerError> {
        let last = self.state.now;
        if event.at < last {
            return Err(SchedulerError::TimeFell { last, given: event.at });
        }
        self.take(event)?;
        self.state.now = event.at;
        loop {
            self.admit();
            self.dispatch();
            if !self.is_stuck() {
                break;
            }
            self.refuse_newest();
        }
        Ok(std::mem::take(&mut self.commands))
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The jobs of each live wave that have not ended, in the order in which the waves are served. Groups of previews come
    /// first. Other jobs wait.
    pub fn waves(&self) -> impl Iterator<Item = &[JobId]> {
        self.state.waves.iter().map(|wave| wave.members.as_slice())
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    /// Returns true if every job that arrived has ended.
    pub fn is_idle(&self) -> bool {
        self.state.jobs.is_empty()
    }

    fn take(&mut self, TimedEvent { at, event }: &TimedEvent) -> Result<(), SchedulerError> {
        match event {
            Event::Arrived(request) => self.arrive(request, *at)?,
            Event::UnitDone { job, session_bytes } => self.unit_done(*job, *session_bytes)?,
            Event::UnitFailed { job } => {
                self.end_unit(*job)?;
                let ending = self.state.jobs.get(job).and_then(|job| job.ending);
                self.finish(*job, ending.unwrap_or(Outcome::Failed));
            }
            Event::Loaded { device, session, bytes } => {
                let found = self.expect(*device, *session, |activity| match activity {
                    Activity::Loading(loading, _) => Some(loading),
                    _ => None,
                })?;
                found.activity = Activity::Idle;
                if let Some(bytes) = *bytes {
                    let held = found.resident.entry(*session).or_default();
                    *held = (*held).max(bytes);
                    let measured = found.measured.entry(*session).or_default();
                    *measured = (*measured).max(bytes);
                }
            }
            Event::LoadFailed { device, session } => {
                let mut of = None;
                let found = self.expect(*device, *session, |activity| match activity {
                    Activity::Loading(loading, arrival) => {
                        of = Some(arrival);
                        Some(loading)
                    }
                    _ => None,
                })?;
                found.activity = Activity::Idle;
                found.resident.remove(session);
                // A job that arrived again under the same number did not ask for the session.
                let asked = self.state.jobs.values().find(|job| of == Some(job.order));
                if let Some(job) = asked.map(Progress::id) {
                    self.fail(job);
                }
            }
            Event::Evicted { device, session } => {
                let found = self.expect(*device, *session, |activity| match activity {
                    Activity::Evicting(evicting) => Some(evicting),
                    _ => None,
                })?;
                found.activity = Activity::Idle;
                found.resident.remove(session);
            }
            Event::Cancelled { job } => self.cancel(*job)?,
            Event::Tick => {}
        }
        Ok(())
    }

    fn arrive(&mut self, request: &JobRequest, now: Seconds) -> Result<(), SchedulerError> {
        let id = request.id;
        if self.state.jobs.contains_key(&id) {
            return Err(SchedulerError::Duplicate(id));
        }
        let job = Progress::new(request.clone(), self.arrived, now, &self.state.settings)?;
        for other in self.state.jobs.values() {
            if let Some((session, given, placed)) = job.contradiction(other) {
                let by = other.id();
                return Err(SchedulerError::Placement { job: id, session, given, placed, by });
            }
        }
        let shortage = self.state.does_not_fit(&job, &[]);
        self.arrived += 1;
        self.ended.remove(&id);
        self.state.jobs.insert(id, job);
        self.waiting.push(id);
        if let Some((needed, budget)) = shortage {
            self.finish(id, Outcome::DoesNotFit { needed, budget });
        }
        Ok(())
    }

    fn unit_done(&mut self, id: JobId, bytes: Option<ByteCount>) -> Result<(), SchedulerError> {
        let devices = self.end_unit(id)?;
        let Some(job) = self.state.jobs.get_mut(&id) else { return Err(SchedulerError::Unknown(id)) };
        let session = job.next().map(|unit| job.session(unit));
        job.running = false;
        job.advance();
        let ending = job.ending.or_else(|| job.next().is_none().then_some(Outcome::Done));
        if let (Some(bytes), Some(session)) = (bytes, session) {
            job.measured(session.stage, bytes);
            for name in devices {
                let device = self.state.device_mut(name);
                if let Some(held) = device.and_then(|device| device.resident.get_mut(&session)) {
                    *held = (*held).max(bytes);
                }
            }
        }
        if let Some(outcome) = ending {
            self.finish(id, outcome);
        }
        Ok(())
    }

    fn cancel(&mut self, id: JobId) -> Result<(), SchedulerError> {
        match self.state.jobs.get_mut(&id) {
            Some(job) if job.running => job.ending = Some(Outcome::Cancelled),
            Some(_) => self.finish(id, Outcome::Cancelled),
            None if self.ended.contains(&id) => {}
            None => return Err(SchedulerError::Unknown(id)),
        }
        Ok(())
    }

    /// Ends a job as failed: at once, or after the unit that it runs on another device.
    fn fail(&mut self, id: JobId) {
        match self.state.jobs.get_mut(&id) {
            Some(job) if job.running => job.ending = Some(Outcome::Failed),
            _ => self.finish(id, Outcome::Failed),
        }
    }

    /// Makes the devices idle that run a unit of a job, and returns them.
    fn end_unit(&mut self, job: JobId) -> Result<Vec<DeviceName>, SchedulerError> {
        let devices = self.state.devices.iter_mut();
        let running = devices.filter(|device| device.activity == Activity::Running(job)).map(|device| {
            device.activity = Activity::Idle;
            device.name
        });
        let running: Vec<DeviceName> = running.collect();
        if !running.is_empty() {
            return Ok(running);
        }
        let is_known = self.state.jobs.contains_key(&job) || self.ended.contains(&job);
        Err(if is_known { SchedulerError::NotRunning(job) } else { SchedulerError::Unknown(job) })
    }

    /// The device whose activity is about a session, as `of` says.
    fn expect(
        &mut self,
        device: DeviceName,
        session: Session,
        of: impl FnOnce(Activity) -> Option<Session>,
    ) -> Result<&mut DeviceState, SchedulerError> {
        let refused = SchedulerError::NotAsked { device, session };
        let Some(found) = self.state.device_mut(device) else { return Err(refused) };
        if of(found.activity) == Some(session) { Ok(found) } else { Err(refused) }
    }

    pub(super) fn finish(&mut self, id: JobId, outcome: Outcome) {
        let Some(job) = self.state.jobs.remove(&id) else { return };
        self.ended.insert(id);
        self.waiting.retain(|waiting| *waiting != id);
        let had_previews = self.live(Kind::Previews) > 0;
        for wave in &mut self.state.waves {
            wave.members.retain(|member| *member != id);
        }
        self.state.waves.retain(|wave| !wave.members.is_empty());
        if had_previews && self.live(Kind::Previews) == 0 {
            self.clip_units = 0;
        }
        self.commands.push(Command::Finish { device: job.last_device, job: id, outcome });
    }

    /// Returns true if jobs are admitted but nothing is being done, because sessions turned out larger than predicted.
    fn is_stuck(&self) -> bool {
        let idle = self.state.devices.iter().all(|device| device.activity == Activity::Idle);
        idle && self.state.admitted().next().is_some()
    }

    /// Ends the job that was admitted last.
    fn refuse_newest(&mut self) {
        let newest = self.state.waves.last().and_then(|wave| wave.members.last()).copied();
        let Some(job) = newest.and_then(|id| self.state.jobs.get(&id)) else { return };
        let others: Vec<&Progress> = self.state.admitted().filter(|other| other.id() != job.id()).collect();
        let (id, shortage) = (job.id(), self.state.does_not_fit(job, &others));
        let device = self.state.devices.iter().find(|device| device.name == job.last_device);
        let budget = device.map_or(ByteCount(0), |device| device.budget);
        let (needed, budget) = shortage.unwrap_or((budget, budget));
        self.finish(id, Outcome::DoesNotFit { needed, budget });
    }
}
