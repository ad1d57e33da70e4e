//! Signs of life, for those who start servers.

use crate::app::App;
use crate::fault::{ErrorBody, Fault};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_health)).routes(routes!(get_ready))
}

/// A sign of life.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// The process answers
#[utoipa::path(
    get, path = "/healthz", tag = "Operation", security(()),
    responses((status = 200, description = "It does", body = Health)),
)]
async fn get_health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// The server takes requests and makes clips
#[utoipa::path(
    get, path = "/readyz", tag = "Operation", security(()),
    responses(
        (status = 200, description = "It does", body = Health),
        (status = 503, description = "It ends, or its queue cannot be used for now", body = ErrorBody),
    ),
)]
async fn get_ready(State(app): State<Arc<App>>) -> Result<Json<Health>, Fault> {
    if *app.ending.borrow() {
        return Err(Fault::unavailable("the server is ending"));
    }
    if !app.is_making.load(Ordering::Relaxed) {
        return Err(Fault::unavailable("the queue cannot be used for now"));
    }
    Ok(Json(Health { status: "ok" }))
}
