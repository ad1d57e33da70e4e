//! A job: one clip, from its spec to its frames, one unit of work at a time.

use super::conditions::RunConditions;
use super::event::JobEvent;
use super::folder::JobFolder;
use super::record::{ClipRecord, LatentDigest};
use super::report::{JobReport, PreviewSummary};
use super::snapshot_writer::SnapshotWriter;
use super::spec::JobSpec;
use super::start::JobStart;
use super::stored_snapshot::{SnapshotIdentity, StoredSnapshot};
use super::stored_text;
use super::timing::{Clock, Mark};
use crate::Error;
use crate::decode::{DecodeRun, TileSide};
use crate::denoise::{
    Conditioning, Denoising, ForkChanges, GridChange, StepDone, StepInputs, TextConditioning, Variation,
};
use crate::pipeline::{Pipeline, seeded_noise};
use crate::plan::GenerationPlan;
use crate::preview::{PreviewReport, Previewer};
use bundle::{Cancel, Diagnose};
use ndarray::Array4;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

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
/// use engines::residency::Mode;
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
/// let mut pipeline = Pipeline::new(&model, Mode::OneAtATime);
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
    text: Option<TextConditioning>,
    text_digest: Option<String>,
    expected_text: Option<String>,
    phase: Phase,
    next_fork: usize,
    steps_run: usize,
    skipped_passes: usize,
    is_paused: bool,
    /// True after the warning that a snapshot cannot be written.
    has_warned: bool,
    cancel: Cancel,
    events: Sender<JobEvent>,
    folder: Option<(JobFolder, SnapshotWriter)>,
    previewer: Option<Previewer>,
    previews: Option<PreviewReport>,
    clock: Clock,
    began: Vec<(&'static str, Instant)>,
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
enum Phase {
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
            has_warned: false,
            cancel: Cancel::new(),
            events,
            folder: None,
            previewer: None,
            previews: None,
            clock: Clock::start(model, Duration::ZERO),
            began: Vec::new(),
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
        let writer = folder.writer();
        Self { folder: Some((folder, writer)), ..self }
    }

    /// Ends the clip after `steps` of the steps, with the clean latent that the last of them predicted. The job can be
    /// resumed.
    pub fn stop_after(mut self, steps: Option<usize>) -> Self {
        self.spec.stop_after = steps;
        self
    }

    /// What determines the clip.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The plan.
    pub fn plan(&self) -> &GenerationPlan {
        &self.plan
    }

    /// The state of the latent.
    pub fn denoising(&self) -> &Denoising {
        &self.denoising
    }

    /// The conditions of the run.
    pub fn conditions(&self) -> &RunConditions {
        &self.conditions
    }

    /// The request that ends the job within its current unit of work. It can be made from another thread.
    pub fn canceller(&self) -> &Cancel {
        &self.cancel
    }

    /// How the clip is made, to be stored in it. Complete once all steps are done.
    pub fn record(&self) -> ClipRecord {
        ClipRecord {
            spec: self.spec.clone(),
            conditions: self.conditions.clone(),
            earlier: self.earlier.clone(),
            latents: self.latents.clone(),
        }
    }

    /// A snapshot, once the text is encoded.
    pub fn snapshot(&self) -> Option<StoredSnapshot> {
        let identity = SnapshotIdentity {
            bundle: self.identity.clone(),
            text: self.text_digest.clone()?,
            settings: self.spec.digest(),
        };
        Some(StoredSnapshot {
            snapshot: self.denoising.snapshot(),
            identity,
            conditions: self.conditions.clone(),
            earlier: self.earlier.clone(),
            latents: self.latents.clone(),
            forks_applied: self.next_fork,
        })
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

    fn unit(&mut self, pipeline: &mut Pipeline) -> Result<JobState, Error> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Start => {
                    pipeline.check(self.plan.latent)?;
                    self.phase = self.after_text(pipeline)?;
                }
                Phase::Encode => {
                    self.encode(pipeline)?;
                    self.phase = self.after_text(pipeline)?;
                    return Ok(JobState::Working);
                }
                Phase::Denoise(inputs) => {
                    if self.denoising.steps_done() >= self.last_step() {
                        self.phase = self.begin_decode(pipeline);
                    } else if self.fork()? {
                        self.phase = self.after_text(pipeline)?;
                    } else {
                        self.step(pipeline, &inputs)?;
                        self.phase = Phase::Denoise(inputs);
                        return Ok(JobState::Working);
                    }
                }
                Phase::Decode(latent, mut run) => {
                    let frames = pipeline.decode_next(latent.view(), &mut run, &self.cancel)?;
                    if let Some(frames) = frames {
                        self.clock.mark(Mark::FirstFrames);
                        self.send(JobEvent::Frames(frames));
                    }
                    if run.frames_done() < latent.len_of(ndarray::Axis(1)) {
                        self.phase = Phase::Decode(latent, run);
                        return Ok(JobState::Working);
                    }
                    self.end();
                    self.send(JobEvent::Finished);
                    return Ok(JobState::Ended);
                }
                Phase::Ended => return Ok(JobState::Ended),
            }
        }
    }

    /// The phase that follows once text states are known, or the one that makes them.
    fn after_text(&mut self, pipeline: &Pipeline) -> Result<Phase, Error> {
        let Some(text) = self.text.clone() else { return Ok(Phase::Encode) };
        if text.negative.is_none() && self.denoising.needs_unconditional() {
            return Ok(Phase::Encode);
        }
        let conditioning = Conditioning::text(text.prompt, text.negative);
        let inputs = pipeline.inputs(&self.denoising, &conditioning)?;
        self.begin("denoise");
        let (done, steps) = (self.denoising.steps_done(), self.last_step());
        self.send(JobEvent::Denoising { done, steps });
        self.store_text();
        // A job that is resumed after its last step has stored its snapshots.
        if done < steps {
            self.store(self.denoising.is_at_boundary());
        }
        Ok(Phase::Denoise(Box::new(inputs)))
    }

    fn encode(&mut self, pipeline: &mut Pipeline) -> Result<(), Error> {
        self.begin("text");
        self.send(JobEvent::Encoding);
        let (prompt, negative) = self.spec.prompts_of_forks(self.next_fork);
        let needed = self.denoising.needs_unconditional().then_some(negative);
        let mut text = pipeline.encode(prompt, needed, &self.cancel)?;
        let mut digest = stored_text::digest(&text);
        if let Some(expected) = self.expected_text.take() {
            // Only steps that are done may have needed the negative prompt.
            if digest != expected && needed.is_none() {
                text = pipeline.encode(prompt, Some(negative), &self.cancel)?;
                digest = stored_text::digest(&text);
            }
            if digest != expected {
                let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
                let (stored, found) = (short(&expected), short(&digest));
                return Err(Error::OtherSnapshot { what: "text states", stored, found });
            }
        }
        self.clock.mark(Mark::Encoded);
        (self.text, self.text_digest) = (Some(text.clone()), Some(digest));
        self.send(JobEvent::Encoded(text));
        Ok(())
    }

    /// Applies the next fork if it is due. Returns true if it was.
    fn fork(&mut self) -> Result<bool, Error> {
        let done = self.denoising.steps_done();
        let Some(fork) = self.spec.forks.get(self.next_fork).filter(|fork| fork.after == done).cloned()
        else {
            return Ok(false);
        };
        let changes = ForkChanges {
            guidance: fork.guidance,
            grid: fork.grid.map(|grid| GridChange {
                solver: grid.sampler,
                kind: grid.schedule,
                steps: grid.steps,
                shift: grid.shift,
            }),
            variation: fork.variation.map(|variation| Variation {
                strength: variation.strength,
                seed: variation.seed,
                noise_scale: self.plan.noise_scale,
            }),
        };
        self.denoising = Denoising::fork(self.denoising.snapshot(), changes)?;
        self.next_fork += 1;
        if fork.prompt.is_some() || fork.negative.is_some() {
            (self.text, self.text_digest, self.expected_text) = (None, None, None);
        }
        Ok(true)
    }

    fn step(&mut self, pipeline: &mut Pipeline, inputs: &StepInputs) -> Result<(), Error> {
        let skipped = self.denoising.next().map_or(0, |request| request.passes.saved(request.is_guided));
        let Some(done) = pipeline.step(&mut self.denoising, inputs, &self.cancel)? else { return Ok(()) };
        self.skipped_passes += skipped;
        let digest = LatentDigest::of(&done.latent);
        self.latents.push(digest.clone());
        self.steps_run += 1;
        self.clock.step(done.ran);
        let steps = self.last_step();
        if let Some(previewer) = &mut self.previewer {
            previewer.step(&StepDone { steps, ..done.clone() });
        }
        self.store(self.denoising.is_at_boundary());
        self.send(JobEvent::Step { done, digest });
        Ok(())
    }

    /// Writes the text states to the folder, once.
    fn store_text(&self) {
        if let (Some((folder, _)), Some(text)) = (&self.folder, &self.text)
            && let Err(error) = folder.write_text(text)
        {
            self.send(JobEvent::Warning(error.report()));
        }
    }

    /// Hands a snapshot to the thread that writes it.
    fn store(&mut self, is_boundary: bool) {
        let Some(snapshot) = self.folder.is_some().then(|| self.snapshot()).flatten() else { return };
        let Some((_, writer)) = &mut self.folder else { return };
        writer.write(snapshot, is_boundary);
        // A full disk fails again at every step; one warning is enough.
        if let Some(error) = writer.take_error()
            && !std::mem::replace(&mut self.has_warned, true)
        {
            self.send(JobEvent::Warning(error.report()));
        }
    }

    fn begin_decode(&mut self, pipeline: &Pipeline) -> Phase {
        if let Some(previewer) = &mut self.previewer {
            previewer.close();
        }
        self.begin("decode");
        self.clock.mark(Mark::Decoding);
        self.send(JobEvent::Decoding);
        let is_whole = self.denoising.steps_done() >= self.denoising.steps();
        let latent = match self.denoising.clean_estimate() {
            Some(clean) if !is_whole => Arc::clone(clean),
            _ => Arc::clone(self.denoising.latent()),
        };
        let run = pipeline.begin_decode(latent.view());
        Phase::Decode(latent, Box::new(run))
    }

    /// The number of steps after which the clip is decoded.
    fn last_step(&self) -> usize {
        let steps = self.denoising.steps();
        self.spec.stop_after.map_or(steps, |stop| stop.min(steps))
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        if let Some((_, writer)) = self.folder.take()
            && let Err(error) = writer.finish()
        {
            self.send(JobEvent::Warning(error.report()));
        }
        if let Some(previewer) = self.previewer.take() {
            self.previews = Some(previewer.finish());
        }
    }

    fn begin(&mut self, phase: &'static str) {
        if self.began.last().is_none_or(|(last, _)| *last != phase) {
            self.began.push((phase, Instant::now()));
        }
    }

    /// Ends the job, and waits for its threads. What was stored can be resumed.
    pub fn abandon(&mut self) {
        if !matches!(self.phase, Phase::Ended) {
            self.end();
        }
    }

    /// The previews of a job that has ended.
    pub fn previews(&self) -> Option<&PreviewReport> {
        self.previews.as_ref()
    }

    /// The name of the phase that the job is in, or ended in: `text`, `denoise` or `decode`.
    pub fn phase(&self) -> &'static str {
        self.began.last().map_or("text", |(phase, _)| phase)
    }

    /// The report of a job that has ended. `first_encoded` is when an encoder had produced the first frame.
    pub fn report(&self, first_encoded: Option<Instant>) -> JobReport {
        let now = Instant::now();
        let mut seconds = std::collections::BTreeMap::new();
        for (index, (phase, began)) in self.began.iter().enumerate() {
            let ended = self.began.get(index + 1).map_or(now, |(_, next)| *next);
            *seconds.entry((*phase).to_owned()).or_insert(0.0) += (ended - *began).as_secs_f64();
        }
        let first_preview = self.previews.as_ref().and_then(|previews| previews.first);
        JobReport {
            model: self.spec.model.name.clone(),
            variant: self.spec.variant,
            conditions: self.conditions.clone(),
            seed: self.spec.seed,
            steps: self.denoising.steps(),
            steps_done: self.denoising.steps_done(),
            steps_run: self.steps_run,
            skipped_passes: self.skipped_passes,
            latents: self.latents.clone(),
            seconds,
            timing: self.clock.times(first_preview, first_encoded),
            preview: self.previews.as_ref().map(PreviewSummary::new),
            outputs: Vec::new(),
        }
    }

    fn send(&self, event: JobEvent) {
        // Nobody listens to a job whose receiver is dropped.
        let _ = self.events.send(event);
    }
}
