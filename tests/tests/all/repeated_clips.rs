//! `rushes generate --like` and `rushes verify` on every container, as written and after `ffmpeg -c copy`.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{CLIP, done, latents, run, stderr};
use bundle::units::Seed;
use runtime::job::{ClipRecord, LatentDigest};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tests::edit;
use tests::program::event;

/// A clip in every container that carries a record, and its result.
fn clips(folder: &Path) -> Output {
    let outputs =
        ["-o", "a.mp4", "-o", "a.mkv", "-o", "a.webm", "-o", "frames/", "-o", "a.gif", "-o", "a.y4m"];
    let common = ["generate", "a boat on the lake, 猫", "--seed", "7", "--sampler", "dpmpp", "--json"];
    done(folder, &[&common, &CLIP[..], &outputs].concat())
}

fn ffmpeg(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("ffmpeg");
    command.current_dir(folder).args(["-v", "error", "-y"]).args(arguments);
    let output = command.output().expect("ffmpeg: `make setup` installs it");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_container_repeats_the_clip_also_after_a_copy_by_ffmpeg() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let made = clips(path);
    let copies = [("a.mp4", "c1.mp4"), ("a.mp4", "c2.mkv"), ("a.mkv", "c3.mp4"), ("a.webm", "c4.webm")];
    for (from, to) in copies {
        ffmpeg(path, &["-i", from, "-c", "copy", to]);
    }
    edit::copy_folder(&path.join("frames"), &path.join("copied"));
    let clips =
        ["a.mp4", "a.mkv", "a.webm", "a.gif", "frames", "copied", "c1.mp4", "c2.mkv", "c3.mp4", "c4.webm"];
    for clip in clips {
        let verified = done(path, &["verify", clip, "--json"]);
        let value = event(&verified, "verified");
        assert_eq!((&value["same"], &value["steps"]), (&true.into(), &6.into()), "{clip}: {value}");
        assert_eq!(value["differs_from_step"], Value::Null, "{clip}");
    }
    let expected = std::fs::read(path.join("a.y4m")).unwrap();
    for clip in ["a.mp4", "frames", "c2.mkv", "c3.mp4", "c4.webm"] {
        let like = done(path, &["generate", "--like", clip, "-o", "b.y4m", "--json"]);
        assert_eq!(latents(&like), latents(&made), "{clip}");
        assert!(std::fs::read(path.join("b.y4m")).unwrap() == expected, "{clip}");
        assert!(!stderr(&like).contains("warning"), "{clip}: {like:?}");
    }
}

#[test]
fn arguments_override_the_settings_of_the_clip() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let made = clips(path);
    let like = |arguments: &[&str]| {
        event(&done(path, &[&["generate", "--like", "a.mp4", "--json"], arguments].concat()), "done")
    };
    let steps = like(&["--steps", "4"]);
    assert_eq!((&steps["steps"], &steps["seed"]), (&4.into(), &7.into()));
    assert_eq!(steps["latents"].as_array().unwrap().len(), 4);
    let seed = like(&["--seed", "8"]);
    assert_eq!((&seed["steps"], &seed["seed"]), (&6.into(), &8.into()));
    assert_ne!(seed["latents"][0], latents(&made)[0]);
    let prompt = like(&["a red fox"]);
    assert_ne!(prompt["latents"][0], latents(&made)[0]);
    assert_eq!(like(&["--size", "48x32"])["size"], "48x32");
    // The overridden settings are those of the new clip.
    let again = like(&["--steps", "4", "-o", "b.mkv"]);
    assert_eq!(again["latents"], steps["latents"]);
    let third = done(path, &["generate", "--like", "b.mkv", "--json"]);
    assert_eq!(event(&third, "done")["latents"], steps["latents"]);
}

#[test]
fn a_clip_without_a_record_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let common = ["generate", "a boat", "--seed", "7", "--no-metadata", "-o", "a.mp4", "-o", "frames/"];
    done(path, &[&common, &CLIP[..]].concat());
    ffmpeg(path, &["-i", "a.mp4", "-map_metadata", "-1", "-c", "copy", "-bitexact", "bare.mp4"]);
    std::fs::write(path.join("notes.txt"), "text").unwrap();
    let files = ["a.mp4", "frames", "bare.mp4", "notes.txt", "absent.mp4"];
    for clip in files {
        for command in [&["generate", "-o", "b.mp4", "--like"][..], &["verify"]] {
            let output = run(path, &[command, &[clip]].concat());
            assert_eq!(output.status.code(), Some(2), "{clip}: {output:?}");
            let error = stderr(&output);
            let problem = if clip == "absent.mp4" { "cannot read absent.mp4" } else { "carries no record" };
            assert!(error.contains(problem), "{clip}: {error}");
            assert!(error.contains("why: ") && error.contains("fix: give"), "{clip}: {error}");
            assert!(!path.join("b.mp4").exists());
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64url without padding.
fn encoded(bytes: &[u8]) -> String {
    let digit = |index: u32| char::from(ALPHABET[index as usize & 63]);
    let block = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(*three.get(index).unwrap_or(&0)));
        (0..=three.len()).map(|index| digit(bits >> (18 - 6 * index))).collect::<String>()
    };
    bytes.chunks(3).map(block).collect()
}

fn decoded(text: &str) -> Vec<u8> {
    let value = |byte: &u8| ALPHABET.iter().position(|digit| digit == byte).unwrap() as u32;
    let block = |four: &[u8]| {
        let bits = (0..4).fold(0, |bits, index| bits << 6 | four.get(index).map_or(0, value));
        bits.to_be_bytes()[1..four.len()].to_vec()
    };
    text.as_bytes().chunks(4).flat_map(block).collect()
}

