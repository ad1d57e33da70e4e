//! A request for a video, as OpenAI and the servers that kept its interface spell it.

use crate::body::Fields;
use crate::clips::request::ClipRequest;
use crate::fault::Fault;
use crate::loras::request::{ClipLora, LoraField};
use crate::post::{Post, PostFields};
use crate::webhooks::Callback;
use bundle::geometry::PixelSize;
use media::FileFormat;
use runtime::plan::Length;
use serde::Deserialize;
use utoipa::ToSchema;

/// A request for a video. Forms may give numbers as texts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(super) struct CreateVideo {
    /// Description of the clip.
    #[schema(min_length = 1)]
    pub(super) prompt: String,
    /// The model, by its name or an alias; the first of the server if absent.
    pub(super) model: Option<String>,
    /// Length of the clip in seconds, as a text.
    pub(super) seconds: Option<String>,
    /// Size of a frame, such as `1280x720`.
    pub(super) size: Option<String>,
    /// What the clip should not show.
    pub(super) negative_prompt: Option<String>,
    /// Width of a frame, with `height`, instead of `size`.
    #[schema(minimum = 1)]
    pub(super) width: Option<u32>,
    /// Height of a frame.
    #[schema(minimum = 1)]
    pub(super) height: Option<u32>,
    /// Number of frames, instead of `seconds`.
    #[schema(minimum = 1)]
    pub(super) num_frames: Option<u32>,
    /// Frames per second.
    #[schema(minimum = 1)]
    pub(super) fps: Option<u32>,
    /// Denoising steps.
    #[schema(minimum = 1)]
    pub(super) num_inference_steps: Option<u32>,
    /// Guidance scale, as in diffusers: of the expert for high noise, and of the other too unless `guidance_scale_2` is
    /// given. Also `guidance_scale_high`.
    pub(super) guidance_scale: Option<f32>,
    /// Guidance scale of the expert for low noise. Also `guidance_scale_low`.
    pub(super) guidance_scale_2: Option<f32>,
    /// The boundary between the experts. Only that of the model is accepted.
    pub(super) boundary_ratio: Option<f64>,
    /// Shift of the sigma grid.
    pub(super) flow_shift: Option<f64>,
    /// Seed of the noise; a random one if absent.
    #[schema(minimum = 0)]
    pub(super) seed: Option<u64>,
    /// A LoRA of the server, as vLLM-Omni spells it.
    pub(super) lora: Option<LoraField>,
    /// LoRAs of the server, as sglang spells them; at most eight. Their changes add up.
    #[schema(max_items = 8)]
    pub(super) loras: Option<Vec<LoraField>>,
    /// Address that is told when the clip has ended, if the operator allows it.
    pub(super) callback_url: Option<String>,
    /// The secret that this is signed with after Standard Webhooks: `whsec_` and 24 to 64 bytes in base64.
    pub(super) callback_secret: Option<String>,
    /// Format of the file: mp4, webm, mkv, gif or webp.
    pub(super) output_format: Option<String>,
    /// What is drawn on the frames, and the sound of the clip.
    pub(super) post: Option<PostFields>,
}

const TEXT_ONLY: &str = "the models of this server make clips from text alone";

/// Reads a request for a video.
///
/// # Errors
/// Names the first parameter that is wrong, unknown, or asks for what this server cannot do.
pub(super) fn read(mut fields: Fields) -> Result<ClipRequest, Fault> {
    let mut request = read_clip(&mut fields)?;
    request.callback = Callback::read(&mut fields)?;
    fields.finish()?;
    Ok(request)
}

/// Takes what makes a clip, and leaves what the client is told about it.
///
/// # Errors
/// Names the first parameter that is wrong, or asks for what this server cannot do.
pub(crate) fn read_clip(fields: &mut Fields) -> Result<ClipRequest, Fault> {
    let prompt = fields.text("prompt")?;
    let prompt =
        prompt.ok_or_else(|| Fault::parameter("prompt", "`prompt` is missing: describe the clip"))?;
    let mut request = ClipRequest { model: fields.text("model")?, ..ClipRequest::new(prompt) };
    if let Some(mut extra) = fields.object("extra_params")? {
        read_settings(&mut extra, &mut request)?;
        request.loras = ClipLora::read(&mut extra)?;
        extra.finish()?;
    }
    read_settings(fields, &mut request)?;
    request.loras.extend(ClipLora::read(fields)?);
    for name in ["input_reference", "image_reference", "video_reference", "reference_url", "audio_url"] {
        fields.refuse(name, TEXT_ONLY)?;
    }
    request.post = Post::read(fields)?;
    fields.ignore(&["user", "metadata"]);
    Ok(request)
}

