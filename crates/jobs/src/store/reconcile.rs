//! What a job is, from its folder and its row.
//!
//! The folder decides. The row supplies what a damaged file of the folder lacks.

use super::job_files::{Found, JobFiles};
use super::owned::{ended, waiting};
use super::types::{JobRow, Outcome, Progress, State};
use bundle::Report;
use runtime::scheduler::JobId;

/// What is to be done about a folder that has the name of a job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// It is a job.
    Job {
        /// What the database is to hold.
        row: Box<JobRow>,
        /// True if the file of the request is to be written.
        write_request: bool,
        /// True if the file of the outcome is to be written.
        write_outcome: bool,
        /// What was decided that somebody may want to know.
        note: Option<String>,
    },
    /// It was a job and cannot be read.
    Lost(String),
    /// It was no job.
    Foreign,
}

/// Decides what a job is. `now` is in seconds since 1970.
pub(super) fn reconcile(id: JobId, files: JobFiles, row: Option<JobRow>, now: f64) -> Verdict {
    let mut notes = Vec::new();
    let (request, write_request) = match (files.request, &row) {
        (Found::Whole(request), row) => {
            if row.as_ref().is_some_and(|row| row.request != request) {
                notes.push("the request in its folder was used, which differed from the database".to_owned());
            }
            (request, false)
        }
        (found, Some(row)) => {
            notes.push(format!("its request was written again from the database: {}", problem(&found)));
            (row.request.clone(), true)
        }
        (Found::Absent, None) if !files.is_ours => return Verdict::Foreign,
        (found, None) => return Verdict::Lost(problem(&found)),
    };
    let (outcome, write_outcome) = match (files.outcome, &row) {
        (Found::Whole(outcome), _) => (Some(outcome), false),
        (Found::Absent, row) => {
            if row.as_ref().is_some_and(|row| row.state.has_ended()) {
                notes
                    .push("it is queued again, because its folder does not say that it has ended".to_owned());
            }
            (None, false)
        }
        (found @ Found::Damaged(_), row) => {
            let known = row.as_ref().and_then(|row| row.outcome.clone());
            let source = if known.is_some() { "the database" } else { "what is left" };
            notes.push(format!("its outcome was written again from {source}: {}", problem(&found)));
            (Some(known.unwrap_or_else(|| unknown_outcome(now))), true)
        }
    };
    let row = JobRow {
        id,
        state: State::Queued,
        request,
        progress: row.as_ref().map_or_else(Progress::default, |row| row.progress.clone()),
        submitted: files.submitted.or(row.as_ref().map(|row| row.submitted)).or(files.written).unwrap_or(now),
        started: row.as_ref().and_then(|row| row.started),
        ended: None,
        outcome: None,
    };
    let row = match &outcome {
        Some(outcome) => ended(row, outcome),
        None => waiting(row),
    };
    let note = (!notes.is_empty()).then(|| format!("{id}: {}", notes.join("; ")));
    Verdict::Job { row: Box::new(row), write_request, write_outcome, note }
}

fn problem<T>(found: &Found<T>) -> String {
    match found {
        Found::Damaged(why) => why.clone(),
        Found::Absent | Found::Whole(_) => "the file is missing".to_owned(),
    }
}

/// The outcome of a job that has ended nobody knows how. A clip that was complete is not made again unasked.
fn unknown_outcome(now: f64) -> Outcome {
    let error = Report::damaged(
        "it is not known how the job ended",
        "outcome.json was damaged",
        "look at its outputs; `rushes jobs retry` makes the rest of them again",
    );
    Outcome {
        state: State::Failed,
        error: Some(error),
        outputs: Vec::new(),
        warnings: Vec::new(),
        steps_done: 0,
        ended: now,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{outcome, request, row};
    use super::*;

    fn files(request: Found<crate::request::Request>, outcome: Found<Outcome>) -> JobFiles {
        JobFiles { request, outcome, submitted: Some(5.0), written: Some(7.0), is_ours: true }
    }

    fn damaged<T>() -> Found<T> {
        Found::Damaged("expected value at line 1".to_owned())
    }

    fn job(verdict: Verdict) -> (JobRow, bool, bool, Option<String>) {
        match verdict {
            Verdict::Job { row, write_request, write_outcome, note } => {
                (*row, write_request, write_outcome, note)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_alone_is_enough() {
        let whole = files(Found::Whole(request("a")), Found::Whole(outcome(State::Done, 8)));
        let (found, _, _, note) = job(reconcile(JobId(3), whole, None, 9.0));
        assert_eq!((found.state, found.submitted, found.ended, note), (State::Done, 5.0, Some(20.0), None));
        let (found, ..) =
            job(reconcile(JobId(3), files(Found::Whole(request("a")), Found::Absent), None, 9.0));
        assert_eq!((found.state, found.outcome), (State::Queued, None));
    }

    #[test]
    fn the_folder_decides() {
        let known = || files(Found::Whole(request("a")), Found::Whole(outcome(State::Done, 8)));
        // The owner was killed between folder and database.
        for state in [State::Running, State::Queued] {
            let (found, _, _, note) = job(reconcile(JobId(3), known(), Some(row(3, state)), 9.0));
            assert_eq!((found.state, note), (State::Done, None));
        }
        // And while it queued a job again.
        let open = files(Found::Whole(request("b")), Found::Absent);
        let (found, _, _, note) = job(reconcile(JobId(3), open, Some(row(3, State::Done)), 9.0));
        assert_eq!((found.state, &*found.request.clip.prompt), (State::Queued, "b"));
        assert!(note.unwrap().contains("queued again"));
    }

    #[test]
    fn the_row_replaces_damaged_files() {
        let mut known = row(3, State::Failed);
        known.outcome = Some(outcome(State::Failed, 2));
        let (found, write_request, write_outcome, note) =
            job(reconcile(JobId(3), files(damaged(), damaged()), Some(known.clone()), 9.0));
        assert!(write_request && write_outcome);
        assert_eq!((found.request, found.outcome), (known.request, known.outcome));
        assert!(note.unwrap().starts_with("job 3: its request was written again"));
        let (found, _, write_outcome, _) =
            job(reconcile(JobId(3), files(Found::Whole(request("a")), damaged()), None, 9.0));
        assert_eq!((found.state, write_outcome), (State::Failed, true));
    }

    #[test]
    fn what_cannot_be_read_is_lost_and_what_was_no_job_is_left_alone() {
        assert!(matches!(reconcile(JobId(3), files(damaged(), Found::Absent), None, 9.0), Verdict::Lost(_)));
        assert!(matches!(
            reconcile(JobId(3), files(Found::Absent, Found::Absent), None, 9.0),
            Verdict::Lost(_)
        ));
        let foreign = JobFiles { is_ours: false, ..files(Found::Absent, Found::Absent) };
        assert_eq!(reconcile(JobId(3), foreign, None, 9.0), Verdict::Foreign);
    }
}
