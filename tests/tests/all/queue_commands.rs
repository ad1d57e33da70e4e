//! `rushes jobs` without a process that makes the jobs: what is stored, printed and refused. A new process for every
//! command.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, CLIP, contents, stderr};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Output;
use tests::folder::names;
use tests::program::{event, rushes};

/// A folder to work in, with a queue in `queue`.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The absolute path of a file in the folder, without links: the folder of temporary files may be one.
    fn at(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        rushes(self.path()).arg("jobs").args(arguments).args(["--store", "queue"]).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    /// Queues a small clip, and returns the event.
    fn submit(&self, arguments: &[&str]) -> Value {
        let output = self.submitted(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        event(&output, "submitted")
    }

    fn submitted(&self, arguments: &[&str]) -> Output {
        let bundle = BUNDLE.1.to_str().unwrap();
        let common = ["submit", "a boat", "--seed", "7", "--json", "--bundle", bundle];
        // A flag is given once.
        let others = CLIP.chunks(2).filter(|setting| !arguments.contains(&setting[0])).flatten().copied();
        self.run(&[&common, &others.collect::<Vec<_>>()[..], arguments].concat())
    }

    /// Queues a small clip, which must be refused with exit code 2 and leave nothing. Returns the error.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = contents(self.path());
        let output = self.submitted(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(
            jobs_of(&before) == jobs_of(&contents(self.path())),
            "{arguments:?}: {:?}",
            names(self.path())
        );
        error(&output)
    }

    fn list(&self, arguments: &[&str]) -> Value {
        event(&self.done(&[&["list", "--json"], arguments].concat()), "jobs")
    }

    fn state(&self, id: u64) -> String {
        let shown = event(&self.done(&["show", &id.to_string(), "--json"]), "job");
        shown["job"]["state"].as_str().unwrap().to_owned()
    }
}

/// The files that are not the database of a queue, which changes whenever it is opened.
fn jobs_of(all: &std::collections::BTreeMap<PathBuf, Vec<u8>>) -> Vec<(&PathBuf, &Vec<u8>)> {
    let is_database = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("jobs.db") || name.ends_with(".lock")
    };
    all.iter().filter(|(path, _)| !is_database(path)).collect()
}

/// The error of a command with `--json`: what, why and fix.
fn error(output: &Output) -> String {
    let error = event(output, "error");
    ["what", "why", "fix"].map(|part| error[part].as_str().unwrap().to_owned()).join("; ")
}

#[test]
fn a_job_is_submitted_listed_shown_cancelled_and_retried() {
    let work = Work::new();
    let submitted = work.submit(&["-o", "clips.gif", "--priority", "batch", "--deadline", "60"]);
    let job = &submitted["jobs"][0];
    assert_eq!((&job["id"], &job["state"], &submitted["owner"]), (&json!(1), &json!("queued"), &Value::Null));
    let request = &job["request"];
    assert_eq!(request["outputs"], json!([work.at("clips.gif")]));
    assert_eq!((&request["priority"], &request["deadline"]), (&json!("batch"), &json!(60.0)));
    // Every setting is filled in.
    let clip = request["clip"].as_object().unwrap();
    assert!(clip.values().all(|value| !value.is_null()), "{clip:?}");
    assert_eq!(
        (&clip["seed"], &clip["length"], &clip["steps"]),
        (&json!(7), &json!({"frames": 5}), &json!(6))
    );
    assert!(Path::new(request["bundle"].as_str().unwrap()).is_absolute());
    // Nothing is written yet, and the output is not claimed.
    assert_eq!(names(work.path()), ["queue"]);

    // The output of the next one has its number.
    let second = work.submit(&[]);
    assert_eq!(second["jobs"][0]["request"]["outputs"], json!([work.at("clip-2.mp4")]));
    let listed = work.list(&[]);
    let ids: Vec<u64> =
        listed["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!((&listed["hidden"], &listed["owner"]), (&json!(0), &Value::Null));
    let text = String::from_utf8(work.done(&["list"]).stdout).unwrap();
    assert!(text.contains("clips.gif") && text.contains("no process makes the jobs"), "{text}");
    let text = String::from_utf8(work.done(&["show", "2"]).stdout).unwrap();
    assert!(
        text.starts_with("job 2: queued, 0 of 6 steps") && text.contains("`rushes jobs cancel 2"),
        "{text}"
    );

    let cancelled = event(&work.done(&["cancel", "1", "2", "--json"]), "ordered");
    assert_eq!(
        (&cancelled["order"], &cancelled["jobs"][1]["state"]),
        (&json!("cancel"), &json!("cancelled"))
    );
    assert_eq!(work.list(&["--state", "queued"])["jobs"], json!([]));
    assert_eq!(work.list(&["--state", "queued,cancelled"])["jobs"].as_array().unwrap().len(), 2);
    let text = String::from_utf8(work.done(&["retry", "2"]).stdout).unwrap();
    assert_eq!(text, "job 2 is queued again, from its newest snapshot\n");
    work.done(&["resume", "1", "--stop-after", "3"]);
    assert_eq!((work.state(1), work.state(2)), ("queued".to_owned(), "queued".to_owned()));

    // What does not suit a state, and numbers without a job.
    for (arguments, why) in [
        (&["retry", "1"][..], "it is queued"),
        (&["keep", "1"], "it is queued"),
        (&["cancel", "2", "9"], "there is no job 9"),
        (&["show", "9"], "there is no job 9"),
        (&["fork", "1", "--from-step", "2"], "job 1 has no snapshots"),
        (&["show", "0"], "the number of a job cannot be `0`"),
    ] {
        let output = work.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(why), "{arguments:?}: {output:?}");
    }
    assert_eq!(work.state(2), "queued");
}

