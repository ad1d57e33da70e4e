//! OpenVINO, which computes on processors of Intel.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use crate::bundles::{ENDLESS, Exported, model_in};
use crate::parity::{self, PROMPT, clip_of_mini, runs_alone};
use crate::support::with_provider;
use bundle::dtype::WeightType;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use bundle::variant::Precision;
use bundle::{Diagnose, ErrorClass};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{
    Backend, Cancel, Device, DeviceChoice, GraphSource, MemoryBudgets, OnnxRuntime, OpenOptions, Provider,
    Value, WeightMemory,
};
use graph::proto::OperatorSetIdProto;
use ndarray::Array;
use quality::quantize::metrics::psnr;
use runtime::model::{Model, ModelOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tests::golden::{case, cases, compute};
use tests::program::{event, rushes};

/// ONNX Runtime's name of the provider.
const OPENVINO: &str = "OpenVINOExecutionProvider";

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

#[test]
fn smoke_a_golden_case_equals_diffusers() {
    let Some((runtime, device)) = openvino("a golden case on OpenVINO") else { return };
    parity::equals_diffusers(&runtime, device, &case("two-experts"));
}

#[test]
fn two_blocks_of_a14b_equal_those_on_the_cpu() {
    let Some((runtime, device)) = openvino("two blocks of A14B on OpenVINO") else { return };
    parity::two_blocks_equal_those_of_the_cpu(&runtime, device);
}

#[test]
fn every_golden_case_equals_diffusers() {
    let Some((runtime, device)) = openvino("the golden cases on OpenVINO") else { return };
    for case in cases() {
        parity::equals_diffusers(&runtime, device, &case);
    }
}

#[test]
fn a_clip_of_mini_is_the_clip_of_the_cpu() {
    let Some((runtime, device)) = openvino("a clip of mini on OpenVINO") else { return };
    parity::clips_of_mini_are_those_of_the_cpu(&runtime, device);
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
        let expected = clip_of_mini(&model(Device::CPU, None), quality.clips[0].seed);
        let quantised = model(device, Some(Precision::Int8));
        let found = psnr(clip_of_mini(&quantised, quality.clips[0].seed).view(), expected.view());
        println!("mini in INT8 on OpenVINO: {found:.1} dB, {:.1} dB in the report, {weights}", quality.psnr);
        assert!(found >= quality.psnr - 3.0, "{found} dB, {} dB in the report", quality.psnr);
        runs_alone(&quantised, device);
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
