//! Experts on two devices: both guidance passes of a step at the same time.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::fake_jobs::{BUNDLE, ENDLESS, clip, fake, finish, job, model, opened};
use bundle::geometry::PixelSize;
use bundle::manifest::{Bundle, Component};
use bundle::routing::ExpertName;
use bundle::units::{ByteCount, GuidanceScale, Seed};
use bundle::variant::Target;
use bundle::{Diagnose, ErrorClass};
use engines::fake::{Calls, Effect, Event, FakeBackend, Gate, check_log};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{
    Backend, BackendInfo, Cancel, Device, Executable, GraphSource, MemoryBudgets, OnnxRuntime, OpenOptions,
};
use ndarray::Array4;
use runtime::Error;
use runtime::denoise::{Conditioning, GuidanceForm};
use runtime::job::{Job, JobStart};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Both experts on both devices, in opposite orders.
const CROSSED: &str = "high=cuda:0+cuda:1,low=cuda:1+cuda:0";
/// How long jobs that block each other are waited for.
const PATIENCE: Duration = Duration::from_secs(120);

fn devices() -> [Device; 2] {
    ["cuda:0", "cuda:1"].map(|device| device.parse().unwrap())
}

fn crossed(fake: &FakeBackend) -> Pipeline {
    Pipeline::new(&model(fake, MemoryBudgets::common(ENDLESS), CROSSED))
}

/// The file of the graph of an expert.
fn graph(expert: &str) -> String {
    let manifest = Bundle::read(&BUNDLE.1).unwrap().manifest;
    let entry = manifest.component(&Component::Expert(ExpertName(expert.into()))).unwrap();
    entry.graphs.iter().find(|graph| graph.variant.target == Target::Cpu).unwrap().file.clone()
}

/// A clip of so many tokens that one device makes its guidance passes in two calls.
fn large(model: &Model, guidance: [f32; 2]) -> GenerationPlan {
    let request = GenerateRequest {
        size: Some(PixelSize { width: 736, height: 720 }),
        length: Some(Length::Frames(1)),
        steps: Some(4),
        guidance: Some(guidance.map(GuidanceScale).to_vec()),
        ..GenerateRequest::new("a boat", Seed(7))
    };
    let plan = GenerationPlan::new(model.manifest(), &request).unwrap();
    assert!(plan.expert_steps.iter().all(|(_, steps)| *steps > 0), "the boundary is not crossed");
    plan
}

/// The latent after each step of a plan, and the guidance form of its conditions.
fn denoised(model: &Model, plan: &GenerationPlan) -> (Vec<Arc<Array4<f32>>>, GuidanceForm) {
    let mut pipeline = Pipeline::new(model);
    let cancel = Cancel::new();
    let text = pipeline.encode(&plan.prompt, Some("blurry"), &cancel).unwrap();
    let conditioning = Conditioning::text(text.prompt, text.negative);
    let mut denoising = plan.denoising(model.manifest(), seeded_noise(plan)).unwrap();
    let inputs = pipeline.inputs(&denoising, &conditioning).unwrap();
    let mut latents = Vec::new();
    while let Some(done) = pipeline.step(&mut denoising, &inputs, &cancel).unwrap() {
        latents.push(done.latent);
    }
    let start = JobStart::new(&pipeline, plan.clone(), seeded_noise(plan)).unwrap();
    (latents, Job::new(&pipeline, start).0.conditions().guidance)
}

#[test]
fn a_pair_gives_the_bits_of_two_calls_on_one_device() {
    let [one, pair] = ["", CROSSED].map(|place| model(&fake(), MemoryBudgets::common(ENDLESS), place));
    for guidance in [[4.0, 3.0], [1.0, 3.0], [1.0, 1.0]] {
        let plan = large(&one, guidance);
        let expected = denoised(&one, &plan);
        assert_eq!((expected.0.len(), expected.1), (4, GuidanceForm::TwoCalls));
        assert!(denoised(&pair, &plan) == expected, "{guidance:?}");
    }
}

/// ONNX Runtime on the CPU, under the name of any device.
#[derive(Debug)]
struct NamedDevices(OnnxRuntime);

impl Backend for NamedDevices {
    fn info(&self) -> BackendInfo {
        self.0.info()
    }

    fn target(&self, _device: Device) -> Result<Target, engines::Error> {
        self.0.target(Device::CPU)
    }

    fn open(
        &self,
        graph: GraphSource<'_>,
        options: &OpenOptions,
    ) -> Result<Box<dyn Executable>, engines::Error> {
        Backend::open(&self.0, graph, &OpenOptions { device: Device::CPU, ..*options })
    }

