//! Random traces: settings, placements, jobs of several models, and a world that answers by chance.

use super::audit::{Audited, audit};
use super::run::{Performed, SimulatedRun, World};
use crate::scheduler::{
    Bounds, Command, DeviceBudget, DeviceName, Devices, Event, ExpertSteps, JobId, JobMemory, JobRequest,
    ModelNumber, Order, Priority, Seconds, Session, SessionNeed, Settings, Stage, TimedEvent, Work,
};
use bundle::routing::ExpertIndex;
use bundle::units::ByteCount;
use engines::{Device, Provider};
use proptest::prelude::*;

pub(super) const HIGH: Stage = Stage::Expert(ExpertIndex(0));
pub(super) const LOW: Stage = Stage::Expert(ExpertIndex(1));
/// The components of a model, in the order of the arrays below.
pub(super) const STAGES: [Stage; 4] = [Stage::TextEncoder, HIGH, LOW, Stage::Decoder];

pub(super) fn seconds(seconds: f64) -> Seconds {
    Seconds::try_new(seconds).unwrap()
}

pub(super) fn gpu(index: u32) -> DeviceName {
    DeviceName(Device::try_new(Provider::Cuda, index).unwrap())
}

pub(super) fn cpu() -> DeviceName {
    DeviceName(Device::CPU)
}

pub(super) fn pair(first: DeviceName, second: DeviceName) -> Devices {
    Devices::pair(first, second).unwrap()
}

/// A session of a model.
pub(super) fn session(model: u32, stage: Stage) -> Session {
    Session { model: ModelNumber(model), stage }
}

/// Answers commands with random durations, failures and measurements.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    seed: u64,
    /// One in so many loads and units fails; 0 for none.
    failures: u64,
    /// Measured memory differs from the predictions.
    measures: bool,
    /// The commands that may still come.
    left: u32,
}

impl Chance {
    /// More commands than any trace has.
    const MOST: u32 = 20_000;

    pub(super) fn new(seed: u64, failures: u64, measures: bool) -> Self {
        Self { seed, failures, measures, left: Self::MOST }
    }

    /// The next number of SplitMix64.
    fn next(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn measured(&mut self) -> Option<ByteCount> {
        let number = self.next();
        (self.measures && number.is_multiple_of(2)).then_some(ByteCount(number / 2 % 24))
    }
}

impl World for Chance {
    fn perform(&mut self, command: &Command) -> Performed {
        assert!(self.left > 0, "the commands do not end: {command:?}");
        self.left -= 1;
        let fails = self.failures > 0 && self.next().is_multiple_of(self.failures);
        let event = match *command {
            Command::Load { device, session, .. } if fails => Event::LoadFailed { device, session },
            Command::Load { device, session, .. } => {
                Event::Loaded { device, session, bytes: self.measured() }
            }
            Command::Evict { device, session } => Event::Evicted { device, session },
            Command::Run { job, .. } if fails => Event::UnitFailed { job },
            Command::Run { job, .. } => Event::UnitDone { job, session_bytes: self.measured() },
            Command::Finish { .. } => Event::Tick,
        };
        let lengths = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5];
        let length = lengths[usize::try_from(self.next() % 8).unwrap()];
        Performed { seconds: seconds(length), event }
    }
}

pub(super) fn chance(failures: u64, measures: bool) -> impl Strategy<Value = Chance> {
    any::<u64>().prop_map(move |seed| Chance::new(seed, failures, measures))
}

pub(super) fn request(id: u64, priority: Priority, work: Work, memory: JobMemory) -> JobRequest {
    JobRequest { id: JobId(id), priority, work, memory, deadline: None }
}

pub(super) fn work(encode: bool, high: u32, low: u32, chunks: u32) -> Work {
    let steps = [(0, high), (1, low)].into_iter().filter(|(_, steps)| *steps > 0);
    let steps = steps.map(|(expert, steps)| ExpertSteps { expert: ExpertIndex(expert), steps });
    Work { encode, steps: steps.collect(), chunks }
}

/// Memory of a job of a model whose components are placed on `devices` and need `bytes`.
pub(super) fn memory(
    model: u32,
    devices: [Devices; 4],
    bytes: [u64; 4],
    latents: u64,
    caches: u64,
) -> JobMemory {
    let needs = STAGES.into_iter().zip(devices).zip(bytes).map(|((stage, devices), bytes)| SessionNeed {
        session: session(model, stage),
        devices,
        bytes: ByteCount(bytes),
    });
    JobMemory { sessions: needs.collect(), latents: ByteCount(latents), caches: ByteCount(caches) }
}

/// Memory of a job of model 0 with all components on one device.
pub(super) fn memory_on(device: DeviceName, bytes: [u64; 4], latents: u64, caches: u64) -> JobMemory {
    memory(0, [Devices::one(device); 4], bytes, latents, caches)
}

/// Settings with default bounds.
pub(super) fn settings(devices: &[(DeviceName, u64)]) -> Settings {
    let budgets =
        devices.iter().map(|(device, budget)| DeviceBudget { device: *device, budget: ByteCount(*budget) });
    Settings { devices: budgets.collect(), order: Order::Waves, bounds: Bounds::default() }
}

/// A machine, and where each of some models has its components.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) settings: Settings,
    pub(super) models: Vec<[Devices; 4]>,
}

