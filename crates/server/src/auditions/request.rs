//! A request for an audition: that for a video, and which takes of it are made.

use crate::body::Fields;
use crate::clips::request::ClipRequest;
use crate::fault::Fault;
use crate::loras::request::LoraField;
use crate::openai::read_clip;
use crate::post::PostFields;
use bundle::units::Seed;
use jobs::audition::MAX_TAKES;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// The takes of an audition that does not say how many.
pub(crate) const TAKES: usize = 9;

/// A request for an audition. Forms may give numbers as texts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(super) struct CreateAudition {
    /// Description of the clip.
    #[schema(min_length = 1)]
    prompt: String,
    /// The number of takes, 9 if absent. Their seeds are `seed` and those after it.
    #[schema(minimum = 1, maximum = 100)]
    takes: Option<u32>,
    /// The seed of each take, instead of `takes` and `seed`.
    #[schema(min_items = 1, max_items = 100)]
    seeds: Option<Vec<u64>>,
    /// The steps that each take makes: 8 if absent, or fewer if the first expert makes fewer.
    #[schema(minimum = 1)]
    steps_of: Option<u32>,
    /// The model, by its name or an alias; the first of the server if absent.
    model: Option<String>,
    /// Length of the clip in seconds, as a text.
    seconds: Option<String>,
    /// Size of a frame, such as `1280x720`.
    size: Option<String>,
    /// What the clip should not show.
    negative_prompt: Option<String>,
    /// Width of a frame, with `height`, instead of `size`.
    #[schema(minimum = 1)]
    width: Option<u32>,
    /// Height of a frame.
    #[schema(minimum = 1)]
    height: Option<u32>,
    /// Number of frames, instead of `seconds`.
    #[schema(minimum = 1)]
    num_frames: Option<u32>,
    /// Frames per second.
    #[schema(minimum = 1)]
    fps: Option<u32>,
    /// Denoising steps of the whole clip.
    #[schema(minimum = 1)]
    num_inference_steps: Option<u32>,
    /// Guidance scale, as for a video.
    guidance_scale: Option<f32>,
    /// Guidance scale of the expert for low noise.
    guidance_scale_2: Option<f32>,
    /// The boundary between the experts. Only that of the model is accepted.
    boundary_ratio: Option<f64>,
    /// Shift of the sigma grid.
    flow_shift: Option<f64>,
    /// Seed of the first take; a random one if absent.
    #[schema(minimum = 0)]
    seed: Option<u64>,
    /// A LoRA of the server, as vLLM-Omni spells it.
    lora: Option<LoraField>,
    /// LoRAs of the server, as sglang spells them; at most eight. Their changes add up.
    #[schema(max_items = 8)]
    loras: Option<Vec<LoraField>>,
    /// Format of the file of a take that is kept: mp4, webm, mkv, gif or webp.
    output_format: Option<String>,
    /// What is drawn on the frames of a take that is kept, and its sound.
    post: Option<PostFields>,
}

/// An audition as a client asks for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AuditionRequest {
    /// The clip. Its seed is that of the first take, unless seeds are listed.
    pub clip: ClipRequest,
    /// The takes.
    pub takes: Takes,
    /// The steps that each take makes, if the client says so.
    pub steps_of: Option<usize>,
}

/// Which takes are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Takes {
    /// This many, with consecutive seeds.
    Count(usize),
    /// One of each seed.
    Seeds(Vec<Seed>),
}

impl Takes {
    /// The number of takes.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Count(count) => *count,
            Self::Seeds(seeds) => seeds.len(),
        }
    }

    /// The parameter that says how many there are.
    pub(super) fn parameter(&self) -> &'static str {
        match self {
            Self::Count(_) => "takes",
            Self::Seeds(_) => "seeds",
        }
    }
}

/// Reads a request for an audition.
///
/// # Errors
/// Names the first parameter that is wrong, unknown, or asks for what this server cannot do.
pub(super) fn read(mut fields: Fields) -> Result<AuditionRequest, Fault> {
    let count = fields.whole("takes")?;
    let seeds = fields.value("seeds").map(seeds).transpose()?;
    let steps_of = fields.whole("steps_of")?.map(|steps| usize::try_from(steps).unwrap_or(usize::MAX));
    for name in ["callback_url", "callback_secret"] {
        fields.refuse(name, "nobody is told of an audition; ask for it with the header `Prefer: wait`")?;
    }
    let clip = read_clip(&mut fields)?;
    fields.finish()?;
    let takes = match (seeds, count) {
        (Some(_), Some(_)) => {
            return Err(Fault::parameter("takes", "`takes` and `seeds` cannot be given together"));
        }
        (Some(_), None) if clip.seed.is_some() => {
            return Err(Fault::parameter("seed", "`seed` and `seeds` cannot be given together"));
        }
        (Some(seeds), None) => Takes::Seeds(seeds),
        (None, count) => {
            Takes::Count(count.map_or(TAKES, |count| usize::try_from(count).unwrap_or(usize::MAX)))
        }
    };
    if !(1..=MAX_TAKES).contains(&takes.count()) {
        let (name, count) = (takes.parameter(), takes.count());
        let message = format!("an audition has 1 to {MAX_TAKES} takes, and `{name}` asks for {count}");
        return Err(Fault::parameter(name, message));
    }
    Ok(AuditionRequest { clip, takes, steps_of })
}

