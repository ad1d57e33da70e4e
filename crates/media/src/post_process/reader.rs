//! A file that GStreamer reads, and what is wrong with it: an error as soon as anything says so, never a wait.

use super::animation::{self, Animation, Pixels};
use super::whole;
use crate::Error;
use crate::plugins::{decoder_package, installed};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};
use gstreamer_video as gst_video;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait in which a file gives nothing and no error either.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the sink is asked before the bus is.
const TURN: gst::ClockTime = gst::ClockTime::from_mseconds(10);
/// Times that differ by less are the same to us.
const SAME: gst::ClockTime = gst::ClockTime::from_mseconds(10);
/// How far behind the last picture that is shown others may lie.
const BEHIND: gst::ClockTime = gst::ClockTime::from_mseconds(250);

/// What is wanted of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pictures,
    Sound,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Pictures => "picture",
            Self::Sound => "sound",
        }
    }

    /// Whether a stream of this media type, or what is in it, may be what is wanted.
    fn may_be(self, media_type: &str) -> bool {
        let container = media_type.starts_with("application/") || media_type.starts_with("video/mpeg");
        match self {
            Self::Pictures => {
                media_type.starts_with("video/") || media_type.starts_with("image/") || container
            }
            Self::Sound => media_type.starts_with("audio/") || container,
        }
    }
}

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Reader {
    pipeline: gst::Pipeline,
    sink: AppSink,
    heard: Arc<Mutex<Heard>>,
    kind: Kind,
    flag: &'static str,
    path: PathBuf,
    /// Up to where it has been read.
    until: gst::ClockTime,
}

/// What the threads of its pipeline have said.
#[derive(Debug, Default)]
struct Heard {
    error: Option<String>,
    /// Media types that nothing decodes, and how people call them.
    missing: Vec<(String, String)>,
    /// Whether there is a stream of what is wanted.
    found: bool,
    /// What went into the decoder of pictures and has not come out.
    waiting: VecDeque<gst::ClockTime>,
    /// When the last picture came out of it.
    shown: Option<gst::ClockTime>,
    /// The first that never came out.
    lost: Option<gst::ClockTime>,
}

impl Heard {
    fn goes_in(&mut self, time: gst::ClockTime) {
        self.waiting.push_back(time);
    }

    /// Decoders give up what they cannot decode without a word: the pictures between two that came out are lost.
    fn comes_out(&mut self, time: gst::ClockTime) {
        if let Some(before) = self.shown.filter(|before| *before < time) {
            let between = |other: &&gst::ClockTime| **other > before + SAME && **other + SAME < time;
            let lost = self.waiting.iter().filter(between).min().copied();
            self.lost = self.lost.or(lost);
        }
        self.waiting.retain(|other| *other > time);
        self.shown = Some(time);
    }

    /// Nothing more comes out. A few pictures behind the end are there for others, and not to be shown.
    fn ends(&mut self) {
        let lost =
            self.waiting.iter().filter(|other| self.shown.is_none_or(|shown| **other > shown + BEHIND));
        self.lost = self.lost.or(lost.min().copied());
    }
}

