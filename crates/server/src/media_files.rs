//! Sending files: whole or in ranges, with headers that keep them private.

use crate::fault::Fault;
use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use media::FileFormat;
use std::path::Path;
use tower::ServiceExt;
use tower_http::services::ServeFile;

/// The media type of a format.
pub(crate) fn media_type(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Mp4 => "video/mp4",
        FileFormat::WebM => "video/webm",
        FileFormat::Mkv => "video/x-matroska",
        FileFormat::Gif => "image/gif",
        FileFormat::WebP => "image/webp",
        FileFormat::Y4m => "video/x-yuv4mpeg",
    }
}

/// Sends a file of the server, or the range of it that the request asks for.
///
/// # Errors
/// The file is gone.
pub(crate) async fn send(request: &Parts, path: &Path, media_type: &'static str) -> Result<Response, Fault> {
    let mut asked = Request::new(Body::empty());
    *asked.method_mut() = if request.method == Method::HEAD { Method::HEAD } else { Method::GET };
    for name in [header::RANGE, header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE] {
        if let Some(value) = request.headers.get(&name) {
            asked.headers_mut().insert(name, value.clone());
        }
    }
    let response = ServeFile::new(path).oneshot(asked).await;
    let mut response = match response {
        Ok(response) => response.map(Body::new).into_response(),
        Err(never) => match never {},
    };
    match response.status() {
        StatusCode::NOT_FOUND => return Err(Fault::not_found("file")),
        StatusCode::INTERNAL_SERVER_ERROR => return Err(Fault::internal("a file of a clip cannot be read")),
        _ => {}
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    Ok(response)
}
