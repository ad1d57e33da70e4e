//! The files of a clip.

use crate::app::App;
use crate::clips::index::Clip;
use crate::fault::Fault;
use crate::media_files;
use crate::pictures::files;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

/// Which file of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Variant {
    /// The clip itself.
    Video,
    /// A picture of it, as WebP.
    Thumbnail,
    /// Up to 16 pictures of it in rows, as JPEG.
    Spritesheet,
}

/// Sends a file of a clip.
///
/// # Errors
/// The clip is not complete, or its file is gone.
pub(crate) async fn send(
    app: &App,
    clip: &Clip,
    variant: Variant,
    request: &Parts,
) -> Result<Response, Fault> {
    let status = clip.status();
    if !status.state.has_ended() {
        let message = "the video is not complete yet";
        return Err(Fault { retry_after: Some(1), ..Fault::conflict("video_not_ready", message) });
    }
    if !status.is_complete() {
        return Err(Fault::new(StatusCode::CONFLICT, "video_failed", "the video failed, so it has no file"));
    }
    let (folder, id) = (app.clips.folder(), &clip.ticket.id);
    let (path, media_type) = match variant {
        Variant::Video => (clip.ticket.clip(folder), media_files::media_type(clip.ticket.format())),
        Variant::Thumbnail => (files::thumbnail(folder, id), "image/webp"),
        Variant::Spritesheet => (files::sheet(folder, id), "image/jpeg"),
    };
    media_files::send(request, &path, media_type).await
}

impl Variant {
    /// The variant of a name in a link.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name {
            "video" => Some(Self::Video),
            "thumbnail" => Some(Self::Thumbnail),
            "spritesheet" => Some(Self::Spritesheet),
            _ => None,
        }
    }
}
