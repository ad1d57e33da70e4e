//! OpenVINO, which computes on processors of Intel.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use crate::bundles::{ENDLESS, Exported, model_in};
use crate::support::with_provider;
use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use bundle::units::ByteCount;
use bundle::variant::{Precision, Target};
use bundle::{Diagnose, ErrorClass};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{
    Backend, Cancel, Device, DeviceChoice, GraphSource, MemoryBudgets, OnnxRuntime, OpenOptions, Provider,
    Value, WeightMemory,
};
use graph::proto::OperatorSetIdProto;
use ndarray::{Array, Array2, Array4, aview1};
use quality::quantize::metrics::psnr;
use runtime::job::{Job, JobEvent, JobStart};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::{Pipeline, seeded_noise};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tests::compare::{largest_difference, relative_difference};
use tests::golden::{Case, Computed, case, cases, compute};
use tests::program::{event, rushes};
use tests::sparse::{self, Layout};
use tests::two_blocks;

/// ONNX Runtime's name of the provider.
const OPENVINO: &str = "OpenVINOExecutionProvider";
/// The prompt of the clips of mini.
const PROMPT: &str = "A red ball bounces on the beach";
/// The bound of every difference from the results of diffusers, in f32.
const BOUND: f64 = 5e-3;

fn openvino(test: &str) -> Option<(OnnxRuntime, Device)> {
    with_provider(test, Provider::OpenVino)
}

fn add_graph() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engines/tests/data/add.onnx")
}

fn options(device: Device) -> OpenOptions {
    OpenOptions { device, ..OpenOptions::cpu(None, WeightMemory::Mapped) }
}

#[test]
fn smoke_a_graph_runs_on_openvino_alone() {
    let Some((runtime, device)) = openvino("a graph on OpenVINO") else { return };
    let mut open = Backend::open(&runtime, GraphSource::File(&add_graph()), &options(device)).unwrap();
    let nodes = open.nodes().unwrap();
    assert_eq!(nodes.nodes.keys().collect::<Vec<_>>(), [OPENVINO]);
    let (a, b) =
        (Value::from_f32(Array::from_elem((2, 3), 1.0)), Value::from_f32(Array::from_elem((1, 3), 2.0)));
    let sum = open.run(&[("a", &a), ("b", &b)], &Cancel::new()).unwrap().take("sum").unwrap();
    assert!(sum.to_f32().unwrap().iter().all(|value| *value == 3.0));
}

#[test]
fn a_node_of_the_domain_rushes_is_refused_by_name() {
    let Some((runtime, device)) = openvino("a node of Rushes on OpenVINO") else { return };
    let path = add_graph();
    let mut model = graph::Model::read(&path).unwrap();
    let node = &mut model.proto.graph.as_mut().unwrap().node[0];
    node.domain = "rushes".into();
    node.op_type = "LinearInt8".into();
    model.proto.opset_import.push(OperatorSetIdProto { domain: "rushes".into(), version: 1 });
    let bytes = model.to_bytes();
    let source = GraphSource::Memory { name: "one-node.onnx", bytes: &bytes };
    let error = Backend::open(&runtime, source, &options(device)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("one-node.onnx") && text.contains("rushes") && text.contains("LinearInt8"),
        "{text}"
    );
}

/// The largest difference of each kind from the results of diffusers.
#[derive(Debug)]
struct Differences {
    text: f64,
    latents: f64,
    frames: f64,
}

impl Differences {
    fn of(computed: &Computed, case: &Case) -> Self {
        let reference = case.reference();
        let text = |found: &Array2<f32>, name: &str| {
            largest_difference(found.view().into_dyn(), reference.expect(name).view())
        };
        let negative = computed.negative.as_ref().map_or(0.0, |found| text(found, "negative_prompt_embeds"));
        let latents = computed.latents.iter().enumerate().map(|(step, latent)| {
            relative_difference(latent.view(), reference.latent(&format!("latents.{step:03}")).view())
        });
        Self {
            text: text(&computed.prompt, "prompt_embeds").max(negative),
            latents: latents.fold(0.0, f64::max),
            frames: largest_difference(computed.frames.view(), reference.latent("frames").view()),
        }
    }

