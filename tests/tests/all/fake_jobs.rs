//! Jobs on the fake backend: placement, failures at every call, wrong outputs. ONNX Runtime is not used.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::geometry::PixelSize;
use bundle::manifest::{Bundle, Component};
use bundle::units::{ByteCount, GuidanceScale, Seed};
use bundle::variant::KernelLibrary;
use bundle::{Diagnose, ErrorClass};
use engines::fake::{Calls, Effect, Event, FakeBackend, Gate, check_log};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, Device, MemoryBudgets, PlacementRequest};
use export::ExportRequest;
use ndarray::Array4;
use runtime::Error;
use runtime::job::{Job, JobEvent, JobStart, JobState, LatentDigest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

pub(super) const ENDLESS: ByteCount = ByteCount(1 << 40);
const DEVICES: [&str; 3] = ["cpu", "cuda:0", "cuda:1"];

/// A bundle with two experts.
pub(super) static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/two-experts/checkpoint");
    export::export(&ExportRequest::new(&checkpoint, &out), &mut |_| ()).unwrap();
    (folder, out)
});

/// The fake with three devices and the graphs of the bundle. Weights take what their files have.
pub(super) fn fake() -> FakeBackend {
    let fake = FakeBackend::new();
    for device in DEVICES {
        fake.add_device(device.parse().unwrap(), ENDLESS);
    }
    let bundle = Bundle::read(&BUNDLE.1).unwrap();
    fake.add_bundle(&bundle, |component, _, graph| {
        let weights = bundle.manifest.component(component).unwrap().weight_bytes();
        graph.with_memory(weights, ByteCount(1000))
    });
    fake
}

pub(super) fn model(fake: &FakeBackend, budgets: MemoryBudgets, placement: &str) -> Model {
    let sessions = Sessions::new(Arc::new(fake.clone()), budgets, Residency::Auto);
    let options = ModelOptions { kernels: Some(KernelLibrary::OnnxRuntime), ..ModelOptions::default() };
    let model = Model::with_sessions(Bundle::open(&BUNDLE.1).unwrap(), &sessions, options).unwrap();
    let request = match placement {
        "" => PlacementRequest::default(),
        placement => placement.parse().unwrap(),
    };
    model.placed(&request).unwrap()
}

fn pipeline(fake: &FakeBackend) -> Pipeline {
    Pipeline::new(&model(fake, MemoryBudgets::common(ENDLESS), ""))
}

/// The bits of a clip.
#[derive(Debug, PartialEq)]
pub(super) struct Clip {
    latents: Vec<LatentDigest>,
    frames: Vec<Array4<f32>>,
}

pub(super) fn job(
    pipeline: &Pipeline,
    prompt: &str,
    seed: u64,
) -> (Job, std::sync::mpsc::Receiver<JobEvent>) {
    let request = GenerateRequest {
        size: Some(PixelSize { width: 32, height: 32 }),
        length: Some(Length::Frames(5)),
        steps: Some(5),
        guidance: Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]),
        ..GenerateRequest::new(prompt, Seed(seed))
    };
    let plan = GenerationPlan::new(pipeline.model().manifest(), &request).unwrap();
    assert!(plan.expert_steps.iter().all(|(_, steps)| *steps > 0), "the boundary is not crossed");
    let noise = seeded_noise(&plan);
    Job::new(pipeline, JobStart::new(pipeline, plan, noise).unwrap())
}

/// Runs a job to its end. A failed one must say so once, in its last event.
pub(super) fn finish(
    pipeline: &mut Pipeline,
    (mut job, events): (Job, std::sync::mpsc::Receiver<JobEvent>),
) -> Result<Clip, Error> {
    let done = loop {
        match job.advance(pipeline) {
            Ok(JobState::Working) => {}
            Ok(state) => {
                assert_eq!(state, JobState::Ended);
                break Ok(());
            }
            Err(error) => break Err(error),
        }
    };
    assert_eq!(job.advance(pipeline).unwrap(), JobState::Ended);
    let mut frames = Vec::new();
    let mut failures = Vec::new();
    for event in events.try_iter() {
        assert!(failures.is_empty(), "{event:?} after the failure");
        match event {
            JobEvent::Frames(chunk) => frames.push(chunk),
            JobEvent::Failed(report) => failures.push(report),
            _ => {}
        }
    }
    assert_eq!(failures.len(), usize::from(done.is_err()));
    done.map(|()| Clip { latents: job.record().latents, frames })
}

