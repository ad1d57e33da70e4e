//! All routes, their description, and the checks around them.

use crate::access::guard::guard;
use crate::app::App;
use crate::fault::{Fault, styled};
use crate::{auditions, capabilities, dashscope, health, metrics, mlperf, openai, own, plain, uploads};
use axum::extract::{MatchedPath, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use std::sync::Arc;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

#[derive(OpenApi)]
#[openapi(info(title = "Rushes", description = "Text-to-video with Wan2.2 on one machine"))]
struct Description;

/// The routes of every API.
fn apis() -> OpenApiRouter<Arc<App>> {
    openai::router()
        .merge(dashscope::router())
        .merge(plain::router())
        .merge(mlperf::router())
        .merge(own::router())
        .merge(auditions::router())
        .merge(uploads::router())
        .merge(capabilities::router())
        .merge(health::router())
        .merge(metrics::router())
}

/// The description of every route, as OpenAPI.
pub fn description() -> utoipa::openapi::OpenApi {
    let (_, mut found) = OpenApiRouter::with_openapi(Description::openapi()).merge(apis()).split_for_parts();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    found.components.get_or_insert_default().add_security_scheme("token", bearer);
    found.security = Some(vec![SecurityRequirement::new("token", [""; 0])]);
    found
}

/// The whole server.
///
/// # Errors
/// The description cannot be written as JSON.
pub(crate) fn router(app: &Arc<App>) -> Result<Router, serde_json::Error> {
    let description: Arc<str> = description().to_json()?.into();
    let (routes, _) = apis().split_for_parts();
    let describe = move || {
        let description = Arc::clone(&description);
        async move { ([(header::CONTENT_TYPE, "application/json")], description.to_string()) }
    };
    let routes = routes
        .route("/openapi.json", routing::get(describe))
        .nest("/proxy/openai", openai::router().split_for_parts().0)
        .nest("/proxy/wan", dashscope::router().merge(plain::router()).split_for_parts().0)
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(app), guard))
        .layer(from_fn(styled))
        .layer(from_fn_with_state(Arc::clone(app), noted))
        .with_state(Arc::clone(app));
    Ok(routes)
}

async fn no_route() -> Fault {
    Fault::not_found("route; /openapi.json lists them")
}

async fn wrong_method() -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has no such method")
}

/// Gives each request a number, and notes it in the log: its route, never its query, which may be a link.
async fn noted(
    State(app): State<Arc<App>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let began = std::time::Instant::now();
    let (method, id) = (request.method().clone(), crate::ids::request_id());
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::try_from(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    let status = response.status().as_u16();
    let took = began.elapsed();
    app.metrics.request(method.as_str(), &route, status, took);
    let milliseconds = took.as_millis();
    tracing::info!(target: "server::requests", %method, path, status, milliseconds, id, open = app.clips.open());
    response.into_response()
}
