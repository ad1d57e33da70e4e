//! Follows a log on its own, and checks every promise of the scheduler.

use crate::scheduler::{
    Command, DeviceName, Devices, Event, EventLog, JobId, JobRequest, Outcome, Priority, Session, Settings,
    Stage, Unit,
};
use std::collections::{BTreeMap, BTreeSet};

/// A job as the audit follows it.
#[derive(Debug)]
struct Followed {
    request: JobRequest,
    /// The number of the event at which it arrived.
    arrived: usize,
    started: bool,
    encoded: bool,
    steps: u32,
    chunks: u32,
    running: bool,
    cancelled: bool,
    units_after_cancel: u32,
}

/// What the audit knows of a device.
#[derive(Debug, Default)]
struct OnDevice {
    open: BTreeSet<Session>,
    /// Predicted or measured bytes of each open session, whichever is more.
    bytes: BTreeMap<Session, u64>,
    /// The experts that were closed since one was opened.
    closed: BTreeSet<Session>,
    busy: Option<Command>,
}

/// What an audit found besides that nothing is wrong.
#[derive(Debug, Default)]
pub(super) struct Audited {
    pub(super) swaps: BTreeMap<DeviceName, u64>,
    /// Jobs in the order of their end.
    pub(super) ended: Vec<(JobId, Outcome)>,
    /// Jobs that were found not to fit later than at their arrival.
    pub(super) refused_late: Vec<JobId>,
    /// Units of clips that began on the devices of a preview's first unit, between its arrival and that unit.
    pub(super) before_preview: BTreeMap<JobId, u32>,
}

pub(super) struct Audit<'a> {
    settings: &'a Settings,
    jobs: BTreeMap<JobId, Followed>,
    devices: BTreeMap<DeviceName, OnDevice>,
    /// The number of the event.
    number: usize,
    audited: Audited,
}

/// Follows a log from its start.
pub(super) fn audit(log: &EventLog) -> Audited {
    let devices = log.settings.devices.iter().map(|device| (device.device, OnDevice::default()));
    let mut audit = Audit {
        settings: &log.settings,
        jobs: BTreeMap::new(),
        devices: devices.collect(),
        number: 0,
        audited: Audited::default(),
    };
    for (number, entry) in log.entries.iter().enumerate() {
        audit.number = number;
        audit.event(&entry.event.event);
        for command in &entry.commands {
            audit.command(command);
        }
    }
    assert!(audit.devices.values().all(|device| device.busy.is_none()), "a command was not answered");
    assert!(audit.jobs.is_empty(), "jobs that did not end: {:?}", audit.jobs.keys());
    audit.audited
}