    fn memory_in_use(&self, _device: Device) -> Option<ByteCount> {
        None
    }

    fn available_memory(&self, _device: Device) -> Option<ByteCount> {
        None
    }

    fn return_freed_memory(&self, _device: Device) {}
}

#[test]
fn a_pair_gives_the_same_bits_on_onnx_runtime() {
    let model = |place: &str| {
        let backend = Arc::new(NamedDevices(OnnxRuntime::load(None).unwrap()));
        let sessions = Sessions::new(backend, MemoryBudgets::common(ENDLESS), Residency::Auto);
        let bundle = Bundle::open(&BUNDLE.1).unwrap();
        let model = Model::with_sessions(bundle, &sessions, ModelOptions::default()).unwrap();
        model.placed(&place.parse().unwrap()).unwrap()
    };
    let (one, pair) = (model("high=cpu"), model("high=cpu+cuda:1,low=cuda:1+cpu"));
    let plan = large(&one, [4.0, 3.0]);
    let expected = denoised(&one, &plan);
    assert_eq!((expected.0.len(), expected.1), (4, GuidanceForm::TwoCalls));
    assert!(denoised(&pair, &plan) == expected);
    assert_eq!(pair.sessions().opened(), one.sessions().opened() + 2);
}

#[test]
fn both_passes_of_a_step_run_at_the_same_time() {
    let fake = fake();
    let expected = clip(&mut crossed(&fake), "a boat", 7).unwrap();
    for expert in ["high_noise", "low_noise"] {
        for run in 0..2 {
            let (fake, gate) = (self::fake(), Gate::new());
            for device in devices() {
                // Run 0 prepares the session.
                let runs = Calls::runs().of_graph(graph(expert)).on_device(device).nth(run);
                fake.script(runs, Effect::Waits(gate.clone()));
            }
            let mut pipeline = crossed(&fake);
            let job = job(&pipeline, "a boat", 7);
            let found = std::thread::scope(|scope| {
                let pipeline = &mut pipeline;
                let clip = scope.spawn(move || finish(pipeline, job));
                // Neither ends before both have begun.
                gate.wait_for(2);
                gate.open();
                clip.join().unwrap()
            });
            assert_eq!(found.unwrap(), expected, "{expert}, run {run}");
        }
    }
}

#[test]
fn steps_without_guidance_use_the_first_device_only() {
    let fake = fake();
    let model = model(&fake, MemoryBudgets::common(ENDLESS), CROSSED);
    let (latents, form) = denoised(&model, &large(&model, [4.0, 1.0]));
    assert_eq!((latents.len(), form), (4, GuidanceForm::TwoCalls));
    let mut found = opened(&fake);
    // The two sessions of the high-noise expert are opened at the same time.
    found[1..3].sort_unstable();
    let expected = [
        "text_encoder on cpu",
        "experts/high_noise on cuda:0",
        "experts/high_noise on cuda:1",
        "experts/low_noise on cuda:1",
    ];
    assert_eq!(found, expected);
    assert_eq!(check_log(&fake.log()), Ok(()));
}

#[test]
fn the_record_of_a_clip_names_both_devices() {
    let fake = fake();
    let pipeline = crossed(&fake);
    let (job, _) = job(&pipeline, "a boat", 7);
    let conditions = job.conditions();
    // On one device the passes of so small a clip are one call.
    assert_eq!(conditions.guidance, GuidanceForm::TwoCalls);
    assert_eq!(
        conditions.devices,
        "text_encoder=cpu,high_noise=cuda:0+cuda:1,low_noise=cuda:1+cuda:0,decoder=cpu"
    );
}

#[test]
fn a_pair_with_a_device_without_a_backend_is_refused_before_anything_is_opened() {
    let fake = fake();
    let model = model(&fake, MemoryBudgets::common(ENDLESS), "");
    let error = model.placed(&"low=cuda:0+cuda:7".parse().unwrap()).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
    assert!(error.to_string().contains("cuda:7"), "{error}");
    assert_eq!(fake.calls(), 0);
}

/// Nothing is lent, open or charged once idle sessions are closed.
fn nothing_is_left(fake: &FakeBackend, pipeline: &Pipeline) {
    assert_eq!(check_log(&fake.log()), Ok(()));
    pipeline.model().sessions().close_idle();
    assert_eq!(fake.open_graphs(), []);
    for usage in pipeline.model().sessions().usage() {
        assert_eq!((usage.charged, usage.sessions.len()), (ByteCount(0), 0), "{usage:?}");
        assert_eq!(fake.memory(usage.device).unwrap().held, ByteCount(0));
    }
}

