//! Concurrent runs with one output: one run writes it, the others are refused before they do anything.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use tests::golden::{self, Tensors};
use tests::program::{self, rushes};

/// The clips of the first run and of the others, with different numbers of frames and steps.
const FIRST: Clip = Clip { frames: 9, steps: 3 };
const OTHER: Clip = Clip { frames: 5, steps: 2 };

#[derive(Clone, Copy)]
struct Clip {
    frames: usize,
    steps: usize,
}

static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case("moving-clip").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
});

fn generate(folder: &Path, clip: Clip, outputs: &[&str]) -> Command {
    let mut command = rushes(folder);
    command.args(["generate", "a boat", "--size", "64x32", "--guidance", "1"]);
    command.args(["--frames", &clip.frames.to_string(), "--steps", &clip.steps.to_string()]);
    command.arg("--bundle").arg(&BUNDLE.1).args(outputs);
    command
}

/// An output, and other names for it.
struct Target {
    /// The flag and the name in the first run.
    first: [&'static str; 2],
    /// The flags and names in the other runs.
    others: &'static [[&'static str; 2]],
}

/// Every kind of output that is a file or a folder, with other spellings and other kinds of output of the same name.
const TARGETS: [Target; 14] = [
    Target { first: ["-o", "a.mp4"], others: &[["-o", "a.mp4"], ["-o", "link.mp4"], ["--trace", "./a.mp4"]] },
    Target { first: ["-o", "link.mp4"], others: &[["-o", "a.mp4"], ["-o", "inner/../a.mp4"]] },
    Target { first: ["-o", "a.mkv"], others: &[["-o", "a.mkv"]] },
    Target { first: ["-o", "a.webm"], others: &[["-o", "./a.webm"]] },
    Target { first: ["-o", "a.gif"], others: &[["-o", "a.gif"], ["--trace", "a.gif"]] },
    Target { first: ["-o", "a.webp"], others: &[["-o", "inner/../a.webp"]] },
    Target { first: ["-o", "a.y4m"], others: &[["-o", "a.y4m"]] },
    Target {
        first: ["-o", "new/"],
        others: &[["-o", "./new/"], ["-o", "hls:new"], ["--preview-out", "new"]],
    },
    Target { first: ["-o", "inner/"], others: &[["-o", "to-inner/"], ["-o", "hls:inner"]] },
    Target {
        first: ["-o", "hls:live"],
        others: &[["-o", "hls:live"], ["--live", "hls:./live"], ["-o", "live/"]],
    },
    Target { first: ["-o", "pipe.y4m"], others: &[["-o", "pipe.y4m"], ["-o", "./pipe.y4m"]] },
    Target { first: ["--trace", "t.gif"], others: &[["--trace", "t.gif"], ["-o", "t.gif"]] },
    Target {
        first: ["--preview-out", "now.png"],
        others: &[["--preview-out", "./now.png"], ["--trace", "now.png"]],
    },
    Target {
        first: ["--preview-out", "steps"],
        others: &[["--preview-out", "steps"], ["-o", "hls:steps"], ["-o", "steps/"]],
    },
];

/// A folder with the files of the targets: a link, a folder and a link to it, two named pipes.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("inner")).unwrap();
    std::os::unix::fs::symlink("inner", path("to-inner")).unwrap();
    std::os::unix::fs::symlink("a.mp4", path("link.mp4")).unwrap();
    for pipe in ["pipe.y4m", "gate.y4m"] {
        assert!(Command::new("mkfifo").arg(path(pipe)).status().unwrap().success());
    }
    folder
}

/// The phase of the first run in which the other runs start.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The first run is paused before its first step; nothing is written yet.
    Claimed,
    /// The first run writes frames and waits for a reader.
    Writing,
}

/// A run that cannot end before its gate opens: it also writes to a named pipe without a reader.
struct First {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    folder: PathBuf,
}

