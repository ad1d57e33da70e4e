//! What a clip gets after it is made: captions, and a logo and a sound that were uploaded.

mod uploaded;

pub(crate) use uploaded::{formats_with_sound, keep};

use crate::access::Caller;
use crate::app::App;
use crate::body::Fields;
use crate::fault::Fault;
use bundle::Diagnose;
use jobs::request::Request;
use media::post_process::{Caption, Corner};
use media::{ClipFormat, FileFormat};
use runtime::job::{Extra, InputFile};
use runtime::plan::Length;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;
use uploaded::{LogoField, SoundField};
use utoipa::ToSchema;

/// The most captions of a clip, and the most bytes of one.
const MOST_CAPTIONS: usize = 100;
const LONGEST_CAPTION: usize = 1000;
/// The longest time of a caption, in seconds.
const LATEST: f64 = 24.0 * 3600.0;

/// What a clip gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Post {
    /// Texts and their times.
    captions: Vec<Caption>,
    /// An upload, by its name, and where it is drawn.
    logo: Option<(String, Corner)>,
    /// An upload, by its name.
    sound: Option<String>,
}

/// What is drawn on the frames of a clip, and its sound.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct PostFields {
    /// A text that is always shown, or texts with their times.
    captions: Option<CaptionsField>,
    /// A picture in a corner.
    logo: Option<LogoField>,
    /// A sound, for mp4, webm and mkv.
    sound: Option<SoundField>,
}

/// A text, or texts with their times.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `Body` reads")]
enum CaptionsField {
    /// A text that is always shown.
    Always(String),
    /// Texts with their times.
    Timed(Vec<CaptionField>),
}

/// A text and its time.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what `Body` reads")]
struct CaptionField {
    /// The text.
    #[schema(min_length = 1, max_length = 1000)]
    text: String,
    /// When it appears, in seconds; at the beginning if absent.
    #[schema(minimum = 0, maximum = 86400)]
    start: Option<f64>,
    /// When it disappears, in seconds; never if absent.
    #[schema(minimum = 0, maximum = 86400)]
    end: Option<f64>,
}

impl Post {
    /// Takes `post`.
    ///
    /// # Errors
    /// Names what is wrong, unknown, or asks for what this server cannot do.
    pub(crate) fn read(fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let Some(mut post) = fields.object("post")? else { return Ok(None) };
        let captions = post.value("captions").map(captions).transpose()?.unwrap_or_default();
        let (logo, sound) = (uploaded::logo(&mut post)?, uploaded::sound(&mut post)?);
        post.refuse("audio", "a sound is an upload, named by `post.sound`")?;
        post.refuse("background", "this server replaces none")?;
        post.finish()?;
        Ok(Some(Self { captions, logo, sound }))
    }

    /// The texts of the captions.
    pub(crate) fn texts(&self) -> Vec<String> {
        texts(&self.captions)
    }

    /// Puts the settings into the request of a job, and checks that the captions and the logo fit into its clip, and
    /// that its format has sound if there is one.
    ///
    /// # Errors
    /// The caller has no such upload, or something does not fit.
    pub(crate) async fn apply(
        &self,
        app: &App,
        caller: &Caller,
        job: &mut Request,
        format: FileFormat,
    ) -> Result<(), Fault> {
        job.post_process.captions.clone_from(&self.captions);
        match &*self.captions {
            [] => {}
            [only] if only.end == Duration::MAX => {
                job.extras.insert("caption".into(), Extra::Value(only.text.clone()));
            }
            timed => {
                let digest = blake3::hash(subrip(timed).as_bytes()).to_hex().to_string();
                let file = InputFile { name: "captions.srt".into(), digest };
                job.extras.insert("caption".into(), Extra::File { file, with: String::new() });
            }
        }
        if let Some((name, corner)) = &self.logo {
            uploaded::add_logo((app, caller), job, name, *corner)?;
        }
        if let Some(name) = &self.sound {
            uploaded::add_sound((app, caller), job, name, format)?;
        }
        let (Some(size), Some(rate), Some(Length::Frames(frames))) =
            (job.clip.size, job.clip.fps, job.clip.length)
        else {
            return Err(Fault::internal("a plan without size, rate or length"));
        };
        let made = ClipFormat { size, rate, frames: Some(frames) };
        let spec = job.post_process.clone();
        let opened = tokio::task::spawn_blocking(move || spec.open(made).map(drop));
        opened.await.map_err(Fault::internal)?.map_err(|error| {
            let fault = Fault::of_report(&error.report());
            Fault { message: crate::paths::without(&fault.message), ..fault }.about("post")
        })
    }
}

/// The texts of captions.
pub(crate) fn texts(captions: &[Caption]) -> Vec<String> {
    captions.iter().map(|caption| caption.text.clone()).collect()
}

fn captions(value: Value) -> Result<Vec<Caption>, Fault> {
    match value {
        Value::String(text) if text.trim_start().starts_with('[') => match serde_json::from_str(&text) {
            // As a form sends it.
            Ok(Value::Array(values)) => timed(values),
            _ => Ok(vec![Caption::always(checked_text(text)?)]),
        },
        Value::String(text) => Ok(vec![Caption::always(checked_text(text)?)]),
        Value::Array(values) => timed(values),
        _ => {
            Err(Fault::parameter("post.captions", "`post.captions` is a text, or a list of texts with times"))
        }
    }
}

