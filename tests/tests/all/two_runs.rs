//! Concurrent runs on one folder: one succeeds, the other waits or is refused before it does anything.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::lock::ReadLock;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tests::folder::names;
use tests::program::{path, rushes};
use tests::{edit, golden};

const CLIP: [&str; 6] = ["--size", "32x32", "--frames", "5", "--steps", "3"];

fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    edit::copy_folder(&golden::case("two-experts").checkpoint(), &folder.path().join("ck"));
    // Small clips, which take seconds instead of minutes.
    fs::write(folder.path().join("ck/rushes.json"), r#"{"size":"32x32","frames":5,"steps":3}"#).unwrap();
    fs::write(folder.path().join("p"), "a red fox\na blue boat\n").unwrap();
    folder
}

fn done(folder: &Path, arguments: &[&str]) -> Output {
    let output = rushes(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// Returns true if this system allows new process namespaces, as containers have. Reports it otherwise.
fn has_namespaces() -> bool {
    let tried = Command::new("unshare").args(["-Urpf", "--mount-proc", "true"]).output();
    let has_namespaces = tried.is_ok_and(|output| output.status.success());
    if !has_namespaces {
        eprintln!("skipped in part: this system does not allow new process namespaces");
    }
    has_namespaces
}

/// Starts the program, as process 1 of a new namespace if possible.
fn contained(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = if has_namespaces() {
        let mut command = Command::new("unshare");
        command.args(["-Urpf", "--mount-proc"]).arg(path());
        command
    } else {
        Command::new(path())
    };
    command.current_dir(folder).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn of_concurrent_exports_to_one_folder_one_succeeds() {
    let workplace = workplace();
    let folder = workplace.path();
    for (round, out) in ["new", "existing", "new", "existing"].into_iter().enumerate() {
        if out == "existing" {
            fs::create_dir(folder.join(out)).unwrap();
        }
        let weights = if round < 2 { "f32" } else { "bf16" };
        let arguments = ["export", "ck", "--out", out, "--weights", weights];
        let runs: Vec<Child> = (0..4).map(|_| contained(folder, &arguments)).collect();
        let outputs: Vec<Output> = runs.into_iter().map(|run| run.wait_with_output().unwrap()).collect();
        let succeeded = outputs.iter().filter(|output| output.status.success()).count();
        assert_eq!(succeeded, 1, "{outputs:?}");
        for output in outputs.iter().filter(|output| !output.status.success()) {
            let refused = ["another run is writing there", "it already exists and is not empty"];
            assert!(refused.iter().any(|words| stderr(output).contains(words)), "{output:?}");
            assert_eq!(output.status.code(), Some(2));
            assert!(!stderr(output).contains("reading"), "it read weights: {output:?}");
        }
        done(
            folder,
            &["generate", "fox", "--bundle", out, "--frames", "1", "--steps", "1", "-o", "clip.gif"],
        );
        assert!(names(folder).iter().chain(&names(&folder.join(out))).all(|name| !name.contains(".part")));
        fs::remove_dir_all(folder.join(out)).unwrap();
    }
}

#[test]
fn files_of_other_programs_are_never_part_of_a_bundle() {
    let workplace = workplace();
    let folder = workplace.path();
    for part in ["b.part.1", "b.part"] {
        let weights = folder.join(part).join("decoder/weights");
        fs::create_dir_all(&weights).unwrap();
        fs::write(weights.join("old.safetensors"), "junk").unwrap();
        let output = contained(folder, &["export", "ck", "--out", "b"]).wait_with_output().unwrap();
        if part == "b.part" {
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(stderr(&output).contains("it was not created by rushes"), "{output:?}");
        } else {
            assert!(output.status.success(), "{output:?}");
            assert_eq!(names(&folder.join("b/decoder/weights")).len(), 1);
            fs::remove_dir_all(folder.join("b")).unwrap();
        }
        assert!(weights.join("old.safetensors").is_file(), "a foreign file was removed");
    }
}

/// The commands that change a bundle.
const CHANGES: [&[&str]; 3] = [
    &["calibrate", "b", "--prompts", "p"],
    &["calibrate", "b", "--preview", "--clips", "2"],
    &["quantize", "b", "--clips", "1", "--sensitivity", "estimated", "--kernels", "onnxruntime"],
];

/// Starts `first`, and while it runs, each of `others`, which must be refused.
fn refused_while(folder: &Path, first: &[&str], others: &[&[&str]]) {
    let with_size = |command: &[&str]| -> Vec<String> {
        let size = if command[0] == "calibrate" { &CLIP[..] } else { &[] };
        let size = if command.contains(&"--preview") { &["--size", "128x128"][..] } else { size };
        command.iter().chain(size).map(|word| (*word).to_owned()).collect()
    };
    let mut running =
        rushes(folder).args(with_size(first)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !folder.join("b/.rushes.part").exists() {
        assert!(running.try_wait().unwrap().is_none(), "{first:?} ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Paused, so that it does not end before the others.
    let signal = |name: &str| {
        assert!(Command::new("kill").arg(name).arg(running.id().to_string()).status().unwrap().success());
    };
    signal("-STOP");
    for other in others {
        let output = rushes(folder).args(with_size(other)).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{first:?} {other:?}: {output:?}");
        assert!(stderr(&output).contains("another run is writing there"), "{output:?}");
    }
    signal("-CONT");
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success(), "{first:?}: {output:?}");
}

fn bundle(folder: &Path) {
    done(folder, &["export", "ck", "--out", "b"]);
    done(folder, &[&["calibrate", "b", "--prompts", "p"], &CLIP[..]].concat());
}

#[test]
fn only_one_run_changes_a_bundle() {
    let workplace = workplace();
    let folder = workplace.path();
    bundle(folder);
    refused_while(folder, CHANGES[2], &[CHANGES[0]]);
    assert_eq!(names(folder).iter().filter(|name| name.contains(".part")).count(), 0);
    done(folder, &[&["generate", "fox", "--bundle", "b", "-o", "clip.gif"], &CLIP[..]].concat());
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn every_pair_of_commands_that_change_a_bundle() {
    let workplace = workplace();
    bundle(workplace.path());
    for first in CHANGES {
        refused_while(workplace.path(), first, &CHANGES);
    }
}

/// Quantising again replaces files that a running process may not have opened yet.
#[test]
fn files_that_a_running_process_may_need_are_not_removed() {
    let workplace = workplace();
    let folder = workplace.path();
    bundle(folder);
    let quantize = |ranges: &str| done(folder, &[CHANGES[2], &["--ranges", ranges]].concat());
    quantize("mse");
    let files = || names(&folder.join("b/decoder/weights"));
    let before = files();
    let running = ReadLock::acquire(&folder.join("b"));
    quantize("extremes");
    assert!(before.iter().all(|name| files().contains(name)), "{before:?} {:?}", files());
    drop(running);
    quantize("extremes");
    assert!(!before.iter().all(|name| files().contains(name)), "{:?}", files());
}
