//! Outputs: several in one run, standard output, readers that close, runs that are killed.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use tests::golden;
use tests::program::{event, frames_of, rushes};

const CASE: &str = "moving-clip";

static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case(CASE).checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
});

/// A short run with these arguments, in a working folder.
fn generate(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = rushes(folder);
    command.args(["generate", "a boat", "--size", "64x32", "--steps", "1", "--guidance", "1"]);
    command.arg("--bundle").arg(&BUNDLE.1).args(arguments);
    command
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn one_run_writes_many_outputs_and_frames_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--frames", "9", "-o", "a.mp4", "-o", "a.gif", "-o", "frames/", "-o", "-", "--json"];
    let output = generate(folder.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.starts_with(b"YUV4MPEG2 W64 H32 F16:1 "), "standard output contains only frames");
    assert_eq!(output.stdout.windows(6).filter(|bytes| bytes == b"FRAME\n").count(), 9);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let done = stderr.lines().find(|line| line.contains("\"done\"")).unwrap();
    let done: serde_json::Value = serde_json::from_str(done).unwrap();
    assert_eq!(done["outputs"].as_array().unwrap().len(), 4, "{done}");
    assert!(done["first_frame_encoded_seconds"].as_f64().unwrap() < done["total_seconds"].as_f64().unwrap());
    assert_eq!(names_in(folder.path()), ["a.gif", "a.mp4", "frames"]);
    assert_eq!(frames_of(&folder.path().join("a.mp4")), 9);
    assert_eq!(names_in(&folder.path().join("frames")).len(), 9);
}

#[test]
fn wrong_outputs_and_files_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("full")).unwrap();
    std::fs::write(folder.path().join("full/note"), "mine").unwrap();
    let cases: [(&[&str], &str); 11] = [
        (&["-o", "a.mp4", "-o", "a.mp4"], "twice"),
        (&["-o", "a.mp4", "-o", "full/"], "is not empty"),
        (&["-o", "window"], "window"),
        (&["-o", "a.mp4", "-o", "a.xyz"], "a.xyz"),
        (&["--logo", "logo.png"], "--logo"),
        (&["--logo", "absent.png@top-left"], "absent.png"),
        (&["--audio", "absent.wav"], "absent.wav"),
        (&["--audio", "absent.wav", "-o", "a.gif"], "absent.wav"),
        (&["--key", "red", "--background", "b.png"], "--key"),
        (&["--caption", "absent.srt"], "absent.srt"),
        (&["--output-fps", "0"], "0"),
    ];
    for (arguments, named) in cases {
        let output = generate(folder.path(), arguments).env_remove("DISPLAY").arg("--json").output().unwrap();
        assert!(matches!(output.status.code(), Some(2 | 4)), "{arguments:?}: {output:?}");
        let error = event(&output, "error").to_string();
        assert!(error.contains(named), "{arguments:?}: {error}");
        assert_eq!(names_in(folder.path()), ["full"], "{arguments:?}");
    }
}

#[test]
fn a_clip_with_another_frame_rate_is_tagged_with_the_method() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.srt"), "1\n00:00:00,000 --> 00:00:00,500\nA < B\n").unwrap();
    let arguments =
        ["--frames", "9", "--output-fps", "24", "--output-fps-by", "repeat", "--caption", "a.srt"];
    let output = generate(folder.path(), &arguments).args(["--no-mark", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let done = event(&output, "done");
    assert_eq!((&done["frames"], &done["fps"]), (&14.into(), &24.into()), "{done}");
    let clip = folder.path().join("out.mp4");
    assert_eq!(frames_of(&clip), 14);
    let probed = Command::new("ffprobe").args(["-v", "error", "-show_format"]).arg(&clip).output().unwrap();
    let tags = String::from_utf8_lossy(&probed.stdout).into_owned();
    assert!(tags.contains("24 fps made of 16 by repeating") && !tags.contains("AI-generated"), "{tags}");
}

#[test]
fn a_reader_of_standard_output_that_closes_is_an_error_and_the_file_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let mut child: Child = generate(folder.path(), &["--frames", "81", "-o", "-", "-o", "clip.mp4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 1000]).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("standard output") && stderr.contains("Broken pipe"), "{stderr}");
    assert!(stderr.contains("complete: clip.mp4"), "{stderr}");
    assert_eq!(frames_of(&folder.path().join("clip.mp4")), 81);
}

#[test]
fn a_full_disk_is_reported_with_the_complete_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = generate(folder.path(), &["--frames", "9", "-o", "-", "-o", "clip.mkv"])
        .stdout(full)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("disk is full") && stderr.contains("complete: clip.mkv"), "{stderr}");
    assert_eq!(frames_of(&folder.path().join("clip.mkv")), 9);
}

