//! Texts, seeds and file names that begin with a dash.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::process::Output;
use tests::golden;
use tests::program::{event, rushes};

fn exported(folder: &Path) {
    let checkpoint = golden::case("two-experts").checkpoint();
    let output = rushes(folder).arg("export").arg(checkpoint).args(["--out", "b"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    rushes(folder)
        .arg("generate")
        .args(arguments)
        .args(["--bundle", "b", "--size", "160x96", "--frames", "1", "--steps", "2", "--json"])
        .output()
        .unwrap()
}

#[test]
fn texts_that_begin_with_a_dash_are_texts() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    let cases: [&[&str]; 9] = [
        &["a fox", "--negative", "-blurry"],
        &["a fox", "--negative", "-o, -h, ugly"],
        &["a fox", "--negative=--blurry"],
        &["a fox", "--negative", "-模糊"],
        &["- a fox"],
        &["-5 degrees and snow"],
        &["--- a fox ---"],
        &["-o", "-a.mp4", "-- a fox"],
        &["a fox", "--caption", "- Hello"],
    ];
    for arguments in cases {
        let output = run(folder.path(), arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        event(&output, "done");
    }
    assert!(folder.path().join("-a.mp4").is_file());
    // Both spellings give the same text.
    let trace = |arguments: &[&str]| {
        let output = run(folder.path(), &[arguments, &["--seed", "1", "--trace", "t.safetensors"]].concat());
        assert!(output.status.success(), "{output:?}");
        std::fs::read(folder.path().join("t.safetensors")).unwrap()
    };
    let joined = trace(&["a fox", "--negative=-blurry", "--guidance", "3"]);
    assert_eq!(trace(&["a fox", "--negative", "-blurry", "--guidance", "3"]), joined);
    assert_ne!(trace(&["a fox", "--negative", "blurry mess", "--guidance", "3"]), joined);
}

#[test]
fn a_text_that_looks_like_a_flag_is_refused_with_the_right_spelling() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    for (arguments, hint) in [
        (&["-blurry"][..], "last, after `--`"),
        (&["a fox", "--negative", "--blurry"], "--flag=TEXT"),
        (&["a fox", "--negative", "--steps", "2"], "a value is required for '--negative <TEXT>'"),
        (&["a fox", "--stpes", "3"], "a similar argument exists: '--steps'"),
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let error = event(&output, "error").to_string();
        assert!(error.contains(hint) && !error.contains("as a value, use"), "{arguments:?}: {error}");
    }
    // The suggested spelling works.
    let output = rushes(folder.path())
        .args(["generate", "--bundle", "b", "--size", "48x32", "--frames", "1", "--steps", "2"])
        .args(["--negative=--blurry", "--json", "--", "-blurry"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_seed_of_minus_one_is_a_new_seed_each_time_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    let seeds: Vec<u64> = (0..3)
        .map(|_| {
            let done = event(&run(folder.path(), &["a fox", "--seed", "-1"]), "done");
            done["seed"].as_u64().unwrap()
        })
        .collect();
    assert!(seeds.iter().any(|seed| *seed != seeds[0]), "{seeds:?}");
    let output = rushes(folder.path())
        .args(["generate", "a fox", "--bundle", "b", "--size", "48x32", "--frames", "1", "--seed=-1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let seed = text.split("(seed ").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("seed {seed}")), "{output:?}");
    for wrong in ["-2", "1.5", "-blurry", "18446744073709551616"] {
        let output = run(folder.path(), &["a fox", "--seed", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
        let error = event(&output, "error");
        assert!(error["what"].as_str().unwrap().contains("--seed"), "{error}");
        assert!(error["fix"].as_str().unwrap().contains("-1"), "{error}");
    }
}

#[test]
fn other_commands_and_numbers_name_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    exported(folder.path());
    std::fs::write(folder.path().join("-p.txt"), "a fox\n").unwrap();
    for (arguments, flag) in [
        (&["calibrate", "b", "--prompts", "-p.txt", "--seed", "-1"][..], "--seed"),
        (&["calibrate", "b", "--prompts", "-p.txt", "--samples", "-1"], "--samples"),
        (&["calibrate", "b", "--prompts", "-absent.txt"], "-absent.txt"),
        (&["quantize", "b", "--clips", "-1"], "--clips"),
        (&["bench", "quality", "--bundle", "b", "--steps", "-1"], "--steps"),
        (&["generate", "a fox", "--bundle", "b", "--frames", "-1"], "--frames"),
        (&["generate", "a fox", "--bundle", "b", "--fps", "-24"], "--fps"),
        (&["generate", "a fox", "--bundle", "b", "--output-timeout", "-1"], "--output-timeout"),
        (&["export", "b", "--out", "c", "--weights", "-f32"], "--weights"),
    ] {
        let output = rushes(folder.path()).args(arguments).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let what = event(&output, "error")["what"].as_str().unwrap().to_owned();
        assert!(what.contains(flag), "{arguments:?}: {what}");
    }
}
