//! The thread that makes previews while the next step runs.

use super::budget::{Budget, DECODERS_SHARE, PreviewLength};
use super::clean::predicted_clean;
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

/// What a step is shown as.
#[derive(Debug)]
pub struct Preview {
    /// Number of the step, from 1.
    pub step: usize,
    /// Steps of the clip.
    pub steps: usize,
    /// `[N,3,H,W]` in -1..1 or a little beyond: the clip's size, or one pixel for each latent position.
    pub frames: Array4<f32>,
    /// Latent frames that `frames` show.
    pub latent_frames: usize,
}

/// Somewhere that previews go.
pub trait Sink: Send {
    /// Shows a preview.
    ///
    /// # Errors
    /// Whatever keeps it from being shown; no further preview is made then.
    fn show(&mut self, preview: &Preview) -> Result<(), Error>;
}

/// How previews are made.
#[derive(Debug, Clone, Copy)]
pub struct PreviewSettings {
    /// One after every so many steps; the last step is always one of them.
    pub every: NonZeroUsize,
    /// What is wanted of the latent, where the budget has room for it.
    pub length: PreviewLength,
}

/// What became of the previews of a run.
#[derive(Debug)]
pub struct PreviewReport {
    /// How they were made.
    pub kind: PreviewKind,
    /// How many were shown.
    pub shown: usize,
    /// How many steps went by without one because it would have cost too much, or the one before was not done.
    pub skipped: usize,
    /// How many of these were shown by the linear map instead.
    pub fallbacks: usize,
    /// Time that making them took, on a thread of its own.
    pub busy: Duration,
    /// When the first was shown.
    pub first: Option<Instant>,
    /// What ended them early.
    pub failed: Option<Error>,
}

/// Who makes previews.
#[derive(Debug)]
pub struct PreviewRenderers {
    /// The one that was asked for.
    pub chosen: PreviewRenderer,
    /// One that costs next to nothing, for as long as the chosen one has not shown anything because time does not allow.
    pub fallback: Option<PreviewRenderer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Chosen,
    StandIn,
}

struct Job {
    step: usize,
    steps: usize,
    clean: Array4<f32>,
    by: By,
    length: PreviewLength,
}

/// What both threads know.
struct RenderState {
    slot: Slot<Job>,
    progress: Mutex<Progress>,
    /// Something has been shown.
    seen: Condvar,
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

    /// Waits until something has been shown, for at most `limit`.
    fn wait_for_the_first(&self, limit: Duration) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // What was shown by then is counted elsewhere.
        let _ = self.seen.wait_timeout_while(progress, limit, |progress| progress.first.is_none());
    }
}

/// The share of a step that the next one waits for the first picture by the linear map. Steps keep every core busy, and the
/// picture would else come when the system next gives its thread a turn, which can be a step later.
const FIRST_SHARE: u32 = 10;

/// Makes previews on a thread of its own. Nothing of it ever makes steps fail or, but for a tenth of the first step, holds
/// them up.
pub struct Previewer {
    kind: PreviewKind,
    settings: PreviewSettings,
    /// What the chosen renderer is to show.
    length: PreviewLength,
    has_stand_in: bool,
    shared: Arc<RenderState>,
    thread: JoinHandle<Result<(), Error>>,
    denoised: Duration,
    skipped: usize,
    /// The one wait for a picture is over.
    waited: bool,
}

