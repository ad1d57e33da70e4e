//! Orders that reach the process that makes the jobs while it does: previews, cancelling, going on, takes, Ctrl-C.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, done};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use tests::program::{event, rushes};

/// A clip of a few seconds.
const LONG: [&str; 8] = ["--size", "192x128", "--frames", "9", "--steps", "300", "--seed", "5"];
/// One of a moment.
const SHORT: [&str; 8] = ["--size", "64x48", "--frames", "5", "--steps", "6", "--seed", "7"];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn jobs(&self, arguments: &[&str]) -> Command {
        let mut command = rushes(self.path());
        command.arg("jobs").args(arguments).args(["--store", "store", "--json"]);
        command
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.jobs(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    fn submit(&self, clip: &[&str], more: &[&str]) -> Vec<String> {
        let bundle = ["submit", "a boat", "--bundle", BUNDLE.1.to_str().unwrap()];
        let submitted = event(&self.done(&[&bundle[..], clip, more].concat()), "submitted");
        submitted["jobs"].as_array().unwrap().iter().map(|job| job["id"].to_string()).collect()
    }

    fn generate(&self, clip: &[&str], output: &str) {
        done(self.path(), &[&["generate", "a boat", "-o", output][..], clip].concat());
    }

    fn job(&self, id: &str) -> Value {
        event(&self.done(&["show", id]), "job")["job"].clone()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path().join(name)).unwrap()
    }
}

/// The process that makes the jobs. It is ended with the test.
struct Owner {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Owner {
    fn start(place: &Place, more: &[&str]) -> Self {
        let mut command = place.jobs(&[&["run"][..], more].concat());
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// Reads what it tells until a line fits.
    fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if fits(&line) {
                return line;
            }
        }
        panic!("the process ended before {what}");
    }

    /// Waits until a job has made some steps.
    fn until_steps(&mut self, id: &str, steps: u64) {
        self.until("the steps", |line| {
            let jobs = line["jobs"].as_array().into_iter().flatten();
            jobs.filter(|job| job["id"].as_u64() == id.parse().ok())
                .any(|job| job["progress"]["steps_done"].as_u64().is_some_and(|done| done >= steps))
        });
    }

    /// Waits until a job ends. Returns its state.
    fn until_end(&mut self, id: &str) -> String {
        let ended = self.until("the end of a job", |line| {
            line["event"] == "ended" && line["id"].as_u64() == id.parse().ok()
        });
        ended["outcome"]["state"].as_str().unwrap().to_owned()
    }

    fn interrupt(&mut self) -> Option<i32> {
        tests::signals::send(&self.process, "INT");
        self.process.wait().unwrap().code()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn orders_are_followed_while_a_clip_is_made() {
    let place = Place::new();
    place.generate(&LONG, "expected.y4m");
    let long = place.submit(&LONG, &["-o", "long.y4m"]).remove(0);
    let mut owner = Owner::start(&place, &[]);
    owner.until_steps(&long, 2);
    // A preview overtakes it.
    let preview = place.submit(&SHORT, &["-o", "short.y4m", "--priority", "preview"]).remove(0);
    assert_eq!(owner.until_end(&preview), "done");
    let steps = place.job(&long)["progress"]["steps_done"].as_u64().unwrap();
    assert!((2..300).contains(&steps), "the long clip has made {steps} steps");
    // It is cancelled, and goes on.
    place.done(&["cancel", &long]);
    assert_eq!(owner.until_end(&long), "cancelled");
    assert_eq!(place.job(&long)["state"], "cancelled");
    assert!(!place.path().join("long.y4m").exists());
    place.done(&["resume", &long]);
    owner.until_steps(&long, steps + 1);
    // The process ends, and the next one goes on.
    assert_eq!(owner.interrupt(), Some(130));
    let waiting = place.job(&long);
    assert_eq!(waiting["state"], "queued");
    assert!(waiting["progress"]["steps_done"].as_u64().unwrap() > steps, "{waiting}");
    place.done(&["run", "--until-idle"]);
    assert_eq!(place.job(&long)["state"], "done");
    assert!(place.read("long.y4m") == place.read("expected.y4m"), "the clip has other bits");
}

#[test]
fn a_stopped_clip_and_a_take_are_completed_with_the_bits_of_generate() {
    let place = Place::new();
    let with_seed = |seed: &'static str| [&SHORT[..6], &["--seed", seed]].concat();
    place.generate(&with_seed("8"), "expected.y4m");
    place.generate(&SHORT, "whole.y4m");
    let stopped = place.submit(&SHORT, &["-o", "stopped.y4m", "--stop-after", "2"]).remove(0);
    let takes = place.submit(&SHORT, &["--takes", "3", "--steps-of", "2"]);
    assert_eq!(takes.len(), 3);
    place.done(&["run", "--until-idle"]);
    // A clip of the steps so far, and a sheet of the takes.
    assert_eq!(place.job(&stopped)["state"], "stopped");
    assert!(place.read("stopped.y4m") != place.read("whole.y4m"));
    for take in &takes {
        let picture = place.path().join("store/jobs").join(take).join("take.png");
        assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG"), "take {take}");
        assert_eq!(place.job(take)["state"], "stopped");
    }
    let sheet = place.path().join("store/auditions").join(format!("{}.png", takes[0]));
    assert!(std::fs::read(sheet).unwrap().starts_with(b"\x89PNG"));
    place.done(&["keep", &takes[1], "-o", "kept.y4m"]);
    place.done(&["resume", &stopped]);
    place.done(&["run", "--until-idle"]);
    assert_eq!(place.job(&takes[1])["state"], "done");
    assert!(place.read("kept.y4m") == place.read("expected.y4m"), "the take has other bits");
    assert!(place.read("stopped.y4m") == place.read("whole.y4m"), "the stopped clip has other bits");
}

#[test]
fn clips_of_a_wave_share_their_sessions() {
    let place = Place::new();
    place.generate(&SHORT, "expected.y4m");
    let outputs = ["a.y4m", "b.y4m", "c.y4m"];
    for output in outputs {
        place.submit(&SHORT, &["-o", output]);
    }
    // Text encoder, two experts and decoder, each opened once for all clips.
    let ran = event(&place.done(&["run", "--until-idle"]), "ran");
    assert_eq!(
        (&ran["done"], &ran["loads"], &ran["swaps"], &ran["waves"]),
        (&3.into(), &4.into(), &0.into(), &1.into())
    );
    for output in outputs {
        assert!(place.read(output) == place.read("expected.y4m"), "{output} has other bits");
    }
    // With room for one component at a time, experts change once.
    for output in ["d.y4m", "e.y4m", "f.y4m"] {
        place.submit(&SHORT, &["-o", output]);
    }
    let ran = event(&place.done(&["run", "--until-idle", "--residency", "one"]), "ran");
    assert_eq!((&ran["done"], &ran["waves"], &ran["swaps"]), (&3.into(), &1.into(), &1.into()), "{ran}");
    assert!(place.read("f.y4m") == place.read("expected.y4m"));
}
