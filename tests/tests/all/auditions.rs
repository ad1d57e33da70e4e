//! `rushes audition`: takes of several seeds, their contact sheet, and finishing one of them.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, CLIP, contents, done, latents, run, stderr};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use tests::folder::names;
use tests::program::{event, rushes};
use tests::signals::send;

const TAKES: usize = 3;
/// Pixels between the cells of a sheet, and the side of a picture of 32 pixels, which is enlarged.
const GAP: usize = 8;
const SIDE: usize = 256;

fn audition(folder: &Path, arguments: &[&str]) -> std::process::Output {
    let common = ["audition", "a boat", "--seeds", "3", "--seed", "40", "--out", "takes", "--json"];
    run(folder, &[&common, &CLIP[..], arguments].concat())
}

/// The latents of a whole run with a seed.
fn whole(folder: &Path, seed: &str) -> Vec<serde_json::Value> {
    let common = ["generate", "a boat", "--json", "--seed", seed];
    latents(&done(folder, &[&common, &CLIP[..]].concat()))
}

/// A picture as RGB.
fn pixels(path: &Path) -> (usize, Vec<u8>) {
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=width,codec_name", "-of", "csv=p=0"])
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&probed.stdout).into_owned();
    let width = text.trim().strip_prefix("png,").unwrap().parse().unwrap();
    let raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
    let output = Command::new("ffmpeg").args(["-v", "error", "-i"]).arg(path).args(raw).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (width, output.stdout)
}

#[test]
fn a_take_goes_on_with_the_bits_of_a_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let output = audition(path, &[]);
    assert!(output.status.success(), "{output:?}");
    let value = event(&output, "auditioned");
    let seeds: Vec<u64> =
        value["takes"].as_array().unwrap().iter().map(|take| take["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [40, 41, 42]);
    assert_eq!(names(&path.join("takes")), ["sheet.png", "take-1", "take-2", "take-3"]);

    let (width, sheet) = pixels(&path.join("takes/sheet.png"));
    let columns = (width - GAP) / (SIDE + GAP);
    let height = sheet.len() / 3 / width;
    let strip = (height - GAP) / TAKES.div_ceil(columns) - GAP - SIDE;
    let pictures: Vec<Vec<u8>> = (0..TAKES)
        .map(|take| {
            let left = GAP + take % columns * (SIDE + GAP);
            let top = GAP + take / columns * (SIDE + strip + GAP);
            let row = |y: usize| &sheet[3 * (y * width + left)..3 * (y * width + left + SIDE)];
            (top..top + SIDE).flat_map(row).copied().collect()
        })
        .collect();
    for picture in &pictures {
        assert!(picture.iter().any(|byte| *byte != picture[0]), "a picture is blank");
        assert_eq!(pictures.iter().filter(|other| *other == picture).count(), 1, "two pictures are equal");
    }

    // All steps of a take ran on the first expert.
    let steps = value["steps"].as_u64().unwrap();
    let boundary = path.join("takes/take-2/boundary.safetensors");
    let text =
        stderr(&done(path, &["generate", "--resume", "takes/take-2", "--stop-after", "6", "-o", "b.gif"]));
    assert!(text.contains(&format!("goes on after step {steps} of 6")), "{text}");
    assert!(boundary.exists());
    for (take, seed) in [(2, "41"), (3, "42")] {
        let resumed = done(path, &["generate", "--resume", &format!("takes/take-{take}"), "--json"]);
        assert_eq!(latents(&resumed), whole(path, seed), "take {take}");
        assert_eq!(event(&resumed, "done")["seed"].to_string(), seed);
    }
}

#[test]
fn a_second_audition_into_the_same_folder_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert!(audition(path, &["--steps-of", "1"]).status.success());
    // Also if only a later take is in the way.
    for removed in [None, Some("takes/take-1")] {
        removed.into_iter().for_each(|take| std::fs::remove_dir_all(path.join(take)).unwrap());
        let before = contents(path);
        let output = audition(path, &["--steps-of", "1"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let error = event(&output, "error");
        assert!(error["why"].as_str().unwrap().contains("it holds a job already"), "{error}");
        assert!(contents(path) == before, "{:?}", names(&path.join("takes")));
        assert_eq!(path.join("takes/take-1").exists(), removed.is_none());
    }
    for (arguments, expected) in [
        (&["--steps-of", "0"][..], "--steps-of cannot be 0"),
        (&["--steps-of", "7"], "--steps-of cannot be 7"),
        (&["--seeds", "101"], "--seeds cannot be 101"),
    ] {
        let common = ["audition", "a boat", "--out", "other"];
        let output = run(path, &[&common, &CLIP[..], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(expected), "{output:?}");
        assert!(!path.join("other").exists());
    }
}

#[test]
fn an_interrupted_audition_leaves_takes_that_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let clip = ["--size", "256x256", "--frames", "5", "--steps", "12", "--guidance", "4,3", "--shift", "5"];
    let mut child = rushes(path)
        .args(["audition", "a boat", "--seeds", "20", "--seed", "40", "--steps-of", "3", "--out", "takes"])
        .args(clip)
        .args(["--progress", "json", "--bundle"])
        .arg(&BUNDLE.1)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended too early");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if value["phase"] == "takes" && value["done"].as_u64() >= Some(4) {
            break;
        }
    }
    send(&child, "TERM");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("stopped"), "{rest}");
    let takes = names(&path.join("takes"));
    assert!(takes.len() >= 2 && takes.len() < 20 && !takes.contains(&"sheet.png".to_owned()), "{takes:?}");
    // The first is whole, and the second was interrupted.
    for (take, seed) in [("takes/take-1", "40"), ("takes/take-2", "41")] {
        let resumed = done(path, &["generate", "--resume", take, "--stop-after", "6", "--json"]);
        let whole = ["generate", "a boat", "--seed", seed, "--job-dir", seed, "--stop-after", "6", "--json"];
        assert_eq!(latents(&resumed), latents(&done(path, &[&whole, &clip[..]].concat())), "{take}");
        let text = stderr(&resumed);
        assert!(take != "takes/take-1" || text.contains("goes on after step 3 of 12"), "{text}");
    }
}
