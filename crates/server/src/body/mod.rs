//! Bodies of requests: JSON and forms, read within limits, as named values.

mod fields;

pub(crate) use fields::{Fields, FilePart};

use crate::app::App;
use crate::fault::Fault;
use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A body, as JSON or as a form.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    /// Its values.
    pub fields: Fields,
    /// A digest of route and content, which is equal for equal requests in the same form.
    pub digest: String,
}

impl FromRequest<Arc<App>> for Body {
    type Rejection = Fault;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Fault> {
        let limits = &app.config.limits;
        let path = request.uri().path().to_owned();
        let fields = timed(limits.body_time, read(request, limits.body)).await?;
        let digest = fields.digest(&path);
        Ok(Self { fields, digest })
    }
}

/// Gives a body only so much time.
///
/// # Errors
/// Those of reading, or the time is over.
pub(crate) async fn timed<T>(
    limit: std::time::Duration,
    read: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_elapsed| {
        let message = format!("the body did not arrive within {} s", limit.as_secs());
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
    })
}

/// The idempotency key of a request.
///
/// # Errors
/// It is not text.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() => Ok(Some(key.to_owned())),
        _ => Err(Fault::bad_request("an idempotency key is printable ASCII text").about("idempotency-key")),
    }
}

async fn read(request: Request, most: usize) -> Result<Fields, Fault> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match &*kind {
        "multipart/form-data" => form(request, most).await,
        "application/json" => json(request, most).await,
        _ => {
            let message =
                format!("the content type `{kind}` is neither application/json nor multipart/form-data");
            Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
        }
    }
}

async fn json(request: Request, most: usize) -> Result<Fields, Fault> {
    let bytes = bytes(request, most).await?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Fault::bad_request(format!("the body is not JSON: {error}")))?;
    match value {
        Value::Object(values) => Ok(Fields::new(values, Vec::new())),
        _ => Err(Fault::bad_request("the body is not a JSON object")),
    }
}

/// The bytes of a body, if there are no more than `most`.
///
/// # Errors
/// There are more, or they do not arrive.
pub(crate) async fn bytes(request: Request, most: usize) -> Result<Bytes, Fault> {
    let limited = axum::body::to_bytes(request.into_body(), most).await;
    limited.map_err(|error| {
        let is_limit = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        if is_limit {
            Fault::too_large(format!("the body has more than {most} bytes"))
        } else {
            Fault::bad_request("the body did not arrive whole")
        }
    })
}

async fn form(request: Request, most: usize) -> Result<Fields, Fault> {
    let broken =
        |error: &dyn std::fmt::Display| Fault::bad_request(format!("the form cannot be read: {error}"));
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| broken(&error))?;
    let (mut values, mut files) = (Map::new(), Vec::new());
    let mut left = most;
    while let Some(mut part) = parts.next_field().await.map_err(|error| broken(&error))? {
        let name = part.name().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Fault::bad_request("a part of the form has no name"));
        }
        let file_name = part.file_name().map(str::to_owned);
        let mut content = Vec::new();
        while let Some(chunk) = part.chunk().await.map_err(|error| broken(&error))? {
            left = left
                .checked_sub(chunk.len())
                .ok_or_else(|| Fault::too_large(format!("the form has more than {most} bytes")))?;
            content.extend_from_slice(&chunk);
        }
        if file_name.is_some() {
            files.push(FilePart { name, content });
            continue;
        }
        let text = String::from_utf8(content)
            .map_err(|_not_text| Fault::parameter(&*name, format!("`{name}` is not UTF-8 text")))?;
        fields::insert(&mut values, &name, Value::String(text))?;
    }
    Ok(Fields::new(values, files))
}
