//! Clips as HLS while they are made: noise first, then what each step predicts, then the frames as they are decoded.
//!
//! Somebody must ask for it: a clip that nobody watches costs nothing. [`feed`] is the thread that encodes one clip,
//! [`playlist`] makes links of the names in its playlist, and this file knows the clips that are watched.

mod feed;
mod playlist;

pub(crate) use playlist::{is_segment, linked};

use crate::clips::index::Clip;
use crate::fault::Fault;
use crate::ids;
use crate::models::ServedModel;
use bundle::manifest::Bundle;
use bundle::units::FrameRate;
use feed::{Feed, Source};
use media::ClipFormat;
use ndarray::Array4;
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use runtime::scheduler::JobId;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A clip is no longer encoded when nobody has asked for anything of it for this long.
const UNWATCHED: Duration = Duration::from_secs(30);
/// The files of a clip that has ended stay for this long, so that viewers see its end.
const KEPT: Duration = Duration::from_secs(60);

/// The clips that are watched.
#[derive(Debug)]
pub(crate) struct LiveClips {
    folder: PathBuf,
    most: usize,
    state: Mutex<HashMap<JobId, Watched>>,
}

/// A clip that is watched.
#[derive(Debug)]
struct Watched {
    feed: Feed,
    folder: PathBuf,
    /// When it was first asked for, in seconds since 1970.
    since: u64,
    /// When it was last asked for.
    asked: Instant,
    /// When the clip has ended.
    ended: Option<Instant>,
}

/// The folder of a clip that is watched, and when it was first asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The folder of the playlist.
    pub folder: PathBuf,
    /// Seconds since 1970. Links of one playlist are made for this time, so that they do not change.
    pub since: u64,
}

impl LiveClips {
    /// No clips, whose files will be in a folder, at most so many at a time. What an ended server has left is removed.
    pub(crate) fn new(folder: PathBuf, most: usize) -> Self {
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be removed: {error}", folder.display());
        }
        Self { folder, most, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Watched>> {
        // Every change is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of a clip that is watched. Counts as watching it.
    pub(crate) fn find(&self, job: JobId) -> Option<Shown> {
        let mut state = self.lock();
        let watched = state.get_mut(&job)?;
        watched.asked = Instant::now();
        Some(Shown { folder: watched.folder.clone(), since: watched.since })
    }

    /// Begins to encode a clip that is being made, unless it is encoded. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Too many clips are watched, or the folder cannot be made.
    pub(crate) fn begin(&self, clip: &Clip, model: &ServedModel, now: u64) -> Result<Shown, Fault> {
        if let Some(shown) = self.find(clip.job) {
            return Ok(shown);
        }
        if self.lock().len() >= self.most {
            let message = format!("{} clips are watched live, which is the most of this server", self.most);
            return Err(Fault::too_many(message, 10));
        }
        // Not under the lock: the threads of the devices wait for it.
        let source = source(clip, model)?;
        let unique = u32::from_le_bytes(ids::random());
        let folder = self.folder.join(format!("{}-{unique:08x}", clip.ticket.id));
        std::fs::create_dir_all(&folder).map_err(Fault::internal)?;
        let feed = Feed::start(&folder, source).map_err(Fault::internal)?;
        let mut state = self.lock();
        if let Some(earlier) = state.get(&clip.job) {
            // Another request has begun meanwhile.
            let shown = Shown { folder: earlier.folder.clone(), since: earlier.since };
            feed.stop_and_remove(folder);
            return Ok(shown);
        }
        let shown = Shown { folder: folder.clone(), since: now };
        let watched = Watched { feed, folder, since: now, asked: Instant::now(), ended: None };
        state.insert(clip.job, watched);
        tracing::info!(clip = clip.ticket.id, "it is watched live");
        Ok(shown)
    }

    /// Takes the clean latent `[C,T,h,w]` that a step has predicted.
    pub(crate) fn show(&self, job: JobId, clean: &Arc<Array4<f32>>) {
        if let Some(watched) = self.lock().get(&job) {
            watched.feed.show(Arc::clone(clean));
        }
    }

    /// Takes decoded frames, the first of which has this number. They are copied only if somebody watches.
    pub(crate) fn add(&self, job: JobId, first: usize, frames: &Array4<f32>) {
        if let Some(watched) = self.lock().get(&job) {
            watched.feed.add(first, frames.clone());
        }
    }

    /// Takes the end of a clip. One that is complete is shown to its end; nothing is left of others.
    pub(crate) fn end(&self, job: JobId, is_complete: bool) {
        let mut state = self.lock();
        if is_complete {
            if let Some(watched) = state.get_mut(&job) {
                watched.ended = Some(Instant::now());
                watched.feed.complete();
            }
        } else if let Some(watched) = state.remove(&job) {
            watched.feed.stop_and_remove(watched.folder);
        }
    }

    /// Removes what nobody watches any more.
    pub(crate) fn sweep(&self) {
        let mut state = self.lock();
        let is_over = |watched: &Watched| {
            watched.asked.elapsed() > UNWATCHED
                && watched.ended.is_none_or(|ended| ended.elapsed() > watched.feed.length() + KEPT)
        };
        let over: Vec<JobId> =
            state.iter().filter(|(_, watched)| is_over(watched)).map(|(job, _)| *job).collect();
        for watched in over.into_iter().filter_map(|job| state.remove(&job)) {
            watched.feed.stop_and_remove(watched.folder);
        }
    }
}

/// What a clip is encoded from.
fn source(clip: &Clip, model: &ServedModel) -> Result<Source, Fault> {
    let plan = GenerationPlan::new(&model.manifest, &clip.request.clip)?;
    // Clips without previews show noise until their first frames.
    let map = Bundle::read(&model.folder).and_then(|bundle| bundle.preview_map()).map_err(Fault::internal)?;
    let format = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
    Ok(Source {
        format,
        noise: seeded_noise(&plan),
        map,
        stride: model.manifest.vae.stride().time,
        model: clip.request.model.clone(),
        seed: plan.seed,
    })
}

/// How long so many frames take.
fn length(frames: usize, rate: FrameRate) -> Duration {
    Duration::from_nanos(rate.timestamp(frames as u64, 1_000_000_000))
}

/// Removes a folder.
fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!("{} cannot be removed: {error}", folder.display());
    }
}
