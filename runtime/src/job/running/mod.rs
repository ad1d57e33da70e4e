//! A job: one clip, from its spec to its frames, one unit of work at a time.

mod state;
mod units;

use super::conditions::RunConditions;
use super::event::JobEvent;
use super::folder::JobFolder;
use super::keep_steps::KeepSteps;
use super::record::LatentDigest;
use super::spec::JobSpec;
use super::start::JobStart;
use super::storage::Storage;
use super::stored_text;
use super::timing::Clock;
use crate::Error;
use crate::decode::{DecodeRun, TileSide};
use crate::denoise::{Denoising, StepInputs, TextConditioning};
use crate::pipeline::{Pipeline, seeded_noise};
use crate::plan::GenerationPlan;
use crate::preview::{PreviewReport, Previewer};
use bundle::{Cancel, Diagnose};
use ndarray::Array4;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a job can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    /// There is work left.
    Working,
    /// It does nothing until it is resumed.
    Paused,
    /// There is nothing left to do.
    Ended,
}

/// One clip, from its spec to its frames. It owns no graphs: several jobs can share one [`Pipeline`], and take turns
/// after every unit of work.
///
/// # Examples
/// ```no_run
/// use bundle::units::Seed;
/// use runtime::job::{Job, JobEvent, JobStart};
/// use runtime::model::{Model, ModelOptions};
/// use runtime::pipeline::{Pipeline, seeded_noise};
/// use runtime::plan::{GenerateRequest, GenerationPlan};
/// use std::path::Path;
///
/// # fn main() -> Result<(), runtime::Error> {
/// let model = Model::open(Path::new("bundle"), ModelOptions::default())?;
/// let request = GenerateRequest::new("a red ball bounces on the beach", Seed(42));
/// let plan = GenerationPlan::new(model.manifest(), &request)?;
/// let noise = seeded_noise(&plan);
/// let mut pipeline = Pipeline::new(&model);
/// let (mut job, _events) = Job::new(&pipeline, JobStart::new(&pipeline, plan, noise)?);
/// job.run(&mut pipeline, &mut |event| {
///     if let JobEvent::Frames(frames) = event {
///         println!("{} more frames", frames.shape()[0]);
///     }
///     Ok(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Job {
    spec: JobSpec,
    plan: GenerationPlan,
    conditions: RunConditions,
    earlier: Vec<RunConditions>,
    identity: String,
    denoising: Denoising,
    latents: Vec<LatentDigest>,
    pub(super) text: Option<TextConditioning>,
    text_digest: Option<String>,
    expected_text: Option<String>,
    pub(super) phase: Phase,
    pub(super) next_fork: usize,
    steps_run: usize,
    skipped_passes: usize,
    is_paused: bool,
    cancel: Cancel,
    events: Sender<JobEvent>,
    storage: Option<Storage>,
    keep_steps: KeepSteps,
    previewer: Option<Previewer>,
    previews: Option<PreviewReport>,
    clock: Clock,
}

/// Generates the clip of a plan from the noise of its seed, and passes every event to `on_event`.
///
/// # Errors
/// See [`Job::run`].
pub fn generate(
    pipeline: &mut Pipeline,
    plan: &GenerationPlan,
    cancel: &Cancel,
    on_event: &mut dyn FnMut(JobEvent) -> Result<(), Error>,
) -> Result<(), Error> {
    let start = JobStart::new(pipeline, plan.clone(), seeded_noise(plan))?;
    let (job, _) = Job::new(pipeline, start);
    job.with_cancel(cancel).run(pipeline, on_event)
}

/// Where a job is.
#[derive(Debug)]
pub(super) enum Phase {
    Start,
    Encode,
    Denoise(Box<StepInputs>),
    Decode(Arc<Array4<f32>>, Box<DecodeRun>),
    Ended,
}

