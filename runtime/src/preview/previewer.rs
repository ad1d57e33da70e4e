//! The thread that renders previews while the next step runs.

use super::budget::{Budget, DECODERS_SHARE, PreviewLength};
use super::renderer::PreviewRenderer;
use super::slot::Slot;
use crate::Error;
use crate::denoise::StepDone;
use bundle::geometry::LatentShape;
use bundle::preview::PreviewKind;
use engines::Cancel;
use ndarray::{Array4, Axis};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The preview of a step.
#[derive(Debug)]
pub struct Preview {
    /// Number of the step, from 1.
    pub step: usize,
    /// Steps of the clip.
    pub steps: usize,
    /// `[N,3,H,W]` in -1..1 or slightly beyond, in the clip's size or with one pixel per latent position.
    pub frames: Array4<f32>,
    /// Number of latent frames in `frames`.
    pub latent_frames: usize,
}

/// A destination of previews.
///
/// # Examples
/// ```
/// use runtime::preview::{Preview, Sink};
///
/// struct Log;
///
/// impl Sink for Log {
///     fn show(&mut self, preview: &Preview) -> Result<(), runtime::Error> {
///         println!("step {} of {}: {:?}", preview.step, preview.steps, preview.frames.shape());
///         Ok(())
///     }
/// }
/// ```
pub trait Sink: Send {
    /// Shows a preview.
    ///
    /// # Errors
    /// The preview cannot be shown. No further preview is rendered.
    fn show(&mut self, preview: &Preview) -> Result<(), Error>;
}

/// Settings of previews.
#[derive(Debug, Clone, Copy)]
pub struct PreviewSettings {
    /// Number of steps between previews. The last step always has one.
    pub every: NonZeroUsize,
    /// The part of the latent to show if the budget allows it.
    pub length: PreviewLength,
}

/// A summary of the previews of a run.
#[derive(Debug)]
pub struct PreviewReport {
    /// The kind of previews.
    pub kind: PreviewKind,
    /// Number of previews that were shown.
    pub shown: usize,
    /// Number of previews that were skipped, because the budget was too small or the previous one was not done.
    pub skipped: usize,
    /// Number of skipped previews that the linear map showed instead.
    pub fallbacks: usize,
    /// Total rendering time, on the preview thread.
    pub busy: Duration,
    /// Time of the first preview.
    pub first: Option<Instant>,
    /// The error that ended them early.
    pub failed: Option<Error>,
}

/// The renderers of a previewer.
#[derive(Debug)]
pub struct PreviewRenderers {
    /// The requested renderer.
    pub chosen: PreviewRenderer,
    /// A renderer of negligible cost, used until the chosen one has shown its first preview.
    pub fallback: Option<PreviewRenderer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RenderedBy {
    Chosen,
    Fallback,
}

struct Job {
    step: usize,
    steps: usize,
    clean: Arc<Array4<f32>>,
    by: RenderedBy,
    length: PreviewLength,
}

/// The state that both threads share.
struct RenderState {
    slot: Slot<Job>,
    progress: Mutex<Progress>,
    /// Notified after each preview.
    rendered: Condvar,
}

struct Progress {
    budget: Budget,
    shown: usize,
    fallbacks: usize,
    busy: Duration,
    first: Option<Instant>,
}

impl RenderState {
    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the first preview, for at most `limit`.
    fn wait_for_first(&self, limit: Duration) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // `progress` counts previews; the result of the wait is not needed.
        let _ = self.rendered.wait_timeout_while(progress, limit, |progress| progress.first.is_none());
    }
}

/// The first preview of the linear map may delay the next step by the step's duration divided by this. Steps keep every
/// core busy; without the wait the preview thread might be scheduled only one step later.
const FIRST_WAIT_DIVISOR: u32 = 10;

/// Renders previews on its own thread. A failure does not affect the steps, and only the first preview may delay them,
/// by at most a tenth of a step.
///
/// # Examples
/// ```no_run
/// # use runtime::{model::Model, pipeline::{Pipeline, seeded_noise}, plan::GenerationPlan, preview::Sink};
/// # fn run(
/// #     model: &Model, pipeline: &mut Pipeline, plan: &GenerationPlan, sink: Box<dyn Sink>,
/// # ) -> Result<(), runtime::Error> {
/// use bundle::preview::PreviewKind;
/// use engines::Cancel;
/// use runtime::job::{Job, JobStart};
/// use runtime::preview::budget::PreviewLength;
/// use runtime::preview::{PreviewRenderer, PreviewRenderers, PreviewSettings, Previewer};
/// use std::num::NonZeroUsize;
/// use std::time::Duration;
///
/// let Some(chosen) = PreviewRenderer::new(model, PreviewKind::Rgb)? else { return Ok(()) };
/// let renderers = PreviewRenderers { chosen, fallback: None };
/// let settings = PreviewSettings { every: NonZeroUsize::MIN, length: PreviewLength::AllFrames };
/// let cancel = Cancel::new();
/// let previewer = Previewer::start(renderers, plan.latent, settings, vec![sink], &cancel);
/// let start = JobStart::new(pipeline, plan.clone(), seeded_noise(plan))?;
/// let (job, _events) = Job::new(pipeline, start);
/// let mut job = job.with_previewer(pipeline, previewer, Duration::ZERO);
/// job.run(pipeline, &mut |_| Ok(()))?;
/// println!("{} previews", job.previews().map_or(0, |previews| previews.shown));
/// # Ok(())
/// # }
/// ```
pub struct Previewer {
    kind: PreviewKind,
    settings: PreviewSettings,
    /// The part of the latent that the chosen renderer shows.
    length: PreviewLength,
    has_fallback: bool,
    shared: Arc<RenderState>,
    thread: JoinHandle<Result<(), Error>>,
    denoised: Duration,
    skipped: usize,
    /// True after the one wait for the first preview.
    waited: bool,
}