#[test]
fn every_failure_on_either_device_is_one_error_with_its_device() {
    use ErrorClass::{Damaged, DoesNotFit, Failed};
    let (expected, counts) = {
        let fake = fake();
        let expected = clip(&mut crossed(&fake), "a boat", 7).unwrap();
        let calls = |device: Device| {
            let log = fake.log().into_iter();
            let is_call = |event: &Event| match event {
                Event::Opened(graph) | Event::RunBegan(graph) => graph.device == device,
                _ => false,
            };
            log.filter(|entry| is_call(&entry.event)).count() as u64
        };
        (expected, devices().map(calls))
    };
    let mut failed = 0;
    for (device, calls) in devices().into_iter().zip(counts) {
        assert!(calls >= 9, "{calls} on {device}");
        let of_device = |calls: Calls| calls.on_device(device);
        for number in 0..calls {
            let any = of_device(Calls::any());
            let wrongs = [
                (any.clone().nth(number), Effect::Fails, [Failed, Damaged]),
                (any.clone().nth(number), Effect::OutOfMemory, [DoesNotFit; 2]),
                (any.from_nth(number), Effect::OutOfMemory, [DoesNotFit; 2]),
                (of_device(Calls::opens()).nth(number), Effect::WrongSignature, [Damaged; 2]),
                (of_device(Calls::runs()).nth(number), Effect::MissingOutput, [Failed; 2]),
                (of_device(Calls::runs()).nth(number), Effect::WrongExtent, [Failed; 2]),
                (of_device(Calls::runs()).nth(number), Effect::NotFinite, [Failed; 2]),
            ];
            for (calls, effect, classes) in wrongs {
                let what = format!("{effect:?} in call {number} on {device}");
                let fake = fake();
                fake.script(calls, effect);
                let mut pipeline = crossed(&fake);
                match clip(&mut pipeline, "a boat", 7) {
                    Err(error) => {
                        failed += 1;
                        let class = error.report().class;
                        assert!(classes.contains(&class), "{what}: {class:?}: {error}");
                        assert!(error.to_string().contains(&device.to_string()), "{what}: {error}");
                        let other = devices().into_iter().find(|other| *other != device).unwrap();
                        assert!(!error.to_string().contains(&other.to_string()), "{what}: {error}");
                    }
                    // The call does not exist, it was made again after idle sessions were closed, or nobody uses its values.
                    Ok(clip) => assert_eq!(clip, expected, "{what}"),
                }
                fake.clear_script();
                assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), expected, "after {what}");
                nothing_is_left(&fake, &pipeline);
            }
        }
    }
    let calls: u64 = counts.iter().sum();
    assert!(failed > 3 * calls, "{failed} of {calls} calls");
}

#[test]
fn a_failure_of_one_pass_ends_the_other_one() {
    let expected = clip(&mut crossed(&fake()), "a boat", 7).unwrap();
    let [first, second] = devices();
    for (fails, waits) in [(first, second), (second, first)] {
        let (fake, gate) = (fake(), Gate::new());
        let runs = |device| Calls::runs().of_graph(graph("high_noise")).on_device(device).nth(1);
        let (is_waiting, may_fail) = (gate.clone(), Gate::new());
        fake.script(runs(waits), Effect::Waits(gate));
        fake.script(runs(fails), Effect::Waits(may_fail.clone()));
        fake.script(runs(fails), Effect::Fails);
        let mut pipeline = crossed(&fake);
        let job = job(&pipeline, "a boat", 7);
        let error = std::thread::scope(|scope| {
            let pipeline = &mut pipeline;
            let clip = scope.spawn(move || finish(pipeline, job));
            is_waiting.wait_for(1);
            may_fail.open();
            // The gate of the other pass stays closed.
            clip.join().unwrap().unwrap_err()
        });
        assert_eq!(error.report().class, ErrorClass::Failed, "{error}");
        assert!(error.to_string().contains(&fails.to_string()), "{error}");
        fake.clear_script();
        assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), expected);
        nothing_is_left(&fake, &pipeline);
    }
}

