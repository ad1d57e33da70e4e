//! `rushes jobs run`: makes the jobs of the queue in this process.

use super::live::{Live, Shown};
use super::store::StoreArgs;
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::owner::OwnerArgs;
use crate::cli::render;
use crate::cli::threads::Threads;
use ::jobs::owner::{self, Notice, Summary};
use bundle::{ErrorClass, Report};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

/// The arguments of `rushes jobs run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// End when no job is left to make, instead of waiting for more
    #[arg(long)]
    until_idle: bool,
    #[command(flatten)]
    owner: OwnerArgs,
}

impl RunArgs {
    /// The value of `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        self.owner.threads()
    }
}

/// Runs the command.
pub(super) fn run(args: &RunArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let folder = store.folder()?;
    let left = Report::new(
        ErrorClass::Interrupted,
        "stopped at once",
        "the jobs are in the queue; those that had begun go on after the last step whose snapshot is complete",
        format!("go on with `{}`", store.command("run")),
    );
    let options = args.owner.options(global, args.until_idle, left)?;
    let cancel = options.cancel.clone();
    let mut live = Live::new(Shown::choose(global.json));
    let ended = owner::run(&folder, options, &mut |notice| match notice {
        Notice::Started { waiting } if !global.json => {
            render::note(&started(&folder, waiting, args.until_idle));
        }
        notice => live.on_notice(notice),
    });
    live.clear();
    let summary = ended?;
    report(&summary, global.json)?;
    if cancel.is_cancelled() {
        return Err(Error::Interrupted {
            phase: "making jobs",
            kept: kept(&summary),
            go_on: Some(store.command("run")),
        });
    }
    Ok(if summary.failed > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// What is said once the store is owned.
fn started(folder: &Path, waiting: usize, until_idle: bool) -> String {
    let until = if until_idle { "until none is left" } else { "until Ctrl-C" };
    let wait = match waiting {
        0 => "none waits".to_owned(),
        1 => "1 waits".to_owned(),
        count => format!("{count} wait"),
    };
    format!("making the jobs of {} {until}: {wait}", folder.display())
}

/// What becomes of the jobs that had not ended.
fn kept(summary: &Summary) -> String {
    let begun = match summary.queued_again {
        0 => "no job had begun".to_owned(),
        1 => "1 job had begun, and goes on after its last step".to_owned(),
        count => format!("{count} jobs had begun, and go on after their last steps"),
    };
    match (summary.queued_again, summary.waiting) {
        (0, 0) => "no job was running".to_owned(),
        (_, 0) => begun,
        (0, 1) => format!("{begun}; 1 waits"),
        (0, count) => format!("{begun}; {count} wait"),
        (_, 1) => format!("{begun}; 1 other waits"),
        (_, count) => format!("{begun}; {count} others wait"),
    }
}

fn report(summary: &Summary, as_json: bool) -> Result<(), Error> {
    let Summary { done, stopped, failed, cancelled, queued_again, waiting, counts } = summary;
    let value = json!({
        "event": "ran",
        "done": done,
        "stopped": stopped,
        "failed": failed,
        "cancelled": cancelled,
        "queued_again": queued_again,
        "waiting": waiting,
        "swaps": counts.swaps,
        "loads": counts.loads,
        "waves": counts.waves,
    });
    render::result(as_json, &value, &sentence(summary))
}

/// How the jobs ended, and how often a device had to change experts if that says something.
fn sentence(summary: &Summary) -> String {
    let Summary { done, stopped, failed, cancelled, counts, .. } = summary;
    let mut text = format!("{done} done");
    for (count, state) in [(stopped, "stopped"), (failed, "failed"), (cancelled, "cancelled")] {
        if *count > 0 {
            // Writing into a String cannot fail.
            let _ = write!(text, ", {count} {state}");
        }
    }
    let changes = match (counts.swaps, counts.waves) {
        (0, 0 | 1) => return text,
        (0, _) => "experts did not change".to_owned(),
        (1, _) => "experts changed once".to_owned(),
        (swaps, _) => format!("experts changed {swaps} times"),
    };
    format!("{text}; {changes}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::scheduler::Counts;

    #[test]
    fn a_run_is_summed_up_in_a_sentence() {
        let of = |summary: &Summary, swaps, waves| {
            sentence(&Summary { counts: Counts { swaps, waves, ..Counts::default() }, ..summary.clone() })
        };
        let all = Summary { done: 3, stopped: 2, failed: 1, cancelled: 4, ..Summary::default() };
        assert_eq!(of(&all, 3, 2), "3 done, 2 stopped, 1 failed, 4 cancelled; experts changed 3 times");
        let none = Summary::default();
        assert_eq!([of(&none, 0, 1), of(&none, 1, 1)], ["0 done", "0 done; experts changed once"]);
        assert_eq!(of(&Summary { stopped: 9, ..none }, 0, 2), "0 done, 9 stopped; experts did not change");
    }

    #[test]
    fn jobs_that_had_begun_are_told_from_those_that_wait() {
        let of = |queued_again, waiting| kept(&Summary { queued_again, waiting, ..Summary::default() });
        assert_eq!(of(0, 0), "no job was running");
        assert_eq!(of(0, 12), "no job had begun; 12 wait");
        assert_eq!(of(1, 11), "1 job had begun, and goes on after its last step; 11 others wait");
        assert_eq!(of(2, 1), "2 jobs had begun, and go on after their last steps; 1 other waits");
        assert_eq!(of(2, 0), "2 jobs had begun, and go on after their last steps");
    }

    #[test]
    fn the_start_says_how_many_jobs_wait() {
        let of = |waiting, until_idle| started(Path::new("/q"), waiting, until_idle);
        assert_eq!(of(12, true), "making the jobs of /q until none is left: 12 wait");
        assert_eq!(of(0, false), "making the jobs of /q until Ctrl-C: none waits");
    }
}
