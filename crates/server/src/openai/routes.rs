//! The routes of the videos API of OpenAI.

use super::create::{self, CreateVideo};
use super::types::{DeletedVideo, Video, VideoList};
use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, idempotency_key};
use crate::clips::deleting::delete;
use crate::clips::index::{Clip, Status};
use crate::clips::submitting::{self, Sent};
use crate::fault::{ErrorBody, Fault};
use crate::page::{ListQuery, page};
use crate::query::{Path, Query};
use crate::variants::{self, Variant};
use axum::Json;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// When a client that polls is to ask again, in milliseconds.
static POLL_AFTER: HeaderName = HeaderName::from_static("openai-poll-after-ms");

/// The routes.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create_video, list_videos))
        .routes(routes!(get_video, delete_video))
        .routes(routes!(get_content))
        .routes(routes!(remix_video))
        .routes(routes!(edit_video))
        .routes(routes!(extend_video))
        .routes(routes!(create_character))
        .routes(routes!(get_character))
}

/// Queue a video
#[utoipa::path(
    post, path = "/v1/videos", tag = "OpenAI videos",
    request_body(content(
        (CreateVideo = "application/json"),
        (CreateVideo = "multipart/form-data"),
    )),
    params(("idempotency-key" = Option<String>, Header, description = "A request with the key of another one is that one again", max_length = 255, pattern = "^[!-~]+$")),
    responses(
        (status = 200, description = "The video, which waits; one that was made before if the header `rushes-result` says `cached`", body = Video),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn create_video(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let sent = Sent { key: idempotency_key(&headers)?, digest: body.digest };
    let made = submitting::submit(&app, &caller, create::read(body.fields)?, &sent).await?;
    Ok(made.marked(shown(&made.clip)))
}

/// A video, and when to ask again.
pub(crate) fn shown(clip: &Clip) -> Response {
    let mut response = Json(Video::of(clip)).into_response();
    if let Some(after) = poll_after(&clip.status()) {
        response.headers_mut().insert(POLL_AFTER.clone(), HeaderValue::from(after));
    }
    response
}

/// Milliseconds after which something new can be expected: often for short clips, seldom for long ones.
fn poll_after(status: &Status) -> Option<u32> {
    if status.state.has_ended() {
        return None;
    }
    let left = status.progress.seconds_left.unwrap_or(20.0).clamp(0.0, 1000.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds above")]
    let after = (left * 50.0) as u32;
    Some(after.clamp(250, 5000))
}

/// List the videos of the token
#[utoipa::path(
    get, path = "/v1/videos", tag = "OpenAI videos", params(ListQuery),
    responses(
        (status = 200, description = "A page of videos", body = VideoList),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn list_videos(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<VideoList>, Fault> {
    let (clips, has_more) = page(app.clips.list(&caller), &query, "video", |clip| &clip.ticket.id)?;
    let data: Vec<Video> = clips.iter().map(|clip| Video::of(clip)).collect();
    Ok(Json(VideoList {
        object: "list",
        first_id: data.first().map(|video| video.id.clone()),
        last_id: data.last().map(|video| video.id.clone()),
        has_more,
        data,
    }))
}

/// Show a video
#[utoipa::path(
    get, path = "/v1/videos/{id}", tag = "OpenAI videos",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 200, description = "The video", body = Video),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_video(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    Ok(shown(&*app.clips.find(&caller, &id)?))
}

/// Delete a video; one that waits or is being made is cancelled
#[utoipa::path(
    delete, path = "/v1/videos/{id}", tag = "OpenAI videos",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 200, description = "The video is deleted", body = DeletedVideo),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The disk of the server is full", body = ErrorBody),
    ),
)]
async fn delete_video(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedVideo>, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    delete(&app, &clip).await?;
    Ok(Json(DeletedVideo { id, object: "video.deleted", deleted: true }))
}

/// Which file of a video.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ContentQuery {
    /// Which file: the video, a picture of it, or a sheet of pictures.
    #[param(inline)]
    variant: Option<Variant>,
}

