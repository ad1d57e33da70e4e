//! Execution providers that cannot be used: what is missing, why, and the command that gets it.
//!
//! The program searches an empty folder for providers, and finds a driver that is a stub in place of this machine's.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tempfile::TempDir;
use tests::golden;
use tests::program::{event, path, rushes};

/// A driver without any function.
const EMPTY: &str = "";

/// A driver with one device of compute capability 9.0, for CUDA 13.0.
const HOPPER: &str = r#"
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { for (int i = 0; i < 5; i++) name[i] = "H200"[i]; return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 150000000000ul; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
"#;

const PROVIDERS: [&str; 5] = ["cuda", "tensorrt", "tensorrt-rtx", "openvino", "webgpu"];

/// A bundle of a golden case.
static BUNDLE: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case("moving-clip").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
});

/// A folder with an empty folder `none` for providers, and `driver` with a library in place of the driver. `None` after
/// saying that there is no C compiler.
fn machine(driver: &str) -> Option<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("driver.c"), folder.path().join("driver/libcuda.so.1"));
    std::fs::create_dir(folder.path().join("none")).unwrap();
    std::fs::create_dir(folder.path().join("driver")).unwrap();
    std::fs::write(&source, driver).unwrap();
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            // Not with a macro, whose output the test harness captures.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "skipped: a driver that is a stub: cc: {error}").unwrap();
            return None;
        }
    }
    Some(folder)
}

fn command(machine: &Path, line: &str) -> Command {
    let mut command = rushes(machine);
    command.args(line.split(' ')).env("LD_LIBRARY_PATH", machine.join("driver")).env_remove("ORT_DYLIB_PATH");
    command
}

fn generated(machine: &Path, line: &str) -> Output {
    let line = format!("generate fox --size 64x48 --frames 1 --steps 1 --json {line}");
    let mut command = command(machine, &line);
    command.arg("--bundle").arg(&BUNDLE.1).output().unwrap()
}

/// The error of `generate`, which leaves nothing.
fn refused(machine: &Path, line: &str, code: i32) -> String {
    let output = generated(machine, line);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(!machine.join("out.mp4").exists());
    let error = event(&output, "error");
    let text = format!(
        "{}: {} ({})",
        error["what"].as_str().unwrap(),
        error["why"].as_str().unwrap(),
        error["fix"].as_str().unwrap()
    );
    text.replace(&machine.canonicalize().unwrap().display().to_string(), "DIR")
}

/// The errors of all providers, a line for each. OpenVINO's is that of an Intel processor.
fn refusals(machine: &Path) -> String {
    let is_intel = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default().contains("GenuineIntel");
    let refusal = |provider: &str| refused(machine, &format!("--providers none --ep {provider}"), 4);
    let mut lines: Vec<String> = PROVIDERS.map(refusal).into();
    if !is_intel {
        assert!(lines[3].contains("processors of Intel only"), "{lines:?}");
        "openvino cannot be used: libonnxruntime_providers_openvino_plugin.so is in none of DIR/none/openvino (run \
         `scripts/setup.sh openvino` in the checkout)"
            .clone_into(&mut lines[3]);
    }
    lines.join("\n")
}

