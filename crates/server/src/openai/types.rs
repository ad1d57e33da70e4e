//! What the videos API of OpenAI answers.

use crate::clips::checked::{seconds_of, size_of};
use crate::clips::index::{Clip, Status};
use crate::loras::request::ClipLora;
use crate::screening::POLICY;
use jobs::store::State;
use serde::Serialize;
use utoipa::ToSchema;

/// A video.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Video {
    /// Its name.
    pub id: String,
    /// Always `video`.
    #[schema(pattern = "^video$")]
    pub object: &'static str,
    /// The model as it was named in the request.
    pub model: String,
    /// `queued`, `in_progress`, `completed` or `failed`. A cancelled video has failed with the code `cancelled`.
    pub status: VideoStatus,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: u8,
    /// When it was queued, in seconds since 1970.
    pub created_at: i64,
    /// When it was completed.
    pub completed_at: Option<i64>,
    /// When it is removed; videos stay until the queue needs their room.
    pub expires_at: Option<i64>,
    /// Why it failed.
    pub error: Option<VideoError>,
    /// The prompt.
    pub prompt: String,
    /// The video that it is a remix of.
    pub remixed_from_video_id: Option<String>,
    /// Its length in seconds, as a text.
    pub seconds: String,
    /// The size of its frames, such as `1280x720`.
    pub size: String,
    /// The seed of its noise.
    #[schema(minimum = 0)]
    pub seed: u64,
    /// Its LoRAs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub loras: Vec<ClipLora>,
}

/// The states of a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VideoStatus {
    /// It waits.
    Queued,
    /// It is being made.
    InProgress,
    /// Its file is complete.
    Completed,
    /// It failed or was cancelled.
    Failed,
}

/// Why a video failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VideoError {
    /// A word for programs.
    pub code: String,
    /// What happened, why, and what to do.
    pub message: String,
}

/// A page of videos.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VideoList {
    /// Always `list`.
    #[schema(pattern = "^list$")]
    pub object: &'static str,
    /// The videos.
    pub data: Vec<Video>,
    /// The name of the first one.
    pub first_id: Option<String>,
    /// The name of the last one, after which the next page begins.
    pub last_id: Option<String>,
    /// True if there is another page.
    pub has_more: bool,
}

/// A video that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedVideo {
    /// Its name.
    pub id: String,
    /// Always `video.deleted`.
    #[schema(pattern = "^video\\.deleted$")]
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// Seconds since 1970 as a whole number.
#[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
pub(crate) fn whole(seconds: f64) -> i64 {
    seconds as i64
}

/// The percentage of a clip. Text and steps are nine tenths of it, and frames the rest; 100 is for complete clips.
pub(crate) fn percent(status: &Status) -> u8 {
    if status.is_complete() {
        return 100;
    }
    let progress = &status.progress;
    let share = |done: usize, of: usize, scale: usize| (done.min(of) * scale).checked_div(of).unwrap_or(0);
    let percent =
        share(progress.steps_done, progress.steps, 90) + share(progress.frames_done, progress.frames, 9);
    u8::try_from(percent).unwrap_or(99)
}

/// The state of a clip in the words of OpenAI.
pub(crate) fn status_of(status: &Status) -> VideoStatus {
    match status.shown_state() {
        State::Queued => VideoStatus::Queued,
        State::Running => VideoStatus::InProgress,
        State::Done | State::Stopped => VideoStatus::Completed,
        State::Failed | State::Cancelled => VideoStatus::Failed,
    }
}

/// Why a clip has no file, in words that say nothing of the machine.
pub(crate) fn error_of(status: &Status) -> Option<VideoError> {
    if let Some(message) = status.refused.clone().filter(|_| status.state.has_ended()) {
        return Some(VideoError { code: POLICY.into(), message });
    }
    match status.state {
        State::Cancelled => {
            Some(VideoError { code: "cancelled".into(), message: "the video was cancelled".into() })
        }
        State::Failed => {
            let report = status.outcome.as_ref().and_then(|outcome| outcome.error.as_ref());
            let message = report.map_or("it failed", |report| &report.what);
            Some(VideoError { code: "generation_failed".into(), message: crate::paths::without(message) })
        }
        _ => None,
    }
}

impl Video {
    /// A clip as OpenAI shows it.
    pub(crate) fn of(clip: &Clip) -> Self {
        let status = clip.status();
        Self {
            id: clip.ticket.id.clone(),
            object: "video",
            model: clip.ticket.model.clone(),
            status: status_of(&status),
            progress: percent(&status),
            created_at: whole(clip.submitted),
            completed_at: status.ended.filter(|_| status.is_complete()).map(whole),
            expires_at: None,
            error: error_of(&status),
            prompt: clip.request.clip.prompt.clone(),
            remixed_from_video_id: clip.ticket.remixed_from.clone(),
            seconds: seconds_of(&clip.request).to_string(),
            size: size_of(&clip.request),
            seed: clip.request.clip.seed.0,
            loras: clip.ticket.loras.clone(),
        }
    }
}
