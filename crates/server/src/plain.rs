//! The plain form: one request with few settings, answered with addresses that can be used as they are.

use crate::access::Caller;
use crate::app::App;
use crate::body::{Body, Fields, idempotency_key};
use crate::clips::request::ClipRequest;
use crate::clips::submitting::{self, Sent};
use crate::fault::{ErrorBody, Fault};
use crate::openai::read_format;
use crate::post::{Post, PostFields};
use crate::sizes;
use crate::webhooks::Callback;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use runtime::plan::Length;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The route.
pub(crate) fn router() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(generate))
}

/// A request for a video.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct PlainRequest {
    /// The model, by its name or an alias.
    model: Option<String>,
    /// Description of the clip.
    #[schema(min_length = 1)]
    prompt: String,
    /// What the clip should not show.
    negative_prompt: Option<String>,
    /// Size of a frame: `720p` or `1280x720`.
    resolution: Option<String>,
    /// Length of the clip in seconds.
    #[schema(minimum = 0)]
    duration: Option<f64>,
    /// Format of the file: mp4, webm, mkv, gif or webp.
    output_format: Option<String>,
    /// Seed of the noise.
    #[schema(minimum = 0)]
    seed: Option<u64>,
    /// Address that is told when the clip has ended, if the operator allows it.
    callback_url: Option<String>,
    /// The secret that this is signed with after Standard Webhooks: `whsec_` and 24 to 64 bytes in base64.
    callback_secret: Option<String>,
    /// The language of the prompt. The models read all that they were trained with.
    lang: Option<String>,
    /// What is drawn on the frames, and the sound of the clip.
    post: Option<PostFields>,
    /// Tokens of the prompt that are read: 512.
    #[schema(minimum = 0)]
    max_length: Option<u64>,
}

/// A video that waits, and where it will be.
#[derive(Debug, Serialize, ToSchema)]
struct PlainTask {
    /// Its name.
    task_id: String,
    /// A link to its state, for 24 hours.
    status_url: String,
    /// A link to its file, for 24 hours. Until it is complete the answer is 202, or waits with `Prefer: wait`.
    video_url: String,
    /// A link to its playlist, for 24 hours: HLS that can be watched while the clip is made.
    live_url: String,
}

fn read(mut fields: Fields) -> Result<ClipRequest, Fault> {
    let prompt = fields.text("prompt")?;
    let prompt =
        prompt.ok_or_else(|| Fault::parameter("prompt", "`prompt` is missing: describe the clip"))?;
    let mut request = ClipRequest { model: fields.text("model")?, ..ClipRequest::new(prompt) };
    request.negative = fields.text("negative_prompt")?;
    if let Some(resolution) = fields.text("resolution")? {
        request.size = Some(sizes::named("resolution", &resolution, None)?);
    }
    if let Some(duration) = fields.text_or_number("duration")? {
        let seconds = duration.trim().trim_end_matches(['s', 'S']).trim_end().parse::<f64>();
        let seconds = seconds.ok().filter(|seconds| seconds.is_finite());
        let refused = || Fault::parameter("duration", "`duration` is a number of seconds");
        request.length = Some(Length::Seconds(seconds.ok_or_else(refused)?));
    }
    if let Some(format) = fields.text("output_format")? {
        request.format = read_format("output_format", &format)?;
    }
    request.seed = fields.whole("seed")?;
    request.callback = Callback::read(&mut fields)?;
    request.post = Post::read(&mut fields)?;
    fields.text("lang")?;
    fields.whole("max_length")?;
    fields.finish()?;
    Ok(request)
}

/// Queue a video with few settings
#[utoipa::path(
    post, path = "/wan2.2/t2v/generate", tag = "Plain form",
    request_body(content((PlainRequest = "application/json"), (PlainRequest = "multipart/form-data"))),
    responses(
        (status = 200, description = "The video, which waits", body = PlainTask),
        (status = "4XX", description = "The request is refused", body = ErrorBody),
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
    let made = submitting::submit(&app, &caller, read(body.fields)?, &sent).await?;
    let id = made.clip.ticket.id.clone();
    let [status_url, video_url, live_url] =
        ["status", "video", "live.m3u8"].map(|variant| app.media_link(&id, variant));
    let task = PlainTask { task_id: id, status_url, video_url, live_url };
    Ok(made.marked(Json(task).into_response()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<ClipRequest, Fault> {
        super::read(Fields::new(value.as_object().unwrap().clone(), Vec::new()))
    }

    #[test]
    fn the_six_settings_and_two_that_are_accepted() {
        let request = read(json!({
            "model": "wan2.2", "prompt": "a cat", "resolution": "720p", "duration": "5s", "output_format": "webm",
            "lang": "en", "max_length": 512,
        }));
        let request = request.unwrap();
        assert_eq!(request.size.unwrap().to_string(), "1280x720");
        assert_eq!(request.length, Some(Length::Seconds(5.0)));
        assert_eq!(request.format.extension(), "webm");
        for (name, value) in [
            ("resolution", json!("8K")),
            ("duration", json!("long")),
            ("output_format", json!("avi")),
            ("fps", json!(3)),
            ("lang", json!(3)),
        ] {
            let mut body = json!({"prompt": "a"});
            body[name] = value;
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
