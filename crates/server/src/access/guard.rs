//! The checks that every request passes before a route sees it.

use super::origin::{Provenance, is_local_host, is_write, provenance};
use super::{Caller, session};
use crate::app::App;
use crate::fault::Fault;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Routes without a caller: signs of life, and links and upload policies, which carry their own right.
fn is_open(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/uploads") || path.starts_with("/media/")
}

/// Refuses requests that may not be served, and gives the others their [`Caller`].
pub(crate) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let is_allowed = origin.as_ref().is_some_and(|origin| app.config.allows_origin(origin));
    let mut response = if is_allowed && is_preflight(&request) {
        StatusCode::NO_CONTENT.into_response()
    } else {
        match check(&app, &request, is_allowed) {
            Ok(caller) => {
                if let Some(caller) = caller {
                    request.extensions_mut().insert(caller);
                }
                next.run(request).await
            }
            Err(fault) => fault.into_response(),
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if !app.config.cors.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    if let Some(origin) = origin.filter(|_| is_allowed) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = "openai-poll-after-ms, retry-after, content-range, rushes-result, x-request-id";
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, HEAD, POST, DELETE"),
        );
        let allowed = "authorization, content-type, idempotency-key, range, x-dashscope-async";
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The caller of a request; `None` on a route that needs none and to which no token was sent.
fn check(app: &App, request: &Request, is_allowed_origin: bool) -> Result<Option<Caller>, Fault> {
    let headers = request.headers();
    if app.config.is_open(&app.tokens) {
        return check_local(app, request, is_allowed_origin).map(|()| Some(Caller::Local));
    }
    if let Some(secret) = bearer(headers)? {
        let token = app.tokens.find(secret).ok_or_else(|| {
            Fault::unauthorized("the token is unknown or was revoked: `rushes serve token add` makes one")
        })?;
        return Ok(Some(Caller::Token(token)));
    }
    if let Some(token) = session::signed_in(headers, &app.keys, &app.tokens, app.now()) {
        if changes_or_upgrades(request) && provenance(headers, app.config.origin()) != Provenance::Same {
            return Err(Fault::forbidden(
                "a signed-in browser may only send this from a page of this server",
            ));
        }
        return Ok(Some(Caller::Token(token)));
    }
    if is_open(request.uri().path()) || is_sign_in(request) {
        return Ok(None);
    }
    if session::has_cookie(headers) {
        return Err(Fault::unauthorized("the session has ended: sign in again"));
    }
    Err(Fault::unauthorized("a token is needed: send it as `Authorization: Bearer TOKEN`"))
}

fn is_sign_in(request: &Request) -> bool {
    request.method() == Method::POST && request.uri().path() == "/v1/session"
}

/// Returns true for a request that changes something, or asks for a websocket, whose messages browsers show to pages of
/// every origin.
fn changes_or_upgrades(request: &Request) -> bool {
    is_write(request.method()) || request.headers().contains_key(header::UPGRADE)
}

/// The rules of a server without tokens, which trusts this machine but not the pages that a browser on it has open.
fn check_local(app: &App, request: &Request, is_allowed_origin: bool) -> Result<(), Fault> {
    if !is_local_host(request.headers()) {
        return Err(Fault::forbidden(
            "a server without tokens answers only to localhost, 127.0.0.1 and [::1]: \
             ask for one of these, or add a token",
        ));
    }
    let is_foreign = provenance(request.headers(), app.config.origin()) == Provenance::Foreign;
    if changes_or_upgrades(request) && is_foreign && !is_allowed_origin {
        return Err(Fault::forbidden("a page of another origin may not send this"));
    }
    Ok(())
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let wrong = || Fault::unauthorized("the header Authorization must be `Bearer TOKEN`, once");
    if values.next().is_some() {
        return Err(wrong());
    }
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(wrong()) }
}
