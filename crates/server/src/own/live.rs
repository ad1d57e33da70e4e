//! A clip as HLS while it is made.

use crate::access::Caller;
use crate::app::App;
use crate::clips::index::Clip;
use crate::fault::{ErrorBody, Fault};
use crate::links::{self, Grant};
use crate::live::{self, Shown};
use crate::media_files;
use crate::query::Path;
use axum::extract::State;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use jobs::store::State as JobState;
use std::sync::Arc;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The variant of a link to the playlist.
pub(super) const PLAYLIST: &str = "live.m3u8";
/// What precedes the name of a file of the playlist in a link to it.
const FILE: &str = "live-";
/// The first segment takes a second, and the encoder some time.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the first segment is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_live))
}

/// Watch a video while it is made, as HLS: noise, then what each step predicts, then its frames
#[utoipa::path(
    get, path = "/v1/videos/{id}/live", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 200, description = "The playlist; its files are links that need no token", body = String, content_type = "application/vnd.apple.mpegurl"),
        (status = "4XX", description = "The request is refused, or the video is not being made", body = ErrorBody),
        (status = 503, description = "The first segment is not there yet", body = ErrorBody),
    ),
)]
async fn get_live(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    playlist(&app, &clip).await
}

/// The playlist of a clip.
///
/// # Errors
/// The clip is not being made, or too many others are watched.
pub(super) async fn playlist(app: &Arc<App>, clip: &Arc<Clip>) -> Result<Response, Fault> {
    let shown = match app.live.find(clip.job) {
        Some(shown) => shown,
        None => begun(app, clip).await?,
    };
    let path = shown.folder.join("index.m3u8");
    let read = async {
        loop {
            match tokio::fs::read_to_string(&path).await {
                Ok(text) => return text,
                Err(_not_there_yet) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    let text = tokio::time::timeout(PATIENCE, read).await;
    let text = text.map_err(|_late| Fault::unavailable("the first segment is not there yet: ask again"))?;
    let id = &clip.ticket.id;
    let link = |name: &str| {
        let variant = format!("{FILE}{name}");
        let query = Grant { method: "GET", id, variant: &variant }.query(&app.keys, shown.since, links::LIFE);
        app.url.with(&format!("/media/{id}/{variant}?{query}"))
    };
    let playlist = live::linked(&text, link);
    Ok(([(header::CONTENT_TYPE, "application/vnd.apple.mpegurl")], playlist).into_response())
}

async fn begun(app: &Arc<App>, clip: &Arc<Clip>) -> Result<Shown, Fault> {
    match clip.status().state {
        JobState::Running => {}
        JobState::Queued => {
            let fault = Fault::conflict("not_live_yet", "the video waits: ask again when it is being made");
            return Err(Fault { retry_after: Some(2), ..fault });
        }
        _ => return Err(Fault::conflict("video_ended", "the video has ended: download its content")),
    }
    let model = app.models.of_clip(clip).map(Arc::clone);
    let model = model.ok_or_else(|| Fault::internal("a clip is made with a model that is not served"))?;
    let (app, clip) = (Arc::clone(app), Arc::clone(clip));
    let begun = tokio::task::spawn_blocking(move || {
        let shown = app.live.begin(&clip, &model, app.now())?;
        let clean = app.pictures.watch(&clip).borrow().clone();
        if let Some(clean) = clean {
            app.live.show(clip.job, &clean.latent);
        }
        // Its end may have come before it was known to be watched.
        let status = clip.status();
        if status.state.has_ended() {
            app.live.end(clip.job, false);
            return Err(Fault::conflict("video_ended", "the video has ended: download its content"));
        }
        Ok(shown)
    });
    begun.await.map_err(Fault::internal)?
}

/// A file of a playlist, if the variant of a link is one.
pub(super) async fn file(
    app: &App,
    clip: &Clip,
    variant: &str,
    request: &Parts,
) -> Option<Result<Response, Fault>> {
    let name = variant.strip_prefix(FILE).filter(|name| live::is_segment(name))?;
    let Some(shown) = app.live.find(clip.job) else { return Some(Err(Fault::not_found("file"))) };
    Some(media_files::send(request, &shown.folder.join(name), "video/mp4").await)
}
