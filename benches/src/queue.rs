//! Queues of clips: real ones of mini through the driver, and simulated ones with the shipped costs of A14B.

use bundle::geometry::PixelSize;
use bundle::manifest::{Bundle, Component};
use bundle::units::{ByteCount, Seed};
use engines::residency::{Residency, Role};
use engines::sessions::Sessions;
use engines::{Device, OnnxRuntime};
use runtime::driver::{Driver, JobSpan, Listener, QueuedJob, latents_of, work_of};
use runtime::job::{Job, JobEvent, JobFolder, JobStart};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use runtime::scheduler::{
    Bounds, Counts, DeviceBudget, DeviceName, JobId, Order, Outcome, Priority, Seconds, Settings,
};
use runtime::simulation::{Arrivals, Batch, CostWorld, Costs, Scenario, Summary, simulate};
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// The shipped costs of A14B, by the memory of the machine.
pub const COSTS: [(&str, &str); 4] = [
    ("24gib", include_str!("../../crates/cli/costs/a14b-24gib.json")),
    ("48gib", include_str!("../../crates/cli/costs/a14b-48gib.json")),
    ("80gib", include_str!("../../crates/cli/costs/a14b-80gib.json")),
    ("141gib", include_str!("../../crates/cli/costs/a14b-141gib.json")),
];

/// How many experts there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// One: the other one is closed before it is opened.
    OneExpert,
    /// Both stay open.
    BothExperts,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneExpert => "one-expert",
            Self::BothExperts => "both-experts",
        })
    }
}

/// A clip of a queue.
#[derive(Debug, Clone)]
pub struct Clip {
    /// What is asked for.
    pub request: GenerateRequest,
    /// How soon it is wanted.
    pub priority: Priority,
    /// It arrives when the driver has waited this many times for the end of a unit, or has nothing else to do.
    pub after_waits: usize,
}

impl Clip {
    /// A clip of this size that is there from the start.
    pub fn new(size: PixelSize, frames: usize, seed: u64) -> Self {
        let request = GenerateRequest {
            size: Some(size),
            length: Some(Length::Frames(frames)),
            ..GenerateRequest::new("a red ball bounces on the beach", Seed(seed))
        };
        Self { request, priority: Priority::Normal, after_waits: 0 }
    }

    /// A short preview that arrives after some units.
    pub fn preview(size: PixelSize, seed: u64, after_waits: usize) -> Self {
        let mut clip = Self::new(size, 5, seed);
        clip.request.steps = Some(2);
        Self { priority: Priority::Preview, after_waits, ..clip }
    }
}

/// mini on ONNX Runtime, and a driver for each run.
#[derive(Debug)]
pub struct MiniQueue {
    model: Model,
}

impl MiniQueue {
    /// Opens the embedded model.
    ///
    /// # Errors
    /// There is no ONNX Runtime, or no folder for the bundle.
    pub fn open() -> Result<Self, Box<dyn Error>> {
        let bundle = Bundle::open(&rushes::mini::bundle_folder(None)?)?;
        let sessions = Sessions::in_available_memory(OnnxRuntime::load(None)?, Residency::Auto);
        Ok(Self { model: Model::with_sessions(bundle, &sessions, ModelOptions::of_variant(None))? })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Makes the clips in new sessions. With `folder`, each has a job folder in it.
    ///
    /// # Errors
    /// A clip is not made.
    pub fn run(
        &self,
        clips: &[Clip],
        order: Order,
        room: Room,
        folder: Option<&Path>,
    ) -> Result<Counts, Box<dyn Error>> {
        self.model.sessions().close_idle();
        let mut jobs = Vec::new();
        for (id, clip) in (1..).zip(clips) {
            jobs.push((clip.after_waits, self.job(id, clip, room, folder)?));
        }
        let budget = budget_of(jobs.iter().map(|(_, job)| job), &self.model, room);
        let device = DeviceName(Device::CPU);
        let devices = vec![DeviceBudget { device, budget }];
        let mut driver = Driver::new(Settings { devices, order, bounds: Bounds::default() })?;
        let (mut waits, mut ended) = (0, 0);
        while ended < clips.len() {
            let (due, later): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|(after, _)| *after <= waits || driver.is_idle() && waits > 0);
            jobs = later;
            for (_, job) in due {
                driver.arrive(job)?;
            }
            for mut job in driver.wait(Duration::from_secs(600))? {
                job.close();
                ended += 1;
                if job.outcome != Outcome::Done {
                    return Err(format!("{job:?}").into());
                }
            }
            waits += 1;
        }
        Ok(driver.counts())
    }

