//! `rushes plan`, and the flags for devices and memory budgets.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::LazyLock;
use tests::golden;
use tests::program::{event, rushes};

/// A bundle of two experts with graphs for the CPU and for CUDA.
struct SharedBundle {
    _folder: tempfile::TempDir,
    bundle: PathBuf,
}

static SHARED: LazyLock<SharedBundle> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let export = rushes(folder.path())
        .arg("export")
        .arg(golden::case("two-experts").checkpoint())
        .args(["--target", "cpu", "--target", "cuda", "--out"])
        .arg(&bundle)
        .output()
        .unwrap();
    assert!(export.status.success(), "{export:?}");
    SharedBundle { _folder: folder, bundle }
});

const CLIP: [&str; 7] = ["a boat", "--size", "32x16", "--frames", "5", "--steps", "4"];
const PLACE: [&str; 2] = ["--place", "high=cuda:0,low=cuda:1,decoder=cuda:1"];

/// Runs a command on the shared bundle, with an ONNX Runtime that does not exist, in an empty folder that stays empty.
fn run(command: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let output = rushes(folder.path())
        .arg(command)
        .args(CLIP)
        .arg("--bundle")
        .arg(&SHARED.bundle)
        .args(["--onnxruntime", "/no/such/libonnxruntime.so"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "{output:?}");
    output
}

/// The error of arguments that must be refused.
fn refused(command: &str, arguments: &[&str], code: i32) -> Value {
    let output = run(command, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    event(&output, "error")
}

#[test]
fn a_plan_has_the_memory_of_every_device_and_needs_no_onnx_runtime() {
    let output = run("plan", &[&PLACE[..], &["--memory-budget", "10GB,cuda:1=1GB", "--json"]].concat());
    assert!(output.status.success(), "{output:?}");
    let plan = event(&output, "plan");
    let devices = plan["devices"].as_array().unwrap();
    let shown: Vec<String> = devices
        .iter()
        .map(|device| {
            let components = device["components"].as_array().unwrap();
            let names = components.iter().map(|component| component["component"].as_str().unwrap());
            let names = names.collect::<Vec<_>>().join(",");
            format!(
                "{} {} {} {names}",
                device["device"].as_str().unwrap(),
                device["variant"]["target"].as_str().unwrap(),
                device["budget"]
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "cpu cpu 10000000000 text_encoder",
            "cuda:0 cuda 10000000000 high_noise",
            "cuda:1 cuda 1000000000 low_noise,decoder",
        ]
    );
    for device in devices {
        assert_eq!(device["all_stay_open"], true, "{device}");
        let components = device["components"].as_array().unwrap();
        let of = |component: &Value, name: &str| component[name].as_u64().unwrap();
        let held = |component: &Value| of(component, "weights") + of(component, "activations");
        // Graphs are opened one after another: one of them may need more while it is opened.
        let more = |component: &Value| of(component, "opening").saturating_sub(of(component, "activations"));
        let opening = components.iter().map(more).max().unwrap();
        let sum = components.iter().map(held).sum::<u64>() + opening;
        assert_eq!(of(device, "needed"), sum, "{device}");
    }

    let output = run("plan", &[&PLACE[..], &["--memory-budget", "10GB"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in
        ["clip      32x16, 5 frames", "\ncuda:1, cuda ", "of 10.0 GB; all stay open", "the high_noise expert"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_plan_counts_an_expert_on_both_devices_of_its_pair() {
    let place = ["--place", "high=cuda:0+cuda:1,low=cuda:1", "--memory-budget", "10GB", "--json"];
    let output = run("plan", &place);
    assert!(output.status.success(), "{output:?}");
    let plan = event(&output, "plan");
    let of = |device: usize, component: usize| plan["devices"][device]["components"][component].clone();
    assert_eq!(
        (&plan["devices"][1]["device"], &plan["devices"][2]["device"]),
        (&"cuda:0".into(), &"cuda:1".into())
    );
    assert_eq!(of(1, 0)["component"], "high_noise");
    assert_eq!(of(1, 0), of(2, 0));
    assert_eq!(of(2, 1)["component"], "low_noise");
    // Each device makes one pass, where one device alone would make both in a batch.
    let alone = event(&run("plan", &["--place", "high=cuda:0", "--memory-budget", "10GB", "--json"]), "plan");
    let alone = &alone["devices"][1]["components"][0];
    assert_eq!(alone["weights"], of(1, 0)["weights"]);
    assert!(of(1, 0)["activations"].as_u64() < alone["activations"].as_u64(), "{alone}");
}

#[test]
fn guidance_devices_are_a_pair_for_every_expert() {
    let planned = |arguments: &[&str]| {
        let output = run("plan", &[arguments, &["--memory-budget", "10GB", "--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        event(&output, "plan")
    };
    let expected = planned(&["--place", "high=cuda:0+cuda:1,low=cuda:0+cuda:1"]);
    assert_eq!(planned(&["--guidance-devices", "cuda:0,cuda:1"]), expected);
    assert_eq!(planned(&["--place", "experts=cuda:0+cuda:1"]), expected);
    // Together with other components, and with the same pair for an expert.
    let both = ["--guidance-devices", "cuda:0,cuda:1", "--place", "high=cuda+cuda:1,decoder=cuda:1"];
    let decoder = planned(&["--place", "experts=cuda:0+cuda:1,decoder=cuda:1"]);
    assert_eq!(planned(&both), decoder);
    assert_ne!(decoder, expected);
}

#[test]
fn a_plan_that_does_not_fit_names_the_device() {
    for (budget, device) in [("cuda:1=1kB", "cuda:1"), ("1kB,cuda=1GB,cuda:1=1GB", "cpu")] {
        let error = refused("plan", &[&PLACE[..], &["--memory-budget", budget]].concat(), 3);
        assert!(error["what"].as_str().unwrap().contains(&format!("needed on {device} ")), "{error}");
    }
    // The other device has room.
    let error =
        refused("plan", &[&PLACE[..], &["--memory-budget", "cuda:0=1kB,cuda:1=1GB,cpu=10GB"]].concat(), 3);
    assert!(error["fix"].as_str().unwrap().contains("--place high_noise="), "{error}");
}

#[test]
fn a_clip_is_not_made_on_a_device_that_cannot_be_used() {
    for arguments in [&["--place", "high=cuda:1"][..], &["--ep", "cuda:1"]] {
        let error = refused("generate", arguments, 4);
        assert!(error["what"].as_str().unwrap().contains("cuda"), "{error}");
        assert!(error["fix"].as_str().unwrap().contains("--ep cpu"), "{error}");
    }
}

#[test]
fn wrong_placements_and_budgets_are_refused_by_name() {
    for command in ["plan", "generate"] {
        for (arguments, flag, part) in [
            (&["--place", "hihg=cpu"][..], "--place", "high_noise"),
            (&["--place", "high=gpu"], "--place", "tensorrt"),
            (&["--place", "high=cpu,"], "--place", "empty"),
            (&["--place", "high=cpu, low=cpu"], "--place", "space"),
            (&["--place", "decoder=cuda:0+cuda:1"], "--place", "only an expert"),
            (&["--place", "high=cuda+cuda:0"], "--place", "both devices of the pair are cuda:0"),
            (&["--place", "high=cuda:0+"], "--place", "a device of the pair is missing"),
            (&["--place", "high=cpu+cuda,low=cpu+cuda+cuda:1"], "--place", "a pair has two devices"),
            (&["--place", "high=cpu+cuda", "--place", "high=cuda+cpu"], "--place", "cpu+cuda:0 already"),
            (&["--place", "only=cpu"], "--place", "text_encoder, high_noise, low_noise, decoder"),
            (&["--place", "high=cuda", "--place", "high_noise=cpu"], "--place", "cuda:0 already"),
            (&["--place", "experts=cuda,low=cpu"], "--place", "experts is placed on cuda:0 already"),
            (&["--guidance-devices", "cpu"], "--guidance-devices", "two passes"),
            (&["--guidance-devices", "cpu,cpu"], "--guidance-devices", "both devices of the pair are cpu"),
            (&["--guidance-devices", "cpu,gpu"], "--guidance-devices", "tensorrt"),
            (
                &["--guidance-devices", "cpu,cuda", "--place", "low=cpu"],
                "--guidance-devices",
                "low_noise is placed on cpu",
            ),
            (&["--memory-budget", "cpu=8GB,openvino=9GB"], "--memory-budget", "8GB already"),
            (&["--memory-budget", "8GB", "--memory-budget", "9GB"], "--memory-budget", "8GB already"),
            (&["--memory-budget", "cpu=8GB,cpu=9GB"], "--memory-budget", "8GB already"),
            (&["--memory-budget", "cuda=8GB"], "--memory-budget", "components are on cpu"),
            (&["--memory-budget", "cpu=many"], "--memory-budget", "number of bytes"),
            (&["--ep", "cpu:1"], "--ep", "one device"),
        ] {
            let error = refused(command, arguments, 2);
            let text = error["what"].as_str().unwrap();
            assert!(text.starts_with(&format!("{flag} cannot be ")), "{arguments:?}: {error}");
            assert!(error["why"].as_str().unwrap().contains(part), "{arguments:?}: {error}");
        }
    }
}
