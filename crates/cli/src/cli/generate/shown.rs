//! A running job, as it is shown to the user and written to the outputs.

use crate::Error;
use crate::cli::args::GenerateArgs;
use crate::cli::preview;
use crate::cli::progress::Progress;
use crate::cli::render::{self, Stream};
use bundle::units::FrameRate;
use media::live::LivePublisher;
use media::{ClipOutcome, ClipWriter, FailedOutputReport, OutputReport, Remainder};
use ndarray::Array4;
use runtime::job::{Job, JobEvent, OutputSummary};
use runtime::trace::Trace;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Progress, outputs and trace of a job.
pub(super) struct Shown {
    writer: ClipWriter,
    progress: Progress,
    trace: Option<Trace>,
    /// True if the outputs carry the record of the clip.
    has_record: bool,
    /// How the job can go on, if it is kept in a folder.
    job: Option<KeptJob>,
}

/// A job that is kept in a folder.
#[derive(Debug)]
pub(super) struct KeptJob {
    /// The folder.
    pub(super) folder: PathBuf,
    /// The command that goes on with it.
    pub(super) command: String,
}

impl Shown {
    pub(super) fn new(
        args: &GenerateArgs,
        writer: ClipWriter,
        trace: Option<Trace>,
        job: Option<KeptJob>,
    ) -> Self {
        let progress = Progress::new(args.run.progress);
        Self { writer, progress, trace, has_record: !args.writing.no_metadata, job }
    }

