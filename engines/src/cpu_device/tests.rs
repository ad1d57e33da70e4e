#![expect(clippy::disallowed_types, reason = "inputs of a session of `ort` itself")]

use super::*;
use crate::{Backend, Cancel, GraphSource, OpenOptions, Value, WeightMemory};
use bundle::{Diagnose, ErrorClass};
use ndarray::Array;
use ort::session::Session;
use ort::value::TensorRef;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

fn chosen(names: &[&str]) -> Result<usize, LibraryError> {
    only_cpu(names.iter().enumerate().map(|(index, name)| ((*name).to_owned(), index)))
}

#[test]
fn the_only_device_of_the_cpu_provider_is_chosen_among_others() {
    assert_eq!(chosen(&["CPUExecutionProvider"]).unwrap(), 0);
    let others = ["OpenVINOExecutionProvider", "CPUExecutionProvider", "OpenVINOExecutionProvider.AUTO"];
    assert_eq!(chosen(&others).unwrap(), 1);
}

#[test]
fn no_device_of_the_cpu_provider_or_several_are_an_error() {
    let none = chosen(&["OpenVINOExecutionProvider", "cpuexecutionprovider"]).unwrap_err();
    insta::assert_snapshot!(none, @"ONNX Runtime offers no CPU device: CPUExecutionProvider is not among the providers of its devices: OpenVINOExecutionProvider, cpuexecutionprovider (use the ONNX Runtime that `make setup` in the checkout gets, and name its file with `onnx_runtime`)");
    let several = chosen(&["CPUExecutionProvider", "other", "CPUExecutionProvider"]).unwrap_err();
    insta::assert_snapshot!(several, @"ONNX Runtime offers more than one CPU device: 2 devices are named CPUExecutionProvider, and a graph runs on one (remove plug-ins that use this name, and use the ONNX Runtime that `make setup` in the checkout gets)");
    assert!(chosen(&[]).unwrap_err().to_string().contains("devices: none"));
    for error in [none, several] {
        assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
    }
}

fn onnx_runtime() -> OnnxRuntime {
    OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_provider_library_that_cannot_be_loaded_is_named_with_the_reason() {
    let error = onnx_runtime().register("absent", Path::new("/nowhere/plugin.so")).unwrap_err();
    assert!(error.contains("/nowhere/plugin.so") && error.contains("No such file or directory"), "{error}");
}

/// The library of the OpenVINO plug-in, in the folder of `make setup`, and its provider for the processor.
const PLUG_IN: &str = "libonnxruntime_providers_openvino_plugin.so";
const PLUG_IN_PROVIDER: &str = "OpenVINOExecutionProvider";

/// Variables of the process with the plug-in: its library, and the expected outputs.
const CHILD: &str = "ENGINES_TEST_PLUG_IN";
const EXPECTED: &str = "ENGINES_TEST_EXPECTED";

/// Graphs whose bits differ between providers, and their outputs.
const GRAPHS: [&str; 2] = ["products", "quantised_products"];

/// ONNX Runtime gives a session that is not pinned to the plug-in.
#[test]
fn cpu_graphs_have_the_same_bits_beside_a_plug_in_that_offers_a_cpu() {
    if let Some(plug_in) = std::env::var_os(CHILD) {
        return run_beside(Path::new(&plug_in));
    }
    let plug_in = match installed_plug_in() {
        Ok(plug_in) => plug_in,
        Err(reason) => {
            // Not with a macro, whose output the test harness captures.
            writeln!(std::io::stderr(), "skipped: CPU graphs beside a plug-in: {reason}").unwrap();
            return;
        }
    };
    let runtime = onnx_runtime();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cpu_device::tests::cpu_graphs_have_the_same_bits_beside_a_plug_in_that_offers_a_cpu",
        ])
        .arg("--nocapture")
        .env(CHILD, plug_in)
        .env(EXPECTED, GRAPHS.map(|name| bits_on_cpu(&runtime, name)).join(" "))
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
}

