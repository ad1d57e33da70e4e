//! A queue of clips of every kind, what `rushes generate` makes of the same settings, and the comparison.

use super::{Phase, Settings};
use crate::program::event;
use runtime::job::{JobFolder, ResumeFrom, StoredSnapshot};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

/// A clip that is asked for.
struct Clip {
    name: &'static str,
    seed: &'static str,
    /// Settings, for `generate` too.
    settings: &'static [&'static str],
    /// How it is queued.
    queued: &'static [&'static str],
    outputs: &'static [&'static str],
}

/// The step after which a clip is forked, and the steps of a take.
const KEPT: &str = "2";
/// Changes of the fork.
const CHANGES: [&str; 3] = ["a red fox in the snow", "--guidance", "2"];
/// A job is made again from its settings, and the take from its seed.
const TAKE: Clip = Clip { name: "take", seed: "17", settings: &[], queued: &[], outputs: &["y4m"] };
const PARENT: Clip =
    Clip { name: "parent", seed: "18", settings: &[], queued: &["--keep-steps", KEPT], outputs: &["y4m"] };
const INT8: &str = "--precision";

const CLIPS: [Clip; 5] = [
    Clip { name: "last", seed: "11", settings: &[], queued: &["--priority", "batch"], outputs: &["y4m"] },
    Clip { name: "film", seed: "12", settings: &["--fps", "8"], queued: &[], outputs: &["mp4"] },
    Clip { name: "small", seed: "13", settings: &[INT8, "int8"], queued: &[], outputs: &["y4m", "mp4"] },
    Clip { name: "draft", seed: "14", settings: &["--stop-after", "4"], queued: &[], outputs: &["y4m"] },
    Clip { name: "soon", seed: "15", settings: &[], queued: &["--priority", "preview"], outputs: &["y4m"] },
];

/// A job of the store.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) state: String,
    pub(super) outputs: Vec<PathBuf>,
    /// Steps that it tells of.
    pub(super) steps_done: usize,
    /// Steps that it makes.
    pub(super) steps: usize,
}

/// A queue, and what must come of it.
pub(super) struct Queue<'a> {
    settings: &'a Settings<'a>,
    /// The round that was submitted last.
    round: usize,
    /// The job that forks go on from.
    parent: u64,
    /// What each job was asked for, by its number.
    names: BTreeMap<u64, &'static str>,
    /// The steps before the boundary, by name.
    boundaries: BTreeMap<&'static str, usize>,
    /// Takes that nobody has kept.
    takes: BTreeSet<u64>,
    /// Outputs that were compared, and when they were written.
    checked: BTreeMap<PathBuf, SystemTime>,
}

impl<'a> Queue<'a> {
    /// Makes the clips with `rushes generate`, and the job that is forked.
    pub(super) fn new(settings: &'a Settings<'a>) -> Self {
        let (names, boundaries) = (BTreeMap::new(), BTreeMap::new());
        let (takes, checked) = (BTreeSet::new(), BTreeMap::new());
        let mut queue = Self { settings, round: 0, parent: 0, names, boundaries, takes, checked };
        std::fs::create_dir(queue.at("expected")).expect("a folder");
        for clip in queue.clips().chain([&TAKE, &PARENT]) {
            queue.expect(clip);
        }
        queue.parent = queue.submit(&PARENT, &[]);
        queue.done(&["jobs", "run", "--until-idle"]);
        let run = queue.run_of(queue.parent);
        let output = queue.at("expected/fork.y4m");
        let resume = ["generate", "--resume", text(&run), "--from", KEPT, "-o", text(&output)];
        let bundle = queue.bundle();
        queue.done(&[&resume[..], &CHANGES, &bundle].concat());
        queue.boundaries.insert("fork", queue.boundaries["parent"]);
        queue
    }

