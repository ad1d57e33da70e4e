//! `--job-dir`, `--resume`, `--stop-after` and `--variation` of `rushes generate`, with a new process for every run.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, CLIP, contents, done, latents, run, stderr};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use tests::folder::names;
use tests::program::{event, rushes};
use tests::{edit, golden};

/// Steps of [`LONG`].
const ALL: usize = 12;

/// A clip whose steps take long enough to be interrupted between them.
const LONG: [&str; 14] = [
    "generate",
    "a boat",
    "--size",
    "256x256",
    "--frames",
    "5",
    "--steps",
    "12",
    "--guidance",
    "4,3",
    "--shift",
    "5",
    "--seed",
    "7",
];

/// A short clip.
fn generate(folder: &Path, arguments: &[&str]) -> std::process::Output {
    let common = ["generate", "a boat", "--seed", "7", "--json"];
    done(folder, &[&common, &CLIP[..], arguments].concat())
}

/// Starts a run in the folder `job`, and kills it once `steps` steps are done and it has written `file`.
fn killed(folder: &Path, steps: usize, file: &str) {
    let mut child = rushes(folder)
        .args(LONG)
        .args(["--job-dir", "job", "--progress", "json", "--bundle"])
        .arg(&BUNDLE.1)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(&line.unwrap()) else { continue };
        let is_done = line["done"].as_u64().is_some_and(|done| done >= steps as u64);
        if line["phase"] == "denoise" && is_done && folder.join("job").join(file).exists() {
            break;
        }
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "it ended before it was killed: {status}");
    assert!(!folder.join("out.mp4").exists());
}

#[test]
fn a_killed_run_goes_on_in_a_new_process_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = ["--json", "--progress", "json", "-o", "whole.y4m"];
    let whole = done(folder.path(), &[&LONG[..], &outcome].concat());
    let expected = latents(&whole);
    assert_eq!(expected.len(), ALL);
    let boundary = stderr(&whole).matches("\"detail\":\"high_noise\"").count();
    assert!((2..ALL - 2).contains(&boundary), "{boundary}: {whole:?}");
    let whole = std::fs::read(folder.path().join("whole.y4m")).unwrap();
    for (steps, from) in [(1, "newest"), (boundary + 1, "boundary"), (ALL - 2, "newest")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        killed(path, steps, &format!("{from}.safetensors"));
        // Snapshots are written in the background: those of the last steps may be missing.
        let output = done(path, &["generate", "--resume", "job", "--from", from, "--json", "-o", "out.y4m"]);
        let text = stderr(&output);
        assert!(!text.contains("bit-equal"), "{text}");
        let on = text.lines().find_map(|line| line.strip_prefix("the job goes on after step "));
        let on: usize = on.unwrap().strip_suffix(" of 12").unwrap().parse().unwrap();
        assert!(
            if from == "boundary" { on == boundary } else { on <= ALL && (on > 0 || steps == 1) },
            "{steps}: {text}"
        );
        assert_eq!(latents(&output), expected, "killed after {steps}");
        assert!(std::fs::read(path.join("out.y4m")).unwrap() == whole, "killed after {steps}");
        assert!(names(&path.join("job")).iter().all(|name| !name.contains(".part")));
        if from == "boundary" {
            // The job is kept, and goes on from its end.
            assert_eq!(latents(&done(path, &["generate", "--resume", "job", "--json"])), expected);
        }
    }
}

