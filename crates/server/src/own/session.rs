//! Signing in and out with a browser.

use crate::access::origin::{Provenance, provenance};
use crate::access::session::{cookie, no_cookie};
use crate::app::App;
use crate::body::Body;
use crate::fault::{ErrorBody, Fault};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The routes.
pub(super) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(sign_in, sign_out))
}

/// A token to sign in with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct SignIn {
    /// The token.
    token: String,
}

/// A browser that is signed in.
#[derive(Debug, Serialize, ToSchema)]
struct Session {
    /// The name of the token.
    name: String,
}

/// Sign in with a browser: a token becomes a cookie that scripts cannot read
#[utoipa::path(
    post, path = "/v1/session", tag = "Rushes",
    request_body(content((SignIn = "application/json"), (SignIn = "multipart/form-data"))),
    responses(
        (status = 200, description = "The cookie is set", body = Session),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn sign_in(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response, Fault> {
    if provenance(&headers, app.config.origin()) == Provenance::Foreign {
        return Err(Fault::forbidden("a page of another origin may not sign in"));
    }
    let mut fields = body.fields;
    let secret = fields.text("token")?.ok_or_else(|| Fault::parameter("token", "`token` is missing"))?;
    fields.finish()?;
    let token =
        app.tokens.find(&secret).ok_or_else(|| Fault::unauthorized("the token is unknown or was revoked"))?;
    let mut response = Json(Session { name: token.name.clone() }).into_response();
    let cookie = cookie(&app.keys, &token.id, app.now(), app.config.is_secure());
    let cookie = HeaderValue::try_from(cookie).map_err(Fault::internal)?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// Sign out
#[utoipa::path(
    delete, path = "/v1/session", tag = "Rushes",
    responses(
        (status = 204, description = "The cookie is removed"),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
    ),
)]
async fn sign_out(State(app): State<Arc<App>>) -> Result<Response, Fault> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let cookie = HeaderValue::try_from(no_cookie(app.config.is_secure())).map_err(Fault::internal)?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}