impl Previewer {
    /// Opens the chosen renderer for latents of `shape`, measures the cost of a preview, and starts the thread. A
    /// failure is returned by [`Self::finish`].
    pub fn start(
        mut renderers: PreviewRenderers,
        shape: LatentShape,
        settings: PreviewSettings,
        mut sinks: Vec<Box<dyn Sink>>,
        cancel: &Cancel,
    ) -> Self {
        let chosen = &mut renderers.chosen;
        let kind = chosen.kind();
        let length = if chosen.can_show_all_frames() { settings.length } else { PreviewLength::FirstFrame };
        let opened = chosen.open(shape, length, cancel);
        let budget = match (kind, &opened) {
            (PreviewKind::Rgb, _) => Budget::unlimited(),
            (_, Ok(cost)) => Budget::new(DECODERS_SHARE, *cost),
            (_, Err(_)) => Budget::new(DECODERS_SHARE, Duration::MAX),
        };
        tracing::debug!(%kind, ?opened, "previews are ready");
        let progress = Progress { budget, shown: 0, fallbacks: 0, busy: Duration::ZERO, first: None };
        let shared = Arc::new(RenderState {
            slot: Slot::new(),
            progress: Mutex::new(progress),
            rendered: Condvar::new(),
        });
        let has_fallback = renderers.fallback.is_some();
        let (thread_state, cancel) = (Arc::clone(&shared), cancel.clone());
        let thread = std::thread::spawn(move || {
            opened?;
            while let Some(job) = thread_state.slot.take() {
                show(&mut renderers, &job, &mut sinks, &thread_state, &cancel)?;
            }
            Ok(())
        });
        let denoised = Duration::ZERO;
        Self { kind, settings, length, has_fallback, shared, thread, denoised, skipped: 0, waited: false }
    }

    /// Handles a finished step: renders its preview if the settings and the budget allow it.
    pub fn step(&mut self, done: &StepDone) {
        self.denoised += done.ran;
        let step = done.step + 1;
        if !step.is_multiple_of(self.settings.every.get()) && step != done.steps {
            return;
        }
        let frames = done.latent.len_of(Axis(1));
        let (wanted, denoised) = (self.length, self.denoised);
        let mut use_fallback = false;
        let admitted = self.shared.progress(|p| {
            use_fallback = self.has_fallback && p.shown == 0 && !p.budget.is_in_progress();
            let length = p.budget.admit(wanted, frames, denoised)?;
            p.budget.begin();
            Some(length)
        });
        let (by, length) = match admitted {
            Some(length) => (RenderedBy::Chosen, length),
            None => {
                self.skipped += 1;
                if !use_fallback {
                    return;
                }
                (RenderedBy::Fallback, self.settings.length)
            }
        };
        let clean = Arc::clone(&done.clean);
        let older = self.shared.slot.put(Job { step, steps: done.steps, clean, by, length });
        self.skipped += usize::from(older.is_some_and(|older| older.by == RenderedBy::Chosen));
        let is_cheap = self.kind == PreviewKind::Rgb || by == RenderedBy::Fallback;
        if is_cheap && !std::mem::replace(&mut self.waited, true) {
            self.shared.wait_for_first(done.ran / FIRST_WAIT_DIVISOR);
        }
    }

    /// Ends previews when denoising is over. A preview in progress is finished; one that a decoder has not started is
    /// dropped.
    pub fn close(&mut self) {
        let seen = self.shared.progress(|p| p.shown + p.fallbacks > 0);
        let decodes = self.kind != PreviewKind::Rgb;
        let unwanted = self.shared.slot.close(|job| seen && decodes && job.by == RenderedBy::Chosen);
        self.skipped += usize::from(unwanted.is_some());
    }

    /// Waits for the last preview and returns the report.
    pub fn finish(mut self) -> PreviewReport {
        self.close();
        let failed = match self.thread.join() {
            Ok(result) => result.err(),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let (kind, skipped) = (self.kind, self.skipped);
        self.shared.progress(|p| PreviewReport {
            kind,
            shown: p.shown,
            skipped,
            fallbacks: p.fallbacks,
            busy: p.busy,
            first: p.first,
            failed,
        })
    }
}

impl std::fmt::Debug for Previewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Previewer").field("kind", &self.kind).finish_non_exhaustive()
    }
}

fn show(
    renderers: &mut PreviewRenderers,
    job: &Job,
    sinks: &mut [Box<dyn Sink>],
    shared: &RenderState,
    cancel: &Cancel,
) -> Result<(), Error> {
    let began = Instant::now();
    let renderer = match (job.by, &mut renderers.fallback) {
        (RenderedBy::Fallback, Some(fallback)) => fallback,
        _ => &mut renderers.chosen,
    };
    let frames = renderer.render(job.clean.view(), job.length, cancel)?;
    let latent_frames = match job.length {
        PreviewLength::FirstFrame => 1,
        PreviewLength::AllFrames => job.clean.len_of(Axis(1)),
    };
    let preview = Preview { step: job.step, steps: job.steps, frames, latent_frames };
    sinks.iter_mut().try_for_each(|sink| sink.show(&preview))?;
    let now = Instant::now();
    shared.progress(|p| {
        match job.by {
            RenderedBy::Chosen => {
                p.budget.spend(job.length, now - began);
                p.shown += 1;
            }
            RenderedBy::Fallback => {
                p.budget.charge(now - began);
                p.fallbacks += 1;
            }
        }
        p.busy += now - began;
        p.first.get_or_insert(now);
    });
    shared.rendered.notify_all();
    Ok(())
}