impl First {
    fn start(folder: &Path, outputs: &[&str], phase: Phase) -> Self {
        let mut child = generate(folder, FIRST, outputs)
            .args(["-o", "gate.y4m", "--output-timeout", "600", "--progress", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mark = match phase {
            Phase::Claimed => "\"phase\":\"text\"",
            Phase::Writing => "\"phase\":\"decode\"",
        };
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains(mark) {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "{outputs:?}: the run ended early: {all}");
            all.push_str(&line);
        }
        let first = Self { child, stderr, folder: folder.to_owned() };
        if let Phase::Claimed = phase {
            first.signal("-STOP");
        }
        first
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap().success()
        );
    }

    /// Continues the run to its end. Returns the bytes of the pipe `pipe.y4m` if `reads_pipe` is true.
    fn finish(mut self, reads_pipe: bool) -> Vec<u8> {
        self.signal("-CONT");
        let gate = self.folder.join("gate.y4m");
        let gate = std::thread::spawn(move || std::fs::read(gate).unwrap());
        let piped = if reads_pipe { std::fs::read(self.folder.join("pipe.y4m")).unwrap() } else { vec![] };
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).unwrap();
        assert!(self.child.wait().unwrap().success(), "{stderr}");
        assert_eq!(frames_in_y4m(&gate.join().unwrap()), FIRST.frames);
        piped
    }
}

fn frames_in_y4m(bytes: &[u8]) -> usize {
    bytes.windows(6).filter(|bytes| *bytes == b"FRAME\n").count()
}

fn frames_of(path: &Path) -> usize {
    if path.extension().is_some_and(|extension| extension == "webp") {
        // ffprobe cannot read animated WebP.
        return std::fs::read(path).unwrap().windows(4).filter(|bytes| *bytes == b"ANMF").count();
    }
    program::frames_of(path)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn all_names(folder: &Path) -> Vec<String> {
    let mut all = names(folder);
    for name in names(folder) {
        if folder.join(&name).is_dir() {
            all.extend(names(&folder.join(&name)).into_iter().map(|inner| format!("{name}/{inner}")));
        }
    }
    all
}

fn assert_refused(output: &Output, what: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {stderr}");
    assert!(stderr.contains("another run"), "{what}: {stderr}");
}

/// Checks that an output is complete and has the frames and steps of `clip`.
fn assert_complete(folder: &Path, [flag, name]: [&str; 2], piped: &[u8], clip: Clip) {
    let path = folder.join(name.trim_start_matches("hls:"));
    match (flag, name) {
        ("--trace", _) => {
            assert_eq!(Tensors::read(&path).expect("frames").shape()[0], clip.frames, "{name}");
        }
        ("--preview-out", "now.png") => {
            // The steps may be too short for a preview.
            let Ok(picture) = std::fs::read(&path) else { return };
            let shows_step = |step| {
                let comment = format!("AI-generated preview: step {step} of {}", clip.steps);
                picture.windows(comment.len()).any(|bytes| bytes == comment.as_bytes())
            };
            assert!((1..=clip.steps).any(shows_step), "{name}");
        }
        ("--preview-out", _) => {
            let last = format!("-of-{:03}.png", clip.steps);
            assert!(names(&path).iter().all(|name| name.ends_with(&last)), "{name}");
        }
        (_, "pipe.y4m") => assert_eq!(frames_in_y4m(piped), clip.frames),
        (_, name) if name.ends_with('/') => assert_eq!(names(&path).len(), clip.frames, "{name}"),
        (_, name) if name.starts_with("hls:") => {
            assert_eq!(frames_of(&path.join("index.m3u8")), clip.frames, "{name}");
        }
        (_, name) => assert_eq!(frames_of(&path), clip.frames, "{name}"),
    }
}

/// Starts a first run, then each other run twice, which must be refused. The first run must end with its own frames.
fn others_are_refused(targets: &[&Target], phase: Phase) {
    let folder = workplace();
    let folder = folder.path();
    let outputs: Vec<_> = targets.iter().flat_map(|target| target.first).collect();
    let first = First::start(folder, &outputs, phase);
    let before = all_names(folder);
    for target in targets {
        for other in target.others {
            for _ in 0..2 {
                // The second output of a refused run must not be kept either.
                let output = generate(folder, OTHER, other).args(["-o", "second.mp4"]).output().unwrap();
                assert_refused(&output, &format!("{:?}, {other:?}, {phase:?}", target.first));
            }
        }
    }
    if let Phase::Claimed = phase {
        assert_eq!(all_names(folder), before);
    }
    assert!(!all_names(folder).iter().any(|name| name.contains("second")), "{:?}", all_names(folder));
    let piped = first.finish(outputs.contains(&"pipe.y4m"));
    for target in targets {
        assert_complete(folder, target.first, &piped, FIRST);
    }
    let remaining = all_names(folder);
    assert!(!remaining.iter().any(|name| name.contains("part") || name.contains(".rushes")), "{remaining:?}");
}

/// The targets with different paths.
fn distinct() -> Vec<&'static Target> {
    TARGETS.iter().filter(|target| target.first[1] != "link.mp4" && target.first[1] != "steps").collect()
}

