//! The end of a job: its outputs are completed or closed, on a thread of its own.

use super::clip::Clip;
use crate::request::Request;
use crate::store::{Outcome, State, now};
use bundle::units::ByteCount;
use bundle::{Diagnose, ErrorClass, Report};
use media::{ClipWriter, OutputResult, Remainder};
use runtime::driver::EndedJob;
use runtime::scheduler::{JobId, Outcome as Ending};
use std::path::PathBuf;

/// A job whose outputs are complete or closed.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) id: JobId,
    pub(super) outcome: Outcome,
    /// What could not be written because its disk is full. The job is to be made again when there is room.
    pub(super) disk_full: Option<PathBuf>,
}

/// The end of a job whose outputs could not be completed because of a fault of the program.
pub(super) fn panicked(id: JobId, clip: &Clip) -> Finished {
    let outcome = Outcome {
        state: State::Failed,
        error: Some(Report::bug("the outputs of the job could not be completed", "its thread panicked")),
        outputs: Vec::new(),
        warnings: clip.warnings(),
        steps_done: clip.progress().steps_done,
        ended: now(),
    };
    Finished { id, outcome, disk_full: None }
}

/// Completes or closes the outputs of a job. Waits for its snapshots and for encoders.
pub(super) fn finish(mut ended: EndedJob, clip: &Clip, request: &Request) -> Finished {
    // Waits for its snapshots, and unlocks its folder.
    ended.close();
    let (id, outcome, report) = (ended.id, ended.outcome, ended.report.take());
    drop(ended);
    if let (Ending::Done, Some(report)) = (outcome, &report) {
        clip.warn(report.to_string());
    }
    let writer = clip.take_writer();
    let (state, error, outputs) = match outcome {
        Ending::Done => match writer {
            None => (State::Stopped, None, Vec::new()),
            Some(writer) => complete(writer, clip, request),
        },
        Ending::Cancelled => (State::Cancelled, None, close(writer)),
        Ending::Failed => (State::Failed, Some(report.unwrap_or_else(unknown)), close(writer)),
        Ending::DoesNotFit { needed, budget } => {
            (State::Failed, Some(report.unwrap_or_else(|| does_not_fit(needed, budget))), close(writer))
        }
    };
    let disk_full = if state == State::Failed { clip.disk_full() } else { None };
    let progress = clip.progress();
    let outcome = Outcome {
        state,
        error,
        outputs,
        warnings: clip.warnings(),
        steps_done: progress.steps_done,
        ended: now(),
    };
    Finished { id, outcome, disk_full }
}

fn complete(
    writer: ClipWriter,
    clip: &Clip,
    request: &Request,
) -> (State, Option<Report>, Vec<OutputResult>) {
    match writer.finish() {
        Ok(outcome) => {
            for failed in &outcome.failed {
                if matches!(&*failed.error, media::Error::DiskFull { .. }) {
                    clip.output_full(&failed.output);
                }
            }
            let ended = if request.is_partial() { State::Stopped } else { State::Done };
            let error = outcome.error().map(|error| error.report());
            let state = if error.is_some() { State::Failed } else { ended };
            (state, error, outcome.results())
        }
        Err(error) if error.report().class == ErrorClass::Interrupted => (State::Cancelled, None, Vec::new()),
        Err(error) => {
            if matches!(error, media::Error::DiskFull { .. })
                && let Some(output) = request.outputs.first()
            {
                clip.output_full(output);
            }
            (State::Failed, Some(error.report()), Vec::new())
        }
    }
}

/// Closes outputs that are not complete. Those that were kept are results that failed.
fn close(writer: Option<ClipWriter>) -> Vec<OutputResult> {
    let kept = writer.map_or(Vec::new(), ClipWriter::interrupt);
    let kept = kept.into_iter().filter(|(_, remainder)| *remainder != Remainder::Nothing);
    kept.map(|(output, remainder)| {
        OutputResult::Failed(media::FailedOutputReport {
            output: output.to_string(),
            error: "the job ended before the clip was complete".to_owned(),
            kept: remainder.to_string(),
        })
    })
    .collect()
}

fn unknown() -> Report {
    Report::bug("the job failed", "it gave no reason")
}

fn does_not_fit(needed: ByteCount, budget: ByteCount) -> Report {
    Report::new(
        ErrorClass::DoesNotFit,
        "the job does not fit in memory",
        format!("its largest stage needs {needed}, and {budget} may be used on that device"),
        "use a smaller `size` or fewer `frames`, or allow more with `memory_budget`",
    )
}
