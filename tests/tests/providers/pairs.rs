//! Two devices that compute at the same time: the guidance passes of a step on a pair, and an expert on each.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use crate::bundles::{ENDLESS, Exported, model_in};
use crate::support::with_provider;
use bundle::Report;
use bundle::dtype::WeightType;
use bundle::signature::Signature;
use bundle::units::ByteCount;
use bundle::variant::Target;
use engines::providers::DeviceFacts;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{
    Backend, BackendInfo, BestDevice, Cancel, Device, Executable, GraphSource, GuidanceDevices,
    MemoryBudgets, NodePlacement, OnnxRuntime, OpenOptions, Outputs, PlacementRequest, Provider, Value,
};
use runtime::denoise::GuidanceForm;
use runtime::driver::{Driver, JobSpan, Listener, QueuedJob, work_of};
use runtime::job::{Job, JobEvent, JobStart};
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::GenerationPlan;
use runtime::scheduler::{Bounds, DeviceBudget, DeviceName, JobId, Order, Outcome, Priority, Settings};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tests::compare::{largest_difference, relative_difference};
use tests::golden::{Computed, case, compute};

/// The golden case that runs: two experts, and guidance in every step.
const CASE: &str = "two-experts";
/// How far the latents of a pair may be from those of the CPU, relative to their norm.
const LATENT_TOLERANCE: f64 = 1e-4;
/// How far the frames of a pair, in 0..1, may be from those of the CPU.
const FRAME_TOLERANCE: f64 = 1e-3;
/// Positions of the latent in one patch: a frame, two rows and two columns.
const ONE_PATCH: usize = 4;
/// How long a pass waits for the other one before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happened to a run of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happened {
    Began(Device),
    Ended(Device),
    /// The run of the other device did not begin.
    Alone(Device),
}

/// The log of the steps of experts on two devices. Run `n` on one waits until run `n` on the other has begun.
#[derive(Debug)]
struct Meeting {
    devices: [Device; 2],
    log: Mutex<Vec<Happened>>,
    changed: Condvar,
}

impl Meeting {
    fn new(devices: [Device; 2]) -> Arc<Self> {
        Arc::new(Self { devices, log: Mutex::default(), changed: Condvar::new() })
    }

    fn begin(&self, device: Device) {
        let begun =
            |log: &[Happened], device| log.iter().filter(|one| **one == Happened::Began(device)).count();
        let other = if device == self.devices[0] { self.devices[1] } else { self.devices[0] };
        let mut log = self.log.lock().unwrap();
        log.push(Happened::Began(device));
        self.changed.notify_all();
        let number = begun(&log, device);
        let is_alone = |log: &mut Vec<Happened>| begun(log, other) < number;
        let (mut log, waited) = self.changed.wait_timeout_while(log, PATIENCE, is_alone).unwrap();
        if waited.timed_out() {
            log.push(Happened::Alone(device));
        }
    }

    fn end(&self, device: Device) {
        self.log.lock().unwrap().push(Happened::Ended(device));
    }
}

/// ONNX Runtime, with a meeting of the runs of experts.
#[derive(Debug)]
struct Watched {
    runtime: OnnxRuntime,
    meeting: Arc<Meeting>,
}

impl Backend for Watched {
    fn info(&self) -> BackendInfo {
        self.runtime.info()
    }

    fn target(&self, device: Device) -> Result<Target, engines::Error> {
        self.runtime.target(device)
    }

    fn facts(&self, device: Device) -> Option<DeviceFacts> {
        self.runtime.facts(device)
    }

    fn best_device(&self, has_graphs: &dyn Fn(Target) -> bool) -> BestDevice {
        self.runtime.best_device(has_graphs)
    }

    fn open(
        &self,
        graph: GraphSource<'_>,
        options: &OpenOptions,
    ) -> Result<Box<dyn Executable>, engines::Error> {
        let open = Backend::open(&self.runtime, graph, options)?;
        if !graph.name().contains("/experts/") {
            return Ok(open);
        }
        Ok(Box::new(WatchedGraph { open, device: options.device, meeting: Arc::clone(&self.meeting) }))
    }

