//! The jobs while they are made: a table that is drawn again, plain lines, or JSON lines.

use super::screen::{Screen, doing, table};
use crate::cli::render;
use ::jobs::owner::{JobStatus, Notice};
use ::jobs::store::{Outcome, State};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use media::{FailedOutputReport, OutputReport, OutputResult};
use runtime::scheduler::JobId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;

/// How often the table is drawn, in a second.
const DRAWN: u8 = 4;

/// How jobs are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// A table on standard error, which is a terminal.
    Table,
    /// A line when a job begins a phase or ends.
    Lines,
    /// JSON lines on standard output.
    Json,
}

impl Shown {
    /// JSON if it was asked for, else a table on a terminal.
    pub(super) fn choose(as_json: bool) -> Self {
        match as_json {
            true => Self::Json,
            false if std::io::stderr().is_terminal() => Self::Table,
            false => Self::Lines,
        }
    }
}

/// Shows what the owner of a queue tells.
#[derive(Debug)]
pub(super) struct Live {
    shown: Shown,
    table: ProgressBar,
    /// The phase of each job that a line was printed for.
    phases: BTreeMap<JobId, String>,
}

impl Live {
    pub(super) fn new(shown: Shown) -> Self {
        let target = match shown {
            Shown::Table => ProgressDrawTarget::stderr_with_hz(DRAWN),
            Shown::Lines | Shown::Json => ProgressDrawTarget::hidden(),
        };
        let table = ProgressBar::with_draw_target(None, target);
        // If the template did not parse, indicatif would use its default style.
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            table.set_style(style);
        }
        Self { shown, table, phases: BTreeMap::new() }
    }

    /// Shows a notice.
    pub(super) fn on_notice(&mut self, notice: Notice) {
        match (self.shown, notice) {
            (Shown::Json, notice) => as_json(&notice).into_iter().for_each(|line| json_line(&line)),
            (_, Notice::Message(text)) => self.table.suspend(|| render::note(&text)),
            (Shown::Table, Notice::Jobs { jobs, devices }) => {
                self.table.set_message(table(&jobs, &devices, Screen::of_standard_error()));
            }
            (_, Notice::Jobs { jobs, .. }) => {
                for line in new_phases(&mut self.phases, &jobs) {
                    render::note(&line);
                }
            }
            (_, Notice::Ended { id, outcome }) => {
                self.phases.remove(&id);
                let text = ended(id, &outcome);
                self.table.suspend(|| {
                    // If standard output is closed, the store has the result.
                    let _ = render::result(false, &Value::Null, &text);
                });
            }
            _ => {}
        }
    }

    /// Removes the table, so that other lines can be printed.
    pub(super) fn clear(&self) {
        self.table.finish_and_clear();
    }
}

fn json_line(line: &Value) {
    // If standard output is closed, the store has the result.
    let _ = render::result(true, line, "");
}

fn as_json(notice: &Notice) -> Option<Value> {
    match notice {
        Notice::Started { waiting } => Some(json!({"event": "started", "waiting": waiting})),
        Notice::Message(text) => Some(json!({"event": "message", "text": text})),
        Notice::Jobs { jobs, devices } => {
            let jobs = jobs.iter().map(|job| {
                json!({
                    "id": job.id,
                    "state": job.state,
                    "priority": job.priority,
                    "model": job.model,
                    "prompt": job.prompt,
                    "progress": job.progress,
                })
            });
            let devices = devices
                .iter()
                .map(|(device, activity)| json!({"device": device, "activity": doing(activity)}));
            Some(json!({
                "event": "progress",
                "jobs": jobs.collect::<Vec<_>>(),
                "devices": devices.collect::<Vec<_>>(),
            }))
        }
        Notice::Ended { id, outcome } => {
            let mut outcome = outcome.clone();
            let error = outcome.error.take();
            let mut value = json!({"event": "ended", "id": id, "outcome": outcome});
            if let Some(error) = error {
                value["outcome"]["error"] = json!(render::named(error));
            }
            Some(value)
        }
        _ => None,
    }
}