#[test]
fn a_run_that_stops_after_a_step_goes_on_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = generate(path, &["-o", "whole.y4m"]);
    let stopped = generate(path, &["-o", "part.y4m", "--job-dir", "job", "--stop-after", "2"]);
    assert_eq!(latents(&stopped)[..], latents(&whole)[..2]);
    let result = event(&stopped, "done");
    assert_eq!(
        (&result["steps"], &result["steps_done"], &result["frames"]),
        (&6.into(), &2.into(), &5.into())
    );
    let again = done(path, &["generate", "--resume", "job", "--stop-after", "4", "--json", "-o", "more.y4m"]);
    assert_eq!(latents(&again)[..], latents(&whole)[..4]);
    let rest = done(path, &["generate", "--resume", "job", "--json", "-o", "rest.y4m"]);
    assert_eq!(latents(&rest), latents(&whole));
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    assert!(read("rest.y4m") == read("whole.y4m"));
    assert!(read("part.y4m") != read("whole.y4m") && read("part.y4m").len() == read("whole.y4m").len());

    // What would be lost, and steps that are not left, are refused.
    for (arguments, why) in [
        (&["generate", "fox", "--steps", "6", "--stop-after", "2"][..], "could not be made later"),
        (&["generate", "fox", "--steps", "6", "--stop-after", "7", "--job-dir", "new"], "1 to 6"),
        (&["generate", "fox", "--steps", "6", "--stop-after", "0", "--job-dir", "new"], "1 to 6"),
        (&["generate", "--resume", "job", "--stop-after", "3"], "6 to 6"),
    ] {
        let output = run(path, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let text = stderr(&output);
        assert!(text.contains("--stop-after cannot be") && text.contains(why), "{arguments:?}: {text}");
        assert!(!path.join("new").exists(), "{arguments:?}");
    }
}

#[test]
fn a_run_that_ended_before_its_first_step_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = generate(path, &["--job-dir", "job"]);
    for file in names(&path.join("job")).iter().filter(|name| *name != "job.json") {
        std::fs::remove_file(path.join("job").join(file)).unwrap();
    }
    let again = done(path, &["generate", "--resume", "job", "--json"]);
    assert!(stderr(&again).contains("starts again"), "{again:?}");
    assert_eq!(latents(&again), latents(&whole));
    // It is kept as before.
    let kept = done(path, &["generate", "--resume", "job", "--json"]);
    assert!(stderr(&kept).contains("goes on after step 6 of 6"), "{kept:?}");
}

#[test]
fn other_threads_are_reported_once_and_the_run_goes_on() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: this machine has one core");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), &["--job-dir", "job", "--stop-after", "2", "--threads", "2"]);
    let output = done(folder.path(), &["generate", "--resume", "job", "--threads", "1"]);
    let text = stderr(&output);
    assert_eq!(text.matches("bit-equal").count(), 1, "{text}");
    assert!(text.contains("not be bit-equal") && text.contains("threads 1 instead of 2"), "{text}");
    assert!(folder.path().join("out.mp4").exists());
}

#[test]
fn another_bundle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    generate(path, &["--job-dir", "job", "--stop-after", "2"]);
    let before = contents(&path.join("job"));
    let checkpoint = edit::copy_of(&golden::case("two-experts").checkpoint());
    edit::rewrite(&checkpoint.path().join("transformer_2"), |stored| {
        edit::change_f32(stored, "blocks.0.norm2.weight", |value| value * 1.02);
    });
    export::export(&export::ExportRequest::new(checkpoint.path(), &path.join("other")), &mut |_| ()).unwrap();
    std::fs::remove_file(path.join("out.mp4")).unwrap();
    let arguments = ["generate", "--resume", "job", "--bundle", "other"];
    let output = rushes(path).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = stderr(&output);
    assert!(text.contains("cannot go on") && text.contains("the digest of the bundle was"), "{text}");
    assert_eq!(names(path), ["job", "other"]);
    assert_eq!(contents(&path.join("job")), before);
}