    fn memory_in_use(&self, device: Device) -> Option<ByteCount> {
        self.runtime.memory_in_use(device)
    }

    fn available_memory(&self, device: Device) -> Option<ByteCount> {
        self.runtime.available_memory(device)
    }

    fn return_freed_memory(&self, device: Device) {
        self.runtime.return_freed_memory(device);
    }
}

#[derive(Debug)]
struct WatchedGraph {
    open: Box<dyn Executable>,
    device: Device,
    meeting: Arc<Meeting>,
}

impl Executable for WatchedGraph {
    fn signature(&self) -> &Signature {
        self.open.signature()
    }

    fn nodes(&self) -> Option<&NodePlacement> {
        self.open.nodes()
    }

    fn reserve(&mut self, bytes: ByteCount) {
        self.open.reserve(bytes);
    }

    fn run(&mut self, inputs: &[(&str, &Value)], cancel: &Cancel) -> Result<Outputs, engines::Error> {
        // On the CPU an expert is run once on one patch when it is opened. That run has no partner.
        let is_step = inputs.iter().any(|(name, value)| {
            *name == "latent" && value.shape().iter().skip(2).product::<usize>() > ONE_PATCH
        });
        if !is_step {
            return self.open.run(inputs, cancel);
        }
        self.meeting.begin(self.device);
        let outputs = self.open.run(inputs, cancel);
        self.meeting.end(self.device);
        outputs
    }
}

fn case_on(model: &Model) -> Computed {
    let case = case(CASE);
    compute(model, &case, case.reference().latent("noise")).unwrap()
}

/// Makes a clip on the CPU and on the CPU with `other`: both passes of every step run at the same time, and the clips
/// are the same within the tolerances.
fn is_the_clip_of_the_cpu(runtime: &OnnxRuntime, other: Device) {
    let exported = Exported::new(&case(CASE), WeightType::F32);
    let expected = case_on(&exported.model(runtime.clone(), Device::CPU, ""));

    let meeting = Meeting::new([Device::CPU, other]);
    let watched = Watched { runtime: runtime.clone(), meeting: Arc::clone(&meeting) };
    let devices: GuidanceDevices = format!("cpu,{other}").parse().unwrap();
    let mut request = PlacementRequest::default();
    request.place_guidance(devices).unwrap();
    let model = exported.model(watched, Device::CPU, &request.to_string());
    let plan = GenerationPlan::new(model.manifest(), &case(CASE).request()).unwrap();
    assert_eq!(GuidanceForm::of(plan.tokens, model.placement()), GuidanceForm::TwoCalls);
    let found = case_on(&model);

    let latents = found.latents.iter().zip(&expected.latents);
    let latents = latents.map(|(found, expected)| relative_difference(found.view(), expected.view()));
    let latents = latents.fold(0.0, f64::max);
    let frames = largest_difference(found.frames.view(), expected.frames.view());
    println!("cpu with {other}: latents {latents:.1e}, frames {frames:.1e} from those of the CPU");
    assert_eq!(found.latents.len(), expected.latents.len());
    assert_eq!(found.experts, expected.experts);
    assert!(latents <= LATENT_TOLERANCE && frames <= FRAME_TOLERANCE, "latents {latents}, frames {frames}");

    // No run ended before the run of the other device began: at each end, both have begun equally many.
    let log = meeting.log.lock().unwrap().clone();
    let mut begun: BTreeMap<Device, usize> = BTreeMap::new();
    for (index, happened) in log.iter().enumerate() {
        match happened {
            Happened::Began(device) => *begun.entry(*device).or_default() += 1,
            Happened::Ended(_) => {
                assert_eq!(begun.get(&Device::CPU), begun.get(&other), "{index} of {log:?}")
            }
            Happened::Alone(device) => panic!("a pass on {device} ran alone: {log:?}"),
        }
    }
    assert!(begun[&other] >= case(CASE).steps, "{log:?}");
    let on_other = model.placed_graphs().into_iter().filter(|graph| graph.device == other).count();
    assert_eq!(on_other, 2, "both experts");
}