#[test]
fn every_provider_is_refused_without_driver_and_libraries() {
    let Some(machine) = machine(EMPTY) else { return };
    insta::assert_snapshot!(refusals(machine.path()), @r"
    cuda cannot be used: libcuda.so.1 is not an NVIDIA driver: it has no function cuInit (run `nvidia-smi`, and install the driver again if it fails too; or use --ep cpu)
    tensorrt cannot be used: libcuda.so.1 is not an NVIDIA driver: it has no function cuInit (run `nvidia-smi`, and install the driver again if it fails too; or use --ep cpu)
    tensorrt-rtx cannot be used: libcuda.so.1 is not an NVIDIA driver: it has no function cuInit (run `nvidia-smi`, and install the driver again if it fails too; or use --ep cpu)
    openvino cannot be used: libonnxruntime_providers_openvino_plugin.so is in none of DIR/none/openvino (run `scripts/setup.sh openvino` in the checkout)
    webgpu cannot be used: libonnxruntime_providers_webgpu.so is in none of DIR/none/webgpu (run `scripts/setup.sh webgpu` in the checkout)
    ");
}

#[test]
fn every_provider_is_refused_with_a_driver_and_without_libraries() {
    let Some(machine) = machine(HOPPER) else { return };
    insta::assert_snapshot!(refusals(machine.path()), @r"
    cuda cannot be used: libonnxruntime_providers_cuda.so is in none of DIR/none/cuda (run `scripts/setup.sh cuda` in the checkout)
    tensorrt cannot be used: libonnxruntime_providers_tensorrt.so is in none of DIR/none/cuda (run `scripts/setup.sh cuda` in the checkout)
    tensorrt-rtx:0 cannot be used: H200 has compute capability 9.0, and supported are 8.6, 8.9, and 12.0 or newer (use --ep tensorrt or cuda)
    openvino cannot be used: libonnxruntime_providers_openvino_plugin.so is in none of DIR/none/openvino (run `scripts/setup.sh openvino` in the checkout)
    webgpu cannot be used: libonnxruntime_providers_webgpu.so is in none of DIR/none/webgpu (run `scripts/setup.sh webgpu` in the checkout)
    ");
    insta::assert_snapshot!(refused(machine.path(), "--providers none --ep cuda:1", 4), @"there is no device cuda:1: cuda offers cuda:0 (`rushes doctor` lists the devices of this machine)");
}

/// The library of `make setup`.
fn cpu_build() -> PathBuf {
    let program = path();
    let folders = program.ancestors().map(|folder| folder.join("onnxruntime"));
    folders.into_iter().find(|folder| folder.is_dir()).expect("target/onnxruntime: `make setup` fills it")
}

#[test]
fn a_build_of_onnx_runtime_without_the_provider_is_named() {
    let Some(machine) = machine(HOPPER) else { return };
    std::os::unix::fs::symlink(cpu_build(), machine.path().join("cpu")).unwrap();
    let folder = cpu_build().canonicalize().unwrap().display().to_string();
    let error = refused(machine.path(), "--providers none --onnxruntime cpu --ep cuda", 4);
    insta::assert_snapshot!(error.replace(&folder, "ONNXRUNTIME"), @"cuda cannot be used: the ONNX Runtime in ONNXRUNTIME is a build without it (run `scripts/setup.sh cuda` in the checkout, and leave out --onnxruntime)");
}

#[test]
fn a_folder_of_providers_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(refused(folder.path(), "--providers absent", 2), @"--providers cannot be `absent`: it is not a folder (name a folder with a folder for each provider, such as openvino)");
}

#[test]
fn the_cpu_is_chosen_where_no_accelerator_can_be_used() {
    for driver in [EMPTY, HOPPER] {
        let Some(machine) = machine(driver) else { return };
        let output = generated(machine.path(), "--providers none -o a.gif");
        assert!(output.status.success(), "{output:?}");
    }
}

/// Missing accelerators are no problem for `doctor`.
#[test]
fn doctor_says_what_each_provider_lacks() {
    let Some(machine) = machine(HOPPER) else { return };
    let output = command(machine.path(), "doctor --providers none --json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let doctor = event(&output, "doctor");
    assert_eq!(doctor["problems"], serde_json::json!([]));
    assert_eq!(doctor["nvidia_driver"]["cuda"], "13.0");
    assert_eq!(doctor["devices"].as_array().unwrap().len(), 1, "{doctor}");
    assert_eq!(doctor["devices"][0]["device"], "cpu");
    let providers = doctor["providers"].as_array().unwrap();
    let names: Vec<&str> = providers.iter().map(|entry| entry["provider"].as_str().unwrap()).collect();
    assert_eq!(names, PROVIDERS);
    for entry in providers {
        assert_eq!(entry["usable"], false, "{entry}");
        let missing = &entry["missing"];
        for field in ["what", "why", "fix"] {
            assert!(!missing[field].as_str().unwrap().is_empty(), "{entry}");
        }
    }
    let text = command(machine.path(), "doctor --providers none").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for provider in PROVIDERS {
        let lines =
            text.lines().filter(|line| line.trim_start().starts_with(&format!("{provider} cannot be used")));
        let of_device =
            text.lines().filter(|line| line.trim_start().starts_with(&format!("{provider}:0 cannot")));
        assert_eq!(lines.count() + of_device.count(), 1, "{text}");
    }
}
