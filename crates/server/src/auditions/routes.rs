//! The routes of auditions.

use super::ending;
use super::index::Audition;
use super::pictures::{send_picture, send_sheet};
use super::request::{self, CreateAudition};
use super::submitting::submit;
use super::types::{AuditionBody, AuditionList, DeletedAudition};
use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, idempotency_key};
use crate::clips::submitting::Sent;
use crate::fault::{ErrorBody, Fault};
use crate::openai::shown;
use crate::openai::types::Video;
use crate::page::{ListQuery, page};
use crate::prefer;
use crate::query::{Path, Query};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::Response;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create_audition, list_auditions))
        .routes(routes!(get_audition, delete_audition))
        .routes(routes!(cancel_audition))
        .routes(routes!(get_sheet))
        .routes(routes!(get_take_preview))
        .routes(routes!(keep_take))
}

fn found(app: &App, caller: &Caller, id: &str) -> Result<Arc<Audition>, Fault> {
    app.auditions.find(&app.clips, caller, id)
}

fn body(app: &App, audition: &Audition) -> Result<Json<AuditionBody>, Fault> {
    AuditionBody::of(app, audition).map(Json).ok_or_else(|| Fault::not_found("audition"))
}

/// Queue the first steps of several seeds
#[utoipa::path(
    post, path = "/v1/auditions", tag = "Auditions",
    request_body(content((CreateAudition = "application/json"), (CreateAudition = "multipart/form-data"))),
    params(("idempotency-key" = Option<String>, Header, description = "A request with the key of another one is that one again", max_length = 255, pattern = "^[!-~]+$")),
    responses(
        (status = 200, description = "The audition, whose takes wait", body = AuditionBody),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn create_audition(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    sent: Body,
) -> Result<Json<AuditionBody>, Fault> {
    let Body { fields, digest } = sent;
    let sent = Sent { key: idempotency_key(&headers)?, digest };
    let audition = submit(&app, &caller, request::read(fields)?, &sent).await?;
    body(&app, &audition)
}

/// List the auditions of the token
#[utoipa::path(
    get, path = "/v1/auditions", tag = "Auditions", params(ListQuery),
    responses(
        (status = 200, description = "A page of auditions", body = AuditionList),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn list_auditions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<AuditionList>, Fault> {
    let all = app.auditions.list(&app.clips, &caller);
    let (auditions, has_more) = page(all, &query, "audition", |audition| &audition.id)?;
    let data: Vec<AuditionBody> =
        auditions.iter().filter_map(|audition| AuditionBody::of(&app, audition)).collect();
    Ok(Json(AuditionList {
        object: "list",
        first_id: data.first().map(|audition| audition.id.clone()),
        last_id: data.last().map(|audition| audition.id.clone()),
        has_more,
        data,
    }))
}

/// Show an audition; with `Prefer: wait` as soon as no take waits or is being made
#[utoipa::path(
    get, path = "/v1/auditions/{id}", tag = "Auditions",
    params(
        ("id" = String, Path, description = "The name of the audition"),
        ("prefer" = Option<String>, Header, description = "`wait`, or `wait=SECONDS`"),
    ),
    responses(
        (status = 200, description = "The audition", body = AuditionBody),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_audition(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<AuditionBody>, Fault> {
    let audition = found(&app, &caller, &id)?;
    if let Some(limit) = prefer::wait(&headers) {
        ending::ended(&app, &audition, limit).await;
    }
    // It may have been deleted meanwhile.
    body(&app, &*found(&app, &caller, &id)?)
}

/// Delete an audition; its takes end, but for those that were kept
#[utoipa::path(
    delete, path = "/v1/auditions/{id}", tag = "Auditions",
    params(("id" = String, Path, description = "The name of the audition")),
    responses(
        (status = 200, description = "The audition is deleted", body = DeletedAudition),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The disk of the server is full", body = ErrorBody),
    ),
)]
async fn delete_audition(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<DeletedAudition>, Fault> {
    ending::delete(&app, found(&app, &caller, &id)?).await?;
    Ok(Json(DeletedAudition { id, object: "audition.deleted", deleted: true }))
}

/// End the takes that wait or are being made; those that are complete remain
#[utoipa::path(
    post, path = "/v1/auditions/{id}/cancel", tag = "Auditions",
    params(("id" = String, Path, description = "The name of the audition")),
    responses(
        (status = 200, description = "The audition", body = AuditionBody),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn cancel_audition(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<AuditionBody>, Fault> {
    let audition = found(&app, &caller, &id)?;
    ending::cancel_open(&app, &audition).await;
    body(&app, &audition)
}

/// The contact sheet of an audition as it is now: each take at its place
#[utoipa::path(
    get, path = "/v1/auditions/{id}/sheet", tag = "Auditions",
    params(("id" = String, Path, description = "The name of the audition")),
    responses(
        (status = 200, description = "The sheet", body = Vec<u8>, content_type = "image/png"),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn get_sheet(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let audition = found(&app, &caller, &id)?;
    send_sheet(&app, &audition).await
}

/// The picture of a take; until it is complete, what the last step predicts
#[utoipa::path(
    get, path = "/v1/auditions/{id}/takes/{number}/preview.png", tag = "Auditions",
    params(
        ("id" = String, Path, description = "The name of the audition"),
        ("number" = usize, Path, description = "The number of the take, from 1"),
    ),
    responses(
        (status = 200, description = "The picture; the header `rushes-step` says which step it is of, unless it is complete", body = Vec<u8>, content_type = "image/png"),
        (status = 206, description = "A part of the picture", body = Vec<u8>, content_type = "image/png"),
        (status = "4XX", description = "The request is refused, or the take has no picture now", body = ErrorBody),
    ),
)]
async fn get_take_preview(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, number)): Path<(String, usize)>,
    request: Parts,
) -> Result<Response, Fault> {
    let take = found(&app, &caller, &id)?.take(&app.clips, number)?;
    send_picture(&app, &take, &request).await
}

/// Make the whole clip of a take, which becomes a video, and give up the other takes
#[utoipa::path(
    post, path = "/v1/auditions/{id}/takes/{number}/keep", tag = "Auditions",
    params(
        ("id" = String, Path, description = "The name of the audition"),
        ("number" = usize, Path, description = "The number of the take, from 1"),
    ),
    responses(
        (status = 200, description = "The video, which goes on where the take has stopped", body = Video),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn keep_take(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, number)): Path<(String, usize)>,
) -> Result<Response, Fault> {
    let audition = found(&app, &caller, &id)?;
    let clip = ending::keep(&app, &caller, audition, number).await?;
    Ok(shown(&clip))
}
