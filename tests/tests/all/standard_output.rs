//! If the clip is written to standard output, nothing else is, however the run ends.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tests::golden;
use tests::program::rushes;

fn exported(folder: &Path) {
    let checkpoint = golden::case("two-experts").checkpoint();
    let output = rushes(folder).arg("export").arg(checkpoint).args(["--out", "b"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn generate(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = rushes(folder);
    command.args(["generate", "a fox", "--bundle", "b", "--size", "48x32", "--steps", "4", "--seed", "1"]);
    command.args(arguments);
    command
}

/// The event with this name on standard error.
fn stderr_event(output: &Output, event: &str) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found: Vec<_> = lines.filter(|line| line["event"] == event).collect();
    assert_eq!(found.len(), 1, "`{event}` in:\n{text}");
    found[0].clone()
}

/// Checks that bytes are frames of a 48x32 y4m and nothing else. Returns the number of frames.
fn frames(y4m: &[u8]) -> usize {
    if y4m.is_empty() {
        return 0;
    }
    let head = y4m.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert!(y4m.starts_with(b"YUV4MPEG2 W48 H32 "), "{:?}", String::from_utf8_lossy(&y4m[..head]));
    let frame = b"FRAME\n".len() + 48 * 32 * 3 / 2;
    assert_eq!((y4m.len() - head) % frame, 0, "{} bytes are not a whole number of frames", y4m.len());
    assert!(y4m[head..].chunks(frame).all(|frame| frame.starts_with(b"FRAME\n")));
    (y4m.len() - head) / frame
}

/// Every name of standard output, which is a pipe in these tests.
const NAMES: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

#[test]
fn a_successful_run_writes_only_the_clip_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    for name in NAMES {
        let arguments = ["--frames", "5", "-o", name, "-o", "a.gif", "--json", "--progress", "json"];
        let output = generate(folder.path(), &arguments).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        assert_eq!(frames(&output.stdout), 5, "{name}");
        assert_eq!(stderr_event(&output, "done")["output"], "-", "{name}");
    }
    // Without --json, and with a warning.
    let prompt = "a fox ".repeat(600);
    let output = rushes(folder.path())
        .args(["generate", &prompt, "--bundle", "b", "--size", "48x32", "--steps", "4", "--frames", "5"])
        .args(["-o", "-"])
        .output()
        .unwrap();
    assert_eq!(frames(&output.stdout), 5);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("warning:") && text.contains("standard output: 5 frames"), "{text}");
}

#[test]
fn errors_and_wrong_usage_are_reported_on_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    let cases: [(&[&str], i32); 7] = [
        (&["--frames", "0"], 2),
        (&["--frames", "many"], 2),
        (&["--colour", "red"], 2),
        (&["--steps"], 2),
        (&["--memory-budget", "100kB"], 3),
        (&["-o", "no/such/folder/a.mp4"], 2),
        (&["--trace", "-"], 2),
    ];
    for name in NAMES {
        for (arguments, code) in cases {
            let output = generate(folder.path(), &["-o", name, "--json"]).args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}: {output:?}");
            assert!(output.stdout.is_empty(), "{name} {arguments:?}: {output:?}");
            assert_eq!(stderr_event(&output, "error")["exit_code"], code, "{name} {arguments:?}");
        }
    }
    // In every spelling of the flag.
    for given in [&["-o-"][..], &["--output=-"], &["--output", "-"], &["-o=-"]] {
        let output = generate(folder.path(), given).args(["--json", "--frames", "0"]).output().unwrap();
        assert!(output.stdout.is_empty(), "{given:?}: {output:?}");
        stderr_event(&output, "error");
    }
    // Without a clip on standard output, they are reported there.
    let output = generate(folder.path(), &["-o", "a.mp4", "--json", "--frames", "0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#""event":"error""#), "{output:?}");
}

/// Another output fails during the run, which fails the run; then SIGINT during the output of frames.
#[test]
fn a_failed_or_interrupted_run_writes_whole_frames() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    std::os::unix::fs::symlink("/dev/full", folder.path().join("full.part.y4m")).unwrap();
    let arguments = ["--frames", "5", "-o", "-", "-o", "full.y4m", "--json"];
    let output = generate(folder.path(), &arguments).output().unwrap();
    // The link is refused, or the write to it fails.
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    assert!(matches!(frames(&output.stdout), 0 | 5), "{output:?}");
    stderr_event(&output, "error");

    let arguments = ["--frames", "4001", "--guidance", "1", "-o", "-", "--json"];
    let mut child =
        generate(folder.path(), &arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut clip = vec![0; 10_000];
    out.read_exact(&mut clip).unwrap();
    let sent = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
    out.read_to_end(&mut clip).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!((1..4001).contains(&frames(&clip)), "{}", frames(&clip));
    assert_eq!(stderr_event(&output, "error")["class"], "interrupted", "{output:?}");
}

/// A named pipe that standard output is open on, as `rushes … -o p.y4m >p.y4m`.
#[test]
fn a_named_pipe_that_is_standard_output_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    let pipe = folder.path().join("p.y4m");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let run = |arguments: &[&str]| {
        // Opened for reading and writing, so that opening does not block.
        let stdout = File::options().read(true).write(true).open(&pipe).unwrap();
        let reading = pipe.clone();
        let (ready, wait) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut file = File::open(reading).unwrap();
            ready.send(()).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        });
        wait.recv().unwrap();
        let output =
            generate(folder.path(), arguments).arg("--json").stdout(stdout).stderr(Stdio::piped()).output();
        (output.unwrap(), reader.join().unwrap())
    };
    let (output, read) = run(&["--frames", "5", "-o", "p.y4m"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(frames(&read), 5);
    stderr_event(&output, "done");
    let (output, read) = run(&["--frames", "5", "-o", "p.y4m", "-o", "-"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(read.is_empty());
    assert!(stderr_event(&output, "error")["what"].as_str().unwrap().contains("twice"), "{output:?}");
}

#[test]
fn files_that_are_written_at_the_end_are_refused_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    for arguments in [
        ["--trace", "-"],
        ["--trace", "/dev/stdout"],
        ["--trace", "/dev/fd/1"],
        ["--preview-out", "-"],
        ["--preview-out", "/dev/stdout"],
        ["--live", "-"],
    ] {
        let output = generate(folder.path(), &["--frames", "1"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("fix:"), "{arguments:?}: {output:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before, "{arguments:?}");
    }
    assert!(std::fs::symlink_metadata("/dev/stdout").unwrap().is_symlink(), "/dev/stdout was replaced");
}