#[test]
fn an_output_belongs_to_one_job() {
    let work = Work::new();
    work.submit(&["-o", "a.gif", "-o", "b.gif"]);
    let error = work.refused(&["-o", "./b.gif"]);
    assert!(error.contains("--output cannot be") && error.contains("job 1 will write it"), "{error}");
    work.done(&["cancel", "1"]);
    work.submit(&["-o", "b.gif"]);
    // The cancelled job would write it too.
    let output = work.run(&["retry", "1", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(self::error(&output).contains("job 2 will write it"), "{output:?}");
    assert_eq!(work.state(1), "cancelled");
    // Of the default names too.
    work.submit(&["-o", "clip-4.mp4"]);
    let error = work.refused(&[]);
    assert!(error.contains("clip-4.mp4") && error.contains("job 3 will write it"), "{error}");
}

/// Both were looked at before either was queued again.
#[test]
fn of_two_ended_jobs_with_one_output_the_first_is_queued_again() {
    let work = Work::new();
    for _ in 0..2 {
        let id = work.submit(&["-o", "a.gif"])["jobs"][0]["id"].to_string();
        work.done(&["cancel", &id]);
    }
    let output = work.run(&["retry", "1", "2", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = error(&output);
    assert!(error.contains("--output cannot be") && error.contains("job 1 will write it"), "{error}");
    assert_eq!((work.state(1), work.state(2)), ("queued".to_owned(), "cancelled".to_owned()));
}

#[test]
fn of_two_submissions_at_once_one_gets_the_output() {
    let work = Work::new();
    work.submit(&["-o", "other.gif"]);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let submit = || work.submitted(&["-o", "same.gif"]);
        let threads = [scope.spawn(submit), scope.spawn(submit)];
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (added, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!((added.len(), refused.len()), (1, 1), "{outputs:?}");
    let error = error(refused[0]);
    assert!(error.contains("same.gif") && error.contains("job 2 will write it"), "{error}");
    assert_eq!(work.list(&[])["jobs"].as_array().unwrap().len(), 2);
}

/// A fork with a grid of 12 steps after step 2 of 6 makes fewer than 12.
#[test]
fn a_fork_has_the_steps_that_it_makes() {
    let work = Work::new();
    work.submit(&["-o", "parent.gif", "--keep-steps", "2"]);
    work.done(&["run", "--until-idle"]);
    let forked = |arguments: &[&str]| {
        work.run(&[&["fork", "1", "--from-step", "2", "--steps", "12", "--json"], arguments].concat())
    };
    let whole = event(&forked(&["-o", "whole.gif"]), "submitted");
    let request = &whole["jobs"][0]["request"];
    let steps = request["origin"]["steps"].as_u64().unwrap();
    assert!(steps > 2 && steps != 6 && steps != 12, "{request}");
    let beyond = forked(&["-o", "beyond.gif", "--stop-after", &(steps + 1).to_string()]);
    assert_eq!(beyond.status.code(), Some(2), "{beyond:?}");
    assert!(error(&beyond).contains(&format!("this clip can end after 2 to {steps} of its {steps} steps")));
    for (id, stop, state) in [(3, steps, "done"), (4, steps - 1, "stopped")] {
        let output = forked(&["-o", &format!("{id}.gif"), "--stop-after", &stop.to_string()]);
        assert!(output.status.success(), "{output:?}");
        work.done(&["run", "--until-idle"]);
        assert_eq!(work.state(id), state, "after step {stop} of {steps}");
    }
    assert_eq!(work.state(2), "done");
    let shown = event(&work.done(&["show", "2", "--json"]), "job");
    assert_eq!(shown["job"]["outcome"]["steps_done"], json!(steps));
}

/// An order that nobody has carried out yet is not said to be done.
#[test]
fn a_cancel_says_what_became_of_the_job() {
    let work = Work::new();
    work.submit(&["-o", "a.gif"]);
    work.submit(&["-o", "b.gif"]);
    let cancelled = event(&work.done(&["cancel", "1", "--json"]), "ordered");
    let job = &cancelled["jobs"][0];
    assert_eq!(
        (&job["state"], &job["answer"], &job["carried_out"]),
        (&json!("cancelled"), &json!("done"), &json!(true))
    );
    let text = String::from_utf8(work.done(&["cancel", "2"]).stdout).unwrap();
    assert_eq!(text, "job 2 is cancelled\n");
}

#[test]
fn what_is_wrong_is_refused_before_it_is_stored() {
    let work = Work::new();
    std::fs::write(work.path().join("text.txt"), "x").unwrap();
    std::fs::create_dir(work.path().join("taken.mp4")).unwrap();
    for (arguments, expected) in [
        (&["--steps", "0"][..], "--steps cannot be 0"),
        (&["--size", "33x32"], "--size cannot be 33x32"),
        (&["--guidance", "1,2,3"], "--guidance cannot be"),
        (&["--stop-after", "7"], "this clip can end after 1 to 6 of its 6 steps"),
        (&["--keep-steps", "2,7"], "--keep-steps cannot be"),
        (&["--keep-steps", "some"], "--keep-steps cannot be `some`"),
        (&["--priority", "high"], "--priority cannot be `high`"),
        (&["--deadline", "-1"], "--deadline cannot be `-1`"),
        (&["--precision", "fp8"], "fp8"),
        (&["--noise", "text.txt"], "text.txt"),
        (&["--logo", "absent.png@top-left"], "absent.png"),
        (&["--like", "text.txt"], "text.txt"),
        (&["-o", "absent/a.mp4"], "absent"),
        (&["-o", "taken.mp4"], "not an ordinary file"),
        (&["-o", "a.gif", "-o", "./a.gif"], "a.gif"),
        (&["-o", "window"], "a job is made later"),
        (&["-o", "rtsp://127.0.0.1:8554/a"], "a job is made later"),
        (&["--takes", "0"], "--takes cannot be 0"),
        (&["--takes", "3", "--steps-of", "9"], "--steps-of cannot be 9"),
        (&["--takes", "3", "-o", "a.mp4"], "--output"),
        (&["--steps-of", "3"], "--takes"),
    ] {
        let error = work.refused(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let output = work.submitted(&["-o", "-"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("standard output"), "{output:?}");
    let output = work.run(&["submit", "a boat", "--bundle", "absent", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // Nothing was queued on the way.
    let queue = work.path().join("queue");
    assert!(!queue.exists() || work.list(&[])["jobs"] == json!([]));
}

#[test]
fn takes_are_jobs_of_one_audition() {
    let work = Work::new();
    work.submit(&[]);
    let submitted = work.submit(&["--takes", "3", "--steps-of", "2", "--priority", "preview"]);
    let jobs = submitted["jobs"].as_array().unwrap();
    let of = |field: &str| jobs.iter().map(|job| job["request"][field].clone()).collect::<Vec<_>>();
    let take = |number: u64| json!({"audition": 2, "number": number, "of": 3});
    assert_eq!(of("take"), [take(1), take(2), take(3)]);
    assert_eq!(of("stop_after"), [json!(2), json!(2), json!(2)]);
    assert_eq!(of("outputs"), [json!([]), json!([]), json!([])]);
    let seeds: Vec<&Value> = jobs.iter().map(|job| &job["request"]["clip"]["seed"]).collect();
    assert_eq!(seeds, [&json!(7), &json!(8), &json!(9)]);
    let text = String::from_utf8(work.done(&["list"]).stdout).unwrap();
    assert!(text.contains("take 2 of 3"), "{text}");
    // A take that has not run is not kept.
    let output = work.run(&["keep", "3"]);
    assert!(output.status.code() == Some(2) && stderr(&output).contains("cannot keep job 3"), "{output:?}");
}

#[test]
fn a_queue_that_does_not_exist_is_empty_or_refused() {
    let work = Work::new();
    for command in [&["list"][..], &["show", "1"]] {
        let output = work.run(command);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("there is no such folder"), "{output:?}");
    }
    assert!(names(work.path()).is_empty());
    // The queue of the user.
    let list = |data: &str| {
        let mut command = rushes(work.path());
        command.args(["jobs", "list"]).env("XDG_DATA_HOME", data).env_remove("HOME").output().unwrap()
    };
    let output = list(&work.at("data"));
    assert!(output.status.success() && names(work.path()).is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("no jobs"), "{output:?}");
    let output = list("relative");
    assert!(output.status.code() == Some(4) && stderr(&output).contains("--store"), "{output:?}");
}
