//! What receives a job's events: its progress, and its frames on the way to the outputs.

use super::follower::Follower;
use crate::request::Request;
use crate::store::Progress;
use crate::tags::with_record;
use bundle::{Cancel, Diagnose, Report};
use media::{ClipFormat, ClipSettings, ClipWriter, OutputSpec, Tags};
use ndarray::Axis;
use runtime::driver::Listener;
use runtime::job::{Job, JobEvent, Storing};
use runtime::plan::GenerationPlan;
use runtime::scheduler::JobId;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The outputs and the progress of one job. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Clip {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The folder of the job in the store.
    folder: PathBuf,
    metadata: bool,
    /// The picture of a take, instead of outputs.
    picture: Option<PathBuf>,
    /// What sees the pictures, and the number of the job.
    follower: Option<(JobId, Arc<dyn Follower>)>,
    state: Mutex<State>,
    /// Apart from the state, because encoders may keep it for a while.
    writer: Mutex<Option<ClipWriter>>,
}

#[derive(Debug, Default)]
struct State {
    progress: Progress,
    /// True once its first unit has begun.
    has_begun: bool,
    warnings: Vec<String>,
    /// What could not be written because a disk is full.
    disk_full: Option<PathBuf>,
    /// True until the next step after a full disk: the state of its snapshot is still that of the one that failed.
    ignores_storing: bool,
    /// The time that the steps of this run took, and their number.
    steps: (Duration, u32),
    /// When decoding began.
    decoding: Option<Instant>,
    /// Frames that were decoded since.
    decoded: usize,
}

