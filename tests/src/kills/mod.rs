//! Kills of the process that makes the jobs of a queue, spread over everything that it does.
//!
//! [`run`] fills a queue, starts `rushes jobs run`, kills it (SIGKILL) at a moment that it chooses from the files of the
//! queue, checks what is there, and starts it again. `queue` is what is asked for and what must come of it, `watch`
//! what a process is doing.

mod queue;
mod watch;

use queue::{Queue, Row};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use watch::Watch;

/// What a process was doing when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It began a job, and had not stored its text states.
    Text,
    /// It made a step of the first expert.
    HighNoise,
    /// It had just written the snapshot before the first step of the last expert.
    Boundary,
    /// It made a step of the last expert.
    LowNoise,
    /// All steps were made, and no output had a byte.
    Decode,
    /// It wrote an output.
    Output,
    /// It wrote to the database.
    Store,
}

impl Phase {
    /// All, in the order of a clip.
    pub const ALL: [Self; 7] = [
        Self::Text,
        Self::HighNoise,
        Self::Boundary,
        Self::LowNoise,
        Self::Decode,
        Self::Output,
        Self::Store,
    ];

    /// The longest time between the moment when a phase is seen and the kill, in microseconds.
    fn longest_delay(self) -> u64 {
        match self {
            Self::Text => 30_000,
            Self::HighNoise | Self::LowNoise => 150_000,
            Self::Boundary => 2_000,
            Self::Decode => 20_000,
            Self::Output => 60_000,
            Self::Store => 300,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::HighNoise => "high-noise step",
            Self::Boundary => "boundary",
            Self::LowNoise => "low-noise step",
            Self::Decode => "decode",
            Self::Output => "output",
            Self::Store => "database",
        })
    }
}

/// What is killed, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The program `rushes`.
    pub program: &'a Path,
    /// An empty folder.
    pub folder: &'a Path,
    /// The bundle, with two experts; `None` for the embedded model.
    pub bundle: Option<&'a Path>,
    /// True if the bundle has an int8 variant, which some jobs use then.
    pub has_int8: bool,
    /// Size, frames, steps and guidance of the clips, as arguments. Their steps cross the boundary.
    pub clip: &'a [&'a str],
    /// The number of kills.
    pub kills: usize,
    /// The seed of the moments.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Kills in each phase.
    pub kills: BTreeMap<Phase, usize>,
    /// For each kill, the most steps of a job that the queue had told of and that were not on disk. It tells of steps
    /// several times a second.
    pub repeated: Vec<usize>,
    /// Times that the queue was filled.
    pub rounds: usize,
    /// Jobs that ended.
    pub jobs: usize,
    /// Outputs that have the bits of those of `rushes generate`.
    pub outputs: usize,
}

impl fmt::Display for Report {
    /// A table of the phases, and a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| killed during | kills | |\n|---|---|---|")?;
        for phase in Phase::ALL {
            let kills = self.kills.get(&phase).copied().unwrap_or(0);
            writeln!(f, "| {phase} | {kills} | {} |", "█".repeat(kills))?;
        }
        let (kills, most) = (self.repeated.len(), self.repeated.iter().max().unwrap_or(&0));
        let steps: usize = self.repeated.iter().sum();
        write!(
            f,
            "\n{kills} kills, {} jobs in {} rounds, {} outputs with the bits of `rushes generate`; {steps} steps that \
             the queue had told of were made twice, at most {most} after one kill",
            self.jobs, self.rounds, self.outputs
        )
    }
}

/// How a process that makes jobs ended.
enum End {
    Killed { phase: Phase, made: BTreeMap<u64, usize> },
    Idle,
}

/// How long a phase is waited for, before the process is killed in another one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fills queues and kills what makes their jobs, until there were enough kills, and lets it end.
///
/// # Panics
/// Panics if something that was promised is lost: a job, a finished output, a step whose snapshot was written, the
/// store; or if a half-written file has a final name, or an output differs from that of `rushes generate`.
pub fn run(settings: &Settings<'_>) -> Report {
    let mut queue = Queue::new(settings);
    let mut random = Random(settings.seed);
    let mut report = Report::default();
    while report.repeated.len() < settings.kills {
        queue.fill();
        report.rounds += 1;
        while report.repeated.len() < settings.kills {
            let open = queue.open_rows();
            if open.is_empty() {
                break;
            }
            let Some(phase) = next_phase(&queue, &open, &report, &mut random) else { break };
            let before = queue.stored_steps(&open);
            match one_run(&queue, &open, Some(phase), &mut random) {
                End::Idle => {}
                End::Killed { phase, made } => {
                    *report.kills.entry(phase).or_default() += 1;
                    report.repeated.push(check(&mut queue, &before, &made, &open));
                }
            }
            queue.keep_takes();
        }
        // To the end, twice if a take is kept only then.
        for _ in 0..2 {
            if !queue.open_rows().is_empty() {
                one_run(&queue, &queue.open_rows(), None, &mut random);
            }
            queue.keep_takes();
        }
        report.jobs += queue.check_end();
        report.outputs = queue.outputs_checked();
    }
    report
}

