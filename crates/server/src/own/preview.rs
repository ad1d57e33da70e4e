//! The newest preview of a clip that is being made.

use crate::access::Caller;
use crate::app::App;
use crate::fault::{ErrorBody, Fault};
use crate::pictures::preview::{PreviewFormat, draw};
use crate::query::Path;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The step that a preview shows.
static STEP: HeaderName = HeaderName::from_static("rushes-step");

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_preview))
}

/// A picture of a video while it is being made: what its last step predicts
#[utoipa::path(
    get, path = "/v1/videos/{id}/preview.png", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 200, description = "The picture; the header `rushes-step` says which step it is", body = Vec<u8>, content_type = "image/png"),
        (status = "4XX", description = "The request is refused, or the video has no preview now", body = ErrorBody),
    ),
)]
async fn get_preview(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    if clip.status().state.has_ended() {
        let message = "the video has ended: its content has the variant `thumbnail`";
        return Err(Fault::conflict("video_ended", message));
    }
    let clean = app.pictures.watch(&clip).borrow().clone();
    let Some(clean) = clean else {
        let fault =
            Fault::conflict("no_preview_yet", "the video has not made a step since the server started");
        return Err(Fault { retry_after: Some(1), ..fault });
    };
    let step = clean.step;
    let picture = draw(&clip, clean, PreviewFormat::Png).await?;
    let mut response = ([(header::CONTENT_TYPE, "image/png")], picture).into_response();
    response.headers_mut().insert(STEP.clone(), HeaderValue::from(step));
    Ok(response)
}
