//! What a client sees of an audition.

use super::index::{Audition, number_of};
use crate::app::App;
use crate::clips::checked::{seconds_of, size_of};
use crate::clips::index::{Clip, Status};
use crate::loras::request::ClipLora;
use crate::openai::types::{VideoError, error_of, percent, whole};
use jobs::store::State;
use serde::Serialize;
use utoipa::ToSchema;

/// An audition.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditionBody {
    /// Its name.
    pub id: String,
    /// Always `audition`.
    #[schema(pattern = "^audition$")]
    pub object: &'static str,
    /// The model as it was named in the request.
    pub model: String,
    /// `completed` as soon as no take waits or is being made.
    pub status: AuditionStatus,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: u8,
    /// When it was queued, in seconds since 1970.
    pub created_at: i64,
    /// The prompt.
    pub prompt: String,
    /// The length of the clip in seconds, as a text.
    pub seconds: String,
    /// The size of its frames, such as `1280x720`.
    pub size: String,
    /// The steps of the whole clip.
    pub steps: Option<usize>,
    /// The steps that each take makes.
    pub steps_of: Option<usize>,
    /// Its LoRAs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub loras: Vec<ClipLora>,
    /// The takes that are not deleted.
    pub takes: Vec<TakeBody>,
    /// A link to the contact sheet, which needs no token.
    pub sheet_url: String,
}

/// The states of an audition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AuditionStatus {
    /// No take has begun.
    Queued,
    /// Takes are being made.
    InProgress,
    /// Nothing waits or is being made, and there is a take to look at.
    Completed,
    /// Every take has failed or was cancelled.
    Failed,
}

/// A take.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TakeBody {
    /// Its number, from 1.
    #[schema(minimum = 1)]
    pub number: usize,
    /// The seed of its noise.
    #[schema(minimum = 0)]
    pub seed: u64,
    /// Its state.
    pub status: TakeStatus,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub progress: u8,
    /// A link to its picture, which needs no token: what its last step predicts, until the picture is complete.
    pub preview_url: Option<String>,
    /// The name of the video that it has become.
    pub video_id: Option<String>,
    /// Why it failed.
    pub error: Option<VideoError>,
}

/// The states of a take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum TakeStatus {
    /// It waits.
    Queued,
    /// It is being made.
    InProgress,
    /// Its picture is complete, and it can be kept.
    Completed,
    /// It has become a video.
    Kept,
    /// It was given up. It can still be kept.
    Cancelled,
    /// It failed.
    Failed,
}

/// A page of auditions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditionList {
    /// Always `list`.
    #[schema(pattern = "^list$")]
    pub object: &'static str,
    /// The auditions.
    pub data: Vec<AuditionBody>,
    /// The name of the first one.
    pub first_id: Option<String>,
    /// The name of the last one, after which the next page begins.
    pub last_id: Option<String>,
    /// True if there is another page.
    pub has_more: bool,
}

/// An audition that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedAudition {
    /// Its name.
    pub id: String,
    /// Always `audition.deleted`.
    #[schema(pattern = "^audition\\.deleted$")]
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// The state of a take.
pub(super) fn status_of(status: &Status) -> TakeStatus {
    if status.is_kept {
        return TakeStatus::Kept;
    }
    match status.shown_state() {
        State::Queued => TakeStatus::Queued,
        State::Running => TakeStatus::InProgress,
        State::Stopped | State::Done => TakeStatus::Completed,
        State::Cancelled => TakeStatus::Cancelled,
        State::Failed => TakeStatus::Failed,
    }
}

/// The state of an audition with such takes.
fn status_of_all(takes: &[TakeStatus]) -> AuditionStatus {
    let has = |status: TakeStatus| takes.contains(&status);
    let is_all_queued = takes.iter().all(|status| *status == TakeStatus::Queued);
    if is_all_queued {
        AuditionStatus::Queued
    } else if has(TakeStatus::InProgress) || has(TakeStatus::Queued) {
        AuditionStatus::InProgress
    } else if has(TakeStatus::Completed) || has(TakeStatus::Kept) {
        AuditionStatus::Completed
    } else {
        AuditionStatus::Failed
    }
}

/// The name of the picture of a take in links.
pub(super) fn picture_name(number: usize) -> String {
    format!("take-{number}.png")
}

impl TakeBody {
    fn of(app: &App, audition: &Audition, clip: &Clip) -> Self {
        let status = clip.status();
        let number = number_of(clip);
        let is_shown = status.refused.is_none() && status_of(&status) != TakeStatus::Failed;
        Self {
            number,
            seed: clip.request.clip.seed.0,
            status: status_of(&status),
            progress: if status.is_kept { 100 } else { percent(&status) },
            preview_url: is_shown.then(|| app.media_link(&audition.id, &picture_name(number))),
            video_id: status.is_kept.then(|| clip.ticket.id.clone()),
            error: error_of(&status).filter(|_| !status.is_kept && status.shown_state() == State::Failed),
        }
    }
}

impl AuditionBody {
    /// An audition as its client sees it; `None` if it has no takes any more.
    pub(super) fn of(app: &App, audition: &Audition) -> Option<Self> {
        let clips = audition.clips(&app.clips);
        let first = clips.first()?;
        let takes: Vec<TakeBody> = clips.iter().map(|clip| TakeBody::of(app, audition, clip)).collect();
        let statuses: Vec<TakeStatus> = takes.iter().map(|take| take.status).collect();
        let status = status_of_all(&statuses);
        let is_open = |take: &&TakeBody| matches!(take.status, TakeStatus::Queued | TakeStatus::InProgress);
        let left: usize = takes.iter().filter(is_open).map(|take| 100 - usize::from(take.progress)).sum();
        let progress = 100 - left.div_ceil(takes.len().max(1));
        Some(Self {
            id: audition.id.clone(),
            object: "audition",
            model: first.ticket.model.clone(),
            status,
            progress: u8::try_from(progress).unwrap_or(100),
            created_at: whole(first.submitted),
            prompt: first.request.clip.prompt.clone(),
            seconds: seconds_of(&first.request).to_string(),
            size: size_of(&first.request),
            steps: first.request.steps(),
            steps_of: clips.iter().find_map(|clip| clip.request.stop_after),
            loras: first.ticket.loras.clone(),
            takes,
            sheet_url: app.media_link(&audition.id, super::pictures::SHEET),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audition_is_open_as_long_as_a_take_is() {
        use TakeStatus::{Cancelled, Completed, Failed, InProgress, Kept, Queued};
        for (takes, status) in [
            (vec![Queued, Queued], AuditionStatus::Queued),
            (vec![Completed, Queued], AuditionStatus::InProgress),
            (vec![InProgress, Queued], AuditionStatus::InProgress),
            (vec![Completed, Failed], AuditionStatus::Completed),
            (vec![Kept, Cancelled], AuditionStatus::Completed),
            (vec![Kept, InProgress], AuditionStatus::InProgress),
            (vec![Failed, Cancelled], AuditionStatus::Failed),
        ] {
            assert_eq!(status_of_all(&takes), status, "{takes:?}");
        }
    }
}