impl Job {
    /// Creates a job, and the receiver of its events. Runs nothing.
    pub fn new(pipeline: &Pipeline, start: JobStart) -> (Self, Receiver<JobEvent>) {
        let (events, receiver) = channel();
        let JobStart { spec, plan, denoising, latents, text, expected_text, forks_applied, earlier } = start;
        let model = pipeline.model();
        let conditions = RunConditions::new(model, &plan, pipeline.tile().map(TileSide::get));
        let job = Self {
            next_fork: forks_applied,
            identity: spec.model.digest.clone(),
            text_digest: text.as_ref().map(stored_text::digest),
            spec,
            plan,
            conditions,
            earlier,
            denoising,
            latents,
            text,
            expected_text,
            phase: Phase::Start,
            steps_run: 0,
            skipped_passes: 0,
            is_paused: false,
            cancel: Cancel::new(),
            events,
            storage: None,
            keep_steps: KeepSteps::None,
            previewer: None,
            previews: None,
            clock: Clock::start(model, Duration::ZERO),
        };
        (job, receiver)
    }

    /// Stops the job when `cancel` is cancelled, within the current unit of work.
    pub fn with_cancel(self, cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), ..self }
    }

    /// Shows previews. `prepared` is the time that opening and trying their graphs took.
    pub fn with_previewer(self, pipeline: &Pipeline, previewer: Previewer, prepared: Duration) -> Self {
        let clock = Clock::start(pipeline.model(), prepared);
        Self { previewer: Some(previewer), clock, ..self }
    }

    /// Stores a snapshot after every step.
    pub fn with_folder(self, folder: JobFolder) -> Self {
        Self { storage: Some(Storage::new(folder)), ..self }
    }

    /// Keeps the snapshots after these steps in the folder, besides the newest one and the one at the boundary.
    pub fn keep_steps(self, keep_steps: KeepSteps) -> Self {
        Self { keep_steps, ..self }
    }

    /// Ends the clip after `steps` of the steps, with the clean latent that the last of them predicted. The job can be
    /// resumed.
    pub fn stop_after(mut self, steps: Option<usize>) -> Self {
        self.spec.stop_after = steps;
        self
    }

    /// Does nothing until [`Self::resume`].
    pub fn pause(&mut self) {
        if !self.is_paused && !matches!(self.phase, Phase::Ended) {
            self.is_paused = true;
            self.send(JobEvent::Paused);
        }
    }

    /// Goes on after [`Self::pause`].
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.is_paused) {
            self.send(JobEvent::Resumed);
        }
    }

    /// Ends the job. The next call of [`Self::advance`] returns the error that says so.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Runs the job to its end and passes every event to `on_event`.
    ///
    /// # Errors
    /// A unit of work fails, the job is cancelled, or `on_event` returns an error.
    pub fn run(
        &mut self,
        pipeline: &mut Pipeline,
        on_event: &mut dyn FnMut(JobEvent) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (sender, events) = channel();
        self.events = sender;
        loop {
            let state = self.advance(pipeline);
            for event in events.try_iter() {
                on_event(event)?;
            }
            if state? != JobState::Working {
                return Ok(());
            }
        }
    }

    /// Does one unit of work: encodes the text, makes a step, or decodes a chunk of frames.
    ///
    /// # Errors
    /// The unit fails or the job is cancelled. The job has ended then; other jobs are not affected.
    pub fn advance(&mut self, pipeline: &mut Pipeline) -> Result<JobState, Error> {
        if matches!(self.phase, Phase::Ended) {
            return Ok(JobState::Ended);
        }
        if self.is_paused && !self.cancel.is_cancelled() {
            return Ok(JobState::Paused);
        }
        let done = self.cancel.stop().check().map_err(Error::from).and_then(|()| self.unit(pipeline));
        if let Err(error) = &done {
            let report = error.report();
            self.end();
            self.send(JobEvent::Failed(report));
        }
        done
    }

    /// Ends the job, and waits for its threads. What was stored can be resumed.
    pub fn abandon(&mut self) {
        // After a unit that panicked, the phase is over and the threads are not.
        self.end();
    }

    fn send(&self, event: JobEvent) {
        // Nobody listens to a job whose receiver is dropped.
        let _ = self.events.send(event);
    }
}