    fn clips(&self) -> impl Iterator<Item = &'static Clip> + use<> {
        let has_int8 = self.settings.has_int8;
        CLIPS.iter().filter(move |clip| has_int8 || !clip.settings.contains(&INT8))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.settings.folder.join(name)
    }

    pub(super) fn store(&self) -> PathBuf {
        self.at("store")
    }

    pub(super) fn run_of(&self, id: u64) -> PathBuf {
        self.store().join("jobs").join(id.to_string()).join("run")
    }

    /// Where the processes that make the jobs write.
    pub(super) fn log(&self) -> PathBuf {
        self.at("log")
    }

    pub(super) fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn bundle(&self) -> Vec<&str> {
        self.settings.bundle.map_or(Vec::new(), |bundle| vec!["--bundle", text(bundle)])
    }

    /// A command on the store.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.settings.program);
        command.current_dir(self.settings.folder).env("RUST_BACKTRACE", "0").args(arguments);
        if arguments[0] == "jobs" {
            command.arg("--store").arg(self.store());
        }
        command
    }

    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().expect("the program starts");
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.log_text());
        output
    }

    /// Makes a clip with `rushes generate`.
    fn expect(&mut self, clip: &Clip) {
        let job = self.at("expected").join(clip.name);
        let mut arguments = vec!["generate", "a boat", "--seed", clip.seed, "--job-dir", text(&job)];
        arguments.extend(self.settings.clip.iter().chain(clip.settings));
        arguments.extend(self.bundle());
        let outputs: Vec<_> = clip.outputs.iter().map(|kind| self.expected(clip.name, kind)).collect();
        arguments.extend(outputs.iter().flat_map(|output| ["-o", text(output)]));
        self.done(&arguments);
        let folder = JobFolder::open(&job).expect("a job folder");
        let boundary = folder.snapshot(ResumeFrom::Boundary).expect("a clip that crosses the boundary");
        self.boundaries.insert(clip.name, boundary.snapshot.steps_done());
    }

    fn expected(&self, name: &str, kind: &str) -> PathBuf {
        self.at("expected").join(format!("{name}.{kind}"))
    }

    fn submit(&mut self, clip: &Clip, more: &[&str]) -> u64 {
        let mut arguments = vec!["jobs", "submit", "a boat", "--json", "--seed", clip.seed];
        arguments.extend(self.settings.clip.iter().chain(clip.settings).chain(clip.queued));
        arguments.extend(self.bundle());
        let folder = self.at(&format!("round-{}", self.round));
        std::fs::create_dir_all(&folder).expect("a folder");
        let outputs: Vec<_> =
            clip.outputs.iter().map(|kind| folder.join(format!("{}.{kind}", clip.name))).collect();
        if more.is_empty() {
            arguments.extend(outputs.iter().flat_map(|output| ["-o", text(output)]));
        }
        arguments.extend(more);
        let id = submitted(&self.done(&arguments));
        self.names.insert(id, clip.name);
        id
    }

    /// Submits every kind of clip, a fork and a take.
    pub(super) fn fill(&mut self) {
        self.round += 1;
        for clip in self.clips() {
            self.submit(clip, &[]);
        }
        let take = self.submit(&TAKE, &["--takes", "1", "--steps-of", KEPT]);
        self.takes.insert(take);
        let parent = self.parent.to_string();
        let output = self.at(&format!("round-{}/fork.y4m", self.round));
        let fork = ["jobs", "fork", &parent, CHANGES[0], "--from-step", KEPT, "--json", "-o", text(&output)];
        let id = submitted(&self.done(&[&fork[..], &CHANGES[1..]].concat()));
        self.names.insert(id, "fork");
    }

    /// Keeps the takes that have made their first steps.
    pub(super) fn keep_takes(&mut self) {
        for row in self.rows() {
            if row.state == "stopped" && self.takes.remove(&row.id) {
                let output = self.at(&format!("round-{}/take.y4m", self.round));
                self.done(&["jobs", "keep", &row.id.to_string(), "-o", text(&output)]);
            }
        }
    }

    /// All jobs, as `rushes jobs list` prints them.
    fn rows(&self) -> Vec<Row> {
        let listed = event(&self.done(&["jobs", "list", "--all", "--json"]), "jobs");
        let rows = listed["jobs"].as_array().expect("a list of jobs").iter().map(Row::of);
        rows.collect()
    }

    /// The jobs that have not ended.
    pub(super) fn open_rows(&self) -> Vec<Row> {
        let rows = self.rows().into_iter();
        rows.filter(|row| row.state == "queued" || row.state == "running").collect()
    }

    pub(super) fn boundary_of(&self, row: &Row) -> Option<usize> {
        self.boundaries.get(self.names.get(&row.id)?).copied()
    }

    /// Whether a job has a phase still before it, by its files.
    pub(super) fn is_before(&self, row: &Row, phase: Phase) -> bool {
        let run = self.run_of(row.id);
        let steps = stored_steps(&run).unwrap_or(0);
        let boundary = self.boundary_of(row).unwrap_or(row.steps).min(row.steps);
        match phase {
            Phase::Text => !crate::folder::names(&run).iter().any(|name| name.starts_with("text-")),
            Phase::HighNoise => steps + 1 < boundary,
            Phase::Boundary => steps < boundary && boundary < row.steps,
            Phase::LowNoise => steps + 1 < row.steps && boundary < row.steps,
            Phase::Decode | Phase::Store => true,
            Phase::Output => !row.outputs.is_empty(),
        }
    }

    /// The steps on disk of these jobs.
    pub(super) fn stored_steps(&self, rows: &[Row]) -> BTreeMap<u64, usize> {
        let stored = |row: &Row| Some((row.id, stored_steps(&self.run_of(row.id))?));
        rows.iter().filter_map(stored).collect()
    }

    /// Checks that the store can be opened, that no job has failed, and that what has a final name is whole. Returns the
    /// jobs.
    pub(super) fn check_kill(&mut self) -> Vec<Row> {
        let rows = self.rows();
        for row in &rows {
            let is_wrong = row.state == "failed" || row.state == "cancelled";
            assert!(!is_wrong, "job {} is {}:\n{}", row.id, row.state, self.log_text());
            for output in &row.outputs {
                if row.state == "done" || row.state == "stopped" {
                    assert!(output.exists(), "job {} is {}, without {}", row.id, row.state, output.display());
                }
                self.compare(output);
            }
            check_folder(&self.run_of(row.id));
        }
        rows
    }

    /// Compares an output, if it exists, with that of `rushes generate`.
    fn compare(&mut self, output: &Path) {
        let Some(written) = std::fs::metadata(output).and_then(|found| found.modified()).ok() else { return };
        if self.checked.get(output) == Some(&written) {
            return;
        }
        let expected = self.at("expected").join(output.file_name().expect("a file"));
        let is_raw = output.extension().is_some_and(|kind| kind == "y4m");
        let content = |path: &Path| if is_raw { read(path) } else { frames(path) };
        assert!(content(output) == content(&expected), "{} is not {}", output.display(), expected.display());
        self.checked.insert(output.to_owned(), written);
    }

    /// Checks that every job of the store has ended as it should, with its outputs. Returns the jobs of this round.
    pub(super) fn check_end(&mut self) -> usize {
        let rows = self.check_kill();
        for row in &rows {
            let name = self.names.get(&row.id).copied().unwrap_or_default();
            let expected = if name == "draft" { "stopped" } else { "done" };
            assert_eq!(row.state, expected, "job {}, {name}:\n{}", row.id, self.log_text());
            assert!(!row.outputs.is_empty(), "job {}, {name}, has no outputs", row.id);
        }
        let parts: Vec<_> = crate::folder::names(&self.at(&format!("round-{}", self.round)));
        assert!(!parts.iter().any(|name| name.contains(".part.")), "{parts:?}");
        assert_eq!(rows.len(), self.names.len());
        self.clips().count() + 2
    }

    /// The number of outputs that were compared.
    pub(super) fn outputs_checked(&self) -> usize {
        self.checked.len()
    }
}