    fn hold(&self) -> bool {
        [self.text, self.latents, self.frames].iter().all(|difference| *difference <= BOUND)
    }
}

fn equals_diffusers(runtime: &OnnxRuntime, device: Device, case: &Case) {
    let model = Exported::new(case, WeightType::F32);
    let model = model.model(runtime.clone(), device, "");
    let computed = compute(&model, case, case.reference().latent("noise")).unwrap();
    assert_eq!(computed.latents.len(), case.steps);
    let differences = Differences::of(&computed, case);
    assert!(differences.hold(), "{}: {differences:?}", case.name);
    runs_on_openvino_alone(&model, device);
}

/// Every graph of a clip ran on OpenVINO, with all its nodes.
fn runs_on_openvino_alone(model: &Model, device: Device) {
    let placed = model.placed_graphs();
    let components: BTreeSet<String> = placed.iter().map(|graph| graph.component.to_string()).collect();
    let expected = model.manifest().components.iter().map(|entry| &entry.component);
    let expected = expected.filter(|component| **component != Component::Preview);
    assert_eq!(components, expected.map(ToString::to_string).collect());
    for graph in placed {
        assert_eq!(graph.device, device);
        assert!(!graph.nodes.has_cpu_nodes(), "{graph:?}");
        assert_eq!(graph.nodes.nodes.keys().collect::<Vec<_>>(), [OPENVINO], "{graph:?}");
        assert!(graph.nodes.nodes[OPENVINO] > 0, "{graph:?}");
    }
}

#[test]
fn smoke_a_golden_case_equals_diffusers() {
    let Some((runtime, device)) = openvino("a golden case on OpenVINO") else { return };
    equals_diffusers(&runtime, device, &case("two-experts"));
}

#[test]
fn two_blocks_of_a14b_equal_those_on_the_cpu() {
    let Some((runtime, device)) = openvino("two blocks of A14B on OpenVINO") else { return };
    let folder = tempfile::tempdir().unwrap();
    if !sparse::has_holes(folder.path()) {
        eprintln!("skipped: temporary files cannot have holes");
        return;
    }
    let bundle = two_blocks::exported(folder.path(), Layout::Official);
    let found = two_blocks::velocities(&bundle, Target::Plain, &runtime, &options(device));
    let cpu = OpenOptions::cpu(None, WeightMemory::Mapped);
    let expected = two_blocks::velocities(&bundle, Target::Cpu, &runtime, &cpu);
    for (found, expected) in found.iter().zip(&expected) {
        let difference = relative_difference(aview1(found).into_dyn(), aview1(expected).into_dyn());
        assert!(difference <= BOUND, "{difference}");
    }
}

#[test]
fn every_golden_case_equals_diffusers() {
    let Some((runtime, device)) = openvino("the golden cases on OpenVINO") else { return };
    for case in cases() {
        equals_diffusers(&runtime, device, &case);
    }
}

/// The frames `[F,H,W,3]` of a clip of mini with its own settings.
fn clip_of_mini(model: &Model) -> Array4<f32> {
    clip_with_seed(model, 1)
}

fn clip_with_seed(model: &Model, seed: u64) -> Array4<f32> {
    let request = GenerateRequest::new(PROMPT, bundle::units::Seed(seed));
    let plan = GenerationPlan::new(model.manifest(), &request).unwrap();
    let noise = seeded_noise(&plan);
    let mut pipeline = Pipeline::new(model);
    let (mut job, _) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise).unwrap());
    let mut chunks = Vec::new();
    job.run(&mut pipeline, &mut |event| {
        if let JobEvent::Frames(frames) = event {
            chunks.push(runtime::decode::pictures(frames.view()));
        }
        Ok(())
    })
    .unwrap();
    let nodes = job.report(None).nodes;
    assert_eq!(nodes.is_empty(), *model.placement() == engines::Placement::on(Device::CPU), "{nodes:?}");
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    ndarray::concatenate(ndarray::Axis(0), &views).unwrap()
}

