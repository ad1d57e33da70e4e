//! Finding and refusing libraries. A process loads one library, so these tests run in processes of their own.

use crate::support::{in_own_process, onnx_runtime};
use bundle::{Diagnose, ErrorClass};
use engines::{LibraryError, LoadRequest, OnnxRuntime};
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn wrong_libraries_are_refused_and_the_right_one_is_loaded_once() {
    in_own_process(
        "library::wrong_libraries_are_refused_and_the_right_one_is_loaded_once",
        load_wrong_libraries_then_the_right_one,
    );
}

fn load_wrong_libraries_then_the_right_one() {
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

    let examination = engines::doctor::examine(&LoadRequest::new(None));
    assert_eq!(examination.onnx_runtime.unwrap().version(), loaded.version());
    assert!(examination.cpu.threads >= 1);
}

/// The C library of this process: it can be loaded and is not ONNX Runtime.
fn c_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel lists mapped files");
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| {
        Path::new(path).file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc"))
    });
    path.expect("a program is linked to the C library").into()
}

#[test]
fn the_library_of_make_setup_is_found() {
    assert!(onnx_runtime().path().is_file());
}

/// Copies this program to a folder without the library, and runs the test above there.
#[test]
fn a_program_without_a_library_nearby_names_every_searched_path_and_uses_the_systems() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("opt/rushes/bin/program");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = |system_libraries: &Path| {
        Command::new(&program)
            .args(["--exact", "library::the_library_of_make_setup_is_found"])
            .env_remove("ORT_DYLIB_PATH")
            .env("LD_LIBRARY_PATH", system_libraries)
            .output()
            .unwrap()
    };

    let missing = run(folder.path());
    let output = String::from_utf8_lossy(&missing.stdout).replace(&folder.path().display().to_string(), "");
    let message = output.lines().find(|line| line.starts_with("ONNX Runtime")).unwrap_or(&output);
    insta::assert_snapshot!(message, @"ONNX Runtime was not found: looked for /opt/rushes/bin/libonnxruntime.so, /opt/rushes/bin/lib/libonnxruntime.so, /opt/rushes/lib/libonnxruntime.so, /opt/rushes/onnxruntime/libonnxruntime.so, /opt/onnxruntime/libonnxruntime.so, libonnxruntime.so, libonnxruntime.so.1 (get it with `make setup` in the checkout, or name the file with `onnx_runtime`)");

    let system = folder.path().join("usr/lib");
    std::fs::create_dir_all(&system).unwrap();
    let library = onnx_runtime().path().to_owned();
    std::os::unix::fs::symlink(library, system.join("libonnxruntime.so.1")).unwrap();
    let found = run(&system);
    let output = String::from_utf8_lossy(&found.stdout);
    assert!(found.status.success() && output.contains("1 passed"), "{output}");
}