#[test]
fn a_damaged_snapshot_is_replaced_by_the_other_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = generate(path, &[]);
    generate(path, &["--job-dir", "job", "--stop-after", "2"]);
    let newest = path.join("job/newest.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damage = |name: &str| {
        let file = path.join("job").join(name);
        // The files may be links to the same bytes.
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, &bytes).unwrap();
    };
    damage("newest.safetensors");
    let output = done(path, &["generate", "--resume", "job", "--stop-after", "3", "--json"]);
    let text = stderr(&output);
    assert!(text.contains("warning: ") && text.contains("newest.safetensors"), "{text}");
    assert!(text.contains("digest") && text.contains("goes on after step 2 of 6"), "{text}");
    assert_eq!(latents(&output)[..], latents(&whole)[..3]);

    damage("newest.safetensors");
    damage("synced.safetensors");
    std::fs::remove_file(path.join("out.mp4")).unwrap();
    let before = contents(path);
    let output = run(path, &["generate", "--resume", "job"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = stderr(&output);
    assert!(text.contains("the snapshot cannot be used") && text.contains("newest.safetensors"), "{text}");
    assert_eq!(contents(path), before);
    // The snapshot at the boundary is whole.
    let rest = done(path, &["generate", "--resume", "job", "--from", "boundary", "--json"]);
    assert_eq!(latents(&rest), latents(&whole));
}

#[test]
fn a_step_that_was_kept_is_gone_on_from_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = generate(path, &["--job-dir", "job", "--keep-steps", "1,5"]);
    for steps in [1, 5] {
        let file = format!("step-{steps:05}.safetensors");
        assert!(path.join("job").join(&file).exists(), "{:?}", names(&path.join("job")));
        let number = steps.to_string();
        let output = done(path, &["generate", "--resume", "job", "--from", &number, "--json"]);
        assert!(stderr(&output).contains(&format!("goes on after step {steps} of 6")), "{output:?}");
        assert_eq!(latents(&output), latents(&whole));
    }
    let before = contents(path);
    for (arguments, expected) in [
        (&["generate", "--resume", "job", "--from", "2"][..], "go on after one of the steps 1, "),
        (&["generate", "fox", "--job-dir", "new", "--keep-steps", "51"], "--keep-steps cannot be 51"),
        (&["generate", "fox", "--keep-steps", "1"], "--keep-steps cannot be used"),
        (&["generate", "fox", "--job-dir", "new", "--keep-steps", "some"], "write it like 10,20"),
    ] {
        let output = run(path, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {output:?}");
        assert!(contents(path) == before, "{arguments:?} changed {:?}", names(path));
    }
    let kept = path.join("job/step-00001.safetensors");
    std::fs::remove_file(&kept).unwrap();
    std::fs::write(&kept, "damaged").unwrap();
    let output = run(path, &["generate", "--resume", "job", "--from", "1"]);
    let text = stderr(&output);
    assert!(text.contains("step-00001.safetensors") && text.contains("5, 6"), "{text}");
    generate(path, &["--job-dir", "all", "--keep-steps", "all"]);
    let kept = names(&path.join("all")).iter().filter(|name| name.starts_with("step-")).count();
    assert_eq!(kept, 6);
}

/// The arguments that a run that goes on cannot change, and values that are out of range.
const REFUSED: [(&[&str], &str); 17] = [
    (&["--size", "64x64"], "--size cannot be 64x64"),
    (&["--frames", "9"], "--frames cannot be 9"),
    (&["--seconds", "1"], "--seconds cannot be 1"),
    (&["--fps", "24"], "--fps cannot be 24"),
    (&["--noise-scale", "0.9"], "--noise-scale cannot be 0.9"),
    (&["--precision", "int8"], "--precision cannot be int8"),
    (&["--kernels", "onnxruntime"], "--kernels cannot be onnxruntime"),
    (&["--noise", "n.safetensors"], "--noise cannot be n.safetensors"),
    (&["--seed", "3"], "--seed cannot be changed"),
    (&["--variation", "1.5"], "--variation cannot be 1.5"),
    (&["--variation", "-0.1"], "--variation cannot be -0.1"),
    (&["--variation", "nan"], "--variation cannot be NaN"),
    (&["--steps", "0"], "--steps cannot be 0"),
    (&["--shift", "-1"], "--shift cannot be -1"),
    (&["--guidance", "1,2,3"], "--guidance cannot be 3 scales"),
    (&["--job-dir", "job"], "the job that the run goes on from"),
    (&["--job-dir", "full"], "it is not empty"),
];

#[test]
fn what_a_run_that_goes_on_cannot_change_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    generate(path, &["--job-dir", "job", "--stop-after", "2"]);
    std::fs::create_dir(path.join("full")).unwrap();
    std::fs::rename(path.join("out.mp4"), path.join("full/mine.mp4")).unwrap();
    let before = contents(path);
    for (arguments, expected) in REFUSED {
        let output = run(path, &[&["generate", "--resume", "job"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {output:?}");
        assert!(contents(path) == before, "{arguments:?} changed {:?}", names(path));
    }
    for (arguments, expected) in [
        (&["generate", "fox", "--variation", "0.5"][..], "--resume"),
        (&["generate", "--resume", "full"], "it has no job.json"),
        (&["generate", "--resume", "absent"], "it has no job.json"),
        (&["generate", "--resume", "job", "--like", "full/mine.mp4"], "--like"),
        (&["generate", "--resume", "job", "--from", "middle"], "--from cannot be"),
        (&["generate"], "PROMPT"),
    ] {
        let output = run(path, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {output:?}");
        assert!(contents(path) == before, "{arguments:?} changed {:?}", names(path));
    }
    // A folder that another run is using.
    let lock = bundle::lock::Locked::folder(&path.join("job")).unwrap();
    let output = run(path, &["generate", "--resume", "job"]);
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains("another run is using it"),
        "{output:?}"
    );
    drop(lock);
    done(path, &["generate", "--resume", "job"]);
}

#[test]
fn a_fork_leaves_the_job_untouched_and_is_a_job_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let whole = generate(path, &[]);
    generate(path, &["--job-dir", "job", "--stop-after", "2"]);
    let before = contents(&path.join("job"));
    let changes = ["a red fox", "--variation", "0.3", "--seed", "9", "--guidance", "2", "--steps", "9"];
    let resume = ["generate", "--resume", "job", "--json"];
    let fork = |arguments: &[&str]| done(path, &[&resume, &changes[..], arguments].concat());
    let forked = fork(&["--job-dir", "new", "-o", "forked.mp4"]);
    assert_eq!(latents(&forked)[..2], latents(&whole)[..2]);
    assert_ne!(latents(&forked)[2], latents(&whole)[2]);
    assert_ne!(latents(&forked).len(), latents(&whole).len());
    assert_eq!(contents(&path.join("job")), before);

    // The same changes again, without a folder, and stopped on the way.
    let again = fork(&[]);
    assert!(stderr(&again).contains("this run is not stored"), "{again:?}");
    assert_eq!(latents(&again), latents(&forked));
    fork(&["--job-dir", "third", "--stop-after", "3"]);
    let rest = done(path, &["generate", "--resume", "third", "--json"]);
    assert_eq!(latents(&rest), latents(&forked));
    assert_eq!(contents(&path.join("job")), before);

    // Its clip repeats it.
    let like = done(path, &["generate", "--like", "forked.mp4", "--json"]);
    assert_eq!(latents(&like), latents(&forked));
    let verified = done(path, &["verify", "forked.mp4"]);
    assert!(String::from_utf8_lossy(&verified.stdout).contains("the same bits"), "{verified:?}");
    // Arguments replace the changes on the way, and say so.
    let other = done(path, &["generate", "--like", "forked.mp4", "a blue fox", "--steps", "6", "--json"]);
    let note = "the arguments replace what the clip changed after step 2: another prompt; guidance 2";
    assert!(stderr(&other).contains(note), "{other:?}");
    assert_eq!(latents(&other).len(), 6);
    // A job cannot be kept in the folder that it goes on from, nor in an output.
    for (folder, why) in [("job", "goes on from"), ("pictures", "an output of the clip")] {
        let arguments = ["generate", "fox", "--resume", "job", "--job-dir", folder, "-o", "pictures/"];
        let refused = run(path, &arguments);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let text = stderr(&refused);
        assert!(text.contains("--job-dir cannot be") && text.contains(why), "{text}");
    }
    // The prompt of the job is not a change.
    let same = done(path, &["generate", "a boat", "--resume", "job", "--json"]);
    assert_eq!(latents(&same), latents(&whole));
}