#[test]
fn a_run_on_an_output_that_another_run_writes_is_refused() {
    others_are_refused(&distinct(), Phase::Writing);
}

#[test]
fn a_run_on_an_output_that_another_run_has_claimed_is_refused() {
    let targets: Vec<_> = TARGETS
        .iter()
        .filter(|target| ["link.mp4", "steps", "hls:live"].contains(&target.first[1]))
        .collect();
    others_are_refused(&targets, Phase::Claimed);
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn every_output_alone_in_every_phase() {
    for target in &TARGETS {
        for phase in [Phase::Claimed, Phase::Writing] {
            others_are_refused(&[target], phase);
        }
    }
}

/// Starts several runs on one output at the same time. Some may be refused, and the final output must be complete.
fn race(target: [&str; 2], runs: usize) {
    let folder = workplace();
    let folder = folder.path();
    let clips: Vec<_> = (0..runs).map(|run| Clip { frames: 5 + 4 * run, steps: 1 + run }).collect();
    let started: Vec<_> = clips
        .iter()
        .enumerate()
        .map(|(run, clip)| {
            let mut command = generate(folder, *clip, &target);
            let second = format!("second-{run}.y4m");
            command.args(["-o", &second]).stdout(Stdio::null()).stderr(Stdio::piped());
            (second, *clip, command.spawn().unwrap())
        })
        .collect();
    let mut done = Vec::new();
    for (second, clip, child) in started {
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            assert_eq!(frames_of(&folder.join(second)), clip.frames);
            done.push(clip);
        } else {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{target:?}: {stderr}");
            // A run that starts after the end of another one finds its files.
            assert!(
                stderr.contains("another run") || stderr.contains("is not empty"),
                "{target:?}: {stderr}"
            );
            assert!(!folder.join(second).exists());
        }
    }
    assert!(!done.is_empty(), "{target:?}: all were refused");
    let is_complete =
        |clip: &Clip| std::panic::catch_unwind(|| assert_complete(folder, target, &[], *clip)).is_ok();
    assert!(done.iter().any(is_complete), "{target:?}: {:?}", all_names(folder));
    let remaining = all_names(folder);
    assert!(
        !remaining.iter().any(|name| name.contains("part") || name.contains(".rushes")),
        "{target:?}: {remaining:?}"
    );
}

#[test]
fn of_concurrent_runs_one_is_complete() {
    race(["-o", "a.mp4"], 3);
    race(["-o", "new/"], 3);
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn of_concurrent_runs_one_is_complete_for_every_output() {
    for _ in 0..5 {
        for target in
            TARGETS.iter().filter(|target| target.first[1] != "pipe.y4m" && target.first[1] != "steps")
        {
            race(target.first, 3);
        }
    }
}

/// A killed run claims nothing: the next run writes the output.
#[test]
fn the_outputs_of_a_killed_run_are_free() {
    let folder = workplace();
    let folder = folder.path();
    let targets = distinct();
    let outputs: Vec<_> = targets.iter().flat_map(|target| target.first).collect();
    let mut first = First::start(folder, &outputs, Phase::Writing);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let piped = First::start(folder, &outputs, Phase::Claimed).finish(true);
    for target in targets {
        assert_complete(folder, target.first, &piped, FIRST);
    }
    let remaining = all_names(folder);
    assert!(!remaining.iter().any(|name| name.contains("part") || name.contains(".rushes")), "{remaining:?}");
}