#[test]
fn a_clip_of_mini_is_the_clip_of_the_cpu() {
    let Some((runtime, device)) = openvino("a clip of mini on OpenVINO") else { return };
    let mini = case("mini");
    let f32 = Exported::new(&mini, WeightType::F32);
    let expected = clip_of_mini(&f32.model(runtime.clone(), Device::CPU, ""));
    for (exported, decibels) in [(f32, 40.0), (Exported::new(&mini, WeightType::Bf16), 35.0)] {
        let model = exported.model(runtime.clone(), device, "");
        let clip = clip_of_mini(&model);
        assert_eq!(clip.shape(), expected.shape());
        let found = psnr(clip.view(), expected.view());
        println!("mini on OpenVINO in {}: {found:.1} dB to the CPU's f32", model.variant().precision);
        assert!(found >= decibels, "{}: {found:.1} dB", model.variant().precision);
        runs_on_openvino_alone(&model, device);
    }
}

/// The loss that the report predicts from the CPU is that of OpenVINO, which computes the products in 8 bits.
#[test]
fn quantised_clips_of_mini_are_within_the_loss_of_their_report() {
    let Some((runtime, device)) = openvino("quantised clips of mini on OpenVINO") else { return };
    for weights in [WeightType::F32, WeightType::Bf16] {
        let exported = Exported::new(&case("mini"), weights);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("prompts"), format!("{PROMPT}\n")).unwrap();
        let run = |command: &str, arguments: &[&str]| {
            let output =
                rushes(folder.path()).arg(command).arg(exported.path()).args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        run("calibrate", &["--prompts", "prompts", "--progress", "none"]);
        let quantise = ["--target", "plain", "--clips", "1", "--sensitivity", "estimated"];
        run("quantize", &quantise);
        if weights == WeightType::Bf16 {
            openvino_decodes_no_convolutions_in_bf16(&exported.path());
            run("quantize", &[&quantise[..], &["--components", "text_encoder,experts"]].concat());
        }
        let quality = quality::quantize::report::read(&exported.path()).remove("int8-plain").unwrap();
        let model = |device, precision| {
            let options =
                ModelOptions { precision, device: DeviceChoice::On(device), ..ModelOptions::default() };
            let sessions =
                Sessions::new(Arc::new(runtime.clone()), MemoryBudgets::common(ENDLESS), Residency::Auto);
            Model::with_sessions(Bundle::open(&exported.path()).unwrap(), &sessions, options).unwrap()
        };
        let expected = clip_with_seed(&model(Device::CPU, None), quality.clips[0].seed);
        let quantised = model(device, Some(Precision::Int8));
        let found = psnr(clip_with_seed(&quantised, quality.clips[0].seed).view(), expected.view());
        println!("mini in INT8 on OpenVINO: {found:.1} dB, {:.1} dB in the report, {weights}", quality.psnr);
        assert!(found >= quality.psnr - 3.0, "{found} dB, {} dB in the report", quality.psnr);
        runs_on_openvino_alone(&quantised, device);
    }
}

/// OpenVINO would return other frames: it is refused before anything is computed.
fn openvino_decodes_no_convolutions_in_bf16(bundle: &Path) {
    let mut command = rushes(bundle);
    command.args([
        "generate",
        PROMPT,
        "--ep",
        "openvino",
        "--precision",
        "int8",
        "-o",
        "clip.y4m",
        "--bundle",
    ]);
    let output = command.arg(bundle).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("OpenVINO computes convolutions of INT8 graphs in bf16 wrongly"), "{text}");
    assert!(text.contains("quantise only text encoder and experts"), "{text}");
    assert!(!bundle.join("clip.y4m").exists());
}