    fn job(
        &self,
        id: u64,
        clip: &Clip,
        room: Room,
        folder: Option<&Path>,
    ) -> Result<QueuedJob, Box<dyn Error>> {
        let (model, manifest) = (self.model.clone(), self.model.manifest());
        let plan = GenerationPlan::new(manifest, &clip.request)?;
        let request = MemoryRequest::new(model.variant()).measured();
        let mut memory = MemoryPlan::new(manifest, &plan, &request)?;
        if room == Room::OneExpert {
            enlarge_experts(&mut memory);
        }
        let work = work_of(&plan, &manifest.routing, &JobSpan { encode: true, ..JobSpan::default() });
        let (of_job, folder) = (plan.clone(), folder.map(|folder| folder.join(id.to_string())));
        Ok(QueuedJob {
            id: JobId(id),
            priority: clip.priority,
            deadline: None,
            model,
            plan,
            memory,
            work,
            make: Box::new(move |pipeline| {
                let noise = seeded_noise(&of_job);
                let start = JobStart::new(pipeline, of_job, noise)?;
                let folder = folder.map(|folder| JobFolder::create(&folder, &start.spec)).transpose()?;
                let (job, events) = Job::new(pipeline, start);
                Ok(match folder {
                    Some(folder) => (job.with_folder(folder), events),
                    None => (job, events),
                })
            }),
            listener: Box::new(Ignore),
        })
    }
}

/// Ignores the events of a job.
struct Ignore;

impl Listener for Ignore {
    fn on_event(&mut self, _event: JobEvent, _job: &Job) -> Result<(), bundle::Report> {
        Ok(())
    }
}

fn is_expert(role: &Role) -> bool {
    matches!(role, Role::Clip(Component::Expert(_)))
}

/// What all components but the experts need together.
fn without_experts(memory: &MemoryPlan) -> ByteCount {
    let needs = memory.devices.iter().flat_map(|device| &device.needs);
    needs.filter(|(role, _)| !is_expert(role)).map(|(_, need)| need.total()).sum()
}

/// States that each expert needs three times more than all other components together, so that they all fit beside one
/// expert and not beside two. The experts of mini are small.
fn enlarge_experts(memory: &mut MemoryPlan) {
    let others = without_experts(memory);
    let needs = memory.devices.iter_mut().flat_map(|device| &mut device.needs);
    for (_, need) in needs.filter(|(role, _)| is_expert(role)) {
        need.weights = need.weights + others + others + others;
    }
}

/// The budget for these jobs.
fn budget_of<'a>(jobs: impl Iterator<Item = &'a QueuedJob>, model: &Model, room: Room) -> ByteCount {
    let (mut expert, mut others, mut latents) = (ByteCount(0), ByteCount(0), ByteCount(0));
    for job in jobs {
        latents = latents + latents_of(&job.plan, model.manifest());
        let needs = job.memory.devices.iter().flat_map(|device| &device.needs);
        let experts = needs.filter(|(role, _)| is_expert(role)).map(|(_, need)| need.total());
        expert = expert.max(experts.max().unwrap_or_default());
        others = others.max(without_experts(&job.memory));
    }
    // Twice what the others are predicted to need, because measured memory is never exactly that.
    match room {
        Room::OneExpert => expert + others + others + latents,
        Room::BothExperts => expert + expert + others + others + latents,
    }
}

/// Eight clips of A14B at once, and with `previews` one preview every quarter of an hour. Returns the simulation in
/// numbers.
///
/// # Errors
/// The costs are not those of the shipped files.
pub fn simulated(costs: &str, order: Order, previews: bool) -> Result<Summary, Box<dyn Error>> {
    let costs = Costs::parse(costs, "costs")?;
    let batch = |at: f64, clip: &str, priority, count, every: f64| -> Result<Batch, bundle::Error> {
        let (at, every) = (Seconds::try_new(at)?, Seconds::try_new(every)?);
        Ok(Batch { at, clip: clip.into(), priority, count, every, deadline: None, cancelled_after: None })
    };
    let mut jobs = vec![batch(0.0, "480p81", Priority::Normal, 8, 0.0)?];
    if previews {
        jobs.push(batch(100.0, "preview", Priority::Preview, 4, 900.0)?);
    }
    let Scenario { events, clips } = Scenario::new(&Arrivals { jobs }, &costs)?;
    let run = simulate(costs.settings(order), events, &mut CostWorld::new(&costs, &clips))?;
    Ok(Summary::new(&run))
}
