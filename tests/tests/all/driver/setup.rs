//! A driver on the fake backend: devices, jobs, and the clips that they make alone.

use crate::fake_jobs::BUNDLE;
use bundle::Report;
use bundle::geometry::PixelSize;
use bundle::manifest::{Bundle, Component, Part};
use bundle::units::{ByteCount, GuidanceScale, Seed};
use bundle::variant::KernelLibrary;
use engines::fake::{FakeBackend, Gate, check_log};
use engines::residency::{MemoryNeed, Residency, Role};
use engines::sessions::Sessions;
use engines::{Device, MemoryBudgets, PlacementRequest, WeightMemory};
use ndarray::Array4;
use runtime::driver::{Activity, Driver, EndedJob, JobSpan, Listener, QueuedJob, latents_of, work_of};
use runtime::job::{Job, JobEvent, JobStart, JobState, LatentDigest};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::scheduler::{
    Bounds, Command, DeviceBudget, DeviceName, EventLog, JobId, Order, Outcome, Priority, Settings,
};
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

pub(super) const ENDLESS: ByteCount = ByteCount(1 << 40);
/// How long [`Machine::run`] waits for the end of a unit before it fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a clip is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shot {
    pub(super) prompt: &'static str,
    pub(super) seed: u64,
    pub(super) steps: usize,
}

pub(super) const BOAT: Shot = Shot { prompt: "a boat", seed: 7, steps: 5 };
pub(super) const FOX: Shot = Shot { prompt: "a red fox", seed: 8, steps: 5 };
pub(super) const OWL: Shot = Shot { prompt: "an owl", seed: 9, steps: 4 };
pub(super) const SHOTS: [Shot; 3] = [BOAT, FOX, OWL];

impl Shot {
    pub(super) fn plan(self) -> GenerationPlan {
        let request = GenerateRequest {
            size: Some(PixelSize { width: 32, height: 32 }),
            length: Some(Length::Frames(5)),
            steps: Some(self.steps),
            guidance: Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]),
            ..GenerateRequest::new(self.prompt, Seed(self.seed))
        };
        let bundle = Bundle::read(&BUNDLE.1).unwrap();
        let plan = GenerationPlan::new(&bundle.manifest, &request).unwrap();
        assert!(plan.expert_steps.iter().all(|(_, steps)| *steps > 0), "the boundary is not crossed");
        plan
    }

    /// The clip as made in sessions of its own, on one device.
    pub(super) fn alone(self) -> Clip {
        self.alone_at("")
    }

    /// The clip as made in sessions of its own, with this placement.
    pub(super) fn alone_at(self, placement: &'static str) -> Clip {
        static KNOWN: LazyLock<Mutex<HashMap<(Shot, &str), Clip>>> = LazyLock::new(Mutex::default);
        let mut known = KNOWN.lock().unwrap();
        let make = || make_alone(self, &Machine::large(placement).model);
        known.entry((self, placement)).or_insert_with(make).clone()
    }
}

/// The bits of a clip.
#[derive(Clone, PartialEq)]
pub(super) struct Clip {
    pub(super) latents: Vec<LatentDigest>,
    pub(super) frames: Vec<Array4<f32>>,
}

impl fmt::Debug for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sums: Vec<f32> = self.frames.iter().map(|frames| frames.sum()).collect();
        f.debug_struct("Clip").field("latents", &self.latents).field("sums of frames", &sums).finish()
    }
}

fn make_alone(shot: Shot, model: &Model) -> Clip {
    let mut pipeline = Pipeline::new(model);
    let plan = shot.plan();
    let noise = seeded_noise(&plan);
    let (mut job, events) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise).unwrap());
    while job.advance(&mut pipeline).unwrap() == JobState::Working {}
    let frames = events.try_iter().filter_map(|event| match event {
        JobEvent::Frames(frames) => Some(frames),
        _ => None,
    });
    Clip { latents: job.record().latents, frames: frames.collect() }
}

/// The predicted memory of each graph.
static PREDICTED: LazyLock<Vec<(Component, Part, MemoryNeed)>> = LazyLock::new(|| {
    let bare = FakeBackend::new();
    bare.add_device(Device::CPU, ENDLESS);
    bare.add_bundle(&Bundle::read(&BUNDLE.1).unwrap(), |_, _, graph| graph);
    let model = model(&bare, MemoryBudgets::common(ENDLESS), "");
    make_alone(BOAT, &model);
    let usage = model.sessions().usage();
    let sessions = usage.iter().flat_map(|device| &device.sessions);
    sessions.map(|session| (session.key.component.clone(), session.key.part, session.predicted)).collect()
});

/// The number of graphs of a model, each on two devices.
pub(super) fn graphs() -> u64 {
    2 * PREDICTED.len() as u64
}