/// Download a file of a video, whole or in ranges
#[utoipa::path(
    get, path = "/v1/videos/{id}/content", tag = "OpenAI videos",
    params(("id" = String, Path, description = "The name of the video"), ContentQuery),
    responses(
        (status = 200, description = "The file", content((Vec<u8> = "video/mp4"), (Vec<u8> = "video/webm"), (Vec<u8> = "video/x-matroska"), (Vec<u8> = "image/gif"), (Vec<u8> = "image/webp"), (Vec<u8> = "image/jpeg"))),
        (status = 206, description = "A part of the file", content((Vec<u8> = "video/mp4"), (Vec<u8> = "video/webm"), (Vec<u8> = "video/x-matroska"), (Vec<u8> = "image/gif"), (Vec<u8> = "image/webp"), (Vec<u8> = "image/jpeg"))),
        (status = "4XX", description = "The request is refused, or the video is not complete", body = ErrorBody),
    ),
)]
async fn get_content(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<ContentQuery>,
    request: Parts,
) -> Result<Response, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    variants::send(&app, &clip, query.variant.unwrap_or(Variant::Video), &request).await
}

/// What a remix changes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct RemixVideo {
    /// Another description of the clip.
    #[schema(min_length = 1)]
    prompt: String,
}

/// Make a video again from an early step, with another prompt
#[utoipa::path(
    post, path = "/v1/videos/{id}/remix", tag = "OpenAI videos",
    params(("id" = String, Path, description = "The name of the video")),
    request_body(content((RemixVideo = "application/json"), (RemixVideo = "multipart/form-data"))),
    responses(
        (status = 200, description = "The new video, which waits", body = Video),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn remix_video(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let parent = app.clips.find(&caller, &id)?;
    remix(&app, &caller, &parent, &headers, body).await
}

async fn remix(
    app: &App,
    caller: &Caller,
    parent: &Clip,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let sent = Sent { key: idempotency_key(headers)?, digest: body.digest };
    let mut fields = body.fields;
    let prompt = fields.text("prompt")?;
    let prompt =
        prompt.ok_or_else(|| Fault::parameter("prompt", "`prompt` is missing: describe the clip"))?;
    fields.ignore(&["model", "user"]);
    fields.finish()?;
    Ok(shown(&*submitting::remix(app, caller, parent, prompt, &sent).await?))
}

/// Which video is edited or extended.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct EditVideo {
    /// Another description of the clip.
    #[schema(min_length = 1)]
    prompt: String,
    /// The name of a video of this server.
    video_id: String,
}

/// The video that a body names: `video_id`, `video` as a name, or `video` with an `id`.
fn named_video(body: &mut Body) -> Result<String, Fault> {
    if body.fields.file("video").is_some() {
        let message = "`video` cannot be a file: this server takes no videos, but the names of its own";
        return Err(Fault::unsupported("video", message));
    }
    let id = match body.fields.value("video") {
        Some(serde_json::Value::Object(object)) => {
            object.get("id").and_then(|id| id.as_str()).map(str::to_owned)
        }
        Some(serde_json::Value::String(id)) => Some(id),
        _ => body.fields.text("video_id")?,
    };
    id.ok_or_else(|| Fault::parameter("video", "`video` is missing: name a video of this server"))
}

/// Make a video again from an early step, with another prompt, as remix does
#[utoipa::path(
    post, path = "/v1/videos/edits", tag = "OpenAI videos",
    request_body(content((EditVideo = "application/json"), (EditVideo = "multipart/form-data"))),
    responses(
        (status = 200, description = "The new video, which waits", body = Video),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn edit_video(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, Fault> {
    let id = named_video(&mut body)?;
    let parent = app.clips.find(&caller, &id)?;
    remix(&app, &caller, &parent, &headers, body).await
}

/// Refused: no model of this server can go on after the last frame of a clip
#[utoipa::path(
    post, path = "/v1/videos/extensions", tag = "OpenAI videos",
    responses((status = "4XX", description = "It cannot be done", body = ErrorBody)),
)]
async fn extend_video(_caller: Caller) -> Fault {
    Fault::unsupported("video", "the models of this server make clips from text, and cannot extend one")
}

/// Refused: no model of this server knows characters
#[utoipa::path(
    post, path = "/v1/videos/characters", tag = "OpenAI videos",
    responses((status = "4XX", description = "It cannot be done", body = ErrorBody)),
)]
async fn create_character(_caller: Caller) -> Fault {
    Fault::unsupported("video", "the models of this server make clips from text, and know no characters")
}

/// No model of this server knows characters, so there are none
#[utoipa::path(
    get, path = "/v1/videos/characters/{id}", tag = "OpenAI videos",
    params(("id" = String, Path, description = "The name of a character")),
    responses((status = "4XX", description = "There is no such character", body = ErrorBody)),
)]
async fn get_character(_caller: Caller, Path(_id): Path<String>) -> Fault {
    Fault::not_found("character")
}