fn timed(values: Vec<Value>) -> Result<Vec<Caption>, Fault> {
    if values.len() > MOST_CAPTIONS {
        let message = format!("`post.captions` has more than {MOST_CAPTIONS} texts");
        return Err(Fault::parameter("post.captions", message));
    }
    let caption = |value: Value| -> Result<Caption, Fault> {
        let about = |fault: Fault| fault.about("post.captions");
        let Value::Object(values) = value else {
            let message = "each of `post.captions` is an object with text, start and end";
            return Err(Fault::parameter("post.captions", message));
        };
        let mut values = Fields::new(Map::from_iter(values), Vec::new());
        let missing = || Fault::parameter("post.captions", "one of `post.captions` has no text");
        let text = values.text("text").map_err(about)?.ok_or_else(missing)?;
        let (start, end) = (time(&mut values, "start")?, time(&mut values, "end")?);
        values.finish().map_err(about)?;
        let (start, end) = (start.unwrap_or(Duration::ZERO), end.unwrap_or(Duration::MAX));
        if end <= start {
            let message = "one of `post.captions` ends before it appears";
            return Err(Fault::parameter("post.captions", message));
        }
        Ok(Caption { start, end, text: checked_text(text)? })
    };
    values.into_iter().map(caption).collect()
}

fn time(values: &mut Fields, name: &str) -> Result<Option<Duration>, Fault> {
    let seconds = values.number(name).map_err(|fault| fault.about("post.captions"))?;
    match seconds {
        None => Ok(None),
        Some(seconds) if (0.0..=LATEST).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        Some(_) => {
            let message = format!("`{name}` of a caption is a number of seconds from 0 to {LATEST}");
            Err(Fault::parameter("post.captions", message))
        }
    }
}

fn checked_text(text: String) -> Result<String, Fault> {
    if text.len() > LONGEST_CAPTION {
        let message = format!("a caption has more than {LONGEST_CAPTION} bytes");
        return Err(Fault::parameter("post.captions", message));
    }
    Ok(text)
}

/// Captions as a SubRip file, whose digest says in the record of a clip which ones it had.
fn subrip(captions: &[Caption]) -> String {
    let time = |time: Duration| {
        let time = time.min(Duration::from_secs(99 * 3600));
        let (seconds, millis) = (time.as_secs(), time.subsec_millis());
        format!("{:02}:{:02}:{:02},{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    };
    let block = |(number, caption): (usize, &Caption)| {
        format!("{number}\n{} --> {}\n{}\n\n", time(caption.start), time(caption.end), caption.text)
    };
    (1..).zip(captions).map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(post: Value) -> Result<Option<Post>, Fault> {
        Post::read(&mut Fields::new(Map::from_iter([("post".to_owned(), post)]), Vec::new()))
    }

    #[test]
    fn captions_are_a_text_or_texts_with_times() {
        assert_eq!(read(json!(null)).unwrap(), None);
        let always = read(json!({"captions": "hello"})).unwrap().unwrap();
        assert_eq!(always.captions, [Caption::always("hello")]);
        let list = json!([{"text": "a", "start": 0.5, "end": 1}, {"text": "b"}]);
        let timed = read(json!({"captions": list})).unwrap().unwrap();
        assert_eq!(timed.texts(), ["a", "b"]);
        assert_eq!(timed.captions[0].start, Duration::from_millis(500));
        // As forms send it.
        assert_eq!(read(json!({"captions": list.to_string()})).unwrap().unwrap(), timed);
        assert_eq!(read(json!(json!({"captions": list}).to_string())).unwrap().unwrap(), timed);
        assert_eq!(subrip(&timed.captions[..1]), "1\n00:00:00,500 --> 00:00:01,000\na\n\n");
    }

    #[test]
    fn a_logo_and_a_sound_are_uploads() {
        let post = json!({"logo": {"upload": "a", "corner": "top-left"}, "sound": {"upload": "b"}});
        for post in [post.clone(), json!(post.to_string())] {
            let post = read(post).unwrap().unwrap();
            assert_eq!(post.logo, Some(("a".to_owned(), Corner::TopLeft)));
            assert_eq!(post.sound.as_deref(), Some("b"));
        }
        assert_eq!(formats_with_sound(), ["mp4", "webm", "mkv"]);
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (post, param) in [
            (json!("x"), "post"),
            (json!({"captions": 3}), "post.captions"),
            (json!({"captions": [3]}), "post.captions"),
            (json!({"captions": [{"start": 1}]}), "post.captions"),
            (json!({"captions": [{"text": "a", "start": 2, "end": 1}]}), "post.captions"),
            (json!({"captions": [{"text": "a", "start": -1}]}), "post.captions"),
            (json!({"captions": [{"text": "a", "end": 1e300}]}), "post.captions"),
            (json!({"captions": "x".repeat(1001)}), "post.captions"),
            (json!({"captions": vec![json!({"text": "a"}); 101]}), "post.captions"),
            (json!({"logo": {}}), "post.logo"),
            (json!({"logo": {"upload": "x", "corner": "middle"}}), "post.logo"),
            (json!({"logo": {"upload": "x", "path": "/etc/passwd"}}), "path"),
            (json!({"sound": "upload_1"}), "sound"),
            (json!({"sound": {}}), "post.sound"),
            (json!({"sound": {"upload": "x", "path": "/etc/passwd"}}), "path"),
            (json!({"audio": "upload_1"}), "audio"),
            (json!({"background": "upload_1"}), "background"),
            (json!({"path": "/etc/passwd"}), "path"),
        ] {
            assert_eq!(read(post.clone()).unwrap_err().param.as_deref(), Some(param), "{post}");
        }
    }
}