/// A fake with three devices, whose graphs take the predicted memory, or up to `share` more or less.
pub(super) fn fake(share: f64, seed: u64) -> FakeBackend {
    let fake = FakeBackend::with_deviation(share, seed);
    for device in ["cpu", "cuda:0", "cuda:1"] {
        fake.add_device(device.parse().unwrap(), ENDLESS);
    }
    fake.add_bundle(&Bundle::read(&BUNDLE.1).unwrap(), |component, entry, graph| {
        let found = PREDICTED.iter().find(|(of, part, _)| of == component && *part == entry.part);
        let need = found.map(|(_, _, need)| *need).unwrap_or_default();
        graph.with_memory(need.weights, need.activations)
    });
    fake
}

fn options() -> ModelOptions {
    ModelOptions { kernels: Some(KernelLibrary::OnnxRuntime), ..ModelOptions::default() }
}

fn model(fake: &FakeBackend, budgets: MemoryBudgets, placement: &str) -> Model {
    let sessions = Sessions::new(Arc::new(fake.clone()), budgets, Residency::Auto);
    let model = Model::with_sessions(Bundle::open(&BUNDLE.1).unwrap(), &sessions, options()).unwrap();
    let request = match placement {
        "" => PlacementRequest::default(),
        placement => placement.parse().unwrap(),
    };
    model.placed(&request).unwrap()
}

/// A machine: a fake with budgets, and a model on it.
pub(super) struct Machine {
    pub(super) fake: FakeBackend,
    pub(super) model: Model,
    pub(super) settings: Settings,
}

impl Machine {
    /// A machine whose CPU has `cpu` bytes and whose other devices have `other` bytes.
    pub(super) fn new(
        fake: FakeBackend,
        [cpu, other]: [ByteCount; 2],
        placement: &str,
        order: Order,
    ) -> Self {
        let mut budgets = MemoryBudgets::common(other);
        budgets.set(Some(Device::CPU), cpu).unwrap();
        let model = model(&fake, budgets, placement);
        let budget = |device| if device == Device::CPU { cpu } else { other };
        let devices = model.placement().devices().into_iter();
        let devices =
            devices.map(|device| DeviceBudget { device: DeviceName(device), budget: budget(device) });
        let settings = Settings { devices: devices.collect(), order, bounds: Bounds::default() };
        Self { fake, model, settings }
    }

    /// One with memory for everything.
    pub(super) fn large(placement: &str) -> Self {
        Self::new(fake(0.0, 0), [ENDLESS; 2], placement, Order::Waves)
    }

    /// One whose experts are on one device that has room for one of them.
    pub(super) fn small(share: f64, seed: u64, order: Order) -> Self {
        let placement = "high=cuda:0,low=cuda:0";
        Self::new(fake(share, seed), [ENDLESS, one_expert()], placement, order)
    }

    /// Opens the bundle once more, in the same sessions.
    pub(super) fn model_with(&self, threads: Option<usize>) -> Model {
        let options = ModelOptions { threads: threads.and_then(NonZeroUsize::new), ..options() };
        Model::with_sessions(Bundle::open(&BUNDLE.1).unwrap(), self.model.sessions(), options).unwrap()
    }

    /// A model in the same sessions, as if another version had written its bundle to the same folder.
    pub(super) fn replaced(&self) -> Model {
        let mut bundle = Bundle::open(&BUNDLE.1).unwrap();
        bundle.manifest.rushes.push_str("-later");
        Model::with_sessions(bundle, self.model.sessions(), options()).unwrap()
    }

    pub(super) fn driver(&self) -> Driver {
        let mut driver = Driver::new(self.settings.clone()).unwrap();
        driver.keep_log();
        driver
    }

    /// A job that makes a clip from its start.
    pub(super) fn job(&self, id: u64, shot: Shot, priority: Priority) -> QueuedJob {
        let (model, plan) = (self.model.clone(), shot.plan());
        let request = MemoryRequest {
            placement: model.placement().clone(),
            weights: Some(WeightMemory::Prepacked),
            budgets: MemoryBudgets::common(ENDLESS),
            ..MemoryRequest::new(model.variant())
        };
        let memory = MemoryPlan::new(model.manifest(), &plan, &request).unwrap();
        let span = JobSpan { encode: true, ..JobSpan::default() };
        let work = work_of(&plan, &model.manifest().routing, &span);
        let of_job = plan.clone();
        QueuedJob {
            id: JobId(id),
            priority,
            deadline: None,
            model,
            plan,
            memory,
            work,
            make: Box::new(move |pipeline| {
                let noise = seeded_noise(&of_job);
                Ok(Job::new(pipeline, JobStart::new(pipeline, of_job, noise)?))
            }),
            listener: Box::new(Collector::default()),
        }
    }