impl Clip {
    /// The clip of a job that has not begun. `picture` is where the picture of a take is written.
    pub(super) fn new(
        request: &Request,
        folder: &Path,
        progress: Progress,
        picture: Option<PathBuf>,
        follower: Option<(JobId, Arc<dyn Follower>)>,
    ) -> Self {
        let state = State { progress, ..State::default() };
        let shared = Shared {
            folder: folder.to_owned(),
            metadata: request.metadata,
            picture,
            follower,
            state: Mutex::new(state),
            writer: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<ClipWriter>> {
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the first unit begins, and claims the outputs.
    ///
    /// # Errors
    /// An output or a file of post-processing cannot be used.
    pub(super) fn begin(
        &self,
        request: &Request,
        plan: &GenerationPlan,
        cancel: &Cancel,
    ) -> Result<(), media::Error> {
        self.state().has_begun = true;
        if self.shared.picture.is_some() {
            return Ok(());
        }
        let settings = ClipSettings {
            outputs: request.outputs.clone(),
            post_process: request.post_process.clone(),
            sign: request.sign.clone(),
            output_timeout: Duration::from_secs_f64(request.output_timeout.get()),
        };
        let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
        let tags = Tags {
            mark: request.mark,
            metadata: request.metadata,
            ..Tags::new(plan.prompt.clone(), &request.model, plan.seed)
        };
        let writer = ClipWriter::claim(&settings, made, tags, cancel)?;
        for note in writer.notes() {
            self.warn(note);
        }
        *self.writer() = Some(writer);
        Ok(())
    }

    /// Takes the outputs, to complete or close them.
    pub(super) fn take_writer(&self) -> Option<ClipWriter> {
        self.writer().take()
    }

    /// True once its first unit has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.state().has_begun
    }

    pub(super) fn progress(&self) -> Progress {
        self.state().progress.clone()
    }

    /// Warnings so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    /// What could not be written because a disk is full.
    pub(super) fn disk_full(&self) -> Option<PathBuf> {
        self.state().disk_full.clone()
    }

    /// Notes that there is room on the disk again.
    pub(super) fn has_room(&self) {
        let mut state = self.state();
        state.ignores_storing = state.disk_full.take().is_some();
    }

    /// Notes that the disk of an output is full.
    pub(super) fn output_full(&self, output: &OutputSpec) {
        match output {
            OutputSpec::File { path, .. }
            | OutputSpec::Frames { folder: path }
            | OutputSpec::Hls { folder: path } => self.set_disk_full(path),
            _ => {}
        }
    }

    /// Notes the steps that were done before.
    pub(super) fn set_steps_done(&self, steps: usize) {
        self.state().progress.steps_done = steps;
    }

    /// Notes a disk that is full.
    pub(super) fn set_disk_full(&self, path: &Path) {
        self.state().disk_full = Some(path.to_owned());
    }

    /// Adds a warning, once.
    pub(super) fn warn(&self, warning: String) {
        let mut state = self.state();
        if !state.warnings.contains(&warning) {
            state.warnings.push(warning);
        }
    }

    /// The report of an error that ends the job. A disk that is full is noted, so that the job is made again.
    pub(super) fn refused(&self, error: crate::Error) -> Report {
        if error.is_disk_full() {
            self.set_disk_full(&self.shared.folder);
        }
        error.report()
    }

    /// Gives the outputs the record of the clip, which is complete once all steps are done.
    fn set_record(&self, job: &Job) {
        if !self.shared.metadata {
            return;
        }
        let Some(writer) = &mut *self.writer() else { return };
        let (tags, left_out) = with_record(writer.tags(), job);
        if let Some(left_out) = left_out {
            self.warn(format!("{left_out} are too long to be stored in the clip"));
        }
        if !writer.set_tags(tags) {
            self.warn("the outputs have started without the record of the clip".to_owned());
        }
    }

    fn write(&self, frames: &ndarray::Array4<f32>) -> Result<(), Report> {
        if let Some(picture) = &self.shared.picture {
            let written = media::still::write(picture, frames.index_axis(Axis(0), 0));
            return written.map_err(|error| self.refused(error.into()));
        }
        let mut writer = self.writer();
        let Some(writer) = &mut *writer else { return Ok(()) };
        let written = writer.push(frames.view());
        let mut failures = Vec::new();
        for failed in writer.newly_failed() {
            failures.push(format!("{}; {}", failed.error.report(), failed.remainder));
            if matches!(&*failed.error, media::Error::DiskFull { .. }) {
                self.output_full(&failed.output);
            }
        }
        let frames_done = writer.pushed();
        failures.into_iter().for_each(|failure| self.warn(failure));
        self.state().frames_written(frames_done);
        written.map_err(|error| error.report())
    }
}

impl State {
    fn step_done(&mut self, done: usize, expert: &str, took: Duration) {
        self.progress.steps_done = done;
        self.progress.expert = Some(expert.to_owned());
        self.steps = (self.steps.0 + took, self.steps.1.saturating_add(1));
        let left = u32::try_from(self.progress.steps.saturating_sub(done)).unwrap_or(u32::MAX);
        let mean = self.steps.0 / self.steps.1.max(1);
        self.progress.seconds_left = Some(mean.saturating_mul(left).as_secs_f64());
    }

    /// Counts frames that are decoded. Returns the number of those before them.
    fn decoded(&mut self, count: usize) -> usize {
        let before = self.decoded;
        self.decoded += count;
        before
    }

    fn frames_written(&mut self, done: usize) {
        self.progress.frames_done = done;
        let Some(began) = self.decoding else { return };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let (done, left) = (done.max(1) as f64, self.progress.frames.saturating_sub(done) as f64);
        self.progress.seconds_left = Some(began.elapsed().as_secs_f64() * left / done);
    }
}

impl Listener for Clip {
    fn on_event(&mut self, event: JobEvent, job: &Job) -> Result<(), Report> {
        match event {
            JobEvent::Encoding => "text".clone_into(&mut self.state().progress.phase),
            JobEvent::Encoded(text) => {
                let texts = [("prompt", Some(&text.prompt)), ("negative prompt", text.negative.as_ref())];
                for (which, states) in texts {
                    if let Some(cut) = states.and_then(|states| states.cut()) {
                        self.warn(cut.warning(which));
                    }
                }
            }
            JobEvent::Denoising { done, steps } => {
                let mut state = self.state();
                "denoise".clone_into(&mut state.progress.phase);
                state.progress.steps_done = done;
                state.progress.steps = job.spec().stop_after.map_or(steps, |stop| stop.min(steps));
            }
            JobEvent::Step { done, .. } => {
                self.state().step_done(done.step + 1, &done.expert.0, done.ran);
                if let Some((id, follower)) = &self.shared.follower {
                    follower.on_step(*id, done.step + 1, &done.clean);
                }
                self.note_storing(job);
            }
            JobEvent::Decoding => {
                {
                    let mut state = self.state();
                    "decode".clone_into(&mut state.progress.phase);
                    state.decoding = Some(Instant::now());
                    state.progress.frames_done = 0;
                    state.decoded = 0;
                }
                self.set_record(job);
            }
            JobEvent::Frames(frames) => {
                if let Some((id, follower)) = &self.shared.follower {
                    follower.on_frames(*id, self.state().decoded(frames.len_of(Axis(0))), &frames);
                }
                self.write(&frames)?;
            }
            JobEvent::Warning(report) => {
                self.warn(report.to_string());
                self.note_storing(job);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Clip {
    /// Notes whether the snapshots of the job can be written.
    fn note_storing(&self, job: &Job) {
        let is_ignored = std::mem::take(&mut self.state().ignores_storing);
        if job.storing() == Storing::DiskFull && !is_ignored {
            self.set_disk_full(&self.shared.folder);
        }
    }
}