pub(super) fn clip(pipeline: &mut Pipeline, prompt: &str, seed: u64) -> Result<Clip, Error> {
    let job = job(pipeline, prompt, seed);
    finish(pipeline, job)
}

/// The clip as made in sessions of its own.
fn alone(prompt: &str, seed: u64) -> Clip {
    clip(&mut pipeline(&fake()), prompt, seed).unwrap()
}

/// The graphs that were opened, as `FOLDER on DEVICE`.
pub(super) fn opened(fake: &FakeBackend) -> Vec<String> {
    let names = fake.log().into_iter().filter_map(|entry| match entry.event {
        Event::Opened(graph) => {
            let (folder, _) = graph.graph.rsplit_once('/').unwrap();
            Some(format!("{folder} on {}", graph.device))
        }
        _ => None,
    });
    names.collect()
}

#[test]
fn a_clip_has_five_frames_and_depends_on_prompt_and_seed() {
    let first = alone("a boat", 7);
    let shapes: Vec<&[usize]> = first.frames.iter().map(|chunk| chunk.shape()).collect();
    assert_eq!(shapes, [[1, 3, 32, 32], [4, 3, 32, 32]]);
    assert_eq!(first.latents.len(), 5);
    assert_eq!(alone("a boat", 7), first);
    // Of the same number of tokens.
    assert_ne!(alone("a boot", 7).frames, first.frames);
    assert_ne!(alone("a boat", 8).frames, first.frames);
}

#[test]
fn experts_run_on_the_devices_that_they_are_placed_on() {
    let fake = fake();
    let placement = "high=cuda:0,low=cuda:1,decoder=cuda:0";
    let model = model(&fake, MemoryBudgets::common(ENDLESS), placement);
    let mut pipeline = Pipeline::new(&model);
    let first = clip(&mut pipeline, "a boat", 7).unwrap();
    assert_eq!(first, alone("a boat", 7));
    let expected = [
        "text_encoder on cpu",
        "experts/high_noise on cuda:0",
        "experts/low_noise on cuda:1",
        "decoder on cuda:0",
        "decoder on cuda:0",
    ];
    assert_eq!(opened(&fake), expected);

    // The second clip opens nothing, and text states that are known are not computed again.
    let calls = fake.calls();
    let second = clip(&mut pipeline, "a red fox", 8).unwrap();
    let with_text = fake.calls() - calls;
    assert_eq!(second, alone("a red fox", 8));
    let calls = fake.calls();
    assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), first);
    assert_eq!(with_text - (fake.calls() - calls), 1);
    assert_eq!(opened(&fake).len(), 5);
    assert_eq!(model.sessions().opened(), 5);
    assert_eq!(check_log(&fake.log()), Ok(()));

    let usage = model.sessions().usage();
    let sessions: Vec<(String, usize)> =
        usage.iter().map(|device| (device.device.to_string(), device.sessions.len())).collect();
    assert_eq!(sessions, [("cpu".into(), 1), ("cuda:0".into(), 3), ("cuda:1".into(), 1)]);
    model.sessions().close_idle();
    assert_eq!(fake.open_graphs(), []);
}

#[test]
fn a_device_without_a_backend_is_refused_before_anything_is_opened() {
    let fake = fake();
    let model = model(&fake, MemoryBudgets::common(ENDLESS), "");
    let error = model.placed(&"low=cuda:7".parse().unwrap()).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
    assert!(error.to_string().contains("cuda:7"), "{error}");
    assert_eq!(fake.calls(), 0);
}

