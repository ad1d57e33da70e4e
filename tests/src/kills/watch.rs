//! What a process that makes jobs is doing, by the files that it writes and locks.

use super::Phase;
use super::queue::{Queue, Row};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Content of a file at a moment: its length and its time.
type Stamp = Option<(u64, SystemTime)>;

/// The files of a job at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    /// True if the process has locked its folder.
    is_begun: bool,
    has_text: bool,
    steps: Option<usize>,
    parts: Vec<Stamp>,
}

/// A job that is watched.
#[derive(Debug)]
struct Watched {
    run: PathBuf,
    parts: Vec<PathBuf>,
    steps: usize,
    boundary: Option<usize>,
    at_start: Seen,
    newest: Stamp,
    seen: Seen,
}

/// Watches one process.
#[derive(Debug)]
pub(super) struct Watch {
    pid: u32,
    jobs: BTreeMap<u64, Watched>,
    database: PathBuf,
    written: Stamp,
    has_written: bool,
}

impl Watch {
    pub(super) fn new(queue: &Queue<'_>, open: &[Row], pid: u32) -> Self {
        let watched = |row: &Row| {
            let run = queue.run_of(row.id);
            let mut watched = Watched {
                parts: row.outputs.iter().map(|output| part_of(output)).collect(),
                steps: row.steps,
                boundary: queue.boundary_of(row),
                run,
                at_start: Seen::default(),
                newest: None,
                seen: Seen::default(),
            };
            watched.look(&[]);
            watched.at_start = watched.seen.clone();
            (row.id, watched)
        };
        let database = queue.store().join("jobs.db-wal");
        let written = stamp(&database);
        Self { pid, jobs: open.iter().map(watched).collect(), database, written, has_written: false }
    }

    /// Looks at the files.
    pub(super) fn look(&mut self) {
        let written = stamp(&self.database);
        self.has_written = written != self.written && written.is_some();
        self.written = written;
        let locked = locked_by(self.pid);
        self.jobs.values_mut().for_each(|job| job.look(&locked));
    }

    /// Returns true if the database has changed since the look before.
    pub(super) fn has_written(&self) -> bool {
        self.has_written
    }

    /// A job that this process has brought into a phase.
    pub(super) fn job_in(&self, phase: Phase) -> Option<u64> {
        let mut jobs = self.jobs.iter();
        jobs.find(|(_, job)| job.has_changed() && job.is_in(phase)).map(|(id, _)| *id)
    }

    /// A job that was begun, and its phase.
    pub(super) fn any(&self) -> Option<(Phase, u64)> {
        self.jobs.iter().find_map(|(id, job)| Some((job.phase()?, *id)))
    }

    /// The phase of a job, by the files that a killed process left.
    pub(super) fn after_kill(&mut self, id: u64) -> Option<Phase> {
        let job = self.jobs.get_mut(&id)?;
        let is_begun = job.seen.is_begun;
        job.look(&[]);
        job.seen.is_begun = is_begun;
        job.phase()
    }

    /// The steps of each job that were seen on disk.
    pub(super) fn steps(&self) -> BTreeMap<u64, usize> {
        self.jobs.iter().filter_map(|(id, job)| Some((*id, job.seen.steps?))).collect()
    }
}

impl Watched {
    fn look(&mut self, locked: &[u64]) {
        let folder = std::fs::metadata(&self.run).ok();
        self.seen.is_begun = folder.is_some_and(|folder| locked.contains(&folder.ino()));
        self.seen.has_text = self.seen.has_text || has_text(&self.run);
        // The steps are read only if the newest snapshot is another one.
        let newest = stamp(&self.run.join("newest.safetensors"));
        if newest != self.newest {
            self.newest = newest;
            self.seen.steps = super::queue::stored_steps(&self.run);
        }
        self.seen.parts = self.parts.iter().map(|part| stamp(part)).collect();
    }

    fn has_changed(&self) -> bool {
        self.seen != self.at_start
    }

    fn phase(&self) -> Option<Phase> {
        let Seen { is_begun, has_text, steps, parts } = &self.seen;
        if !is_begun {
            return None;
        }
        let steps = steps.unwrap_or(0);
        let has_bytes = parts.iter().flatten().any(|(length, _)| *length > 0);
        Some(match (has_text, steps >= self.steps) {
            (false, _) => Phase::Text,
            (true, true) if has_bytes => Phase::Output,
            (true, true) => Phase::Decode,
            (true, false) if self.boundary.is_some_and(|boundary| steps >= boundary) => Phase::LowNoise,
            (true, false) => Phase::HighNoise,
        })
    }

    fn is_in(&self, phase: Phase) -> bool {
        let found = self.phase();
        match phase {
            Phase::Boundary => {
                self.seen.steps != self.at_start.steps
                    && self.boundary.is_some()
                    && self.seen.steps == self.boundary
            }
            Phase::HighNoise | Phase::LowNoise => {
                // Otherwise kills while a job is begun again would keep it from making a step.
                found == Some(phase) && self.seen.steps != self.at_start.steps
            }
            Phase::Output => found == Some(phase) && self.seen.parts != self.at_start.parts,
            Phase::Text | Phase::Decode | Phase::Store => found == Some(phase),
        }
    }
}

/// The name of an output until it is complete.
fn part_of(output: &Path) -> PathBuf {
    let extension = output.extension().map_or(String::new(), |name| format!(".{}", name.to_string_lossy()));
    output.with_extension(format!("part{extension}"))
}

fn has_text(run: &Path) -> bool {
    crate::folder::names(run).iter().any(|name| name.starts_with("text-"))
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?))
}

/// The inodes of the files that a process has locked.
fn locked_by(pid: u32) -> Vec<u64> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, owner, file, ..] = words[..] else { return None };
        let inode = file.rsplit(':').next()?.parse().ok()?;
        (owner.parse() == Ok(pid)).then_some(inode)
    };
    locks.lines().filter_map(of_line).collect()
}
