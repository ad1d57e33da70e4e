//! Clips that are asked for again: the same settings, files and model lead to the same clip.

use super::index::Clip;
use super::request::ClipRequest;
use super::submitting::Sent;
use crate::access::Caller;
use crate::app::App;
use crate::models::ServedModel;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use jobs::request::{NoiseFile, Request};
use runtime::scheduler::Priority;
use std::path::PathBuf;
use std::sync::Arc;

/// The header that says that a clip was made before.
static HEADER: HeaderName = HeaderName::from_static("rushes-result");

/// A clip that a request has led to.
#[derive(Debug)]
pub(crate) struct Submitted {
    /// The clip.
    pub clip: Arc<Clip>,
    /// True if an earlier request has made it.
    pub is_cached: bool,
}

impl Submitted {
    /// A clip that this request makes, or that it made when it was sent before.
    pub(crate) fn own(clip: Arc<Clip>) -> Self {
        Self { clip, is_cached: false }
    }

    /// Says in an answer that the clip was made before.
    pub(crate) fn marked(&self, mut response: Response) -> Response {
        if self.is_cached {
            response.headers_mut().insert(HEADER.clone(), HeaderValue::from_static("cached"));
        }
        response
    }
}

/// A digest of everything that a clip is made of: the request of its job without what only says when and where, the
/// model, and the program. Files are in it by their digests.
pub(crate) fn digest(job: &Request, model: &ServedModel) -> String {
    let mut job = Request { outputs: Vec::new(), priority: Priority::Normal, deadline: None, ..job.clone() };
    // The extras of the request have the digests of logo and sound.
    if let Some((path, _)) = &mut job.post_process.logo {
        *path = PathBuf::new();
    }
    if let Some(source) = &mut job.post_process.audio {
        *source = source.with_path(PathBuf::new());
    }
    job.noise = job.noise.map(|noise| NoiseFile { path: PathBuf::new(), ..noise });
    let json = serde_json::to_string(&job).unwrap_or_else(|_| unreachable!("keys are strings"));
    let parts = [env!("CARGO_PKG_VERSION"), &model.manifest.digest().blake3, &json].map(str::to_owned);
    bundle::digest::Digest::of_parts(parts.iter().map(String::as_bytes)).blake3
}

/// The finished clip of the caller that a request asks for again, if the operator allows that it is used.
///
/// Requests with an idempotency key or a callback make clips of their own: the key names one, and the end of one is
/// told.
pub(crate) fn cached(
    app: &App,
    caller: &Caller,
    request: &ClipRequest,
    sent: &Sent,
    digest: &str,
) -> Option<Submitted> {
    if !app.config.result_cache || sent.key.is_some() || request.callback.is_some() {
        return None;
    }
    let clip = app.clips.made(caller, digest)?;
    // The file may have been removed by somebody else.
    if !clip.ticket.clip(app.clips.folder()).is_file() {
        return None;
    }
    tracing::info!(clip = clip.ticket.id, "a request is answered with a clip that was made before");
    Some(Submitted { clip, is_cached: true })
}