/// Both experts do not fit one device together; each fits alone.
#[test]
fn experts_that_do_not_fit_together_change_no_bits() {
    let charged = {
        let model = model(&fake(), MemoryBudgets::common(ENDLESS), "high=cuda:0,low=cuda:1");
        clip(&mut Pipeline::new(&model), "a boat", 7).unwrap();
        let usage = model.sessions().usage();
        usage
            .iter()
            .filter(|device| device.device != Device::CPU)
            .map(|device| device.charged.0)
            .max()
            .unwrap()
    };
    let fake = fake();
    let mut budgets = MemoryBudgets::common(ENDLESS);
    let gpu: Device = "cuda:0".parse().unwrap();
    budgets.set(Some(gpu), ByteCount(charged + charged / 2)).unwrap();
    let model = model(&fake, budgets, "high=cuda:0,low=cuda:0");
    let mut pipeline = Pipeline::new(&model);
    for (prompt, seed) in [("a boat", 7), ("a red fox", 8)] {
        assert_eq!(clip(&mut pipeline, prompt, seed).unwrap(), alone(prompt, seed));
    }
    let on_gpu = opened(&fake).into_iter().filter(|name| name.ends_with("cuda:0")).collect::<Vec<_>>();
    let [high, low] = ["experts/high_noise on cuda:0", "experts/low_noise on cuda:0"];
    assert_eq!(on_gpu, [high, low, high, low]);
    assert_eq!(check_log(&fake.log()), Ok(()));
}

/// A name, what goes wrong, and the classes that the error may have.
type Wrong = (&'static str, Vec<(Calls, Effect)>, Vec<ErrorClass>);

/// What goes wrong in call `number` of a clip.
fn wrongs(number: u64) -> Vec<Wrong> {
    use ErrorClass::{Damaged, DoesNotFit, Failed};
    let at = |effect: Effect| vec![(Calls::any().nth(number), effect)];
    vec![
        ("fails", at(Effect::Fails), vec![Failed, Damaged]),
        ("out of memory", at(Effect::OutOfMemory), vec![DoesNotFit]),
        ("out of memory twice", vec![(Calls::any().from_nth(number), Effect::OutOfMemory)], vec![DoesNotFit]),
        ("wrong signature", vec![(Calls::opens().nth(number), Effect::WrongSignature)], vec![Damaged]),
        ("missing", vec![(Calls::runs().nth(number), Effect::MissingOutput)], vec![Failed]),
        ("rank", vec![(Calls::runs().nth(number), Effect::WrongRank)], vec![Failed]),
        ("extent", vec![(Calls::runs().nth(number), Effect::WrongExtent)], vec![Failed]),
        ("format", vec![(Calls::runs().nth(number), Effect::WrongFormat)], vec![Failed]),
    ]
}

#[test]
fn every_failure_at_every_call_ends_in_one_error_and_the_next_clip_is_whole() {
    let expected = [alone("a boat", 7), alone("a red fox", 8)];
    let calls = {
        let fake = fake();
        clip(&mut pipeline(&fake), "a boat", 7).unwrap();
        fake.calls()
    };
    assert!(calls > 12, "{calls}");
    let mut failed = 0;
    for number in 0..calls {
        for (name, effects, classes) in wrongs(number) {
            let fake = fake();
            for (calls, effect) in effects {
                fake.script(calls, effect);
            }
            let mut pipeline = pipeline(&fake);
            match clip(&mut pipeline, "a boat", 7) {
                Err(error) => {
                    failed += 1;
                    let class = error.report().class;
                    assert!(classes.contains(&class), "{name} in call {number}: {class:?}: {error}");
                }
                // The call does not exist, or it was made again after idle sessions were closed.
                Ok(clip) => assert_eq!(clip, expected[0], "{name} in call {number}"),
            }
            fake.clear_script();
            for ((prompt, seed), expected) in [("a boat", 7), ("a red fox", 8)].into_iter().zip(&expected) {
                let found = clip(&mut pipeline, prompt, seed).unwrap();
                assert_eq!(found, *expected, "after {name} in call {number}");
            }
            assert_eq!(check_log(&fake.log()), Ok(()));
            pipeline.model().sessions().close_idle();
            assert_eq!(fake.open_graphs(), []);
            assert_eq!(fake.memory(Device::CPU).unwrap().held, ByteCount(0));
            assert!(pipeline.model().sessions().usage().iter().all(|device| device.charged.0 == 0));
        }
    }
    // Each call can fail; those with idle sessions survive one shortage of memory.
    assert!(failed > 2 * calls, "{failed} of {calls} calls");
}

#[test]
fn values_that_are_not_finite_end_the_clip_with_the_step() {
    let fake = fake();
    let bundle = Bundle::read(&BUNDLE.1).unwrap();
    let low = bundle.manifest.routing.routes().last().unwrap().expert.clone();
    let entry = bundle.manifest.component(&Component::Expert(low)).unwrap();
    let mut pipeline = pipeline(&fake);
    for graph in &entry.graphs {
        // The first run of an expert prepares it.
        fake.script(Calls::runs().of_graph(&*graph.file).nth(1), Effect::NotFinite);
    }
    let error = clip(&mut pipeline, "a boat", 7).unwrap_err();
    assert!(matches!(error, Error::NotFinite { steps: 5, .. }), "{error}");
    assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), alone("a boat", 7));
}

