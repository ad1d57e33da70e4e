//! Progress and previews over a websocket, in the form that clients of ComfyUI know.
//!
//! Progress is a text message with the JSON of an event. A preview is a binary message: 1 and the format (1 JPEG, 2
//! PNG) as big-endian 32-bit numbers, then the picture.

use super::events::Follower;
use crate::access::Caller;
use crate::app::App;
use crate::clips::index::Clip;
use crate::fault::{ErrorBody, Fault};
use crate::pictures::preview::{PreviewFormat, draw};
use crate::query::Path;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The longest message of a client, in bytes. Nothing that it says matters.
const MOST: usize = 4096;
/// How long a client may take no message.
const STALLED: Duration = Duration::from_secs(30);

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(get_socket))
}

/// Follow the progress and the previews of a video over a websocket
#[utoipa::path(
    get, path = "/v1/videos/{id}/ws", tag = "Rushes",
    params(("id" = String, Path, description = "The name of the video")),
    responses(
        (status = 101, description = "Messages: texts are events in JSON, binary ones are previews"),
        (status = "4XX", description = "The request is refused, or is none for a websocket", body = ErrorBody),
    ),
)]
async fn get_socket(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Fault> {
    let clip = app.clips.find(&caller, &id)?;
    let upgrade =
        upgrade.map_err(|error| Fault::bad_request(format!("this route is for websockets: {error}")))?;
    let upgrade = upgrade.max_message_size(MOST).max_frame_size(MOST);
    Ok(upgrade.on_upgrade(move |socket| async move {
        // An error means that the client is gone.
        let _ = follow(&app, &clip, socket).await;
    }))
}

async fn follow(app: &Arc<App>, clip: &Clip, mut socket: WebSocket) -> Result<(), axum::Error> {
    let mut follower = Follower::new(app, clip);
    let mut cleans = app.pictures.watch(clip);
    let mut has_pictures = true;
    loop {
        tokio::select! {
            progress = follower.next() => {
                let Some(progress) = progress else { break };
                let text = json!({"type": "progress", "data": progress}).to_string();
                send(&mut socket, Message::Text(text.into())).await?;
            }
            changed = cleans.changed(), if has_pictures => {
                let clean = cleans.borrow_and_update().clone();
                match (changed, clean) {
                    (Ok(()), Some(clean)) => match draw(clip, clean, PreviewFormat::Jpeg).await {
                        Ok(picture) => send(&mut socket, Message::Binary(framed(&picture).into())).await?,
                        Err(_no_preview_map) => has_pictures = false,
                    },
                    (Ok(()), None) => {}
                    (Err(_the_job_has_ended), _) => has_pictures = false,
                }
            }
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(said) => drop(said?),
            },
        }
    }
    send(&mut socket, Message::Close(None)).await
}

/// The header of a preview of ComfyUI, and a JPEG.
fn framed(picture: &[u8]) -> Vec<u8> {
    let (preview, jpeg) = (1_u32.to_be_bytes(), 1_u32.to_be_bytes());
    [&preview[..], &jpeg, picture].concat()
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), axum::Error> {
    tokio::time::timeout(STALLED, socket.send(message)).await.map_err(axum::Error::new)?
}