/// Reads the settings of a clip, all of which have the same names in forms and in `extra_params`.
///
/// # Errors
/// Names the first parameter that is wrong.
pub(crate) fn read_settings(fields: &mut Fields, request: &mut ClipRequest) -> Result<(), Fault> {
    if let Some(negative) = fields.text("negative_prompt")? {
        request.negative = Some(negative);
    }
    if let Some(size) = read_size(fields)? {
        request.size = Some(size);
    }
    let seconds = fields.number("seconds")?;
    match (fields.whole("num_frames")?, seconds) {
        (Some(frames), _) => request.length = Some(Length::Frames(usize(frames))),
        (None, Some(seconds)) => request.length = Some(Length::Seconds(seconds)),
        (None, None) => {}
    }
    request.fps = fields.parsed("fps")?.or(request.fps);
    request.steps = fields.whole("num_inference_steps")?.map(usize).or(request.steps);
    for name in ["guidance_scale", "guidance_scale_high"] {
        request.guidance_high = fields.number(name)?.map(narrow).or(request.guidance_high);
    }
    for name in ["guidance_scale_2", "guidance_scale_low"] {
        request.guidance_low = fields.number(name)?.map(narrow).or(request.guidance_low);
    }
    request.boundary = fields.number("boundary_ratio")?.or(request.boundary);
    request.shift = fields.number("flow_shift")?.or(request.shift);
    request.sampler = fields.parsed("sampler")?.or(request.sampler);
    request.schedule = fields.parsed("schedule")?.or(request.schedule);
    request.noise_scale = fields.number("noise_scale")?.map(narrow).or(request.noise_scale);
    request.seed = fields.whole("seed")?.or(request.seed);
    for name in ["n", "num_outputs_per_prompt"] {
        if let Some(count) = fields.whole(name)?.filter(|count| *count != 1) {
            return Err(Fault::unsupported(
                name,
                format!("{count} videos cannot be made by one request: send one for each"),
            ));
        }
    }
    if let Some(format) = fields.text("output_format")? {
        request.format = read_format("output_format", &format)?;
    }
    Ok(())
}

/// The size of the frames, from `size`, or `width` and `height`.
fn read_size(fields: &mut Fields) -> Result<Option<PixelSize>, Fault> {
    let size = fields.parsed("size")?;
    match (size, fields.whole("width")?, fields.whole("height")?) {
        (size, None, None) => Ok(size),
        (None, Some(width), Some(height)) => {
            let parsed = format!("{width}x{height}").parse::<PixelSize>();
            parsed.map(Some).map_err(|error| Fault::from(error).about("width"))
        }
        (Some(size), Some(width), Some(height))
            if usize(width) == size.width && usize(height) == size.height =>
        {
            Ok(Some(size))
        }
        (Some(_), ..) => Err(Fault::parameter("size", "`size` is not the size of `width` and `height`")),
        (None, Some(_), None) => Err(Fault::parameter("height", "`height` is missing beside `width`")),
        (None, None, Some(_)) => Err(Fault::parameter("width", "`width` is missing beside `height`")),
    }
}

/// A format by its extension.
///
/// # Errors
/// There is none.
pub(crate) fn read_format(name: &str, text: &str) -> Result<FileFormat, Fault> {
    let formats = [FileFormat::Mp4, FileFormat::WebM, FileFormat::Mkv, FileFormat::Gif, FileFormat::WebP];
    let text = text.trim_start_matches('.').to_ascii_lowercase();
    formats
        .into_iter()
        .find(|format| format.extension() == text || (text == "auto" && *format == FileFormat::Mp4))
        .ok_or_else(|| {
            let known: Vec<&str> = formats.iter().map(|format| format.extension()).collect();
            Fault::parameter(name, format!("there is no format `{text}`; use one of {}", known.join(", ")))
        })
}

fn usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "scales are f32")]
fn narrow(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<ClipRequest, Fault> {
        super::read(Fields::new(value.as_object().unwrap().clone(), Vec::new()))
    }

    #[test]
    fn forms_and_json_lead_to_the_same_clip() {
        let json = json!({"prompt": "a", "seconds": "4", "size": "64x32", "num_inference_steps": 4, "guidance_scale": 4.0, "guidance_scale_2": 3, "seed": 7, "extra_params": {"fps": 8}});
        let form = json!({"prompt": "a", "seconds": "4", "width": "64", "height": "32", "num_inference_steps": "4", "guidance_scale_high": "4.0", "guidance_scale_low": "3", "seed": "7", "extra_params": "{\"fps\": \"8\"}"});
        let read_json = read(json).unwrap();
        assert_eq!(read_json, read(form).unwrap());
        assert_eq!(read_json.length, Some(Length::Seconds(4.0)));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (value, param, code) in [
            (json!({}), "prompt", "invalid_value"),
            (
                json!({"prompt": "a", "input_reference": {"image_url": "x"}}),
                "input_reference",
                "unsupported_parameter",
            ),
            (json!({"prompt": "a", "lora": "{\"a\": 1}"}), "lora", "invalid_value"),
            (json!({"prompt": "a", "n": 2}), "n", "unsupported_parameter"),
            (json!({"prompt": "a", "size": "big"}), "size", "invalid_value"),
            (json!({"prompt": "a", "size": "64x32", "width": 65, "height": 32}), "size", "invalid_value"),
            (json!({"prompt": "a", "width": 64}), "height", "invalid_value"),
            (json!({"prompt": "a", "seconds": "four"}), "seconds", "invalid_value"),
            (json!({"prompt": "a", "seconds": "NaN"}), "seconds", "invalid_value"),
            (json!({"prompt": "a", "output_format": "avi"}), "output_format", "invalid_value"),
            (json!({"prompt": "a", "extra_params": {"frames": 1}}), "frames", "unknown_parameter"),
            (json!({"prompt": "a", "latent_path": "/etc/passwd"}), "latent_path", "unknown_parameter"),
            (json!({"prompt": ["a"]}), "prompt", "invalid_value"),
        ] {
            let fault = read(value.clone()).unwrap_err();
            assert_eq!(
                (fault.param.as_deref(), fault.code),
                (Some(param), code),
                "{value}: {}",
                fault.message
            );
        }
    }
}
