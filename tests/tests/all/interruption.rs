//! Ctrl-C in every phase: the exit code, what is said and what is left on disk.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

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

/// Starts a run, waits until `phase` has made some progress, and presses Ctrl-C. Gives exit code and all that was
/// said on standard error after that.
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
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "the run ended before it was in {phase}");
        // The text is encoded in one go, so its beginning has to do.
        let is_under_way = phase == "text" || line.contains("\"progress\"");
        if is_under_way && line.contains(&format!("\"phase\":\"{phase}\"")) {
            break;
        }
    }
    let interrupted = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(interrupted.success());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

fn left_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("work")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn while_encoding_the_text_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--steps", "1000", "-o", "a.mp4", "-o", "frames/", "-o", "hls:live", "-o", "a.webp"];
    let (code, said) = interrupt_in("text", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("stopped while") && said.contains("nothing was kept"), "{said}");
    assert!(left_in(folder.path()).is_empty(), "{:?}", left_in(folder.path()));
}

#[test]
fn while_denoising_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--size", "128x64", "--frames", "33", "--steps", "1000", "--trace", "t.safetensors"];
    let (code, said) = interrupt_in("denoise", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("stopped while denoising"), "{said}");
    assert!(left_in(folder.path()).is_empty(), "{:?}", left_in(folder.path()));
}

#[test]
fn while_decoding_the_part_that_plays_is_kept_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--size", "128x64", "--frames", "4001", "--steps", "1", "--guidance", "1"];
    let (code, said) = interrupt_in("decode", folder.path(), &arguments);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("stopped while decoding"), "{said}");
    assert_eq!(left_in(folder.path()), ["out.part.mp4"], "{said}");
    assert!(said.contains("out.part.mp4"), "{said}");
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(folder.path().join("work/out.part.mp4"))
        .output()
        .expect("ffprobe: `make setup` installs it");
    let frames: usize = String::from_utf8_lossy(&probed.stdout).trim().trim_matches(',').parse().unwrap();
    assert!((1..4001).contains(&frames), "{frames}");
}