/// Writes a copy of `a.mkv` with another text as its record.
fn rewritten(folder: &Path, edit: impl FnOnce(String) -> String) {
    let probed = Command::new("ffprobe")
        .current_dir(folder)
        .args(["-v", "error", "-show_entries", "format_tags=RUSHES_JOB", "-of", "default=nw=1:nk=1", "a.mkv"])
        .output()
        .unwrap();
    let record = String::from_utf8(decoded(text(&probed).trim())).unwrap();
    let tag = format!("RUSHES_JOB={}", encoded(edit(record).as_bytes()));
    ffmpeg(folder, &["-i", "a.mkv", "-c", "copy", "-metadata", &tag, "-metadata", "SYNOPSIS=", "edited.mkv"]);
}

/// Writes a copy of `a.mkv` with a changed record, which has the right digest.
fn edited(folder: &Path, edit: impl FnOnce(&mut ClipRecord)) {
    rewritten(folder, |text| {
        let mut record = ClipRecord::from_json(&text).unwrap();
        edit(&mut record);
        record.stored().json.unwrap()
    });
}

/// Writes a copy of `a.mkv` whose record is changed and keeps its digest.
fn damaged(folder: &Path, edit: impl FnOnce(&mut Value)) {
    rewritten(folder, |text| {
        let mut json: Value = serde_json::from_str(&text).unwrap();
        edit(&mut json["record"]);
        json.to_string()
    });
}

#[test]
fn verify_names_the_first_step_that_differs_and_the_likely_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    clips(path);
    let verify = |arguments: &[&str]| run(path, &[&["verify", "edited.mkv"], arguments].concat());
    edited(path, |_| ());
    let output = verify(&[]);
    assert_eq!(
        (output.status.code(), text(&output).trim()),
        (Some(0), "the same bits after each of 6 steps")
    );

    let other = || LatentDigest("0123456789abcdef".into());
    edited(path, |record| record.latents[3] = other());
    let output = verify(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).starts_with("differs from step 4 on"), "{output:?}");
    assert!(text(&output).contains("may have been changed"), "{output:?}");
    let value = event(&run(path, &["verify", "edited.mkv", "--json"]), "verified");
    assert_eq!((&value["same"], &value["differs_from_step"]), (&false.into(), &4.into()));

    // Other conditions are the likely reason.
    edited(path, |record| {
        record.latents[0] = other();
        record.conditions.program = "0.0.1".into();
    });
    let output = verify(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let expected = format!("rushes {} instead of 0.0.1", env!("CARGO_PKG_VERSION"));
    assert!(text(&output).contains("differs from step 1 on; the likely reason: "), "{output:?}");
    assert!(text(&output).contains(&expected), "{output:?}");

    // Another seed is another clip, and more digests than steps are not compared for ever.
    edited(path, |record| record.spec.seed = Seed(8));
    assert!(text(&verify(&[])).starts_with("differs from step 1 on"));
    edited(path, |record| record.latents.push(other()));
    let output = verify(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output).starts_with("differs from step 7 on"), "{output:?}");

    let refused = |why: &str| {
        let output = verify(&[]);
        assert_eq!(output.status.code(), Some(2), "{why}: {output:?}");
        assert!(stderr(&output).contains(why), "{why}: {output:?}");
    };
    edited(path, |record| record.spec.model.digest = "ab".repeat(32));
    refused("was made with");
    edited(path, |record| record.spec.steps = 0);
    refused("--steps cannot be 0");
    edited(path, |record| record.latents.clear());
    refused("no digests");
    damaged(path, |record| record["spec"]["version"] = 9.into());
    refused("version is 9");
    damaged(path, |record| record["unknown"] = 1.into());
    refused("unknown");
    damaged(path, |record| record["spec"]["seed"] = 8.into());
    refused("does not have the digest that it names");
}

#[test]
fn verify_uses_the_threads_of_the_clip_and_reports_others() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: this machine has one core");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let common = ["generate", "a boat", "--seed", "7", "--threads", "1", "-o", "a.mkv"];
    done(path, &[&common, &CLIP[..]].concat());
    let output = done(path, &["verify", "a.mkv"]);
    assert_eq!(text(&output).trim(), "the same bits after each of 6 steps");
    // Whether these bits depend on the threads is up to ONNX Runtime; that they differ is said in both cases.
    let output = run(path, &["verify", "a.mkv", "--threads", "2"]);
    assert!(text(&output).contains("threads 2 instead of 1"), "{output:?}");
    assert_eq!(output.status.code(), Some(i32::from(text(&output).starts_with("differs from step"))));
}

#[test]
fn a_clip_of_its_first_steps_is_repeated_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let common = ["generate", "a boat", "--seed", "7", "--json"];
    let stop = ["--job-dir", "job", "--stop-after", "2", "-o", "a.mkv", "-o", "a.y4m"];
    let made = done(path, &[&common, &CLIP[..], &stop].concat());
    let like = done(path, &["generate", "--like", "a.mkv", "-o", "b.y4m", "--json"]);
    assert_eq!(latents(&like), latents(&made));
    assert!(std::fs::read(path.join("b.y4m")).unwrap() == std::fs::read(path.join("a.y4m")).unwrap());
    let output = done(path, &["verify", "a.mkv"]);
    assert_eq!(text(&output).trim(), "the same bits after each of 2 steps");
    // All steps of it.
    let whole =
        done(path, &["generate", "--like", "a.mkv", "--stop-after", "6", "--job-dir", "all", "--json"]);
    assert_eq!(latents(&whole).len(), 6);
    assert_eq!(latents(&whole)[..2], latents(&made)[..]);
}