/// The phase with the fewest kills among those that a job has still before it.
fn next_phase(queue: &Queue<'_>, open: &[Row], report: &Report, random: &mut Random) -> Option<Phase> {
    let possible = |phase: &Phase| open.iter().any(|row| queue.is_before(row, *phase));
    let kills = |phase: &Phase| report.kills.get(phase).copied().unwrap_or(0);
    let fewest = Phase::ALL.iter().filter(|phase| possible(phase)).map(kills).min()?;
    let phases: Vec<_> =
        Phase::ALL.into_iter().filter(|phase| possible(phase) && kills(phase) == fewest).collect();
    phases.get(random.below(phases.len() as u64) as usize).copied()
}

/// Starts the process that makes the jobs, and kills it in a phase, or waits until it ends.
fn one_run(queue: &Queue<'_>, open: &[Row], phase: Option<Phase>, random: &mut Random) -> End {
    let mut command = queue.command(&["jobs", "run", "--until-idle", "--json"]);
    let log = std::fs::OpenOptions::new().append(true).create(true).open(queue.log()).expect("a log");
    command.stdout(log.try_clone().expect("a log")).stderr(log).stdin(Stdio::null());
    let mut child = command.spawn().expect("the program starts");
    let mut watch = Watch::new(queue, open, child.id());
    let started = Instant::now();
    let skipped = random.below(12);
    let mut writes = 0;
    loop {
        if let Some(status) = child.try_wait().expect("the state of the child") {
            assert!(status.success(), "`jobs run` ended with {status}:\n{}", queue.log_text());
            return End::Idle;
        }
        watch.look();
        let seen = match phase {
            Some(Phase::Store) => {
                writes += u64::from(watch.has_written());
                (writes > skipped).then_some((Phase::Store, None))
            }
            Some(phase) => watch.job_in(phase).map(|id| (phase, Some(id))),
            None => None,
        };
        let late = phase.is_some() && started.elapsed() > PATIENCE;
        let seen = seen.or_else(|| watch.any().filter(|_| late).map(|(phase, id)| (phase, Some(id))));
        if let Some((phase, id)) = seen {
            std::thread::sleep(Duration::from_micros(random.below(phase.longest_delay())));
            kill(&mut child);
            // What it did last, unless it was caught in a moment.
            let last = id.and_then(|id| watch.after_kill(id));
            let phase = if phase == Phase::Store {
                phase
            } else {
                last.filter(|_| phase != Phase::Boundary).unwrap_or(phase)
            };
            return End::Killed { phase, made: watch.steps() };
        }
        std::thread::sleep(Duration::from_micros(if phase == Some(Phase::Store) { 100 } else { 500 }));
    }
}

fn kill(child: &mut Child) {
    child.kill().expect("SIGKILL");
    child.wait().expect("the end of the child");
}

/// Checks what a kill left. `made` are the steps that were seen on disk before the kill; no fewer may be there now.
/// Returns the steps that are to be made twice.
fn check(
    queue: &mut Queue<'_>,
    before: &BTreeMap<u64, usize>,
    made: &BTreeMap<u64, usize>,
    open: &[Row],
) -> usize {
    let now = queue.check_kill();
    let stored = queue.stored_steps(open);
    let mut repeated = 0;
    for (id, steps) in &stored {
        let seen = before.get(id).max(made.get(id)).copied().unwrap_or(0);
        assert!(*steps >= seen, "job {id} had {seen} steps on disk, and has {steps}");
        let told = now.iter().find(|row| row.id == *id).map_or(0, |row| row.steps_done);
        let lost = told.saturating_sub(*steps);
        assert!(lost <= 1, "job {id} told of {told} steps, and {steps} are on disk");
        repeated = repeated.max(lost);
    }
    repeated
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }
}