impl Reader {
    /// Reads what `wanted` describes: converters, and caps after them.
    ///
    /// # Errors
    /// A file that cannot be opened or is cut short.
    pub(super) fn open(kind: Kind, flag: &'static str, path: &Path, wanted: &str) -> Result<Self, Error> {
        let refused = |why: String| Error::PostProcess { flag, given: path.display().to_string(), why };
        if let Some(damage) = whole::damage(path).map_err(|error| refused(error.to_string()))? {
            return Err(refused(damage));
        }
        gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })?;
        prefer_mpg123();
        // GStreamer decodes no sound of these formats either.
        let animation = if kind == Kind::Pictures { animation::open(path) } else { Ok(None) };
        let animation = animation.map_err(|error| refused(error.to_string()))?;
        let front = match &animation {
            Some(_) => "appsrc name=file format=time block=true max-buffers=2 max-bytes=0",
            None => "filesrc name=file ! decodebin name=decoder",
        };
        let text = format!("{front} ! {wanted} ! appsink name=sink sync=false max-buffers=2");
        let built = gst::parse::launch(&text).map_err(|error| refused(error.to_string()))?;
        let pipeline =
            built.downcast::<gst::Pipeline>().map_err(|_other| refused("it is no pipeline".into()))?;
        let (Some(file), Some(sink)) = (pipeline.by_name("file"), pipeline.by_name("sink")) else {
            return Err(refused("its pipeline lacks an end".into()));
        };
        let sink = sink.downcast::<AppSink>().map_err(|_other| refused("its pipeline has no sink".into()))?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        listen(&pipeline, kind, &heard);
        match (animation, file.downcast::<AppSrc>()) {
            (Some(animation), Ok(source)) => feed(source, animation, &heard).map_err(refused)?,
            (_, Err(file)) => file.set_property("location", path),
            (None, Ok(_)) => return Err(refused("its pipeline has no source".into())),
        }
        let (flag, path) = (flag, path.to_owned());
        let reader = Self { pipeline, sink, heard, kind, flag, path, until: gst::ClockTime::ZERO };
        match reader.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(reader),
            Err(_) => Err(reader.error("it cannot be opened")),
        }
    }

    /// What comes next; none at the end.
    ///
    /// # Errors
    /// A missing decoder, with its package; damage, with the time at which it was met.
    pub(super) fn next(&mut self) -> Result<Option<gst::Sample>, Error> {
        let started = Instant::now();
        loop {
            if self.heard().lost.is_some() {
                return Err(self.error("it is damaged"));
            }
            if let Some(sample) = self.sink.try_pull_sample(TURN) {
                let end = sample.buffer().and_then(|buffer| Some(buffer.pts()? + buffer.duration()?));
                self.until = end.unwrap_or(self.until);
                return Ok(Some(sample));
            }
            if self.heard().error.is_some() {
                return Err(self.error("it cannot be read"));
            }
            if self.sink.is_eos() {
                self.heard().ends();
                let lost = self.heard().lost;
                return if lost.is_none() { Ok(None) } else { Err(self.error("it is damaged")) };
            }
            if started.elapsed() > LIMIT {
                return Err(self.error("nothing comes from it"));
            }
        }
    }

    /// Why it is of no use; `or` if nobody has said anything.
    pub(super) fn error(&self, or: &str) -> Error {
        let heard = self.heard();
        let given = self.path.display().to_string();
        let missing = heard.missing.iter().find(|(media_type, _)| self.kind.may_be(media_type));
        if let (Some((media_type, name)), false) = (missing, heard.found) {
            return Error::MissingDecoder {
                flag: self.flag,
                given,
                name: format!("{name} ({media_type})"),
                package: decoder_package(media_type),
            };
        }
        let why = match (&heard.error, heard.lost) {
            (_, Some(lost)) => {
                format!("it is damaged: what is shown after {} cannot be decoded", seconds(lost))
            }
            (Some(said), None) if self.until > gst::ClockTime::ZERO => {
                format!("it is damaged after {}: {said}", seconds(self.until))
            }
            (_, None) if !heard.found => format!("there is no {} in it that can be read", self.kind.name()),
            (Some(said), None) => said.clone(),
            (None, None) => or.to_owned(),
        };
        Error::PostProcess { flag: self.flag, given, why }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        lock(&self.heard)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It reads one file, and nothing waits for it any more.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(time: gst::ClockTime) -> String {
    format!("{:.2} s", time.seconds_f64())
}

/// Hears what a pipeline says, and makes its decoders tell what they would pass over.
fn listen(pipeline: &gst::Pipeline, kind: Kind, heard: &Arc<Mutex<Heard>>) {
    let hearing = Arc::clone(heard);
    if let Some(bus) = pipeline.bus() {
        bus.set_sync_handler(move |_, message| {
            match message.view() {
                gst::MessageView::Error(error) => {
                    tracing::debug!(details = ?error.debug(), "{}", error.error().message());
                    lock(&hearing).error.get_or_insert_with(|| error.error().message().to_owned());
                }
                gst::MessageView::Element(element) => {
                    if let Some(missing) = element.structure().and_then(missing_decoder) {
                        lock(&hearing).missing.push(missing);
                    }
                }
                _ => {}
            }
            gst::BusSyncReply::Drop
        });
    }
    let finding = Arc::clone(heard);
    if let Some(decoder) = pipeline.by_name("decoder") {
        decoder.connect_pad_added(move |_, pad| {
            let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
            if caps.structure(0).is_some_and(|found| kind.may_be(found.name())) {
                lock(&finding).found = true;
            }
        });
    }
    let heard = Arc::clone(heard);
    pipeline.connect_deep_element_added(move |_, _, element| {
        if element.find_property("max-errors").is_some() {
            element.set_property_from_str("max-errors", "0");
        }
        let class = element.factory().and_then(|factory| factory.metadata("klass").map(str::to_owned));
        let is_video = class.is_some_and(|class| {
            class.contains("Decoder") && (class.contains("Video") || class.contains("Image"))
        });
        if kind == Kind::Pictures && is_video {
            watch(element, "sink", &heard, Heard::goes_in);
            watch(element, "src", &heard, Heard::comes_out);
        }
    });
}

/// Gives the pictures of an animation to a pipeline, from a thread that ends with them or with the pipeline.
fn feed(source: AppSrc, animation: Animation, heard: &Arc<Mutex<Heard>>) -> Result<(), String> {
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (width, height) = (side(animation.size.width), side(animation.size.height));
    let (format, colours) = match animation.pixels {
        Pixels::Rgba => (gst_video::VideoFormat::Rgba, "sRGB"),
        Pixels::I420 => (gst_video::VideoFormat::I420, "bt709"),
    };
    let colours = colours.parse::<gst_video::VideoColorimetry>().map_err(|error| error.to_string())?;
    let info = gst_video::VideoInfo::builder(format, width, height).colorimetry(&colours);
    let caps = info.build().and_then(|info| info.to_caps()).map_err(|error| error.to_string())?;
    source.set_caps(Some(&caps));
    lock(heard).found = true;
    let heard = Arc::clone(heard);
    std::thread::spawn(move || {
        let mut time = gst::ClockTime::ZERO;
        for picture in animation.pictures {
            let animation::Picture { bytes, duration } = match picture {
                Ok(picture) => picture,
                Err(error) => {
                    lock(&heard).error = Some(error.to_string());
                    return;
                }
            };
            let duration =
                gst::ClockTime::from_nseconds(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
            let mut buffer = gst::Buffer::from_mut_slice(bytes);
            buffer.make_mut().set_pts(time);
            buffer.make_mut().set_duration(duration);
            time = time.saturating_add(duration);
            if source.push_buffer(buffer).is_err() {
                return;
            }
        }
        // A pipeline that is closed needs no end.
        let _ = source.end_of_stream();
    });
    Ok(())
}

/// Sees the times of what passes a pad.
fn watch(element: &gst::Element, pad: &str, heard: &Arc<Mutex<Heard>>, see: fn(&mut Heard, gst::ClockTime)) {
    let heard = Arc::clone(heard);
    if let Some(pad) = element.static_pad(pad) {
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(time) = info.buffer().and_then(|buffer| buffer.pts()) {
                see(&mut lock(&heard), time);
            }
            gst::PadProbeReturn::Ok
        });
    }
}

