//! Several runs at once on one output: one of them writes it, the others are refused before they do anything.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use tests::golden::{self, Tensors};
use tests::program::{self, rushes};

/// What the first run makes, and what the others would: other numbers of frames and steps.
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

/// One output, and how other runs may name it.
struct Target {
    /// How the first run names it, and what the name is.
    first: [&'static str; 2],
    others: &'static [[&'static str; 2]],
}

/// Every kind of output that is a file or folder, with other spellings and other kinds of the same name.
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

/// A folder with what the targets need: a link, a folder and a link to it, two named pipes.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("inner")).unwrap();
    std::os::unix::fs::symlink("inner", at("to-inner")).unwrap();
    std::os::unix::fs::symlink("a.mp4", at("link.mp4")).unwrap();
    for pipe in ["pipe.y4m", "gate.y4m"] {
        assert!(Command::new("mkfifo").arg(at(pipe)).status().unwrap().success());
    }
    folder
}

/// When the other runs come.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing is written yet: the first run was stopped before its first step.
    Claimed,
    /// The first run has frames and waits for a reader.
    Writing,
}

/// A run that cannot end before its gate is opened: it also writes to a named pipe that nobody reads yet.
struct First {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
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
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mark = match phase {
            Phase::Claimed => "\"phase\":\"text\"",
            Phase::Writing => "\"phase\":\"decode\"",
        };
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains(mark) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "{outputs:?}: the run ended early: {all}");
            all.push_str(&line);
        }
        let first = Self { child, said, folder: folder.to_owned() };
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

    /// Lets it go on to its end. What its other pipe got, if it has one.
    fn finish(mut self, reads_pipe: bool) -> Vec<u8> {
        self.signal("-CONT");
        let gate = self.folder.join("gate.y4m");
        let gate = std::thread::spawn(move || std::fs::read(gate).unwrap());
        let piped = if reads_pipe { std::fs::read(self.folder.join("pipe.y4m")).unwrap() } else { vec![] };
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        assert_eq!(frames_in_y4m(&gate.join().unwrap()), FIRST.frames);
        piped
    }
}

fn frames_in_y4m(bytes: &[u8]) -> usize {
    bytes.windows(6).filter(|bytes| *bytes == b"FRAME\n").count()
}

fn frames_of(path: &Path) -> usize {
    if path.extension().is_some_and(|extension| extension == "webp") {
        // ffprobe does not read them.
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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{what}: {said}");
    assert!(said.contains("another run"), "{what}: {said}");
}

/// A target is whole, and the first run's.
fn assert_whole(folder: &Path, [flag, name]: [&str; 2], piped: &[u8], clip: Clip) {
    let path = folder.join(name.trim_start_matches("hls:"));
    match (flag, name) {
        ("--trace", _) => {
            assert_eq!(Tensors::read(&path).expect("frames").shape()[0], clip.frames, "{name}");
        }
        ("--preview-out", "now.png") => {
            // Steps this short may leave no time for one.
            let Ok(picture) = std::fs::read(&path) else { return };
            let is_ours = |step| {
                let comment = format!("AI-generated preview: step {step} of {}", clip.steps);
                picture.windows(comment.len()).any(|bytes| bytes == comment.as_bytes())
            };
            assert!((1..=clip.steps).any(is_ours), "{name}");
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

/// A first run on some targets; then the others, twice each; then the first ends with its own frames.
fn others_are_refused(targets: &[&Target], phase: Phase) {
    let folder = place();
    let folder = folder.path();
    let outputs: Vec<_> = targets.iter().flat_map(|target| target.first).collect();
    let first = First::start(folder, &outputs, phase);
    let before = all_names(folder);
    for target in targets {
        for other in target.others {
            for _ in 0..2 {
                // Its own clip beside it must not stay either.
                let output = generate(folder, OTHER, other).args(["-o", "beside.mp4"]).output().unwrap();
                assert_refused(&output, &format!("{:?}, {other:?}, {phase:?}", target.first));
            }
        }
    }
    if let Phase::Claimed = phase {
        assert_eq!(all_names(folder), before);
    }
    assert!(!all_names(folder).iter().any(|name| name.contains("beside")), "{:?}", all_names(folder));
    let piped = first.finish(outputs.contains(&"pipe.y4m"));
    for target in targets {
        assert_whole(folder, target.first, &piped, FIRST);
    }
    let left = all_names(folder);
    assert!(!left.iter().any(|name| name.contains("part") || name.contains(".rushes")), "{left:?}");
}

/// The targets of which no two are one place.
fn apart() -> Vec<&'static Target> {
    TARGETS.iter().filter(|target| target.first[1] != "link.mp4" && target.first[1] != "steps").collect()
}

#[test]
fn a_run_on_what_another_writes_is_refused_and_harms_nothing() {
    others_are_refused(&apart(), Phase::Writing);
}

#[test]
fn a_run_on_what_another_has_claimed_is_refused_and_harms_nothing() {
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

/// Starts several runs on one output at the same moment: whoever is refused is refused as above, and what is there in the
/// end is whole.
fn race(target: [&str; 2], runs: usize) {
    let folder = place();
    let folder = folder.path();
    let clips: Vec<_> = (0..runs).map(|run| Clip { frames: 5 + 4 * run, steps: 1 + run }).collect();
    let started: Vec<_> = clips
        .iter()
        .enumerate()
        .map(|(run, clip)| {
            let mut command = generate(folder, *clip, &target);
            let beside = format!("beside-{run}.y4m");
            command.args(["-o", &beside]).stdout(Stdio::null()).stderr(Stdio::piped());
            (beside, *clip, command.spawn().unwrap())
        })
        .collect();
    let mut done = Vec::new();
    for (beside, clip, child) in started {
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            assert_eq!(frames_of(&folder.join(beside)), clip.frames);
            done.push(clip);
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{target:?}: {said}");
            // One that comes after the end of another finds its pictures.
            assert!(said.contains("another run") || said.contains("is not empty"), "{target:?}: {said}");
            assert!(!folder.join(beside).exists());
        }
    }
    assert!(!done.is_empty(), "{target:?}: all were refused");
    let is_whole =
        |clip: &Clip| std::panic::catch_unwind(|| assert_whole(folder, target, &[], *clip)).is_ok();
    assert!(done.iter().any(is_whole), "{target:?}: {:?}", all_names(folder));
    let left = all_names(folder);
    assert!(
        !left.iter().any(|name| name.contains("part") || name.contains(".rushes")),
        "{target:?}: {left:?}"
    );
}

#[test]
fn of_runs_that_start_at_once_one_is_whole() {
    race(["-o", "a.mp4"], 3);
    race(["-o", "new/"], 3);
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn of_runs_that_start_at_once_one_is_whole_for_every_output() {
    for _ in 0..5 {
        for target in
            TARGETS.iter().filter(|target| target.first[1] != "pipe.y4m" && target.first[1] != "steps")
        {
            race(target.first, 3);
        }
    }
}

/// A run that was killed holds nothing: the next one writes.
#[test]
fn what_a_killed_run_had_is_free() {
    let folder = place();
    let folder = folder.path();
    let targets = apart();
    let outputs: Vec<_> = targets.iter().flat_map(|target| target.first).collect();
    let mut first = First::start(folder, &outputs, Phase::Writing);
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let piped = First::start(folder, &outputs, Phase::Claimed).finish(true);
    for target in targets {
        assert_whole(folder, target.first, &piped, FIRST);
    }
    let left = all_names(folder);
    assert!(!left.iter().any(|name| name.contains("part") || name.contains(".rushes")), "{left:?}");
}