    /// Shows an event and writes what it carries.
    ///
    /// # Errors
    /// Returns an error if no output can be written, or the run was cancelled.
    pub(super) fn on_event(&mut self, event: JobEvent, job: &Job) -> Result<(), Error> {
        match event {
            JobEvent::Encoding => self.progress.begin("text", 1),
            JobEvent::Encoded(text) => {
                self.progress.advance(1, "");
                for (which, states) in
                    [("prompt", Some(&text.prompt)), ("negative prompt", text.negative.as_ref())]
                {
                    if let Some(cut) = states.and_then(|states| states.cut()) {
                        self.note(&format!("warning: {}", cut.warning(which)));
                    }
                }
                if let Some(trace) = &mut self.trace {
                    trace.text(&text.prompt, text.negative.as_deref());
                }
            }
            JobEvent::Denoising { done, steps } => {
                self.progress.begin_after("denoise", done, steps);
            }
            JobEvent::Step { done, .. } => {
                self.progress.advance(done.step + 1, &done.expert.0);
                if let Some(trace) = &mut self.trace {
                    trace.latent(&done.latent);
                }
            }
            JobEvent::Decoding => {
                self.progress.begin("decode", job.plan().frames.get());
                self.set_record(job);
            }
            JobEvent::Frames(frames) => self.write(&frames)?,
            JobEvent::Warning(report) => {
                self.note(&format!("warning: {}", render::named(report)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Shows the warnings among the events of a job that has ended.
    pub(super) fn warnings(&self, events: impl Iterator<Item = JobEvent>) {
        for event in events {
            if let JobEvent::Warning(report) = event {
                self.note(&format!("warning: {}", render::named(report)));
            }
        }
    }

    fn note(&self, text: &str) {
        self.progress.clear();
        render::note(text);
    }

    /// Gives the outputs the record of the clip, which is complete once all steps are done.
    fn set_record(&mut self, job: &Job) {
        if !self.has_record {
            return;
        }
        let (tags, left_out) = jobs::tags::with_record(self.writer.tags(), job);
        if let Some(left_out) = left_out {
            self.note(&format!("warning: {left_out} are too long to be stored in the clip"));
        }
        if !self.writer.set_tags(tags) {
            tracing::warn!("the outputs have started without the record of the clip");
        }
    }

    /// Encodes the requested frames; the trace keeps all.
    fn write(&mut self, frames: &Array4<f32>) -> Result<(), Error> {
        if let Some(trace) = &mut self.trace {
            trace.frames(frames);
        }
        let written = self.writer.push(frames.view());
        for failed in self.writer.newly_failed() {
            self.progress.clear();
            render::note(&format!(
                "warning: {}; {}; the other outputs continue",
                render::report(&*failed.error),
                failed.remainder
            ));
        }
        written?;
        self.progress.advance(self.writer.pushed(), "");
        Ok(())
    }

    /// Completes the outputs, and prints the result.
    ///
    /// # Errors
    /// Returns an error if an output or the trace cannot be completed.
    pub(super) fn finish(
        self,
        job: &Job,
        (stream, as_json): (Stream, bool),
        started: Instant,
    ) -> Result<ExitCode, Error> {
        self.progress.clear();
        let rate = self.writer.format().rate;
        let mut outcome = self.writer.finish()?;
        let mut report = job.report(outcome.first_encoded);
        report.outputs = summaries(&outcome);
        if let Some(note) = job.previews().and_then(preview::note) {
            render::note(&note);
        }
        let trace = self.trace.map(Trace::write).transpose()?;
        let total = started.elapsed().as_secs_f64();
        let first = outcome.written.first().and(report.outputs.first());
        let seed = report.seed;
        let value = json!({
            "event": "done",
            "output": first.as_ref().map(|clip| &clip.output),
            "memory": report.memory,
            "nodes": report.nodes,
            "outputs": report.outputs,
            "trace": trace.as_deref().map(render::path),
            "frames": outcome.frames,
            "bytes": outcome.bytes(),
            "size": job.plan().size,
            "fps": fps(rate),
            "frame_rate": rate.to_string(),
            "seed": seed,
            "steps": report.steps,
            "steps_done": report.steps_done,
            "reused_steps": report.reused_steps,
            "skipped_passes": report.skipped_passes,
            "model": report.model,
            "precision": report.variant.precision,
            "kernels": report.variant.kernels,
            "conditions": report.conditions,
            "latents": report.latents,
            "forks": job.spec().forks,
            "job_dir": self.job.as_ref().map(|job| render::path(&job.folder)),
            "preview": report.preview,
            "seconds": report.seconds,
            "live": outcome.live.as_ref().map(LivePublisher::sent),
            "first_frame_encoded_seconds": outcome.first_encoded.map(|at| (at - started).as_secs_f64()),
            "timing": report.timing,
            "total_seconds": total,
        });
        if let Some(names) = outcome.names() {
            let frames = outcome.frames;
            let steps = if report.steps_done < report.steps {
                format!(", after step {} of {}", report.steps_done, report.steps)
            } else {
                String::new()
            };
            let reused = reused(&report.reused_steps, report.steps_done);
            let text =
                format!("{names}: {frames} frames{steps}{reused}, {total:.1} s in all (seed {})", seed.0);
            render::result_on(stream, as_json, &value, &text)?;
        }
        if let Some(live) = outcome.live.take() {
            let sent = live.repeat_until(job.canceller())?;
            let value = json!({"event": "live_ended", "live": sent});
            let text = format!(
                "live: {} pictures were published, the clip from number {} on",
                sent.pictures, sent.before_clip
            );
            render::result_on(stream, as_json, &value, &text)?;
        }
        outcome.error().map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
    }

    /// Closes the outputs of a run that was interrupted or failed. Returns the error, with the files that were kept.
    pub(super) fn stop(self, job: &Job, error: Error) -> Error {
        self.progress.clear();
        if let Some(note) = job.previews().and_then(preview::note) {
            render::note(&note);
        }
        let kept = self.writer.interrupt();
        if !error.is_cancelled() {
            return error;
        }
        let phase = match job.phase() {
            "denoise" => "denoising",
            "decode" => "decoding",
            _ => "encoding the text",
        };
        let kept: Vec<String> = kept
            .iter()
            .filter(|(_, kept)| *kept != Remainder::Nothing)
            .map(|(_, kept)| kept.to_string())
            .collect();
        let kept = match (&self.job, kept.is_empty()) {
            (None, true) => Remainder::Nothing.to_string(),
            (None, false) => kept.join("; "),
            (Some(job), true) => format!("the job is kept in {}", job.folder.display()),
            (Some(job), false) => format!("{}; the job is kept in {}", kept.join("; "), job.folder.display()),
        };
        Error::Interrupted { phase, kept, go_on: self.job.map(|job| job.command) }
    }
}

/// The steps that reused velocities, as ", 2 of 12 steps reused (5, 7)"; empty if there are none.
fn reused(steps: &[usize], of: usize) -> String {
    if steps.is_empty() {
        return String::new();
    }
    let numbers: Vec<String> = steps.iter().map(usize::to_string).collect();
    format!(", {} of {of} steps reused ({})", steps.len(), numbers.join(", "))
}

/// The outputs for the report, complete ones first. Errors name flags.
fn summaries(outcome: &ClipOutcome) -> Vec<OutputSummary> {
    let written = outcome.written.iter().map(|clip| {
        let OutputReport { output, frames, bytes } = clip.into();
        OutputSummary { output, frames: Some(frames), bytes, error: None, kept: None }
    });
    let failed = outcome.failed.iter().map(|failed| {
        let FailedOutputReport { output, kept, .. } = failed.into();
        let error = Some(render::report(&*failed.error).to_string());
        OutputSummary { output, frames: None, bytes: None, error, kept: Some(kept) }
    });
    written.chain(failed).collect()
}

/// A frame rate as JSON: a whole number, or the nearest floating-point number.
fn fps(rate: FrameRate) -> serde_json::Value {
    if rate.fraction().1 == 1 { json!(rate) } else { json!(rate.per_second()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reused_steps_are_listed() {
        assert_eq!(reused(&[5, 7], 12), ", 2 of 12 steps reused (5, 7)");
        assert_eq!(reused(&[], 12), "");
    }
}
