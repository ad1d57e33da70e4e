//! Ctrl-C in every phase: the exit code, the message and the files that are kept.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tests::golden;
use tests::program::rushes;

const CASE: &str = "moving-clip";

fn bundle(folder: &Path) -> std::path::PathBuf {
    let bundle = folder.join("bundle");
    let checkpoint = golden::case(CASE).checkpoint();
    let output = rushes(folder).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    bundle
}

/// Starts a run, waits for progress in `phase`, and sends SIGINT. Returns the exit code and the rest of standard error.
fn interrupt_in(phase: &str, folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let bundle = bundle(folder);
    let work = folder.join("work");
    std::fs::create_dir(&work).unwrap();
    let mut child: Child = rushes(&work)
        .arg("generate")
        .arg("a boat")
        .args(arguments)
        .arg("--bundle")
        .arg(bundle)
        .args(["--progress", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended before {phase}");
        // The text is encoded in one step, which reports no progress.
        let is_running = phase == "text" || line.contains("\"progress\"");
        if is_running && line.contains(&format!("\"phase\":\"{phase}\"")) {
            break;
        }
    }
    let interrupted = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(interrupted.success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("work")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_interrupt_while_encoding_the_text_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--steps", "1000", "-o", "a.mp4", "-o", "frames/", "-o", "hls:live", "-o", "a.webp"];
    let (code, stderr) = interrupt_in("text", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("stopped while") && stderr.contains("nothing was kept"), "{stderr}");
    assert!(files_in(folder.path()).is_empty(), "{:?}", files_in(folder.path()));
}

#[test]
fn an_interrupt_while_denoising_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--size", "128x64", "--frames", "33", "--steps", "1000", "--trace", "t.safetensors"];
    let (code, stderr) = interrupt_in("denoise", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("stopped while denoising"), "{stderr}");
    assert!(files_in(folder.path()).is_empty(), "{:?}", files_in(folder.path()));
}

#[test]
fn an_interrupt_while_decoding_keeps_and_names_the_playable_part() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--size", "128x64", "--frames", "4001", "--steps", "1", "--guidance", "1"];
    let (code, stderr) = interrupt_in("decode", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("stopped while decoding"), "{stderr}");
    assert_eq!(files_in(folder.path()), ["out.part.mp4"], "{stderr}");
    assert!(stderr.contains("out.part.mp4"), "{stderr}");
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(folder.path().join("work/out.part.mp4"))
        .output()
        .expect("ffprobe: `make setup` installs it");
    let frames: usize = String::from_utf8_lossy(&probed.stdout).trim().trim_matches(',').parse().unwrap();
    assert!((1..4001).contains(&frames), "{frames}");
}
