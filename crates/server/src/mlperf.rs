//! The route of MLPerf Inference for video generation: one request, one clip in the answer.

use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, Fields, idempotency_key};
use crate::clips::index::Clip;
use crate::clips::request::ClipRequest;
use crate::clips::submitting::{self, Sent, cancel};
use crate::fault::{ErrorBody, Fault};
use crate::openai::{error_of, read_settings};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(generate))
}

/// A request for a clip.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct MlperfRequest {
    /// The model, by its name or an alias.
    model: Option<String>,
    /// Description of the clip.
    #[schema(min_length = 1)]
    prompt: String,
    /// What the clip should not show.
    negative_prompt: Option<String>,
    /// Size of a frame, width first.
    size: Option<String>,
    /// Length of the clip in seconds; `num_frames` goes before it.
    #[schema(minimum = 0)]
    seconds: Option<f64>,
    /// Frames per second.
    #[schema(minimum = 1)]
    fps: Option<u32>,
    /// Denoising steps.
    #[schema(minimum = 1)]
    num_inference_steps: Option<u32>,
    /// Guidance scale of the expert for high noise.
    guidance_scale: Option<f32>,
    /// Guidance scale of the expert for low noise.
    guidance_scale_2: Option<f32>,
    /// Seed of the noise.
    #[schema(minimum = 0)]
    seed: Option<u64>,
    /// Number of frames.
    #[schema(minimum = 1)]
    num_frames: Option<u32>,
    /// The boundary between the experts. Only that of the model is accepted.
    boundary_ratio: Option<f64>,
    /// The name of a file with the initial noise, in the folder that the operator has named.
    latent_path: Option<String>,
    /// `mp4` or `auto`.
    output_format: Option<String>,
    /// What is answered: `video_bytes`, or `video_path` if the operator allows it.
    response_format: Option<ResponseFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ResponseFormat {
    VideoBytes,
    VideoPath,
}

/// A clip. It has these two keys and no others.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Made {
    /// The file itself.
    Bytes {
        /// The name of the clip.
        video_id: String,
        /// The file in base64.
        video_bytes: String,
    },
    /// The path of the file.
    Path {
        /// The name of the clip.
        video_id: String,
        /// The path on the machine of the server.
        video_path: String,
    },
}

fn read(mut fields: Fields) -> Result<(ClipRequest, ResponseFormat), Fault> {
    let prompt = fields.text("prompt")?;
    let prompt =
        prompt.ok_or_else(|| Fault::parameter("prompt", "`prompt` is missing: describe the clip"))?;
    let mut request = ClipRequest { model: fields.text("model")?, ..ClipRequest::new(prompt) };
    read_settings(&mut fields, &mut request)?;
    request.latents = fields.text("latent_path")?;
    let format = match fields.text("response_format")?.as_deref() {
        None | Some("video_bytes") => ResponseFormat::VideoBytes,
        Some("video_path") => ResponseFormat::VideoPath,
        Some(_) => {
            let message = "`response_format` is video_bytes or video_path";
            return Err(Fault::parameter("response_format", message));
        }
    };
    fields.finish()?;
    Ok((request, format))
}

/// Ends the job of a client that is gone before it has its clip.
struct Abandoned {
    app: Arc<App>,
    clip: Option<Arc<Clip>>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some(clip) = self.clip.take() else { return };
        let app = Arc::clone(&self.app);
        tokio::spawn(async move {
            tracing::info!(clip = clip.ticket.id, "its client is gone");
            if let Err(fault) = cancel(&app, &clip).await {
                tracing::info!(clip = clip.ticket.id, "it was not cancelled: {}", fault.message);
            }
        });
    }
}

/// Make a clip, and answer with it when it is complete
#[utoipa::path(
    post, path = "/v1/videos/generations", tag = "MLPerf",
    request_body(content((MlperfRequest = "application/json"), (MlperfRequest = "multipart/form-data"))),
    responses(
        (status = 200, description = "The clip", body = Made),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
        (status = 500, description = "The clip failed", body = ErrorBody),
        (status = 503, description = "The server ends, or its disk is full", body = ErrorBody),
    ),
)]
async fn generate(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let sent = Sent { key: idempotency_key(&headers)?, digest: body.digest };
    let (request, format) = read(body.fields)?;
    if format == ResponseFormat::VideoPath && !app.config.allow_paths {
        let message = "`response_format` cannot be video_path: the operator has not allowed paths in answers";
        return Err(Fault::unsupported("response_format", message));
    }
    let submitted = submitting::submit(&app, &caller, request, &sent).await?;
    let clip = Arc::clone(&submitted.clip);
    // A client with an idempotency key may come back for it.
    let mut abandoned =
        Abandoned { app: Arc::clone(&app), clip: sent.key.is_none().then(|| Arc::clone(&clip)) };
    let status = tokio::select! {
        status = clip.ended() => status,
        () = app.ended() => {
            abandoned.clip = None;
            return Err(Fault::unavailable("the server ends; the clip goes on when it starts again"));
        }
    };
    abandoned.clip = None;
    if !status.is_complete() {
        let message =
            error_of(&status).map_or_else(|| "the clip was deleted".to_owned(), |error| error.message);
        return Err(Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "generation_failed", message));
    }
    let path = clip.ticket.clip(app.clips.folder());
    let video_id = clip.ticket.id.clone();
    let made = match format {
        ResponseFormat::VideoPath => Made::Path { video_id, video_path: path.display().to_string() },
        ResponseFormat::VideoBytes => {
            let bytes = tokio::fs::read(&path).await.map_err(Fault::internal)?;
            Made::Bytes { video_id, video_bytes: STANDARD.encode(bytes) }
        }
    };
    Ok(submitted.marked(Json(made).into_response()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<(ClipRequest, ResponseFormat), Fault> {
        super::read(Fields::new(value.as_object().unwrap().clone(), Vec::new()))
    }

    /// As `mlcommons/endpoints` sends it.
    #[test]
    fn what_the_client_sends_is_read() {
        let (request, format) = read(json!({
            "prompt": "a cat", "negative_prompt": "blurry", "size": "1280x720", "seconds": 5.0, "fps": 16,
            "num_inference_steps": 20, "guidance_scale": 4.0, "guidance_scale_2": 3.0, "seed": 42, "num_frames": 81,
            "boundary_ratio": 0.875, "latent_path": "fixed_latent.safetensors", "output_format": "auto",
            "response_format": "video_bytes",
        }))
        .unwrap();
        assert_eq!(
            (request.steps, request.guidance_low, format),
            (Some(20), Some(3.0), ResponseFormat::VideoBytes)
        );
        assert_eq!(request.length, Some(runtime::plan::Length::Frames(81)));
        assert_eq!(request.latents.as_deref(), Some("fixed_latent.safetensors"));
        for (name, value) in
            [("response_format", json!("url")), ("output_format", json!("avi")), ("x", json!(1))]
        {
            assert_eq!(read(json!({"prompt": "a", name: value})).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
