//! What can go wrong around a queue: a full disk, a locked or damaged store, damaged snapshots, a missing folder. What was
//! promised is there afterwards: every job ends, with the bits of `rushes generate`.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use super::job_bundle::{BUNDLE, CLIP, done, stderr};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tests::folder::names;
use tests::mounts::with_mounts;
use tests::program::{event, rushes};

/// A folder with a store, and with what `rushes generate` makes of the clip that is queued.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(clip: &[&str]) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        done(place.path(), &[&["generate", "a boat", "--seed", "7", "-o", "expected.y4m"], clip].concat());
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `rushes jobs` on the store.
    fn jobs(&self, arguments: &[&str]) -> Command {
        let mut command = rushes(self.path());
        command.arg("jobs").args(arguments).args(["--store", "store"]);
        command
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.jobs(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    /// Queues the clip, and returns its number.
    fn submit(&self, clip: &[&str], output: &str, more: &[&str]) -> String {
        let arguments = ["submit", "a boat", "--seed", "7", "--json", "-o", output, "--bundle"];
        let bundle = [BUNDLE.1.to_str().unwrap()];
        let submitted = self.done(&[&arguments, &bundle[..], clip, more].concat());
        event(&submitted, "submitted")["jobs"][0]["id"].to_string()
    }

    /// Makes the jobs.
    fn run(&self) -> Output {
        self.jobs(&["run", "--until-idle", "--json"]).output().unwrap()
    }

    /// The job with a number, as `list` prints it.
    fn job(&self, id: &str) -> Value {
        let listed = event(&self.done(&["list", "--all", "--json"]), "jobs");
        let jobs = listed["jobs"].as_array().unwrap();
        jobs.iter()
            .find(|job| job["id"].as_u64() == id.parse().ok())
            .unwrap_or_else(|| panic!("no job {id}"))
            .clone()
    }

    fn run_folder(&self, id: &str) -> PathBuf {
        self.path().join("store/jobs").join(id).join("run")
    }

    /// Checks that a job is done and its output is that of `rushes generate`.
    fn check(&self, id: &str, output: &str) {
        let job = self.job(id);
        assert_eq!(job["state"], "done", "{job}");
        let read = |name: &str| std::fs::read(self.path().join(name)).unwrap();
        assert!(read(output) == read("expected.y4m"), "job {id}");
    }
}

/// The messages of a process that made jobs.
fn messages(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some(line["text"].as_str()?.to_owned())).collect()
}

/// A clip whose steps take long enough to fill a disk meanwhile.
const LONG: [&str; 10] =
    ["--size", "256x256", "--frames", "5", "--steps", "12", "--guidance", "4,3", "--shift", "5"];

