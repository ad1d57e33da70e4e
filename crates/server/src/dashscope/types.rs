//! What tasks of DashScope answer.

use crate::app::App;
use crate::clips::checked::{seconds_of, size_of};
use crate::clips::index::Clip;
use crate::openai::types::error_of;
use crate::screening::POLICY;
use crate::{ids, times};
use jobs::store::State;
use serde::Serialize;
use utoipa::ToSchema;

/// The states of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum TaskStatus {
    /// It waits.
    Pending,
    /// It is being made.
    Running,
    /// Its video is complete.
    Succeeded,
    /// It failed.
    Failed,
    /// It was cancelled.
    Canceled,
}

impl TaskStatus {
    pub(super) fn of(state: State) -> Self {
        match state {
            State::Queued => Self::Pending,
            State::Running => Self::Running,
            State::Done | State::Stopped => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Canceled,
        }
    }
}

/// A task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Task {
    /// The number of the request, for the log.
    pub(super) request_id: String,
    /// The state of the task.
    pub(super) output: TaskOutput,
    /// What it has made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<TaskUsage>,
}

/// The state of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskOutput {
    /// Its name.
    pub(super) task_id: String,
    /// Its state.
    pub(super) task_status: TaskStatus,
    /// When it was queued, in UTC.
    pub(super) submit_time: String,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scheduled_time: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end_time: Option<String>,
    /// A link to the video, for 24 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) video_url: Option<String>,
    /// The prompt of the request.
    pub(super) orig_prompt: String,
    /// The prompt that was used.
    pub(super) actual_prompt: String,
    /// A word for programs, of a task that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
}

/// What a task has made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskUsage {
    /// Videos.
    pub(super) video_count: u32,
    /// Their length in seconds.
    pub(super) video_duration: f64,
    /// The size of their frames.
    pub(super) video_ratio: String,
}

impl Task {
    /// A clip as DashScope shows it.
    pub(super) fn of(app: &App, clip: &Clip) -> Self {
        let status = clip.status();
        let error = error_of(&status);
        let is_complete = status.is_complete();
        let prompt = clip.request.clip.prompt.clone();
        Self {
            request_id: ids::request_id(),
            output: TaskOutput {
                task_id: clip.ticket.id.clone(),
                task_status: TaskStatus::of(status.shown_state()),
                submit_time: times::dashscope(clip.submitted),
                scheduled_time: status.started.map(times::dashscope),
                end_time: status.ended.map(times::dashscope),
                video_url: is_complete.then(|| app.media_link(&clip.ticket.id, "video")),
                orig_prompt: prompt.clone(),
                actual_prompt: prompt,
                code: error.as_ref().map(|error| match &*error.code {
                    POLICY => "DataInspectionFailed".to_owned(),
                    _ => "InternalError".to_owned(),
                }),
                message: error.map(|error| error.message),
            },
            usage: is_complete.then(|| TaskUsage {
                video_count: 1,
                video_duration: seconds_of(&clip.request),
                video_ratio: size_of(&clip.request).replace('x', "*"),
            }),
        }
    }
}
