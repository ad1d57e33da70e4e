//! The progress of a clip as server-sent events.

use crate::access::Caller;
use crate::app::App;
use crate::clips::checked::sigmas;
use crate::clips::index::{Clip, Status};
use crate::fault::{ErrorBody, Fault};
use crate::openai::types::{error_of, percent};
use crate::query::Path;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How often a comment is sent when nothing happens, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_events))
}

/// The progress of a clip.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Progress {
    /// `queued`, `running`, `done`, `stopped`, `failed` or `cancelled`.
    pub(crate) state: String,
    /// `text`, `denoise` or `decode`, while it is being made.
    pub(crate) phase: Option<String>,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) progress: u8,
    /// Steps that are made.
    pub(crate) step: usize,
    /// Steps of the clip.
    pub(crate) steps: usize,
    /// The expert of the last step.
    pub(crate) expert: Option<String>,
    /// The noise level after the last step, from 1 (noise) to 0 (clean).
    pub(crate) sigma: Option<f32>,
    /// Frames that are decoded.
    pub(crate) frames_done: usize,
    /// Frames of the clip.
    pub(crate) frames: usize,
    /// Estimated seconds until it is complete.
    pub(crate) seconds_left: Option<f64>,
    /// Why nothing happens, such as a full disk.
    pub(crate) held: Option<String>,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

impl Progress {
    /// The progress of a clip whose grid has these noise levels.
    fn of(status: &Status, sigmas: Option<&[f32]>) -> Self {
        let progress = &status.progress;
        Self {
            state: status.shown_state().to_string(),
            phase: Some(progress.phase.clone())
                .filter(|phase| !phase.is_empty() && !status.state.has_ended()),
            progress: percent(status),
            step: progress.steps_done,
            steps: progress.steps,
            expert: progress.expert.clone(),
            sigma: sigmas.and_then(|sigmas| sigmas.get(progress.steps_done).copied()),
            frames_done: progress.frames_done,
            frames: progress.frames,
            seconds_left: progress.seconds_left.filter(|_| !status.state.has_ended()),
            held: progress.held.clone().filter(|_| !status.state.has_ended()),
            error: error_of(status).map(|error| error.message),
        }
    }
}

/// The progress of a clip whenever it changes, until the clip has ended or the server ends.
pub(crate) struct Follower {
    app: Arc<App>,
    status: watch::Receiver<Status>,
    sigmas: Option<Vec<f32>>,
    sent: Option<Progress>,
    has_ended: bool,
}

impl Follower {
    /// Follows a clip.
    pub(crate) fn new(app: &Arc<App>, clip: &Clip) -> Self {
        let sigmas = app.models.of_clip(clip).and_then(|model| sigmas(&clip.request, model));
        Self { app: Arc::clone(app), status: clip.watch(), sigmas, sent: None, has_ended: false }
    }

    /// The next progress; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Progress> {
        loop {
            if self.has_ended {
                return None;
            }
            if self.sent.is_some() {
                tokio::select! {
                    changed = self.status.changed() => changed.ok()?,
                    () = self.app.ended() => return None,
                }
            }
            let status = self.status.borrow_and_update().clone();
            if status.is_deleted {
                return None;
            }
            let progress = Progress::of(&status, self.sigmas.as_deref());
            self.has_ended = status.state.has_ended();
            if self.sent.as_ref() != Some(&progress) {
                self.sent = Some(progress.clone());
                return Some(progress);
            }
        }
    }
}

/// Follow the progress of a video as server-sent events, of which the last is named `ended`
#[utoipa::path(
    get, path = "/v1/videos/{id}/events", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 200, description = "An event for each change; its data is JSON", body = String, content_type = "text/event-stream"),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_events(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    let follower = Follower::new(&app, &clip);
    let events = stream::unfold(follower, |mut follower| async move {
        let progress = follower.next().await?;
        let name = if follower.has_ended { "ended" } else { "progress" };
        let event = Event::default().event(name).json_data(&progress);
        let event = event.unwrap_or_else(|_| Event::default().comment("an event could not be written"));
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}
