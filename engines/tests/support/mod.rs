//! The small graphs of `tests/data` and the contracts they keep.

use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature, TensorSpec};
use engines::OnnxRuntime;
use std::path::{Path, PathBuf};

/// The library where `make setup` puts it; a test without it fails with the message that says so.
pub(crate) fn onnx_runtime() -> OnnxRuntime {
    OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn graph(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("{name}.onnx"))
}

/// A copy of the graph in `folder`, where weights can be put beside it.
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
    let mut word = || words.next().unwrap_or_else(|| panic!("`{text}` is no tensor"));
    let name = word().into();
    let element = match word() {
        "f32" => ElementType::F32,
        "i64" => ElementType::I64,
        other => panic!("no test graph has {other}"),
    };
    let extents = word().trim_matches(['[', ']']);
    let shape = extents
        .split(',')
        .filter(|extent| !extent.is_empty())
        .map(|extent| extent.parse().map_or_else(|_| Extent::Dynamic(extent.into()), Extent::Fixed))
        .collect();
    TensorSpec { name, element, shape }
}
