//! Signals at any moment of any command: a signal that was ignored at the start stays ignored, any other signal ends
//! the command with exit code 130 and without partial files.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::folder::names;
use tests::program::{path, rushes};
use tests::signals::{SIGNALS, handles, ignores, ignoring, send};
use tests::{edit, golden};

/// A command, and the files that it may leave.
struct Case {
    name: &'static str,
    arguments: &'static [&'static str],
    /// New names in the working folder after an interrupted run.
    may_leave: &'static [&'static str],
}

const CLIP: [&str; 8] = ["--size", "32x32", "--frames", "5", "--steps", "3", "--seed", "1"];

/// Every long command. The working folder contains the checkpoint `ck`, the calibrated bundle `b`, and the prompt file
/// `p`.
const CASES: [Case; 9] = [
    Case { name: "export", arguments: &["export", "ck", "--out", "x"], may_leave: &[] },
    Case {
        name: "export into bf16",
        arguments: &["export", "ck", "--out", "x", "--weights", "bf16"],
        may_leave: &[],
    },
    Case {
        name: "first run",
        arguments: &[
            "generate",
            "fox",
            "--cache-dir",
            "cache",
            "--steps",
            "1",
            "--frames",
            "1",
            "-o",
            "clip.gif",
        ],
        may_leave: &["cache"],
    },
    Case {
        name: "generate",
        arguments: &["generate", "fox", "--bundle", "b", "-o", "clip.mp4"],
        may_leave: &["clip.part.mp4"],
    },
    Case { name: "calibrate", arguments: &["calibrate", "b", "--prompts", "p"], may_leave: &[] },
    Case { name: "fit", arguments: &["calibrate", "b", "--preview", "--clips", "2"], may_leave: &[] },
    Case {
        name: "quantize",
        arguments: &[
            "quantize",
            "b",
            "--clips",
            "1",
            "--sensitivity",
            "estimated",
            "--kernels",
            "onnxruntime",
        ],
        may_leave: &[],
    },
    Case {
        name: "bench generate",
        arguments: &["bench", "generate", "--bundle", "b", "--runs", "2"],
        may_leave: &[],
    },
    Case {
        name: "bench step",
        arguments: &["bench", "step", "--layers", "1", "--tokens", "4", "--runs", "1", "--precision", "f32"],
        may_leave: &[],
    },
];

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

impl Case {
    fn arguments(&self) -> Vec<&str> {
        let size: &[&str] = match self.name {
            "generate" | "bench generate" => &CLIP[..6],
            "calibrate" => &["--size", "32x32", "--frames", "5", "--steps", "3"],
            "fit" => &["--size", "128x128"],
            _ => &[],
        };
        self.arguments.iter().chain(size).copied().collect()
    }
}

/// A working folder for all commands.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    edit::copy_folder(&golden::case("two-experts").checkpoint(), &folder.path().join("ck"));
    // Small clips, which take seconds instead of minutes.
    fs::write(folder.path().join("ck/rushes.json"), r#"{"size":"32x32","frames":5,"steps":3}"#).unwrap();
    fs::write(folder.path().join("p"), "a red fox\n").unwrap();
    fs::create_dir(folder.path().join("tmp")).unwrap();
    let run = |arguments: &[&str]| {
        let output = rushes(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    run(&["export", "ck", "--out", "b"]);
    run(&[&["calibrate", "b", "--prompts", "p"], &CLIP[..6]].concat());
    folder
}

/// Every file in a folder and its subfolders, with its length.
fn state(folder: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            all.extend(state(&path).into_iter().map(|(file, length)| (format!("{name}/{file}"), length)));
        } else {
            all.push((name, fs::metadata(path).unwrap().len()));
        }
    }
    all
}