/// Starts a long run, waits until `frames` frames are decoded, and sends a signal. Returns the exit code and the rest
/// of standard error.
fn stopped(folder: &Path, outputs: &[&str], frames: u64, signal: &str) -> (Option<i32>, String) {
    let mut arguments = vec!["--frames", "1001", "--progress", "json"];
    outputs.iter().for_each(|output| arguments.extend(["-o", output]));
    let mut child =
        generate(folder, &arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended before its {frames} frames");
        let Ok(progress) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        if progress["phase"] == "decode" && progress["done"].as_u64() >= Some(frames) {
            break;
        }
    }
    assert!(Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

#[test]
fn a_killed_run_leaves_playable_files() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.y4m", "hls:live"];
    let (code, _) = stopped(folder.path(), &outputs, 101, "-KILL");
    assert_eq!(code, None);
    // Without this line ffprobe would wait for more segments.
    let playlist = folder.path().join("live/index.m3u8");
    let listed = std::fs::read_to_string(&playlist).unwrap();
    std::fs::write(&playlist, listed + "#EXT-X-ENDLIST\n").unwrap();
    let parts = ["a.part.mp4", "a.part.mkv", "a.part.webm", "a.part.gif", "a.part.y4m", "live/index.m3u8"];
    for part in parts {
        let frames = frames_of(&folder.path().join(part));
        // Frames before the encoder, and the last fragment are lost: half a second, or a second of a playlist.
        let least = if part.starts_with("live") { 101 - 8 - 32 } else { 101 - 8 - 16 };
        assert!((least..1001).contains(&frames), "{part}: {frames} frames");
    }
}

#[test]
fn an_interrupted_run_closes_every_output_and_names_the_kept_files() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stderr) = stopped(folder.path(), &["a.mp4", "frames/", "hls:live"], 21, "-INT");
    assert_eq!(code, Some(130), "{stderr}");
    for kept in ["a.part.mp4", "frames.part", "live/index.m3u8"] {
        assert!(stderr.contains(kept), "{kept}: {stderr}");
    }
    assert_eq!(names_in(folder.path()), ["a.part.mp4", "frames.part", "live"]);
    let playlist = std::fs::read_to_string(folder.path().join("live/index.m3u8")).unwrap();
    assert!(playlist.ends_with("#EXT-X-ENDLIST\n"), "{playlist}");
    assert!(frames_of(&folder.path().join("live/index.m3u8")) >= 21);
}

/// The reader of a named pipe does not read; Ctrl-C does not wait for the output timeout.
#[test]
fn an_interrupted_run_does_not_wait_for_a_stalled_reader() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.y4m");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let outputs = ["pipe.y4m", "a.mp4"];
    let mut arguments = vec!["--frames", "1001", "--progress", "json", "--output-timeout", "3600"];
    outputs.iter().for_each(|output| arguments.extend(["-o", output]));
    let mut child =
        generate(folder.path(), &arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let part = folder.path().join("a.part.mp4");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !(line.contains("\"progress\"") && line.contains("\"decode\"")) {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended early");
    }
    assert!(Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap().success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(frames_of(&part) > 0, "{rest}");
}
