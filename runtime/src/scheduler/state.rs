//! The state of the scheduler: jobs, waves and devices, and the memory that they use.

use super::device::DeviceName;
use super::progress::Progress;
use super::session::{Session, Stage};
use super::settings::Settings;
use super::types::{JobId, Seconds};
use super::wave::Wave;
use bundle::units::ByteCount;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    Idle,
    Running(JobId),
    /// For the job of this arrival, which may have ended.
    Loading(Session, u64),
    Evicting(Session),
}

/// A device.
#[derive(Debug, Clone)]
pub(super) struct DeviceState {
    pub(super) name: DeviceName,
    pub(super) budget: ByteCount,
    /// The memory reserved for each session that is open, being opened or being closed.
    pub(super) resident: BTreeMap<Session, ByteCount>,
    /// The memory that each session was measured to need, whatever job it is for.
    pub(super) measured: BTreeMap<Session, ByteCount>,
    /// The experts that were closed since one was opened last.
    pub(super) left: BTreeSet<Session>,
    /// The arrival of a job whose decode is in progress, and for which a session was closed last.
    pub(super) room_for: Option<u64>,
    pub(super) activity: Activity,
}

impl DeviceState {
    /// Returns true if a session is open, and is not being opened or closed.
    pub(super) fn is_open(&self, session: Session) -> bool {
        let changes = match self.activity {
            Activity::Loading(changing, _) | Activity::Evicting(changing) => changing == session,
            Activity::Idle | Activity::Running(_) => false,
        };
        self.resident.contains_key(&session) && !changes
    }

    /// Returns true if opening a session after closing some is a swap: it is an expert, and since an expert was opened
    /// last, others were closed, but not this one.
    pub(super) fn would_swap(&self, session: Session, close: &[Session]) -> bool {
        let closed = || self.left.iter().chain(close.iter().filter(|closed| closed.is_expert()));
        session.is_expert() && closed().next().is_some() && closed().all(|closed| *closed != session)
    }
}