/// The media type that nothing decodes, and its name, of GStreamer's message about it.
fn missing_decoder(structure: &gst::StructureRef) -> Option<(String, String)> {
    if structure.name() != "missing-plugin" {
        return None;
    }
    let caps = structure.get::<gst::Caps>("detail").ok()?;
    let media_type = caps.structure(0)?.name().to_string();
    let name = structure.get::<String>("name").unwrap_or_else(|_unnamed| "decoder".into());
    Some((media_type, name))
}

/// The other decoder of MP3 loses pieces of it on the way.
fn prefer_mpg123() {
    if installed("mpg123audiodec") {
        for other in ["avdec_mp3", "avdec_mp3float"] {
            if let Some(other) = gst::ElementFactory::find(other) {
                other.set_rank(gst::Rank::NONE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(decoder: &[(char, u64)]) -> Heard {
        let mut heard = Heard::default();
        for (way, millis) in decoder {
            let time = gst::ClockTime::from_mseconds(*millis);
            if *way == '<' { heard.goes_in(time) } else { heard.comes_out(time) }
        }
        heard
    }

    #[test]
    fn what_goes_in_and_never_comes_out_is_lost() {
        let lost = |decoder: &[(char, u64)]| heard(decoder).lost.map(gst::ClockTime::mseconds);
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 60), ('<', 120), ('>', 120)]), Some(60));
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 60), ('>', 60), ('<', 120), ('>', 120)]), None);
        // Pictures that are decoded before they are shown, and those that are never shown.
        let reordered =
            [('<', 0), ('<', 180), ('>', 0), ('<', 60), ('>', 60), ('<', 120), ('>', 120), ('>', 180)];
        assert_eq!(lost(&reordered), None);
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 1), ('<', 60), ('>', 60)]), None);
        // A long time in which nothing is to be shown.
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 5000), ('>', 5000)]), None);
    }

    #[test]
    fn what_waits_at_the_end_is_lost() {
        let mut cut = heard(&[('<', 0), ('>', 0), ('<', 60), ('<', 500), ('<', 560)]);
        cut.ends();
        assert_eq!(cut.lost, Some(gst::ClockTime::from_mseconds(500)));
        let mut whole = heard(&[('<', 0), ('>', 0), ('<', 60), ('<', 120)]);
        whole.ends();
        assert_eq!(whole.lost, None);
    }
}
