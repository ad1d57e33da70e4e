//! The thread that makes previews while the next step runs.

use super::budget::{Budget, DECODERS_SHARE, Extent};
use super::clean::predicted_clean;
use super::painter::Painter;
use super::slot::Slot;
use crate::Error;
use crate::denoise::StepDone;
use bundle::preview::PreviewKind;
use engines::Cancel;
use ndarray::{Array4, Axis};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
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
    pub extent: Extent,
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
    /// Time that making them took, on a thread of its own.
    pub busy: Duration,
    /// When the first was shown.
    pub first: Option<Instant>,
    /// What ended them early.
    pub failed: Option<Error>,
}

struct Job {
    step: usize,
    steps: usize,
    clean: Array4<f32>,
    extent: Extent,
}

/// What both threads know.
struct Shared {
    slot: Slot<Job>,
    progress: Mutex<Progress>,
}

struct Progress {
    budget: Budget,
    shown: usize,
    busy: Duration,
    first: Option<Instant>,
}

impl Shared {
    fn progress<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Makes previews on a thread of its own. Nothing of it ever holds the steps up or makes them fail.
pub struct Previewer {
    kind: PreviewKind,
    settings: PreviewSettings,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<(), Error>>,
    denoised: Duration,
    skipped: usize,
}

impl Previewer {
    /// Starts the thread, which opens what the painter needs.
    pub fn start(
        mut painter: Painter,
        settings: PreviewSettings,
        mut sinks: Vec<Box<dyn Sink>>,
        cancel: &Cancel,
    ) -> Self {
        let kind = painter.kind();
        let share = (kind != PreviewKind::Rgb).then_some(DECODERS_SHARE);
        let extent = if painter.can_move() { settings.extent } else { Extent::Still };
        let progress = Progress { budget: Budget::new(share), shown: 0, busy: Duration::ZERO, first: None };
        let shared = Arc::new(Shared { slot: Slot::new(), progress: Mutex::new(progress) });
        let (of_thread, cancel) = (Arc::clone(&shared), cancel.clone());
        let thread = std::thread::spawn(move || {
            painter.open()?;
            while let Some(job) = of_thread.slot.take() {
                show(&mut painter, &job, &mut sinks, &of_thread, &cancel)?;
            }
            Ok(())
        });
        let settings = PreviewSettings { extent, ..settings };
        Self { kind, settings, shared, thread, denoised: Duration::ZERO, skipped: 0 }
    }

    /// Hears of a step and of the time that it ran for.
    pub fn step(&mut self, done: &StepDone<'_>) {
        self.denoised += done.ran;
        let step = done.step + 1;
        if !step.is_multiple_of(self.settings.every.get()) && step != done.steps {
            return;
        }
        let frames = done.before.len_of(Axis(1));
        let (wanted, denoised) = (self.settings.extent, self.denoised);
        let admitted = self.shared.progress(|p| {
            let extent = p.budget.admit(wanted, frames, denoised)?;
            p.budget.begin();
            Some(extent)
        });
        let Some(extent) = admitted else {
            self.skipped += 1;
            return;
        };
        let clean = predicted_clean(done.before.view(), done.velocity.view(), done.sigma);
        let older = self.shared.slot.put(Job { step, steps: done.steps, clean, extent });
        self.skipped += usize::from(older.is_some());
    }

    /// Denoising is over: what is under way ends, and what a decoder would only begin now is left out.
    pub fn close(&mut self) {
        let unwanted = self.kind != PreviewKind::Rgb && self.shared.progress(|p| p.shown > 0);
        self.skipped += usize::from(self.shared.slot.close(unwanted).is_some());
    }

    /// Waits for the last preview and says what became of all.
    pub fn finish(mut self) -> PreviewReport {
        self.close();
        let failed = match self.thread.join() {
            Ok(result) => result.err(),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let (shown, busy, first) = self.shared.progress(|p| (p.shown, p.busy, p.first));
        PreviewReport { kind: self.kind, shown, skipped: self.skipped, busy, first, failed }
    }
}

impl std::fmt::Debug for Previewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Previewer").field("kind", &self.kind).finish_non_exhaustive()
    }
}

fn show(
    painter: &mut Painter,
    job: &Job,
    sinks: &mut [Box<dyn Sink>],
    shared: &Shared,
    cancel: &Cancel,
) -> Result<(), Error> {
    let began = Instant::now();
    let frames = painter.paint(job.clean.view(), job.extent, cancel)?;
    let latent_frames = match job.extent {
        Extent::Still => 1,
        Extent::Moving => job.clean.len_of(Axis(1)),
    };
    let preview = Preview { step: job.step, steps: job.steps, frames, latent_frames };
    sinks.iter_mut().try_for_each(|sink| sink.show(&preview))?;
    let now = Instant::now();
    shared.progress(|p| {
        p.budget.spend(job.extent, now - began);
        p.busy += now - began;
        p.shown += 1;
        p.first.get_or_insert(now);
    });
    Ok(())
}
