//! `rushes jobs list`: the jobs as a table.

use super::rows::{as_json, owner_as_json};
use super::store::StoreArgs;
use super::{table, values};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use ::jobs::store::{JobRow, Lease, State, now};
use clap::Args;
use serde_json::json;
use std::fmt::Write;
use std::process::ExitCode;

/// Seconds after which a job that has ended is shown with `--all` only.
const OLD: f64 = 86400.0;

/// The arguments of `rushes jobs list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print jobs in this state only: queued, running, stopped, done, failed or cancelled. May be given more than once
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = values::state)]
    state: Vec<State>,
    /// Print jobs too that were done, failed or cancelled more than a day ago
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub(super) fn run(args: &ListArgs, store: &StoreArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let folder = render::path(&store.folder()?);
    let Some(found) = store.open_existing()? else {
        let value = json!({"event": "jobs", "store": folder, "owner": null, "hidden": 0, "jobs": []});
        render::result(global.json, &value, &no_jobs(store))?;
        return Ok(ExitCode::SUCCESS);
    };
    let lease = found.lease()?;
    let (rows, hidden) = shown(args, found.list()?, now());
    let value = json!({
        "event": "jobs",
        "store": folder,
        "owner": owner_as_json(lease.as_ref()),
        "hidden": hidden,
        "jobs": rows.iter().map(|row| as_json(row, &found)).collect::<Vec<_>>(),
    });
    let mut text = match rows.is_empty() {
        true if hidden == 0 && args.state.is_empty() => no_jobs(store),
        true => "no such jobs\n".to_owned(),
        false => table::draw(&rows, &std::env::current_dir().unwrap_or_default(), width()),
    };
    text.push_str(&about(store, lease.as_ref(), hidden));
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// The columns of standard output, if it is a terminal.
fn width() -> Option<usize> {
    let terminal = console::Term::stdout();
    let (_, columns) = terminal.size_checked().filter(|_| terminal.is_term())?;
    Some(usize::from(columns)).filter(|columns| *columns > 0)
}

fn no_jobs(store: &StoreArgs) -> String {
    format!("no jobs; `{}` adds one\n", store.command("submit PROMPT"))
}

/// The jobs to print, and the number of those that are left out because they ended long ago.
fn shown(args: &ListArgs, rows: Vec<JobRow>, now: f64) -> (Vec<JobRow>, usize) {
    let mut hidden = 0;
    let mut shown = Vec::new();
    for row in rows {
        if !(args.state.is_empty() || args.state.contains(&row.state)) {
            continue;
        }
        let has_finished = matches!(row.state, State::Done | State::Failed | State::Cancelled);
        let is_old = row.ended.is_some_and(|ended| now - ended > OLD);
        if has_finished && is_old && !args.all {
            hidden += 1;
        } else {
            shown.push(row);
        }
    }
    (shown, hidden)
}

/// The lines below the table.
fn about(store: &StoreArgs, lease: Option<&Lease>, hidden: usize) -> String {
    let mut text = String::new();
    if hidden > 0 {
        let jobs = if hidden == 1 { "job" } else { "jobs" };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{hidden} more {jobs} ended more than a day ago; --all shows them");
    }
    let _ = writeln!(text, "{}", owner(store, lease));
    text
}

/// A sentence on who makes the jobs.
pub(super) fn owner(store: &StoreArgs, lease: Option<&Lease>) -> String {
    match lease {
        Some(lease) => format!("process {} makes the jobs", lease.pid),
        None => format!("no process makes the jobs; `{}` does", store.command("run")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    fn ended(id: u64, state: State, at: f64) -> JobRow {
        JobRow { ended: Some(at), ..row(id, state) }
    }

    #[test]
    fn jobs_that_ended_long_ago_are_counted_and_not_shown() {
        let day = 86400.0;
        let rows = || {
            vec![
                ended(1, State::Done, 0.0),
                ended(2, State::Stopped, 0.0),
                ended(3, State::Failed, 1.5 * day),
                row(4, State::Queued),
                ended(5, State::Cancelled, 0.0),
            ]
        };
        let ids = |args: &ListArgs| {
            let (rows, hidden) = shown(args, rows(), 2.0 * day);
            (rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), hidden)
        };
        assert_eq!(ids(&ListArgs { state: Vec::new(), all: false }), (vec![2, 3, 4], 2));
        assert_eq!(ids(&ListArgs { state: Vec::new(), all: true }), (vec![1, 2, 3, 4, 5], 0));
        assert_eq!(ids(&ListArgs { state: vec![State::Done, State::Queued], all: false }), (vec![4], 1));
        insta::assert_snapshot!(about(&StoreArgs::default(), None, 2), @r"
        2 more jobs ended more than a day ago; --all shows them
        no process makes the jobs; `rushes jobs run` does
        ");
    }
}
