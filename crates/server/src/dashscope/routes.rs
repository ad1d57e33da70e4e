//! The routes of DashScope.

use super::create::{self, CreateTask};
use super::list;
use super::types::Task;
use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, idempotency_key};
use crate::clips::submitting::{self, Sent, cancel};
use crate::fault::{DashScopeError, Fault};
use crate::query::Path;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(create_task))
        .routes(routes!(create_image_task))
        .routes(routes!(list::list_tasks))
        .routes(routes!(get_task))
        .routes(routes!(cancel_task))
        .merge(crate::uploads::policy_router())
}

/// Queue a video
#[utoipa::path(
    post, path = "/api/v1/services/aigc/video-generation/video-synthesis", tag = "DashScope tasks",
    request_body = CreateTask,
    responses(
        (status = 200, description = "The task, which waits", body = Task),
        (status = "4XX", description = "The request is refused", body = DashScopeError),
        (status = 503, description = "The server ends, or its disk is full", body = DashScopeError),
    ),
)]
async fn create_task(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let sent = Sent { key: idempotency_key(&headers)?, digest: body.digest };
    let made = submitting::submit(&app, &caller, create::read(body.fields)?, &sent).await?;
    Ok(made.marked(Json(Task::of(&app, &made.clip)).into_response()))
}

/// Refused: the models of this server make clips from text alone
#[utoipa::path(
    post, path = "/api/v1/services/aigc/image2video/video-synthesis", tag = "DashScope tasks",
    responses((status = "4XX", description = "It cannot be done", body = DashScopeError)),
)]
async fn create_image_task(_caller: Caller) -> Fault {
    Fault::unsupported("input", "the models of this server make clips from text alone")
}

/// Show a task
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}", tag = "DashScope tasks",
    params(("task_id" = String, Path, description = "The name of the task")),
    responses(
        (status = 200, description = "The task", body = Task),
        (status = "4XX", description = "The request is refused", body = DashScopeError),
    ),
)]
async fn get_task(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Task>, Fault> {
    let clip = app.clips.find(&caller, &id).map_err(no_task)?;
    Ok(Json(Task::of(&app, &clip)))
}

/// End a task that waits or is being made, within its current step
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/cancel", tag = "DashScope tasks",
    params(("task_id" = String, Path, description = "The name of the task")),
    responses(
        (status = 200, description = "The task", body = Task),
        (status = "4XX", description = "The task has ended, or the request is refused", body = DashScopeError),
        (status = 503, description = "The disk of the server is full", body = DashScopeError),
    ),
)]
async fn cancel_task(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Task>, Fault> {
    let clip = app.clips.find(&caller, &id).map_err(no_task)?;
    cancel(&app, &clip).await?;
    Ok(Json(Task::of(&app, &clip)))
}

fn no_task(_fault: Fault) -> Fault {
    Fault::not_found("task")
}