/// The state of the scheduler.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) now: Seconds,
    /// Jobs that have arrived and not ended.
    pub(super) jobs: BTreeMap<JobId, Progress>,
    /// Live waves, in the order in which they are served.
    pub(super) waves: Vec<Wave>,
    pub(super) devices: Vec<DeviceState>,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        let devices = settings.devices.iter().map(|device| DeviceState {
            name: device.device,
            budget: device.budget,
            resident: BTreeMap::new(),
            measured: BTreeMap::new(),
            left: BTreeSet::new(),
            room_for: None,
            activity: Activity::Idle,
        });
        let devices = devices.collect();
        Self { settings, now: Seconds::ZERO, jobs: BTreeMap::new(), waves: Vec::new(), devices }
    }

    pub(super) fn device(&self, name: DeviceName) -> Option<&DeviceState> {
        self.devices.iter().find(|device| device.name == name)
    }

    pub(super) fn device_mut(&mut self, name: DeviceName) -> Option<&mut DeviceState> {
        self.devices.iter_mut().find(|device| device.name == name)
    }

    /// The members of a wave that have not ended, in its order.
    pub(super) fn members<'a>(&'a self, wave: &'a Wave) -> impl Iterator<Item = &'a Progress> {
        wave.members.iter().filter_map(|job| self.jobs.get(job))
    }

    /// All admitted jobs.
    pub(super) fn admitted(&self) -> impl Iterator<Item = &Progress> {
        self.waves.iter().flat_map(|wave| self.members(wave))
    }

    /// The sessions on a device that a wave needs.
    pub(super) fn stages<'a>(
        &'a self,
        wave: &'a Wave,
        device: DeviceName,
    ) -> impl Iterator<Item = Session> + 'a {
        self.members(wave).flat_map(move |job| job.remaining_on(device))
    }

    /// The position of the first wave that needs a session, and the session; `None` if no wave needs it.
    pub(super) fn next_use(&self, device: DeviceName, session: Session) -> Option<(usize, Session)> {
        let needs = |wave: &Wave| self.stages(wave, device).any(|stage| stage == session);
        self.waves.iter().position(needs).map(|wave| (wave, session))
    }

    /// The memory of latents and caches on a device, with those of `starting` as if it decoded already.
    fn states_on(&self, device: DeviceName, starting: Option<JobId>) -> ByteCount {
        let bytes = |job: &Progress| job.state_on(device, starting == Some(job.id()));
        self.admitted().map(bytes).sum()
    }

    /// The memory that a job needs for a session of a device.
    pub(super) fn need(device: &DeviceState, job: &Progress, session: Session) -> ByteCount {
        let measured = device.measured.get(&session).copied().unwrap_or_default();
        job.session_bytes(session.stage).max(measured)
    }

    /// The sessions to close so that an admitted job can use a session: as few as possible, and those that are needed last
    /// first. `None` if there is no room even then. The session itself is among them if it is larger than necessary.
    pub(super) fn room(
        &self,
        device: &DeviceState,
        job: &Progress,
        session: Session,
    ) -> Option<Vec<Session>> {
        let starting = (session.stage == Stage::Decoder).then_some(job.id());
        let states = self.states_on(device.name, starting);
        let need = Self::need(device, job, session);
        let open = device.resident.get(&session).copied();
        let held = open.unwrap_or_default().max(need);
        let mut total: ByteCount =
            device.resident.iter().filter(|(other, _)| **other != session).map(|(_, bytes)| *bytes).sum();
        total = total + states + held;
        let mut close = Vec::new();
        let is_alone = self.settings.bounds.one_at_a_time;
        for other in self.closing_order(device, session) {
            if total <= device.budget && !is_alone {
                return Some(close);
            }
            let bytes = device.resident.get(&other).copied().unwrap_or_default();
            total = ByteCount(total.0.saturating_sub(bytes.0));
            close.push(other);
        }
        if total <= device.budget {
            return Some(close);
        }
        if open.is_some() && states + need <= device.budget {
            close.push(session);
            return Some(close);
        }
        None
    }

    /// The open sessions of a device but one, in the order in which they are closed.
    fn closing_order(&self, device: &DeviceState, keep: Session) -> Vec<Session> {
        let mut others: Vec<Session> =
            device.resident.keys().copied().filter(|other| *other != keep).collect();
        others.sort_by_key(|other| {
            let next_use = self.next_use(device.name, *other);
            (next_use.is_some(), Reverse(next_use), Reverse(device.resident.get(other).copied()))
        });
        others
    }

    /// Returns true if all sessions that some waves need on a device fit there at the same time.
    pub(super) fn stay_open(&self, device: &DeviceState, waves: &[Wave]) -> bool {
        let mut sessions: BTreeMap<Session, ByteCount> = BTreeMap::new();
        let mut caches = ByteCount(0);
        for job in waves.iter().flat_map(|wave| self.members(wave)) {
            for session in job.remaining_on(device.name) {
                let bytes = sessions.entry(session).or_default();
                *bytes = (*bytes).max(Self::need(device, job, session));
                if session.stage == Stage::Decoder && !job.decoding {
                    caches = caches.max(job.request.memory.caches);
                }
            }
        }
        let is_too_many = self.settings.bounds.one_at_a_time && sessions.len() > 1;
        !is_too_many
            && self.states_on(device.name, None) + caches + sessions.into_values().sum() <= device.budget
    }

    /// The device on which a job does not fit beside `others`, with the memory that is needed there and the budget.
    pub(super) fn does_not_fit(
        &self,
        job: &Progress,
        others: &[&Progress],
    ) -> Option<(ByteCount, ByteCount)> {
        let all = || others.iter().copied().chain([job]);
        self.devices.iter().find_map(|device| {
            let states = all().map(|job| job.state_on(device.name, false)).sum::<ByteCount>();
            let stage = |job: &Progress| {
                // The caches of a job that decodes are part of its state.
                let caches = |session: Session| match session.stage {
                    Stage::Decoder if !job.decoding => job.request.memory.caches,
                    _ => ByteCount(0),
                };
                job.remaining_on(device.name)
                    .map(|session| Self::need(device, job, session) + caches(session))
                    .max()
                    .unwrap_or_default()
            };
            let largest = all().map(stage).max().unwrap_or_default();
            let needed = states + largest;
            (needed > device.budget).then_some((needed, device.budget))
        })
    }
}