fn installed_plug_in() -> Result<PathBuf, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpu.contains("GenuineIntel") {
        return Err("the OpenVINO plug-in offers a CPU on Intel processors only".into());
    }
    // Cargo puts test programs two levels below its target folder.
    let program = std::env::current_exe().unwrap();
    let plug_in = program.ancestors().nth(3).unwrap().join("providers/openvino").join(PLUG_IN);
    if plug_in.is_file() {
        Ok(plug_in)
    } else {
        Err(format!("{} is missing; `scripts/setup.sh tests` gets it", plug_in.display()))
    }
}

/// Opens a session of the plug-in first, then CPU graphs on two threads.
fn run_beside(plug_in: &Path) {
    let runtime = onnx_runtime();
    runtime.register("openvino", plug_in).unwrap();
    runtime.register("openvino", plug_in).unwrap_err();

    let (other_bits, _session) = bits_on_plug_in(&runtime);
    let found = std::thread::scope(|scope| {
        GRAPHS.map(|name| scope.spawn(|| bits_on_cpu(&runtime, name))).map(|thread| thread.join().unwrap())
    });
    let expected = std::env::var(EXPECTED).unwrap();
    assert_eq!(found.join(" "), expected);
    assert_ne!(other_bits, found[0], "the test cannot tell the plug-in from the CPU provider");
}

fn inputs() -> (Array<f32, ndarray::Ix3>, Array<f32, ndarray::Ix2>) {
    let number = |index: usize| ((index * 7919 % 1000) as f32 - 500.0) / 250.0;
    (
        Array::from_shape_fn((1, 9, 64), |(_, row, column)| number(row * 64 + column)),
        Array::from_shape_fn((64, 64), |(row, column)| number(3 + row * 67 + column)),
    )
}

fn graph(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{name}.onnx"))
}

fn hex<'a>(numbers: impl IntoIterator<Item = &'a f32>) -> String {
    numbers.into_iter().map(|number| format!("{:08x}", number.to_bits())).collect()
}

fn bits_on_cpu(runtime: &OnnxRuntime, name: &str) -> String {
    let (x, weight) = inputs();
    let options = OpenOptions::cpu(NonZeroUsize::new(1), WeightMemory::Prepacked);
    let mut open = Backend::open(runtime, GraphSource::File(&graph(name)), &options).unwrap();
    let (x, weight) = (Value::from_f32(x), Value::from_f32(weight));
    let outputs = open.run(&[("x", &x), ("weight", &weight)], &Cancel::new()).unwrap();
    let bits = outputs.into_iter().map(|(_, value)| match value.view_f32() {
        Ok(numbers) => hex(numbers.iter()),
        Err(_) => value.view::<u8>().unwrap().iter().map(|byte| format!("{byte:02x}")).collect(),
    });
    bits.collect()
}

/// Also returns the session, which stays open.
fn bits_on_plug_in(runtime: &OnnxRuntime) -> (String, Session) {
    let environment = runtime.environment();
    let devices: Vec<_> = environment
        .devices()
        .filter(|device| device.ep().is_ok_and(|name| name == PLUG_IN_PROVIDER))
        .collect();
    assert_eq!(devices.len(), 1, "the plug-in offers {} devices", devices.len());
    let builder = Session::builder(environment).unwrap().with_devices(devices, None).unwrap();
    let mut session =
        builder.with_disable_cpu_fallback().unwrap().commit_from_file(graph(GRAPHS[0])).unwrap();
    let (x, weight) = inputs();
    let x = TensorRef::from_array_view(x.view()).unwrap();
    let weight = TensorRef::from_array_view(weight.view()).unwrap();
    let outputs = session.run(ort::inputs!["x" => x, "weight" => weight]).unwrap();
    let bits = hex(outputs["y"].try_extract_array::<f32>().unwrap().iter());
    drop(outputs);
    (bits, session)
}