impl Audit<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Arrived(request) => self.arrived(request),
            Event::Cancelled { job } => {
                if let Some(job) = self.jobs.get_mut(job) {
                    job.cancelled = true;
                }
            }
            Event::UnitDone { job, session_bytes } => {
                let (unit, session, devices) = self.end_unit(*job);
                let followed = self.jobs.get_mut(job).expect("known");
                match unit {
                    Unit::Encode => followed.encoded = true,
                    Unit::Step { .. } => followed.steps += 1,
                    Unit::Chunk { .. } => followed.chunks += 1,
                }
                for name in devices.iter().filter(|_| session_bytes.is_some()) {
                    let device = self.devices.get_mut(&name).expect("known");
                    let held = device.bytes.entry(session).or_default();
                    *held = (*held).max(session_bytes.map_or(0, |bytes| bytes.0));
                }
            }
            Event::UnitFailed { job } => {
                self.end_unit(*job);
            }
            Event::Loaded { device, session, bytes } => {
                let device = self.devices.get_mut(device).expect("known");
                assert!(matches!(device.busy.take(), Some(Command::Load { .. })));
                device.open.insert(*session);
                let held = device.bytes.entry(*session).or_default();
                *held = (*held).max(bytes.map_or(0, |bytes| bytes.0));
            }
            Event::LoadFailed { device, session } | Event::Evicted { device, session } => {
                let device = self.devices.get_mut(device).expect("known");
                device.busy = None;
                device.open.remove(session);
                device.bytes.remove(session);
            }
            Event::Tick => {}
        }
    }

    fn arrived(&mut self, request: &JobRequest) {
        let followed = Followed {
            request: request.clone(),
            arrived: self.number,
            started: false,
            encoded: !request.work.encode,
            steps: 0,
            chunks: 0,
            running: false,
            cancelled: false,
            units_after_cancel: 0,
        };
        if request.priority == Priority::Preview {
            self.audited.before_preview.insert(request.id, 0);
        }
        assert!(self.jobs.insert(request.id, followed).is_none());
    }

    /// Makes the devices of the unit that a job runs idle.
    fn end_unit(&mut self, job: JobId) -> (Unit, Session, Devices) {
        let followed = self.jobs.get_mut(&job).expect("known");
        assert!(followed.running, "{job} does not run");
        followed.running = false;
        let unit = next(followed).expect("a unit");
        let (session, devices) = placed(&followed.request, unit.stage());
        for name in devices.iter() {
            let busy = self.devices.get_mut(&name).expect("known").busy.take();
            assert!(matches!(busy, Some(Command::Run { job: ran, .. }) if ran == job), "{name}: {busy:?}");
        }
        (unit, session, devices)
    }

    fn command(&mut self, command: &Command) {
        if let Command::Finish { job, outcome, .. } = command {
            return self.finished(*job, *outcome);
        }
        for name in command.occupies() {
            let device = self.devices.get_mut(&name).expect("a known device");
            assert!(
                device.busy.is_none(),
                "{name} does two things at a time: {:?} and {command:?}",
                device.busy
            );
            device.busy = Some(*command);
        }
        match *command {
            Command::Load { device: name, session, job, swap } => {
                let followed = self.jobs.get(&job).expect("a known job");
                let (needed, devices) = placed(&followed.request, session.stage);
                assert!(needed == session && devices.contains(name), "{job} needs no {session} on {name}");
                let device = self.devices.get_mut(&name).expect("known");
                assert!(!device.open.contains(&session), "{session} is open already");
                device.bytes.insert(session, predicted(&followed.request, session.stage));
                let others = !device.closed.is_empty() && !device.closed.contains(&session);
                let is_swap = session.is_expert() && others;
                assert_eq!(swap, is_swap);
                *self.audited.swaps.entry(name).or_default() += u64::from(is_swap);
                if session.is_expert() {
                    device.closed.clear();
                }
            }
            Command::Evict { device: name, session } => {
                let device = self.devices.get_mut(&name).expect("known");
                assert!(device.open.contains(&session), "{session} is not open");
                if session.is_expert() {
                    device.closed.insert(session);
                }
                return;
            }
            Command::Run { device, pair, job, unit } => {
                let (_, devices) = placed(&self.jobs.get(&job).expect("a known job").request, unit.stage());
                assert_eq!((devices.first(), devices.second()), (device, pair), "{job} runs elsewhere");
                self.run(devices, job, unit);
            }
            Command::Finish { .. } => unreachable!("handled above"),
        }
        command.occupies().for_each(|name| self.check_budget(name));
    }

    fn finished(&mut self, job: JobId, outcome: Outcome) {
        let followed = self.jobs.remove(&job).expect("only known jobs end, and once");
        assert!(!followed.running, "{job} ended while it ran");
        match outcome {
            Outcome::Done => assert!(next(&followed).is_none(), "{job} is not done"),
            Outcome::Cancelled => assert!(followed.cancelled, "{job} was not cancelled"),
            Outcome::DoesNotFit { needed, budget } => {
                assert!(needed >= budget, "{job} fits");
                if followed.arrived != self.number {
                    self.audited.refused_late.push(job);
                }
            }
            Outcome::Failed => {}
        }
        assert!(followed.units_after_cancel == 0, "{job} ran after it was cancelled");
        self.audited.ended.push((job, outcome));
    }

    fn run(&mut self, devices: Devices, id: JobId, unit: Unit) {
        let followed = self.jobs.get_mut(&id).expect("a known job");
        assert!(!followed.running, "{id} runs twice at a time");
        assert_eq!(next(followed), Some(unit), "{id} runs its units in order");
        followed.units_after_cancel += u32::from(followed.cancelled);
        followed.running = true;
        followed.started = true;
        let (session, _) = placed(&followed.request, unit.stage());
        for name in devices.iter() {
            let device = self.devices.get_mut(&name).expect("known");
            assert!(device.open.contains(&session), "{id} runs {unit:?} on {name} without its session");
            let held = device.bytes.entry(session).or_default();
            *held = (*held).max(predicted(&followed.request, unit.stage()));
        }
        if followed.request.priority == Priority::Preview {
            return;
        }
        for (preview, units) in &mut self.audited.before_preview {
            let Some(job) = self.jobs.get(preview).filter(|job| !job.started && !job.cancelled) else {
                continue;
            };
            let (_, first) = placed(&job.request, next(job).expect("a unit").stage());
            *units += u32::from(devices.iter().any(|name| first.contains(name)));
        }
    }

    /// Checks what is held on a device when something is opened or run there.
    fn check_budget(&self, name: DeviceName) {
        let device = &self.devices[&name];
        let budget = self.settings.budget(name).expect("known");
        let uses = |job: &Followed, stage: Stage| {
            job.request.memory.of(stage).is_some_and(|need| need.devices.contains(name))
        };
        let decodes =
            |job: &Followed| job.chunks > 0 || (job.running && matches!(next(job), Some(Unit::Chunk { .. })));
        let is_alone = device.bytes.len() <= 1 || !self.settings.bounds.one_at_a_time;
        assert!(is_alone, "several sessions on {name}: {:?}", device.bytes);
        let sessions: u64 = device.bytes.values().sum();
        let caches: u64 = self
            .jobs
            .values()
            .filter(|job| uses(job, Stage::Decoder) && decodes(job))
            .map(|job| job.request.memory.caches.0)
            .sum();
        // Latents are held from the first unit at the latest.
        let has_run = |job: &Followed| job.steps > 0 || job.chunks > 0 || job.running;
        let latents: u64 = self
            .jobs
            .values()
            .filter(|job| has_run(job) && job.request.work.stages().any(|stage| uses(job, stage)))
            .map(|job| job.request.memory.latents.0)
            .sum();
        let total = sessions + caches + latents;
        assert!(
            total <= budget.0,
            "{total} of {budget:?} on {name}: {:?}, {caches}, {latents}",
            device.bytes
        );
    }
}

/// The session that runs a component for a job, and where it is.
fn placed(request: &JobRequest, stage: Stage) -> (Session, Devices) {
    let need = request.memory.of(stage).expect("stated");
    (need.session, need.devices)
}

fn predicted(request: &JobRequest, stage: Stage) -> u64 {
    request.memory.of(stage).expect("stated").bytes.0
}

fn next(job: &Followed) -> Option<Unit> {
    let work = &job.request.work;
    if !job.encoded {
        return Some(Unit::Encode);
    }
    let mut done = job.steps;
    for part in &work.steps {
        if done < part.steps {
            return Some(Unit::Step { expert: part.expert, step: job.steps });
        }
        done -= part.steps;
    }
    (job.chunks < work.chunks).then_some(Unit::Chunk { chunk: job.chunks })
}