#[test]
fn the_result_of_generate_has_the_nodes_of_each_graph() {
    let Some((_, device)) = openvino("generate on OpenVINO") else { return };
    let exported = Exported::new(&case("two-experts"), WeightType::F32);
    let folder = tempfile::tempdir().unwrap();
    let run = |place: &[&str]| {
        let settings = ["--size", "32x32", "--frames", "5", "--steps", "5", "--seed", "7", "--threads", "1"];
        let output = rushes(folder.path())
            .args(["generate", "a boat", "--json", "-o", "clip.mp4", "--ep", "openvino", "--bundle"])
            .arg(exported.path())
            .args(settings)
            .args(place)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        event(&output, "done")
    };
    let done = run(&[]);
    let nodes = done["nodes"].as_array().unwrap();
    let parts: Vec<&str> = nodes.iter().map(|graph| graph["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["whole", "whole", "whole", "first", "next"]);
    for graph in nodes {
        assert_eq!(graph["device"], device.to_string());
        let of_providers = graph["nodes"].as_object().unwrap();
        assert_eq!(of_providers.keys().collect::<Vec<_>>(), [OPENVINO]);
        assert!(of_providers[OPENVINO].as_u64().unwrap() > 10, "{graph}");
    }
    // The plug-in's memory is that of the machine.
    let devices = done["memory"].as_array().unwrap().iter().map(|memory| memory["device"].as_str().unwrap());
    assert_eq!(devices.collect::<Vec<_>>(), ["cpu"]);
    let accelerators = done["conditions"]["accelerators"].as_array().unwrap();
    assert_eq!(accelerators.len(), 1, "{done}");
    assert_eq!(accelerators[0]["device"], device.to_string());

    let done = run(&["--place", "text_encoder=cpu,decoder=cpu"]);
    let components = done["nodes"].as_array().unwrap().iter().map(|graph| graph["part"].as_str().unwrap());
    assert_eq!(components.collect::<Vec<_>>(), ["whole", "whole"], "only the experts");
}

#[test]
fn sessions_on_openvino_are_charged_to_the_memory_of_the_cpu() {
    let Some((runtime, device)) = openvino("memory on OpenVINO") else { return };
    let case = case("two-experts");
    let exported = Exported::new(&case, WeightType::F32);
    let compute_in = |budgets: &str| {
        let sessions = Sessions::new(Arc::new(runtime.clone()), budgets.parse().unwrap(), Residency::Auto);
        let model = model_in(&sessions, &exported.path(), device, "text_encoder=cpu");
        let computed = compute(&model, &case, case.reference().latent("noise"));
        (computed, sessions.usage())
    };
    let (computed, usage) = compute_in("openvino=1GB");
    computed.unwrap();
    let [cpu] = &usage[..] else { panic!("{usage:?}") };
    assert_eq!((cpu.device, cpu.budget), (Device::CPU, ByteCount(1_000_000_000)));
    let devices: BTreeSet<Device> = cpu.sessions.iter().map(|session| session.key.options.device).collect();
    assert_eq!(devices, BTreeSet::from([Device::CPU, device]));
    let charged: u64 = cpu.sessions.iter().map(|session| session.predicted.held().0).sum();
    assert!(cpu.charged.0 >= charged && charged > 0, "{usage:?}");

    // With room for the largest session alone, sessions of both devices are closed for each other.
    let largest = cpu.sessions.iter().map(|session| session.predicted.total().0).max().unwrap();
    let (computed, usage) = compute_in(&format!("cpu={}", largest + largest / 2));
    computed.unwrap();
    assert!(usage[0].peak.0 <= largest + largest / 2, "{usage:?}");
    assert!(usage[0].sessions.len() < cpu.sessions.len(), "{usage:?}");
    let (computed, _) = compute_in("1kB");
    assert_eq!(computed.unwrap_err().report().class, ErrorClass::DoesNotFit);
}

#[test]
fn the_queue_makes_jobs_on_openvino() {
    let Some(_) = openvino("the queue on OpenVINO") else { return };
    let exported = Exported::new(&case("two-experts"), WeightType::F32);
    let folder = tempfile::tempdir().unwrap();
    let jobs = |arguments: &[&str]| {
        let store = ["--store", "queue", "--json"];
        let output = rushes(folder.path()).arg("jobs").args(arguments).args(store).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    };
    let bundle = exported.path();
    for (seed, name) in [("7", "one.mp4"), ("8", "two.mp4")] {
        let settings = ["--size", "32x32", "--frames", "5", "--steps", "5", "--seed", seed, "-o", name];
        let from = ["submit", "a boat", "--bundle", bundle.to_str().unwrap()];
        jobs(&[&from[..], &settings[..]].concat());
    }
    let ran = event(&jobs(&["run", "--until-idle", "--ep", "openvino", "--threads", "1"]), "ran");
    assert_eq!((&ran["done"], &ran["failed"], &ran["swaps"]), (&2.into(), &0.into(), &0.into()), "{ran}");
    for name in ["one.mp4", "two.mp4"] {
        assert!(tests::program::frames_of(&folder.path().join(name)) > 0, "{name}");
    }
}