impl Row {
    fn of(value: &Value) -> Self {
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        let (request, progress) = (&value["request"], &value["progress"]);
        let outputs = request["outputs"].as_array().into_iter().flatten();
        let all = request["stop_after"].as_u64().or(request["clip"]["steps"].as_u64());
        Self {
            id: value["id"].as_u64().expect("a number"),
            state: value["state"].as_str().expect("a state").to_owned(),
            outputs: outputs.filter_map(|output| output.as_str().map(PathBuf::from)).collect(),
            steps_done: number(&progress["steps_done"]),
            steps: all.and_then(|steps| usize::try_from(steps).ok()).expect("a number of steps"),
        }
    }
}

fn submitted(output: &Output) -> u64 {
    let ids = &event(output, "submitted")["jobs"];
    ids[0]["id"].as_u64().unwrap_or_else(|| panic!("no number in {ids}"))
}

/// The steps of the newest snapshot in a job folder.
pub(super) fn stored_steps(run: &Path) -> Option<usize> {
    JobFolder::kept_steps_in(run).last().copied()
}

/// Checks that every file of a job folder that has a final name is whole.
fn check_folder(run: &Path) {
    for name in crate::folder::names(run) {
        let path = run.join(&name);
        if name == "job.json" {
            assert!(serde_json::from_slice::<Value>(&read(&path)).is_ok(), "{}", path.display());
        } else if name.ends_with(".safetensors") && !name.starts_with("text-") {
            let snapshot = StoredSnapshot::from_bytes(&read(&path));
            snapshot.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The digests of the frames of a film, made by ffmpeg.
fn frames(path: &Path) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-f", "framemd5", "-"])
        .output()
        .expect("ffmpeg: `make setup` installs it");
    assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", path.display());
    assert!(output.stdout.iter().filter(|byte| **byte == b'\n').count() > 5, "{}: no frames", path.display());
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
