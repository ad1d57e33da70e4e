//! Wrong libraries: one test, because a process loads one library once.

use bundle::{Diagnose, ErrorClass};
use engines::{LibraryError, OnnxRuntime};
use std::path::{Path, PathBuf};

#[test]
fn wrong_libraries_are_refused_by_name_and_the_right_one_is_loaded_once() {
    let folder = tempfile::tempdir().unwrap();

    let absent = OnnxRuntime::load(Some(&folder.path().join("libonnxruntime.so"))).unwrap_err();
    assert!(matches!(absent, LibraryError::Absent { .. }), "{absent}");
    let empty = OnnxRuntime::load(Some(folder.path())).unwrap_err();
    assert!(matches!(empty, LibraryError::Absent { .. }), "{empty}");

    let text = folder.path().join("libonnxruntime.so");
    std::fs::write(&text, "not a library").unwrap();
    let unloadable = OnnxRuntime::load(Some(&text)).unwrap_err();
    assert!(matches!(unloadable, LibraryError::Unloadable { .. }), "{unloadable}");

    let other = OnnxRuntime::load(Some(&c_library())).unwrap_err();
    assert!(matches!(other, LibraryError::NotOnnxRuntime { .. }), "{other}");
    for error in [&absent, &empty, &unloadable, &other] {
        assert_eq!(error.report().class, ErrorClass::MissingOnMachine, "{error}");
        assert!(error.report().fix.contains("make setup"), "{error}");
    }

    let loaded = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
    assert!(loaded.path().is_file(), "{loaded:?}");
    assert!(loaded.version().starts_with("1."), "{loaded:?}");
    assert!(loaded.providers().iter().any(|provider| provider == "CPUExecutionProvider"), "{loaded:?}");
    assert_eq!(std::env::var("ORT_DISABLE_TELEMETRY").as_deref(), Ok("1"));

    let again = OnnxRuntime::load(Some(loaded.path())).unwrap();
    assert_eq!(again.path(), loaded.path());
    let another = OnnxRuntime::load(Some(&text)).unwrap_err();
    assert!(matches!(another, LibraryError::AnotherIsLoaded { .. }), "{another}");

    let examination = engines::doctor::examine(None);
    assert_eq!(examination.onnx_runtime.unwrap().version(), loaded.version());
    assert!(examination.cpu.threads >= 1);
}

/// The C library that this process runs on: a library that certainly loads and certainly is not ONNX Runtime.
fn c_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel tells what is mapped");
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| {
        Path::new(path).file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc"))
    });
    path.expect("a program is linked to the C library").into()
}