prop_compose! {
    /// The devices of a model, as numbers below 3: text encoder, both experts, decoder; and for each expert the other
    /// device of a pair.
    fn any_placement()(
        places in [0..3_usize, 0..3_usize, 0..3_usize, 0..3_usize],
        others in [prop::option::weighted(0.3, 0..3_usize), prop::option::weighted(0.3, 0..3_usize)],
    ) -> ([usize; 4], [Option<usize>; 2]) {
        (places, others)
    }
}

prop_compose! {
    /// A machine of three devices with 1 to `most` models. A third has all components on one device.
    pub(super) fn any_machine(most: usize)(
        small in prop::collection::vec(10..40_u64, 3), factor in prop_oneof![3 => Just(1_u64), 1 => Just(4)],
        placements in prop::collection::vec(any_placement(), 1..=most),
        one_device in prop::bool::weighted(0.3), wave_jobs in 1..6_u32, wave_seconds in 0..60_u32,
        overdue_units in 1..4_u32, deadlines in [0..30_u32, 0..90_u32, 0..200_u32], one_at_a_time in prop::bool::weighted(0.2),
    ) -> Machine {
        let names = [gpu(0), gpu(1), cpu()];
        let budgets: Vec<(DeviceName, u64)> = names.into_iter().zip(small.into_iter().map(|budget| factor * budget)).collect();
        let place = |index: usize, other: Option<usize>| match other.filter(|other| *other != index) {
            _ if one_device => Devices::one(names[0]),
            Some(other) => pair(names[index], names[other]),
            None => Devices::one(names[index]),
        };
        let models = placements.into_iter().map(|(places, others)| {
            let [text, high, low, decoder] = places;
            [place(text, None), place(high, others[0]), place(low, others[1]), place(decoder, None)]
        });
        let [preview_deadline, normal_deadline, batch_deadline] = deadlines.map(|after| seconds(f64::from(after)));
        let wave_seconds = seconds(f64::from(wave_seconds));
        let bounds = Bounds { wave_jobs, wave_seconds, overdue_units, preview_deadline, normal_deadline, batch_deadline, one_at_a_time };
        Machine { settings: Settings { bounds, ..settings(&budgets) }, models: models.collect() }
    }
}

/// A job for any machine: it is placed when its model is known.
#[derive(Debug, Clone)]
pub(super) struct AnyJob {
    priority: Priority,
    model: usize,
    work: Work,
    bytes: [u64; 4],
    latents: u64,
    caches: u64,
    deadline: Option<u32>,
    at: u32,
    cancelled: Option<u32>,
}

prop_compose! {
    pub(super) fn any_job()(
        priority in prop_oneof![1 => Just(Priority::Preview), 3 => Just(Priority::Normal), 1 => Just(Priority::Batch)],
        model in any::<usize>(), encode in any::<bool>(), high in 0..5_u32, low in 1..4_u32, chunks in 0..4_u32,
        bytes in [1..14_u64, 3..12_u64, 3..12_u64, 1..8_u64], latents in 0..2_u64, caches in 0..4_u64,
        deadline in prop::option::of(0..60_u32), at in 0..80_u32, cancelled in prop::option::weighted(0.2, 0..60_u32),
    ) -> AnyJob {
        AnyJob { priority, model, work: work(encode, high, low, chunks), bytes, latents, caches, deadline, at, cancelled }
    }
}

/// Arrivals and cancellations of jobs on a machine. They are numbered from 1.
pub(super) fn events(machine: &Machine, jobs: &[AnyJob]) -> Vec<TimedEvent> {
    let mut events = Vec::new();
    for (number, job) in (1_u64..).zip(jobs) {
        let model = job.model % machine.models.len();
        let devices = machine.models[model];
        let memory = memory(u32::try_from(model).unwrap(), devices, job.bytes, job.latents, job.caches);
        let deadline = job.deadline.map(|after| seconds(f64::from(after)));
        let request = JobRequest { deadline, ..request(number, job.priority, job.work.clone(), memory) };
        let at = seconds(f64::from(job.at));
        events.push(TimedEvent { at, event: Event::Arrived(request) });
        if let Some(after) = job.cancelled {
            let event = Event::Cancelled { job: JobId(number) };
            events.push(TimedEvent { at: at + seconds(f64::from(after)), event });
        }
    }
    events
}

/// The arrivals of `requests` at their times. They are numbered from 1.
pub(super) fn arrivals(requests: impl IntoIterator<Item = (JobRequest, f64)>) -> Vec<TimedEvent> {
    let numbered = (1_u64..).zip(requests);
    let arrivals = numbered.map(|(number, (request, at))| {
        let event = Event::Arrived(JobRequest { id: JobId(number), ..request });
        TimedEvent { at: seconds(at), event }
    });
    arrivals.collect()
}

/// Checks what holds for every run of so many arrivals.
pub(super) fn check(run: &SimulatedRun, arrivals: usize) -> Audited {
    let audited = audit(&run.log);
    assert_eq!(audited.ended.len(), arrivals, "every job ends");
    assert_eq!(audited.swaps.values().sum::<u64>(), run.counts.swaps);
    assert_eq!(run.log.replay().unwrap(), None);
    audited
}

/// The commands of a run, for messages.
pub(super) fn story(run: &SimulatedRun) -> String {
    let entries = run.log.entries.iter();
    let lines = entries
        .map(|entry| format!("{}: {:?}", serde_json::to_string(&entry.event).unwrap(), entry.commands));
    lines.collect::<Vec<_>>().join("\n")
}