/// Fills the disk of the store after the first step of a job, waits until the queue says so, and makes room again.
const FULL: &str = r#"
set -e
mkdir -p store
mount -t tmpfs -o size=32m,mode=700 none store
"$RUSHES" jobs submit "a boat" --seed 7 -o out.y4m --store store $CLIP > submitted
"$RUSHES" jobs run --until-idle --json --store store > run.log 2> run.err &
owner=$!
until ls store/jobs/*/run/newest.safetensors > /dev/null 2>&1; do sleep 0.02; done
dd if=/dev/zero of=store/filler bs=64k 2> /dev/null || true
dd if=/dev/zero of=store/filler2 bs=1k 2> /dev/null || true
until grep -q '"event":"message"' run.log; do kill -0 $owner; sleep 0.05; done
"$RUSHES" jobs list --json --store store > held || true
rm store/filler store/filler2
wait $owner
"$RUSHES" jobs list --all --json --store store > listed
"#;

#[test]
fn a_full_disk_holds_the_jobs_and_they_go_on_when_there_is_room() {
    let place = Place::new(&LONG);
    let clip = format!("{} --bundle {}", LONG.join(" "), BUNDLE.1.to_str().unwrap());
    let script = format!("CLIP='{clip}'\n{FULL}");
    let Some(output) = with_mounts(place.path(), &script) else { return };
    let read = |name: &str| std::fs::read(place.path().join(name)).unwrap_or_default();
    let text = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
    assert!(output.status.success(), "{output:?}\n{}\n{}", text("run.log"), text("run.err"));
    let log = text("run.log");
    assert!(log.contains("full") && log.contains("room on the disk again"), "{log}");
    let listed: Value = serde_json::from_slice(&read("listed")).unwrap();
    let job = &listed["jobs"][0];
    assert_eq!(job["state"], "done", "{job}");
    assert!(read("out.y4m") == read("expected.y4m"));
}

#[test]
fn a_store_has_one_owner_and_waits_while_it_is_locked() {
    let place = Place::new(&LONG);
    let first = place.submit(&LONG, "one.y4m", &[]);
    let mut owner =
        place.jobs(&["run", "--until-idle", "--json"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    // It has begun when it has a snapshot.
    while !place.run_folder(&first).join("newest.safetensors").exists() {
        assert!(owner.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    let refused = place.run();
    assert!(!refused.status.success(), "{refused:?}");
    let error = event(&refused, "error").to_string();
    assert!(error.contains(&owner.id().to_string()), "it names the process {}: {error}", owner.id());
    // Others may submit meanwhile, and the owner makes their jobs too.
    let second = place.submit(&LONG, "two.y4m", &[]);
    assert!(owner.wait().unwrap().success());
    place.check(&first, "one.y4m");
    place.check(&second, "two.y4m");

    // Another program that holds the database for a moment.
    let database = rusqlite::Connection::open(place.path().join("store/jobs.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let third = std::thread::scope(|scope| {
        let third = scope.spawn(|| place.submit(&LONG, "three.y4m", &[]));
        std::thread::sleep(Duration::from_millis(400));
        database.execute_batch("ROLLBACK").unwrap();
        third.join().unwrap()
    });
    drop(database);
    assert_eq!(place.job(&third)["state"], "queued");
}

#[test]
fn a_damaged_store_is_made_again_from_the_folders_of_its_jobs() {
    let place = Place::new(&CLIP);
    let jobs: Vec<_> = ["one.y4m", "two.y4m"].map(|output| (place.submit(&CLIP, output, &[]), output)).into();
    // The log alone would make the database whole again.
    for file in ["store/jobs.db", "store/jobs.db-wal"].map(|name| place.path().join(name)) {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().step_by(3).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(&file, &bytes).unwrap();
    }
    let listed = place.jobs(&["list"]).output().unwrap();
    assert!(!listed.status.success() && stderr(&listed).contains("rushes jobs run"), "{listed:?}");
    let output = place.run();
    assert!(output.status.success(), "{output:?}");
    let messages = messages(&output);
    assert!(messages.iter().any(|message| message.contains("damaged")), "{messages:?}");
    jobs.iter().for_each(|(id, output)| place.check(id, output));
    // What was damaged is kept.
    let folders = names(&place.path().join("store"));
    let aside =
        folders.iter().find(|name| name.starts_with("damaged")).unwrap_or_else(|| panic!("{folders:?}"));
    assert!(!names(&place.path().join("store").join(aside)).is_empty());
}

/// Replaces files of a job folder by other bytes.
fn damage(run: &Path, files: &[&str]) {
    for name in files {
        // The files may be links to the same bytes.
        std::fs::remove_file(run.join(name)).unwrap();
        std::fs::write(run.join(name), "damaged").unwrap();
    }
}

#[test]
fn a_job_goes_on_from_an_older_snapshot_or_begins_again_and_says_so() {
    let place = Place::new(&CLIP);
    for (damaged, warning) in [
        (&["newest.safetensors"][..], "an older snapshot is used"),
        (&["newest.safetensors", "synced.safetensors"], "an older snapshot is used"),
        (&["newest.safetensors", "synced.safetensors", "step-00001.safetensors"], "begins again"),
    ] {
        let id = place.submit(&CLIP, "out.y4m", &["--stop-after", "2", "--keep-steps", "1"]);
        assert!(place.run().status.success());
        assert_eq!(place.job(&id)["state"], "stopped");
        damage(&place.run_folder(&id), damaged);
        std::fs::remove_file(place.path().join("out.y4m")).unwrap();
        place.done(&["resume", &id]);
        let output = place.run();
        assert!(output.status.success(), "{output:?}");
        place.check(&id, "out.y4m");
        let warnings = place.job(&id)["outcome"]["warnings"].to_string();
        assert!(warnings.contains(warning) && warnings.contains("newest.safetensors"), "{warnings}");
        std::fs::remove_file(place.path().join("out.y4m")).unwrap();
    }
}

#[test]
fn a_job_whose_output_folder_is_gone_fails_by_name_and_can_be_tried_again() {
    let place = Place::new(&CLIP);
    std::fs::create_dir(place.path().join("clips")).unwrap();
    let lost = place.submit(&CLIP, "clips/out.y4m", &[]);
    let other = place.submit(&CLIP, "other.y4m", &[]);
    std::fs::remove_dir(place.path().join("clips")).unwrap();
    let output = place.run();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let job = place.job(&lost);
    assert_eq!(job["state"], "failed", "{job}");
    let outcome = job["outcome"].to_string();
    assert!(outcome.contains("clips"), "{outcome}");
    // The others are made.
    place.check(&other, "other.y4m");
    std::fs::create_dir(place.path().join("clips")).unwrap();
    place.done(&["retry", &lost]);
    assert!(place.run().status.success());
    place.check(&lost, "clips/out.y4m");
}