/// The seeds of a list. Forms have lists as text: as JSON, or with commas.
fn seeds(value: Value) -> Result<Vec<Seed>, Fault> {
    let wrong = || {
        let message = "`seeds` must be a list of whole numbers from 0; `takes` says how many takes are made";
        Fault::parameter("seeds", message)
    };
    let values = match value {
        Value::Array(values) => values,
        Value::String(text) => {
            let text = text.trim();
            let list = if text.starts_with('[') { text.to_owned() } else { format!("[{text}]") };
            serde_json::from_str(&list).map_err(|_not_a_list| wrong())?
        }
        _ => return Err(wrong()),
    };
    let seeds = values.iter().map(|value| value.as_u64().map(Seed)).collect::<Option<Vec<_>>>();
    let seeds = seeds.ok_or_else(wrong)?;
    let is_repeated = |(index, seed): &(usize, &Seed)| seeds.iter().take(*index).any(|other| other == *seed);
    if let Some((_, Seed(seed))) = seeds.iter().enumerate().find(is_repeated) {
        return Err(Fault::parameter("seeds", format!("`seeds` has {seed} twice: its takes would be equal")));
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: &Value) -> Result<AuditionRequest, Fault> {
        super::read(Fields::new(value.as_object().unwrap().clone(), Vec::new()))
    }

    #[test]
    fn takes_are_counted_or_listed() {
        let takes = |value: Value| read(&value).unwrap().takes;
        assert_eq!(takes(json!({"prompt": "a"})), Takes::Count(9));
        assert_eq!(takes(json!({"prompt": "a", "takes": "4"})), Takes::Count(4));
        let listed = Takes::Seeds(vec![Seed(7), Seed(u64::MAX)]);
        assert_eq!(listed.count(), 2);
        for seeds in
            [json!([7, u64::MAX]), json!(format!("7, {}", u64::MAX)), json!("[7,18446744073709551615]")]
        {
            assert_eq!(takes(json!({"prompt": "a", "seeds": seeds})), listed);
        }
        let read =
            read(&json!({"prompt": "a", "seed": 5, "steps_of": 3, "num_inference_steps": 12})).unwrap();
        assert_eq!((read.steps_of, read.clip.seed, read.clip.steps), (Some(3), Some(5), Some(12)));
    }

    #[test]
    fn what_cannot_be_auditioned_is_refused_by_name() {
        for (value, param, code) in [
            (json!({}), "prompt", "invalid_value"),
            (json!({"prompt": "a", "takes": 0}), "takes", "invalid_value"),
            (json!({"prompt": "a", "takes": 101}), "takes", "invalid_value"),
            (json!({"prompt": "a", "takes": -1}), "takes", "invalid_value"),
            (json!({"prompt": "a", "takes": 2, "seeds": [1, 2]}), "takes", "invalid_value"),
            (json!({"prompt": "a", "seed": 2, "seeds": [1, 2]}), "seed", "invalid_value"),
            (json!({"prompt": "a", "seeds": []}), "seeds", "invalid_value"),
            (json!({"prompt": "a", "seeds": 9}), "seeds", "invalid_value"),
            (json!({"prompt": "a", "seeds": [1.5]}), "seeds", "invalid_value"),
            (json!({"prompt": "a", "seeds": "1;2"}), "seeds", "invalid_value"),
            (json!({"prompt": "a", "seeds": [3, 4, 3]}), "seeds", "invalid_value"),
            (
                json!({"prompt": "a", "callback_url": "https://a.example"}),
                "callback_url",
                "unsupported_parameter",
            ),
            (json!({"prompt": "a", "take": 3}), "take", "unknown_parameter"),
        ] {
            let fault = read(&value).unwrap_err();
            let found = (fault.param.as_deref(), fault.code);
            assert_eq!(found, (Some(param), code), "{value}: {}", fault.message);
        }
    }
}