impl Previewer {
    /// Opens what the renderers need for latents of `shape`, finds out what a preview costs, and starts the thread. What
    /// fails here is in the report.
    pub fn start(
        mut renderers: PreviewRenderers,
        shape: LatentShape,
        settings: PreviewSettings,
        mut sinks: Vec<Box<dyn Sink>>,
        cancel: &Cancel,
    ) -> Self {
        let chosen = &mut renderers.chosen;
        let kind = chosen.kind();
        let length = if chosen.can_move() { settings.length } else { PreviewLength::FirstFrame };
        let opened = chosen.open(shape, length, cancel);
        let budget = match (kind, &opened) {
            (PreviewKind::Rgb, _) => Budget::unlimited(),
            (_, Ok(cost)) => Budget::new(DECODERS_SHARE, *cost),
            (_, Err(_)) => Budget::new(DECODERS_SHARE, Duration::MAX),
        };
        tracing::debug!(%kind, ?opened, "previews are ready");
        let progress = Progress { budget, shown: 0, fallbacks: 0, busy: Duration::ZERO, first: None };
        let shared =
            Arc::new(RenderState { slot: Slot::new(), progress: Mutex::new(progress), seen: Condvar::new() });
        let has_stand_in = renderers.fallback.is_some();
        let (of_thread, cancel) = (Arc::clone(&shared), cancel.clone());
        let thread = std::thread::spawn(move || {
            opened?;
            while let Some(job) = of_thread.slot.take() {
                show(&mut renderers, &job, &mut sinks, &of_thread, &cancel)?;
            }
            Ok(())
        });
        let denoised = Duration::ZERO;
        Self { kind, settings, length, has_stand_in, shared, thread, denoised, skipped: 0, waited: false }
    }

    /// Hears of a step and of the time that it ran for.
    pub fn step(&mut self, done: &StepDone<'_>) {
        self.denoised += done.ran;
        let step = done.step + 1;
        if !step.is_multiple_of(self.settings.every.get()) && step != done.steps {
            return;
        }
        let frames = done.before.len_of(Axis(1));
        let (wanted, denoised) = (self.length, self.denoised);
        let mut stands_in = false;
        let admitted = self.shared.progress(|p| {
            stands_in = self.has_stand_in && p.shown == 0 && !p.budget.is_under_way();
            let length = p.budget.admit(wanted, frames, denoised)?;
            p.budget.begin();
            Some(length)
        });
        let (by, length) = match admitted {
            Some(length) => (By::Chosen, length),
            None => {
                self.skipped += 1;
                if !stands_in {
                    return;
                }
                (By::StandIn, self.settings.length)
            }
        };
        let clean = predicted_clean(done.before.view(), done.velocity.view(), done.sigma);
        let older = self.shared.slot.put(Job { step, steps: done.steps, clean, by, length });
        self.skipped += usize::from(older.is_some_and(|older| older.by == By::Chosen));
        let is_cheap = self.kind == PreviewKind::Rgb || by == By::StandIn;
        if is_cheap && !std::mem::replace(&mut self.waited, true) {
            self.shared.wait_for_the_first(done.ran / FIRST_SHARE);
        }
    }

    /// Denoising is over: what is under way ends, and what a decoder would only begin now is left out.
    pub fn close(&mut self) {
        let seen = self.shared.progress(|p| p.shown + p.fallbacks > 0);
        let decodes = self.kind != PreviewKind::Rgb;
        let unwanted = self.shared.slot.close(|job| seen && decodes && job.by == By::Chosen);
        self.skipped += usize::from(unwanted.is_some());
    }

    /// Waits for the last preview and says what became of all.
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
        (By::StandIn, Some(fallback)) => fallback,
        _ => &mut renderers.chosen,
    };
    let frames = renderer.paint(job.clean.view(), job.length, cancel)?;
    let latent_frames = match job.length {
        PreviewLength::FirstFrame => 1,
        PreviewLength::AllFrames => job.clean.len_of(Axis(1)),
    };
    let preview = Preview { step: job.step, steps: job.steps, frames, latent_frames };
    sinks.iter_mut().try_for_each(|sink| sink.show(&preview))?;
    let now = Instant::now();
    shared.progress(|p| {
        match job.by {
            By::Chosen => {
                p.budget.spend(job.length, now - began);
                p.shown += 1;
            }
            By::StandIn => {
                p.budget.charge(now - began);
                p.fallbacks += 1;
            }
        }
        p.busy += now - began;
        p.first.get_or_insert(now);
    });
    shared.seen.notify_all();
    Ok(())
}
