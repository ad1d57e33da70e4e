//! The small graphs of `tests/data`, and a way to run a test in a process of its own.

use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature, TensorSpec};
use engines::OnnxRuntime;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Loads the library that `make setup` installs. Without it the test fails with the message of the error.
pub(crate) fn onnx_runtime() -> OnnxRuntime {
    OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn graph(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("{name}.onnx"))
}

/// Copies the graph to `folder`, where a test can add its weights.
pub(crate) fn copied(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join(format!("{name}.onnx"));
    std::fs::copy(graph(name), &copy).expect("a temporary folder can be written");
    copy
}

/// A signature from texts like `x f32 [N,3]`.
pub(crate) fn signature(inputs: &[&str], outputs: &[&str]) -> Signature {
    let all = |texts: &[&str]| texts.iter().map(|text| tensor(text)).collect();
    Signature { inputs: all(inputs), outputs: all(outputs) }
}

fn tensor(text: &str) -> TensorSpec {
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("`{text}` is not a tensor"));
    let name = word().into();
    let format = word();
    let element = ElementType::ALL.into_iter().find(|element| element.name() == format);
    let element = element.unwrap_or_else(|| panic!("unknown number format {format}"));
    let extents = word().trim_matches(['[', ']']);
    let shape = extents
        .split(',')
        .filter(|extent| !extent.is_empty())
        .map(|extent| extent.parse().map_or_else(|_| Extent::Dynamic(extent.into()), Extent::Fixed))
        .collect();
    TensorSpec { name, element, shape }
}

/// The variable that marks the child process of [`in_own_process`].
const CHILD: &str = "ENGINES_TEST_CHILD";

/// Runs `body` in a new process that runs only the test `name`, its path within this binary. Panics if it fails there.
pub(crate) fn in_own_process(name: &str, body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("the path of a running program");
    let child = Command::new(program)
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env_remove("ORT_DISABLE_TELEMETRY")
        .output()
        .expect("a test can start its own program");
    let (stdout, stderr) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("1 passed"), "no test is named {name}: {stdout}");
}