/// A line for each job that has begun another phase.
fn new_phases(phases: &mut BTreeMap<JobId, String>, jobs: &[JobStatus]) -> Vec<String> {
    let mut lines = Vec::new();
    for job in jobs.iter().filter(|job| job.state == State::Running) {
        let phase = match (&*job.progress.phase, &job.progress.expert) {
            ("decode", _) => "decoding",
            ("text", _) => "encoding the text",
            ("denoise", Some(expert)) => expert,
            // It waits for its first step.
            _ => continue,
        };
        if phases.get(&job.id).is_none_or(|before| before != phase) {
            phases.insert(job.id, phase.to_owned());
            let progress = &job.progress;
            lines.push(format!("{}: {phase}, {} of {} steps", job.id, progress.steps_done, progress.steps));
        }
    }
    lines
}

/// How a job ended.
fn ended(id: JobId, outcome: &Outcome) -> String {
    let mut text = format!("{id}: {}", outcome.state);
    if outcome.state == State::Stopped {
        let _ = write!(text, " after {} steps", outcome.steps_done);
    }
    for output in &outcome.outputs {
        let _ = match output {
            OutputResult::Written(OutputReport { output, frames, .. }) => {
                write!(text, "; {output}: {frames} frames")
            }
            OutputResult::Failed(FailedOutputReport { output, error, kept }) => {
                write!(text, "; {output}: {error}; {kept}")
            }
        };
    }
    if let Some(error) = outcome.error.clone() {
        let error = render::named(error);
        let _ = write!(text, "\n  error: {}\n  why: {}\n  fix: {}", error.what, error.why, error.fix);
    }
    for warning in &outcome.warnings {
        let _ = write!(text, "\n  warning: {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{outcome, refusal};
    use super::super::screen::tests::job;
    use super::*;

    #[test]
    fn a_line_is_printed_for_each_phase() {
        let mut phases = BTreeMap::new();
        let queued = job(1, State::Queued, "", None, 0);
        assert_eq!(new_phases(&mut phases, std::slice::from_ref(&queued)), [""; 0]);
        let jobs = [queued, job(2, State::Running, "denoise", Some("high_noise"), 1)];
        assert_eq!(new_phases(&mut phases, &jobs), ["job 2: high_noise, 1 of 8 steps"]);
        let jobs = [job(2, State::Running, "denoise", Some("high_noise"), 2)];
        assert_eq!(new_phases(&mut phases, &jobs), [""; 0]);
        let jobs = [job(2, State::Running, "decode", Some("low_noise"), 8)];
        assert_eq!(new_phases(&mut phases, &jobs), ["job 2: decoding, 8 of 8 steps"]);
    }

    #[test]
    fn the_end_of_a_job_names_outputs_and_errors() {
        let mut done = outcome(State::Done, None);
        done.outputs =
            vec![OutputResult::Written(OutputReport { output: "/a.mp4".into(), frames: 17, bytes: Some(9) })];
        assert_eq!(ended(JobId(7), &done), "job 7: done; /a.mp4: 17 frames");
        assert_eq!(ended(JobId(7), &outcome(State::Stopped, None)), "job 7: stopped after 3 steps");
        let mut failed = outcome(State::Failed, Some(refusal()));
        failed.warnings = vec!["the prompt is long".into()];
        insta::assert_snapshot!(ended(JobId(7), &failed), @r"
        job 7: failed
          error: --output cannot be written
          why: its disk is full
          fix: choose another --output
          warning: the prompt is long
        ");
        let value = as_json(&Notice::Ended { id: JobId(7), outcome: failed }).unwrap();
        assert_eq!(value["outcome"]["error"]["what"], "--output cannot be written");
        assert_eq!((&value["event"], &value["id"]), (&json!("ended"), &json!(7)));
    }
}
