//! Pictures of clips while they are made and afterwards.
//!
//! The owner hands over the clean latent that each step predicts, which costs nothing, and it is drawn only when
//! somebody asks for it. From the decoded frames a [`thumbnail`](files) and a sheet are kept beside the clip.

pub(crate) mod files;
pub(crate) mod preview;

use crate::clips::index::{Clip, Clips};
use crate::clips::queue::Queue;
use crate::clips::ticket::Ticket;
use crate::live::LiveClips;
use crate::screening::FrameClassifier;
use files::Tiles;
use jobs::owner::Follower;
use ndarray::{Array4, Axis};
use runtime::plan::Length;
use runtime::scheduler::JobId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The clean latent that a step has predicted.
#[derive(Debug, Clone)]
pub(crate) struct Clean {
    /// The number of the step, from 1.
    pub(crate) step: usize,
    /// The latent `[C,T,h,w]`.
    pub(crate) latent: Arc<Array4<f32>>,
}

/// Pictures of the clips that are being made.
#[derive(Debug)]
pub(crate) struct Pictures {
    clips: Arc<Clips>,
    live: Arc<LiveClips>,
    queue: Queue,
    classifier: Option<Arc<dyn FrameClassifier>>,
    state: Mutex<HashMap<JobId, Shown>>,
}

#[derive(Debug)]
struct Shown {
    clean: watch::Sender<Option<Clean>>,
    tiles: Option<Tiles>,
}

impl Shown {
    fn new() -> Self {
        Self { clean: watch::Sender::new(None), tiles: None }
    }
}

impl Pictures {
    /// Pictures of the clips of a server. Those whose frames the classifier refuses are cancelled.
    /// Those that somebody watches are handed on.
    pub(crate) fn new(
        (clips, live): (Arc<Clips>, Arc<LiveClips>),
        queue: Queue,
        classifier: Option<Arc<dyn FrameClassifier>>,
    ) -> Self {
        Self { clips, live, queue, classifier, state: Mutex::default() }
    }

    /// Hands frames to the classifier. Returns false if the clip is refused.
    fn may_show(&self, clip: &Clip, first: usize, frames: &Array4<f32>) -> bool {
        let Some(classifier) = &self.classifier else { return true };
        if clip.status().refused.is_some() {
            return false;
        }
        let Err(refusal) = classifier.check(first, frames) else { return true };
        let why = refusal.text();
        tracing::warn!(clip = clip.ticket.id, "{why}");
        if let Err(error) = Ticket::refuse(&self.queue.job_folder(clip.job), &why) {
            tracing::error!(clip = clip.ticket.id, "that it is refused holds until the server ends: {error}");
        }
        self.clips.note_refused(clip, why);
        self.queue.cancel_soon(clip.job);
        false
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Shown>> {
        // Every change is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest clean latent of a job, and those that follow. It ends with the job.
    pub(crate) fn watch(&self, clip: &Clip) -> watch::Receiver<Option<Clean>> {
        let mut shown = self.lock();
        if clip.status().state.has_ended() {
            // Nothing would remove it again.
            return Shown::new().clean.subscribe();
        }
        shown.entry(clip.job).or_insert_with(Shown::new).clean.subscribe()
    }

    /// Forgets a job that has ended. Watches of it end.
    pub(crate) fn forget(&self, job: JobId) {
        self.lock().remove(&job);
    }
}

impl Follower for Pictures {
    fn on_step(&self, id: JobId, step: usize, clean: &Arc<Array4<f32>>) {
        self.live.show(id, clean);
        let clean = Clean { step, latent: Arc::clone(clean) };
        self.lock().entry(id).or_insert_with(Shown::new).clean.send_replace(Some(clean));
    }

    fn on_frames(&self, id: JobId, first: usize, frames: &Array4<f32>) {
        let Some(clip) = self.clips.of_job(id) else { return };
        let Some(Length::Frames(count)) = clip.request.clip.length else { return };
        if !self.may_show(&clip, first, frames) {
            return;
        }
        self.live.add(id, first, frames);
        // Out of the map while pictures are scaled and written.
        let tiles = self.lock().entry(id).or_insert_with(Shown::new).tiles.take();
        let mut tiles = tiles.filter(|_| first > 0).unwrap_or_else(|| Tiles::new(count));
        for (number, frame) in (first..).zip(frames.axis_iter(Axis(0))) {
            tiles.add(number, frame);
        }
        if first + frames.len_of(Axis(0)) < count {
            self.lock().entry(id).or_insert_with(Shown::new).tiles = Some(tiles);
        } else if let Err(error) = tiles.write(self.clips.folder(), &clip.ticket.id) {
            tracing::warn!(clip = clip.ticket.id, "its thumbnail cannot be written: {error}");
        }
    }
}