#[test]
fn a_job_is_cancelled_inside_every_run() {
    let expected = alone("a boat", 7);
    let runs = {
        let fake = fake();
        clip(&mut pipeline(&fake), "a boat", 7).unwrap();
        fake.log().iter().filter(|entry| matches!(entry.event, Event::RunBegan(_))).count()
    };
    for run in 0..runs {
        let (fake, gate, cancel) = (fake(), Gate::new(), Cancel::new());
        fake.script(Calls::runs().nth(run as u64), Effect::Waits(gate.clone()));
        let mut pipeline = pipeline(&fake);
        let (job, events) = job(&pipeline, "a boat", 7);
        let job = job.with_cancel(&cancel);
        let result = std::thread::scope(|scope| {
            let pipeline = &mut pipeline;
            let clip = scope.spawn(move || finish(pipeline, (job, events)));
            gate.wait_for(1);
            cancel.cancel();
            clip.join().unwrap()
        });
        let error = result.unwrap_err();
        assert_eq!(error.report().class, ErrorClass::Interrupted, "run {run}: {error}");
        assert_eq!(clip(&mut pipeline, "a boat", 7).unwrap(), expected, "run {run}");
    }
}

/// Real memory is up to a fifth more than predicted, and the device has as much as the budget.
#[test]
fn memory_that_is_larger_than_predicted_ends_in_a_clip_or_in_one_error() {
    let expected = alone("a boat", 7);
    let charged = {
        let model = model(&fake(), MemoryBudgets::common(ENDLESS), "");
        clip(&mut Pipeline::new(&model), "a boat", 7).unwrap();
        model.sessions().usage()[0].charged.0
    };
    let bundle = Bundle::read(&BUNDLE.1).unwrap();
    let (mut made, mut refused) = (0, 0);
    for seed in 0..20 {
        let fake = FakeBackend::with_deviation(0.2, seed);
        let capacity = ByteCount(charged / 20 * (4 + seed));
        fake.add_device(Device::CPU, capacity);
        let settings = model(&self::fake(), MemoryBudgets::common(ENDLESS), "");
        clip(&mut Pipeline::new(&settings), "a boat", 7).unwrap();
        // Each graph takes about what the runtime predicts for it.
        let predicted: Vec<_> = settings.sessions().usage()[0].sessions.clone();
        fake.add_bundle(&bundle, |component, entry, graph| {
            let session =
                predicted.iter().find(|one| one.key.component == *component && one.key.part == entry.part);
            let need = session.map(|session| session.predicted).unwrap_or_default();
            graph.with_memory(need.weights, need.activations)
        });
        let model = model(&fake, MemoryBudgets::common(capacity), "");
        let mut pipeline = Pipeline::new(&model);
        match clip(&mut pipeline, "a boat", 7) {
            Ok(clip) => {
                made += 1;
                assert_eq!(clip, expected, "{seed}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.report().class, ErrorClass::DoesNotFit, "{seed}: {error}");
            }
        }
        let usage = &model.sessions().usage()[0];
        assert!(usage.peak <= capacity, "{usage:?}");
        assert!(fake.memory(Device::CPU).unwrap().peak <= capacity);
        fake.add_device(Device::CPU, ENDLESS);
        model.sessions().close_idle();
        assert_eq!(fake.memory(Device::CPU).unwrap().held, ByteCount(0));
    }
    assert!(made > 0 && refused > 0, "{made} {refused}");
}

#[test]
fn the_program_is_built_without_the_fake() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let arguments = ["tree", "--offline", "--locked", "--package", "rushes", "--prefix", "none"];
    let output = std::process::Command::new(env!("CARGO"))
        .current_dir(root)
        .args(arguments)
        .args(["--edges", "normal,build,features"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("rushes-engines feature \"default\""), "{tree}");
    assert!(!tree.contains("rushes-engines feature \"fake\""), "{tree}");
}
