//! Files of clips by signed links, which need no token.

use super::live;
use crate::app::App;
use crate::auditions::pictures as auditions;
use crate::clips::index::Clip;
use crate::fault::{ErrorBody, Fault};
use crate::links::{Grant, Signature};
use crate::openai::types::{VideoError, VideoStatus, error_of, percent, status_of};
use crate::query::{Path, Query};
use crate::variants::{self, Variant};
use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The route.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_media))
}

/// A clip that is not complete yet.
#[derive(Debug, Serialize, ToSchema)]
struct NotYet {
    /// `queued` or `running`.
    status: String,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    progress: u8,
}

/// The state of a clip, as its link shows it.
#[derive(Debug, Serialize, ToSchema)]
struct LinkedStatus {
    /// The name of the clip.
    task_id: String,
    /// `queued`, `in_progress`, `completed` or `failed`.
    status: VideoStatus,
    /// How far it is, in percent.
    #[schema(minimum = 0, maximum = 100)]
    progress: u8,
    /// A link to the file, once it is complete.
    video_url: Option<String>,
    /// A link to the playlist of the clip, while it is being made.
    live_url: Option<String>,
    /// Why it failed.
    error: Option<VideoError>,
}

impl LinkedStatus {
    fn of(app: &App, clip: &Clip) -> Self {
        let status = clip.status();
        Self {
            task_id: clip.ticket.id.clone(),
            status: status_of(&status),
            progress: percent(&status),
            live_url: (status.state == jobs::store::State::Running)
                .then(|| app.media_link(&clip.ticket.id, live::PLAYLIST)),
            video_url: status.is_complete().then(|| app.media_link(&clip.ticket.id, "video")),
            error: error_of(&status),
        }
    }
}

/// Download a file by a signed link; until it is complete the answer is 202, or waits with `Prefer: wait`
#[utoipa::path(
    get, path = "/media/{id}/{variant}", tag = "Rushes", security(()),
    params(
        ("id" = String, Path, description = "The name of the video or audition"),
        ("variant" = String, Path, description = "`video`; `status` for its state as JSON, `live.m3u8` and the names in it while it is made; `sheet.png` and `take-NUMBER.png` of an audition"),
        ("expires" = u64, Query, description = "When the link expires"),
        ("key" = String, Query, description = "The id of the key"),
        ("signature" = String, Query, description = "The code"),
        ("prefer" = Option<String>, Header, description = "`wait`, or `wait=SECONDS`"),
    ),
    responses(
        (status = 200, description = "The file", content((Vec<u8> = "video/mp4"), (Vec<u8> = "video/webm"), (Vec<u8> = "video/x-matroska"), (Vec<u8> = "image/gif"), (Vec<u8> = "image/webp"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png"))),
        (status = 202, description = "The video is not complete yet", body = NotYet),
        (status = 206, description = "A part of the file", content((Vec<u8> = "video/mp4"), (Vec<u8> = "video/webm"), (Vec<u8> = "video/x-matroska"), (Vec<u8> = "image/gif"), (Vec<u8> = "image/webp"), (Vec<u8> = "image/jpeg"), (Vec<u8> = "image/png"))),
        (status = "4XX", description = "The link is not valid", body = ErrorBody),
    ),
)]
async fn get_media(
    State(app): State<Arc<App>>,
    Path((id, name)): Path<(String, String)>,
    Query(signature): Query<Signature>,
    request: Parts,
) -> Result<Response, Fault> {
    let grant = Grant { method: "GET", id: &id, variant: &name };
    if !grant.allows(&signature, &app.keys, app.now()) {
        return Err(Fault::forbidden("the link is not valid, or has expired: ask for a new one"));
    }
    if let Some(picture) = auditions::by_link(&app, &id, &name, &request).await {
        return picture;
    }
    let clip = app.clips.get(&id).ok_or_else(|| Fault::not_found("video"))?;
    if name == live::PLAYLIST {
        return live::playlist(&app, &clip).await;
    }
    if let Some(sent) = live::file(&app, &clip, &name, &request).await {
        return sent;
    }
    if name == "status" {
        return Ok(Json(LinkedStatus::of(&app, &clip)).into_response());
    }
    let variant = Variant::of_name(&name).ok_or_else(|| Fault::not_found("file"))?;
    let mut status = clip.status();
    if let Some(limit) = crate::prefer::wait(&request.headers).filter(|_| !status.state.has_ended()) {
        tokio::select! {
            ended = clip.ended() => status = ended,
            () = tokio::time::sleep(limit) => {}
            () = app.ended() => {}
        }
    }
    if status.is_deleted {
        return Err(Fault::not_found("video"));
    }
    if !status.state.has_ended() {
        let progress = percent(&status);
        let mut response =
            (StatusCode::ACCEPTED, Json(NotYet { status: status.state.to_string(), progress }))
                .into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(2));
        return Ok(response);
    }
    variants::send(&app, &clip, variant, &request).await
}
