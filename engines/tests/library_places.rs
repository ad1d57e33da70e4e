//! Where the library is found by a program that is given no path.

use engines::OnnxRuntime;
use std::path::Path;
use std::process::Command;

fn load() -> OnnxRuntime {
    OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_library_of_make_setup_is_found() {
    assert!(load().path().is_file());
}

/// The program of the test above is copied to where nothing is beside it.
#[test]
fn a_program_far_from_the_library_says_everywhere_it_looked_and_uses_the_systems() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("opt/rushes/bin/program");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let run = |system_libraries: &Path| {
        Command::new(&program)
            .args(["--exact", "the_library_of_make_setup_is_found"])
            .env_remove("ORT_DYLIB_PATH")
            .env("LD_LIBRARY_PATH", system_libraries)
            .output()
            .unwrap()
    };

    let lost = run(folder.path());
    let said = String::from_utf8_lossy(&lost.stdout).replace(&folder.path().display().to_string(), "");
    let message = said.lines().find(|line| line.starts_with("ONNX Runtime")).unwrap_or(&said);
    insta::assert_snapshot!(message, @"ONNX Runtime was not found: looked for /opt/rushes/bin/libonnxruntime.so, /opt/rushes/bin/lib/libonnxruntime.so, /opt/rushes/lib/libonnxruntime.so, /opt/rushes/onnxruntime/libonnxruntime.so, /opt/onnxruntime/libonnxruntime.so, libonnxruntime.so, libonnxruntime.so.1 (get it with `make setup` in the checkout, or name the file with --onnxruntime PATH)");

    let system = folder.path().join("usr/lib");
    std::fs::create_dir_all(&system).unwrap();
    let library = load().path().to_owned();
    std::os::unix::fs::symlink(library, system.join("libonnxruntime.so.1")).unwrap();
    let found = run(&system);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
}
