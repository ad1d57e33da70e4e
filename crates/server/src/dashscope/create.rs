//! A request for a video, as DashScope spells it.

use crate::body::Fields;
use crate::clips::request::ClipRequest;
use crate::fault::Fault;
use crate::sizes;
use runtime::plan::Length;
use serde::Deserialize;
use utoipa::ToSchema;

/// A request for a video.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct CreateTask {
    /// The model, by its name or an alias.
    pub(super) model: String,
    /// What is shown.
    pub(super) input: TaskInput,
    /// How it is made.
    pub(super) parameters: Option<TaskParameters>,
}

/// What a video shows.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct TaskInput {
    /// Description of the clip.
    #[schema(min_length = 1)]
    pub(super) prompt: String,
    /// What the clip should not show.
    pub(super) negative_prompt: Option<String>,
}

/// How a video is made.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct TaskParameters {
    /// Size of a frame, such as `1280*720`.
    pub(super) size: Option<String>,
    /// Instead of `size`: `480P`, `720P` or `1080P`.
    pub(super) resolution: Option<String>,
    /// Shape of a `resolution`, such as `16:9`.
    pub(super) ratio: Option<String>,
    /// Length of the clip in seconds.
    #[schema(minimum = 0)]
    pub(super) duration: Option<f64>,
    /// Seed of the noise.
    #[schema(minimum = 0)]
    pub(super) seed: Option<u64>,
}

const TEXT_ONLY: &str = "the models of this server make clips from text alone";

/// Reads a request for a video. Settings that only the service of Alibaba has are accepted where they ask for nothing.
///
/// # Errors
/// Names the first parameter that is wrong, unknown, or asks for what this server cannot do.
pub(super) fn read(mut fields: Fields) -> Result<ClipRequest, Fault> {
    let model = fields.text("model")?.ok_or_else(|| Fault::parameter("model", "`model` is missing"))?;
    let input = fields.object("input")?;
    let mut input = input.ok_or_else(|| Fault::parameter("input", "`input` is missing"))?;
    let prompt = input.text("prompt")?;
    let prompt =
        prompt.ok_or_else(|| Fault::parameter("prompt", "`input.prompt` is missing: describe the clip"))?;
    let mut request = ClipRequest { model: Some(model), ..ClipRequest::new(prompt) };
    request.negative = input.text("negative_prompt")?;
    for name in
        ["img_url", "first_frame_url", "last_frame_url", "audio_url", "media", "template", "reference_urls"]
    {
        input.refuse(name, TEXT_ONLY)?;
    }
    // The SDK always sends these.
    input.ignore(&["extend_prompt", "function"]);
    input.finish()?;
    if let Some(mut parameters) = fields.object("parameters")? {
        read_parameters(&mut parameters, &mut request)?;
        parameters.finish()?;
    }
    fields.ignore(&["task", "task_group", "function"]);
    fields.finish()?;
    Ok(request)
}

fn read_parameters(parameters: &mut Fields, request: &mut ClipRequest) -> Result<(), Fault> {
    let (size, resolution, ratio) =
        (parameters.text("size")?, parameters.text("resolution")?, parameters.text("ratio")?);
    request.size = match (size, resolution) {
        (Some(size), _) => Some(sizes::named("size", &size, ratio.as_deref())?),
        (None, Some(resolution)) => Some(sizes::named("resolution", &resolution, ratio.as_deref())?),
        (None, None) => None,
    };
    request.length = parameters.number("duration")?.map(Length::Seconds);
    request.seed = parameters.whole("seed")?;
    if parameters.truth("watermark")? == Some(true) {
        let message = "`watermark` cannot be used: clips are marked as AI-generated in their metadata only";
        return Err(Fault::unsupported("watermark", message));
    }
    if parameters.whole("n")?.is_some_and(|count| count != 1) {
        return Err(Fault::unsupported("n", "a task makes one video: send one request for each"));
    }
    if let Some(shots) = parameters.text("shot_type")?.filter(|shots| shots != "single") {
        return Err(Fault::unsupported(
            "shot_type",
            format!("`shot_type` cannot be {shots}: a clip is one shot"),
        ));
    }
    // The prompt is used as it is, and `actual_prompt` says so.
    parameters.ignore(&["prompt_extend", "audio"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<ClipRequest, Fault> {
        super::read(Fields::new(value.as_object().unwrap().clone(), Vec::new()))
    }

    /// As dashscope 2.0.2 sends it.
    #[test]
    fn what_the_sdk_sends_is_read() {
        let request = read(json!({
            "model": "wan2.2-t2v-plus",
            "input": {
                "prompt": "a cat", "extend_prompt": true, "function": "video-synthesis", "negative_prompt": "blurry"
            },
            "parameters": {"size": "1280*720", "duration": 5, "seed": 7, "prompt_extend": true, "watermark": false},
        }));
        let request = request.unwrap();
        assert_eq!(request.size.unwrap().to_string(), "1280x720");
        assert_eq!((request.length, request.seed), (Some(Length::Seconds(5.0)), Some(7)));
        assert_eq!((&*request.prompt, request.negative.as_deref()), ("a cat", Some("blurry")));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let with = |input: Value, parameters: Value| {
            let mut input = input;
            input["prompt"] = json!("a");
            read(json!({"model": "m", "input": input, "parameters": parameters})).unwrap_err().param.unwrap()
        };
        assert_eq!(with(json!({"img_url": "http://x"}), json!({})), "img_url");
        assert_eq!(with(json!({"media": [{"type": "image"}]}), json!({})), "media");
        assert_eq!(with(json!({}), json!({"watermark": true})), "watermark");
        assert_eq!(with(json!({}), json!({"shot_type": "multi"})), "shot_type");
        assert_eq!(with(json!({}), json!({"resolution": "720P", "ratio": "5:1"})), "resolution");
        assert_eq!(with(json!({}), json!({"fps": 3})), "fps");
        assert_eq!(read(json!({"model": "m", "input": {}})).unwrap_err().param.unwrap(), "prompt");
        assert_eq!(read(json!({"model": "m", "input": "x"})).unwrap_err().param.unwrap(), "input");
        assert_eq!(read(json!({"input": {"prompt": "a"}})).unwrap_err().param.unwrap(), "model");
    }
}