#[test]
fn the_guidance_passes_on_the_cpu_and_openvino_give_the_clip_of_the_cpu() {
    let Some((runtime, device)) = with_provider("a pair with OpenVINO", Provider::OpenVino) else { return };
    is_the_clip_of_the_cpu(&runtime, device);
}

#[test]
fn the_guidance_passes_on_the_cpu_and_webgpu_give_the_clip_of_the_cpu() {
    let Some((runtime, device)) = with_provider("a pair with WebGPU", Provider::WebGpu) else { return };
    is_the_clip_of_the_cpu(&runtime, device);
}

/// Keeps what failed.
#[derive(Debug, Default)]
struct Failures(Vec<Report>);

impl Listener for Failures {
    fn on_event(&mut self, event: JobEvent, _job: &Job) -> Result<(), Report> {
        if let JobEvent::Failed(report) = event {
            self.0.push(report);
        }
        Ok(())
    }
}

fn queued(id: u64, model: &Model, backend: &dyn Backend) -> QueuedJob {
    let manifest = model.manifest();
    let plan = GenerationPlan::new(manifest, &case(CASE).request()).unwrap();
    let options = ModelOptions::default();
    let path = backend.info().cpu_path;
    let request = MemoryRequest {
        budgets: MemoryBudgets::common(ENDLESS),
        ..MemoryRequest::placed(manifest, model.placement().clone(), path, &options).unwrap()
    };
    let of_job = plan.clone();
    QueuedJob {
        id: JobId(id),
        priority: Priority::Normal,
        deadline: None,
        model: model.clone(),
        memory: MemoryPlan::new(manifest, &plan, &request).unwrap(),
        work: work_of(&plan, &manifest.routing, &JobSpan { encode: true, ..JobSpan::default() }),
        plan,
        make: Box::new(move |pipeline: &Pipeline| {
            let noise = seeded_noise(&of_job);
            Ok(Job::new(pipeline, JobStart::new(pipeline, of_job, noise)?))
        }),
        listener: Box::new(Failures::default()),
    }
}

#[test]
fn with_an_expert_on_each_device_both_stay_open() {
    let Some((runtime, device)) = with_provider("an expert on each device", Provider::OpenVino) else {
        return;
    };
    let exported = Exported::new(&case(CASE), WeightType::F32);
    let budgets = MemoryBudgets::common(ENDLESS);
    let sessions = Sessions::new(Arc::new(runtime.clone()), budgets, Residency::Auto);
    let placement = format!("high=cpu,low={device}");
    let model = model_in(&sessions, &exported.path(), Device::CPU, &placement);
    let budget = |device| DeviceBudget { device: DeviceName(device), budget: ENDLESS };
    let settings = Settings {
        devices: model.placement().devices().into_iter().map(budget).collect(),
        order: Order::Waves,
        bounds: Bounds::default(),
    };
    let mut driver = Driver::new(settings).unwrap();
    let mut jobs: Vec<u64> = (1..=3).collect();
    for id in &jobs {
        driver.arrive(queued(*id, &model, &runtime)).unwrap();
    }
    while !jobs.is_empty() {
        for mut ended in driver.wait(PATIENCE).unwrap() {
            ended.close();
            assert_eq!(ended.outcome, Outcome::Done, "{:?}", ended.report);
            jobs.retain(|id| *id != ended.id.0);
        }
    }
    let counts = driver.counts();
    // Text encoder, an expert on each device, decoder: each is opened once for all jobs.
    assert_eq!((counts.swaps, counts.loads), (0, 4), "{counts:?}");
    let open: usize = sessions.usage().iter().map(|usage| usage.sessions.len()).sum();
    // The decoder has a graph for the first latent frame and one for the others.
    assert_eq!((open, sessions.opened()), (5, 5), "no session was closed");
    let on_device = model.placed_graphs();
    assert_eq!(on_device.len(), 1, "{on_device:?}");
    assert_eq!(
        (on_device[0].device, on_device[0].component.to_string()),
        (device, "the low_noise expert".into())
    );
}