    /// Waits until every job has ended. Checks what every run has to keep to, and returns the jobs by number.
    pub(super) fn run(&self, driver: &mut Driver) -> BTreeMap<u64, EndedJob> {
        let mut ended = BTreeMap::new();
        // A session may be being opened for a job that was cancelled.
        let works = |driver: &Driver| driver.activities().iter().any(|(_, what)| *what != Activity::Idle);
        while !driver.is_idle() || works(driver) {
            let news = driver.wait(PATIENCE).unwrap();
            let entries = driver.log().unwrap().entries.len();
            for mut job in news {
                job.close();
                let id = job.id.0;
                assert!(ended.insert(id, job).is_none(), "job {id} ended twice");
            }
            assert!(driver.is_idle() || works(driver), "nothing runs after {entries} events: {driver:?}");
        }
        self.check(driver);
        ended
    }

    /// Lets the driver go on until a call waits at a gate.
    pub(super) fn wait_at(&self, driver: &mut Driver, gate: &Gate) {
        for _ in 0..10_000 {
            if gate.waiting() > 0 {
                return;
            }
            assert!(driver.wait(Duration::from_millis(5)).unwrap().is_empty());
        }
        panic!("no call waits at the gate: {:?}", driver.activities());
    }

    /// Checks the logs of a run that has ended.
    pub(super) fn check(&self, driver: &Driver) {
        let log = driver.log().unwrap();
        assert_eq!(log.replay().unwrap(), None, "the replay differs");
        let stored: EventLog = serde_json::from_str(&serde_json::to_string(log).unwrap()).unwrap();
        assert_eq!(stored.replay().unwrap(), None, "the replay of the stored log differs");
        assert_eq!(check_log(&self.fake.log()), Ok(()));
        let counts = driver.counts();
        let devices = log.settings.devices.len() as u64;
        let swaps = (2 * counts.waves).saturating_sub(1) + 2 * counts.preview_groups;
        assert!(devices > 2 || counts.swaps <= swaps, "{counts:?}");
        self.model.sessions().close_idle();
        assert_eq!(self.fake.open_graphs(), []);
    }
}

/// Memory of a device for the largest expert and a part of the other.
fn one_expert() -> ByteCount {
    let machine = Machine::large("");
    let job = machine.job(1, BOAT, Priority::Normal);
    let needs = job.memory.devices[0].needs.iter();
    let experts = needs.filter(|(role, _)| matches!(role, Role::Clip(Component::Expert(_))));
    let bytes: Vec<u64> = experts.map(|(_, need)| need.total().0).collect();
    let latents = latents_of(&job.plan, machine.model.manifest()).0;
    // With five jobs, and a memory that is a fifth larger than predicted.
    let budget = bytes.iter().max().unwrap() * 6 / 5 + 5 * latents;
    assert!(budget < bytes.iter().sum::<u64>() + latents, "both experts fit: {bytes:?} in {budget}");
    ByteCount(budget)
}

/// Collects what a job reports.
#[derive(Debug, Default)]
pub(super) struct Collector {
    pub(super) frames: Vec<Array4<f32>>,
    pub(super) events: usize,
    pub(super) failures: Vec<Report>,
    /// The event that it refuses, counted from 1.
    pub(super) refuses: Option<usize>,
}

impl Listener for Collector {
    fn on_event(&mut self, event: JobEvent, _job: &Job) -> Result<(), Report> {
        self.events += 1;
        if self.refuses == Some(self.events) {
            return Err(refusal());
        }
        assert!(self.failures.is_empty(), "{event:?} after the failure");
        match event {
            JobEvent::Frames(frames) => self.frames.push(frames),
            JobEvent::Failed(report) => self.failures.push(report),
            _ => {}
        }
        Ok(())
    }
}

/// The error of a listener.
pub(super) fn refusal() -> Report {
    Report::failed("the clip cannot be written", "the test says so", "nothing")
}

/// The listener of a job that has ended.
pub(super) fn collector(ended: &EndedJob) -> &Collector {
    let listener: &dyn Any = &*ended.listener;
    listener.downcast_ref().unwrap()
}

/// The clip of a job that is done.
pub(super) fn clip(ended: &EndedJob) -> Clip {
    assert_eq!(ended.outcome, Outcome::Done, "{}: {:?}", ended.id, ended.report);
    assert_eq!(ended.report, None);
    let latents = ended.job.as_ref().unwrap().record().latents;
    Clip { latents, frames: collector(ended).frames.clone() }
}

/// The number of commands of a run that fit.
pub(super) fn count(driver: &Driver, fits: impl Fn(&Command) -> bool) -> usize {
    let entries = &driver.log().unwrap().entries;
    entries.iter().flat_map(|entry| &entry.commands).filter(|command| fits(command)).count()
}