/// Runs a command, sends a signal after a delay, and checks the result. Returns true if the signal ended the command.
fn signalled(workplace: &Path, case: &Case, signal: &str, ignored: bool, after: Duration) -> bool {
    let before = state(workplace);
    let names_before = names(workplace);
    let mut child = ignoring(if ignored { &SIGNALS } else { &[] }, workplace, &path())
        .args(case.arguments())
        .env("TMPDIR", workplace.join("tmp"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let what = format!("{} {signal} after {after:?}, ignored: {ignored}", case.name);
    // A command that ignores all signals handles none.
    let is_running = if ignored { ignores(&mut child, signal) } else { handles(&mut child, signal) };
    std::thread::sleep(after);
    send(&child, signal);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    let stopped = code == Some(130);
    assert!(code == Some(0) || (stopped && is_running && !ignored), "{what}: {:?}\n{stderr}", output.status);
    if stopped {
        assert!(stderr.contains("stopped"), "{what}: {stderr}");
        let new: Vec<_> = names(workplace).into_iter().filter(|name| !names_before.contains(name)).collect();
        assert!(new.iter().all(|name| case.may_leave.contains(&name.as_str())), "{what} left {new:?}");
        if case.name == "first run" {
            let cached = names(&workplace.join("cache"));
            assert!(cached.iter().all(|name| !name.contains(".part")), "{what} left {cached:?}");
        }
        // Recorded clips are kept, so that the next run can resume.
        let bundle = |state: Vec<(String, u64)>| -> Vec<(String, u64)> {
            let is_compared = |name: &str| name.starts_with("b/") && !name.starts_with("b/calibration/");
            state.into_iter().filter(|(name, _)| is_compared(name)).collect()
        };
        assert_eq!(bundle(state(workplace)), bundle(before), "{what} changed the bundle");
    } else {
        assert!(
            names(workplace).iter().all(|name| !name.ends_with(".part")),
            "{what}: {:?}",
            names(workplace)
        );
    }
    assert_eq!(names(&workplace.join("tmp")), Vec::<String>::new(), "{what}");
    let open = |path: &Path| {
        let output = rushes(workplace).arg("inspect").arg(path).output().unwrap();
        assert!(output.status.success(), "{what}: {} {output:?}", path.display());
    };
    open(Path::new("b"));
    if workplace.join("x").exists() {
        assert!(!stopped, "{what} left a bundle");
        open(Path::new("x"));
        fs::remove_dir_all(workplace.join("x")).unwrap();
    }
    for name in ["clip.part.mp4", "clip.mp4", "clip.gif"] {
        let _ = fs::remove_file(workplace.join(name));
    }
    let _ = fs::remove_dir_all(workplace.join("cache"));
    stopped
}

/// Sends a signal after increasing delays, until one is too late to end the command, or `most` were tried. Returns the
/// number of commands that were ended.
fn at_many_moments(workplace: &Path, case: &Case, signal: &str, most: u32) -> u32 {
    let mut stopped = 0;
    // Each delay is 1.5 times the last one: commands take from hundredths of a second to seconds.
    let mut after = Duration::from_millis(1);
    for _ in 0..most {
        if !signalled(workplace, case, signal, false, after) {
            break;
        }
        stopped += 1;
        after = after * 3 / 2 + Duration::from_millis(1);
    }
    stopped
}

#[test]
fn a_signal_ends_an_export_without_new_files() {
    let workplace = workplace();
    for signal in SIGNALS {
        let stopped = at_many_moments(workplace.path(), case("export into bf16"), signal, 4);
        assert!(stopped > 0, "{signal} never ended it");
    }
}

#[test]
fn a_signal_does_not_change_the_bundle() {
    let workplace = workplace();
    for (name, signal) in [("quantize", "TERM"), ("calibrate", "INT"), ("fit", "HUP")] {
        let stopped = at_many_moments(workplace.path(), case(name), signal, 3);
        assert!(stopped > 0, "{signal} never ended {name}");
    }
}

#[test]
fn a_signal_ends_a_first_run_with_an_empty_cache() {
    let workplace = workplace();
    assert!(at_many_moments(workplace.path(), case("first run"), "TERM", 2) > 0);
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let workplace = workplace();
    let after = Duration::from_millis(20);
    for (name, signal) in [("export", "HUP"), ("generate", "HUP"), ("generate", "INT"), ("calibrate", "TERM")]
    {
        assert!(!signalled(workplace.path(), case(name), signal, true, after));
    }
}

#[test]
fn other_signals_than_the_ignored_one_end_the_run() {
    let workplace = workplace();
    let mut child = ignoring(&["HUP"], workplace.path(), &path())
        .args([
            "generate",
            "fox",
            "--bundle",
            "b",
            "--steps",
            "1000",
            "--size",
            "128x128",
            "--progress",
            "none",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(handles(&mut child, "INT"));
    send(&child, "HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "the ignored signal ended the run");
    send(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// A run that is killed leaves part files; the next run removes them.
#[test]
fn part_files_of_a_killed_run_are_removed_by_the_next_run() {
    let workplace = workplace();
    let folder = workplace.path();
    let cleared = |arguments: &[&str], part: &Path, begun: &dyn Fn() -> bool, after: u64| {
        let mut child = Command::new(path())
            .current_dir(folder)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !begun() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
        let existed = part.exists();
        let output = rushes(folder).args(arguments).output().unwrap();
        let is_taken = String::from_utf8_lossy(&output.stderr).contains("it already exists and is not empty");
        assert!(output.status.success() || (is_taken && !existed), "{output:?}");
        assert!(names(part.parent().unwrap()).iter().all(|name| !name.contains(".part")));
        let _ = fs::remove_dir_all(folder.join("x"));
        existed
    };
    let part = folder.join("x.part");
    let export = ["export", "ck", "--out", "x", "--weights", "bf16"];
    let killed =
        [0, 3, 10, 30].into_iter().filter(|after| cleared(&export, &part, &|| part.exists(), *after));
    assert!(killed.count() > 0, "no run was killed while it wrote");
    let variant = folder.join("b/text_encoder/weights");
    let quantize =
        ["quantize", "b", "--clips", "1", "--sensitivity", "estimated", "--kernels", "onnxruntime"];
    let part = folder.join("b/.rushes.part");
    assert!(
        cleared(&quantize, &part, &|| names(&variant).len() > 1, 0),
        "the run was not killed while it wrote"
    );
    // The folders contain only files that the bundle names.
    let bundle = bundle::manifest::Bundle::open(&folder.join("b")).unwrap();
    let named = bundle.manifest.files();
    let unknown = state(&folder.join("b/experts"))
        .into_iter()
        .filter(|(name, _)| !named.contains(format!("experts/{name}").as_str()));
    assert_eq!(unknown.collect::<Vec<_>>(), []);
}

/// Every command, signal and disposition at many moments.
#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn every_command_and_signal_at_many_moments() {
    let workplace = workplace();
    for case in &CASES {
        for signal in SIGNALS {
            assert!(
                at_many_moments(workplace.path(), case, signal, 30) > 0,
                "{signal} never ended {}",
                case.name
            );
            for after in [1, 30, 300] {
                assert!(!signalled(workplace.path(), case, signal, true, Duration::from_millis(after)));
            }
        }
    }
}