#[test]
fn a_request_ends_both_passes_of_every_step() {
    let expected = clip(&mut crossed(&fake()), "a boat", 7).unwrap();
    let mut cancelled = 0;
    for expert in ["high_noise", "low_noise"] {
        for run in 0.. {
            let (fake, gate, cancel) = (fake(), Gate::new(), Cancel::new());
            for device in devices() {
                let runs = Calls::runs().of_graph(graph(expert)).on_device(device).nth(run);
                fake.script(runs, Effect::Waits(gate.clone()));
            }
            let mut pipeline = crossed(&fake);
            let (job, events) = job(&pipeline, "a boat", 7);
            let steps = job.record().spec.steps;
            assert!(run <= steps as u64, "{run}");
            let job = job.with_cancel(&cancel);
            let result = std::thread::scope(|scope| {
                let (sender, ended) = mpsc::channel();
                let pipeline = &mut pipeline;
                scope.spawn(move || sender.send(finish(pipeline, (job, events))));
                loop {
                    if gate.waiting() == 2 {
                        cancel.cancel();
                    }
                    if let Ok(result) = ended.recv_timeout(Duration::from_millis(1)) {
                        break result;
                    }
                }
            });
            if !cancel.is_cancelled() {
                // The expert makes fewer runs.
                assert_eq!(result.unwrap(), expected);
                break;
            }
            cancelled += 1;
            let error = result.unwrap_err();
            assert_eq!(error.report().class, ErrorClass::Interrupted, "{expert}, run {run}: {error}");
            assert_eq!(cancel.runs_in_flight(), 0);
            assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), expected, "{expert}, run {run}");
            nothing_is_left(&fake, &pipeline);
        }
    }
    // Five steps, and a run that prepares each expert.
    assert_eq!(cancelled, 7);
}

/// Runs jobs at the same time, in several threads.
fn at_the_same_time(model: &Model, jobs: Vec<(String, u64)>) -> Vec<Result<super::fake_jobs::Clip, Error>> {
    let (sender, receiver) = mpsc::channel();
    let count = jobs.len();
    for (index, (prompt, seed)) in jobs.into_iter().enumerate() {
        let (model, sender) = (model.clone(), sender.clone());
        std::thread::spawn(move || {
            let done = clip(&mut Pipeline::new(&model), &prompt, seed);
            sender.send((index, done)).unwrap();
        });
    }
    let next = || receiver.recv_timeout(PATIENCE).expect("the jobs block each other");
    let mut done: Vec<_> = (0..count).map(|_| next()).collect();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, clip)| clip).collect()
}

/// One expert fits each device, and the jobs need the devices in opposite orders.
#[test]
fn jobs_with_pairs_at_the_same_time_do_not_block_each_other() {
    let jobs: Vec<(String, u64)> = ["a boat", "a red fox", "snow", "a tram"]
        .iter()
        .zip(7..)
        .map(|(prompt, seed)| ((*prompt).into(), seed))
        .collect();
    let (expected, charged) = {
        let fake = fake();
        let mut pipeline = crossed(&fake);
        let clips: Vec<_> =
            jobs.iter().map(|(prompt, seed)| clip(&mut pipeline, prompt, *seed).unwrap()).collect();
        let usage = pipeline.model().sessions().usage();
        let on = |device| usage.iter().find(|usage| usage.device == device).unwrap().clone();
        let usage = devices().map(on);
        // Both passes are calls with a batch of one, so both devices need the same.
        assert_eq!(usage[0].charged, usage[1].charged);
        assert_eq!([usage[0].sessions.len(), usage[1].sessions.len()], [2, 2]);
        (clips, usage[0].charged.0)
    };
    for budget in [charged / 4 * 3, ENDLESS.0] {
        let fake = fake();
        let mut budgets = MemoryBudgets::common(ENDLESS);
        devices().into_iter().for_each(|device| budgets.set(Some(device), ByteCount(budget)).unwrap());
        let model = model(&fake, budgets, CROSSED);
        for _ in 0..3 {
            let found = at_the_same_time(&model, jobs.clone());
            let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, expected, "{budget}");
        }
        assert_eq!(check_log(&fake.log()), Ok(()));
        for usage in model.sessions().usage() {
            assert!(usage.peak <= usage.budget, "{usage:?}");
        }
        nothing_is_left(&fake, &Pipeline::new(&model));
    }
}

/// The second device is too small for the expert: the clip ends with its name, and nothing stays lent.
#[test]
fn an_expert_that_does_not_fit_the_second_device_is_refused_by_name() {
    let fake = fake();
    let mut budgets = MemoryBudgets::common(ENDLESS);
    budgets.set(Some(devices()[1]), ByteCount(1000)).unwrap();
    let model = model(&fake, budgets, "high=cuda:0+cuda:1");
    let mut pipeline = Pipeline::new(&model);
    let error = clip(&mut pipeline, "a boat", 7).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::DoesNotFit);
    assert!(error.to_string().contains("on cuda:1"), "{error}");
    nothing_is_left(&fake, &pipeline);
}
