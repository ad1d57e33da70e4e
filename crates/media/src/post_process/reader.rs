//! Decoding of input files with GStreamer. Damage is an error as soon as it is detected, and a read never hangs.

use super::animation::{self, Animation, Pixels};
use super::integrity;
use crate::Error;
use crate::plugins::{decoder_package, installed};
use bundle::Field;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};
use gstreamer_video as gst_video;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest wait without data and without an error.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval at which errors are checked while waiting for data.
const POLL_INTERVAL: gst::ClockTime = gst::ClockTime::from_mseconds(10);
/// Timestamps that differ by less are equal.
const SAME_TIME: gst::ClockTime = gst::ClockTime::from_mseconds(10);
/// How far after the last returned picture others may be, without counting as lost.
const TRAILING: gst::ClockTime = gst::ClockTime::from_mseconds(250);

/// The kind of stream to decode.
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

    /// Returns true if a stream of this media type is, or may contain, the wanted stream.
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
    state: Arc<Mutex<StreamState>>,
    kind: Kind,
    field: Field,
    path: PathBuf,
    /// The end of the last sample.
    position: gst::ClockTime,
    /// The thread that pushes the pictures of an animation.
    feeder: Option<JoinHandle<()>>,
}

/// The state that the threads of the pipeline report.
#[derive(Debug, Default)]
struct StreamState {
    error: Option<String>,
    /// Media types without a decoder, and their descriptions.
    missing: Vec<(String, String)>,
    /// True if there is a stream of the wanted kind.
    found: bool,
    /// Timestamps of pictures that the decoder has received and not returned.
    waiting: VecDeque<gst::ClockTime>,
    /// The timestamp of the last returned picture.
    shown: Option<gst::ClockTime>,
    /// The timestamp of the first lost picture.
    lost: Option<gst::ClockTime>,
}

impl StreamState {
    fn input(&mut self, time: gst::ClockTime) {
        self.waiting.push_back(time);
    }

    /// Decoders drop damaged pictures silently: pictures between two returned ones are lost.
    fn output(&mut self, time: gst::ClockTime) {
        if let Some(before) = self.shown.filter(|before| *before < time) {
            let between =
                |other: &&gst::ClockTime| **other > before + SAME_TIME && **other + SAME_TIME < time;
            let lost = self.waiting.iter().filter(between).min().copied();
            self.lost = self.lost.or(lost);
        }
        self.waiting.retain(|other| *other > time);
        self.shown = Some(time);
    }

    /// Handles the end of the stream. A few pictures after the end are references that are not shown.
    fn end(&mut self) {
        let lost =
            self.waiting.iter().filter(|other| self.shown.is_none_or(|shown| **other > shown + TRAILING));
        self.lost = self.lost.or(lost.min().copied());
    }
}

impl Reader {
    /// Opens a file and decodes it through the elements of `wanted`: converters, then caps.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened or is truncated.
    pub(super) fn open(kind: Kind, field: Field, path: &Path, wanted: &str) -> Result<Self, Error> {
        let refused = |why: String| Error::PostProcess { field, value: path.display().to_string(), why };
        if let Some(damage) = integrity::damage(path).map_err(|error| refused(error.to_string()))? {
            return Err(refused(damage));
        }
        gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })?;
        prefer_mpg123();
        // Animations contain no audio.
        let animation = if kind == Kind::Pictures { animation::open(path) } else { Ok(None) };
        let animation = animation.map_err(|error| refused(error.to_string()))?;
        let front = match &animation {
            Some(_) => "appsrc name=file format=time block=true max-buffers=2 max-bytes=0",
            None => "filesrc name=file ! decodebin name=decoder",
        };
        let text = format!("{front} ! {wanted} ! appsink name=sink sync=false max-buffers=2");
        let built = gst::parse::launch(&text).map_err(|error| refused(error.to_string()))?;
        let pipeline = built
            .downcast::<gst::Pipeline>()
            .map_err(|_other| refused("the description is not a pipeline".into()))?;
        let (Some(file), Some(sink)) = (pipeline.by_name("file"), pipeline.by_name("sink")) else {
            return Err(refused("its pipeline has no source or sink".into()));
        };
        let sink = sink.downcast::<AppSink>().map_err(|_other| refused("its pipeline has no sink".into()))?;
        let state = Arc::new(Mutex::new(StreamState::default()));
        listen(&pipeline, kind, &state);
        let fed = match (animation, file.downcast::<AppSrc>()) {
            (Some(animation), Ok(source)) => {
                set_format(&source, &animation, &state).map_err(refused)?;
                Some((source, animation))
            }
            (_, Err(file)) => {
                file.set_property("location", path);
                None
            }
            (None, Ok(_)) => return Err(refused("its pipeline has no source".into())),
        };
        let (path, position) = (path.to_owned(), gst::ClockTime::ZERO);
        let mut reader = Self { pipeline, sink, state, kind, field, path, position, feeder: None };
        if reader.pipeline.set_state(gst::State::Playing).is_err() {
            return Err(reader.error("it cannot be opened"));
        }
        // Stopping a source that has started wakes the thread that pushes into it.
        if let Some((source, animation)) = fed {
            let state = Arc::clone(&reader.state);
            let feeder = std::thread::Builder::new().name("animation".into());
            let feeder = feeder.spawn(move || feed(&source, animation, &state));
            reader.feeder = Some(feeder.map_err(|error| refused(error.to_string()))?);
        }
        Ok(reader)
    }

    /// Returns the next sample, or `None` at the end.
    ///
    /// # Errors
    /// Returns an error if a decoder is missing (with its package) or if the file is damaged (with the time).
    pub(super) fn next(&mut self) -> Result<Option<gst::Sample>, Error> {
        let started = Instant::now();
        loop {
            if self.state().lost.is_some() {
                return Err(self.error("it is damaged"));
            }
            if let Some(sample) = self.sink.try_pull_sample(POLL_INTERVAL) {
                let end = sample.buffer().and_then(|buffer| Some(buffer.pts()? + buffer.duration()?));
                self.position = end.unwrap_or(self.position);
                return Ok(Some(sample));
            }
            if self.state().error.is_some() {
                return Err(self.error("it cannot be read"));
            }
            if self.sink.is_eos() {
                self.state().end();
                let lost = self.state().lost;
                return if lost.is_none() { Ok(None) } else { Err(self.error("it is damaged")) };
            }
            if started.elapsed() > READ_TIMEOUT {
                return Err(self.error("it returns no data"));
            }
        }
    }

    /// The reason why the file cannot be used; `fallback` if no error was reported.
    pub(super) fn error(&self, fallback: &str) -> Error {
        let state = self.state();
        let value = self.path.display().to_string();
        let missing = state.missing.iter().find(|(media_type, _)| self.kind.may_be(media_type));
        if let (Some((media_type, name)), false) = (missing, state.found) {
            return Error::MissingDecoder {
                field: self.field,
                value,
                name: format!("{name} ({media_type})"),
                package: decoder_package(media_type),
            };
        }
        let why = match (&state.error, state.lost) {
            (_, Some(lost)) => {
                format!("it is damaged: the picture at {} cannot be decoded", seconds(lost))
            }
            (Some(message), None) if self.position > gst::ClockTime::ZERO => {
                format!("it is damaged after {}: {message}", seconds(self.position))
            }
            (_, None) if !state.found => format!("it contains no {} that can be read", self.kind.name()),
            (Some(message), None) => message.clone(),
            (None, None) => fallback.to_owned(),
        };
        Error::PostProcess { field: self.field, value, why }
    }

    fn state(&self) -> MutexGuard<'_, StreamState> {
        lock(&self.state)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // No error matters any more.
        let _ = self.pipeline.set_state(gst::State::Null);
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

fn lock(state: &Mutex<StreamState>) -> MutexGuard<'_, StreamState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(time: gst::ClockTime) -> String {
    format!("{:.2} s", time.seconds_f64())
}

/// Handles the messages of a pipeline, and makes decoders report damage that they would ignore.
fn listen(pipeline: &gst::Pipeline, kind: Kind, state: &Arc<Mutex<StreamState>>) {
    let bus_state = Arc::clone(state);
    if let Some(bus) = pipeline.bus() {
        bus.set_sync_handler(move |_, message| {
            match message.view() {
                gst::MessageView::Error(error) => {
                    tracing::debug!(details = ?error.debug(), "{}", error.error().message());
                    lock(&bus_state).error.get_or_insert_with(|| error.error().message().to_owned());
                }
                gst::MessageView::Element(element) => {
                    if let Some(missing) = element.structure().and_then(missing_decoder) {
                        lock(&bus_state).missing.push(missing);
                    }
                }
                _ => {}
            }
            gst::BusSyncReply::Drop
        });
    }
    let pad_state = Arc::clone(state);
    if let Some(decoder) = pipeline.by_name("decoder") {
        decoder.connect_pad_added(move |_, pad| {
            let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
            if caps.structure(0).is_some_and(|found| kind.may_be(found.name())) {
                lock(&pad_state).found = true;
            }
        });
    }
    let state = Arc::clone(state);
    pipeline.connect_deep_element_added(move |_, _, element| {
        if element.find_property("max-errors").is_some() {
            element.set_property_from_str("max-errors", "0");
        }
        let class = element.factory().and_then(|factory| factory.metadata("klass").map(str::to_owned));
        let is_video = class.is_some_and(|class| {
            class.contains("Decoder") && (class.contains("Video") || class.contains("Image"))
        });
        if kind == Kind::Pictures && is_video {
            watch(element, "sink", &state, StreamState::input);
            watch(element, "src", &state, StreamState::output);
        }
    });
}

/// Sets the format of the pictures of an animation.
fn set_format(source: &AppSrc, animation: &Animation, state: &Mutex<StreamState>) -> Result<(), String> {
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
    lock(state).found = true;
    Ok(())
}

/// Pushes the pictures of an animation into a pipeline, until the animation or the pipeline ends.
fn feed(source: &AppSrc, animation: Animation, state: &Mutex<StreamState>) {
    let mut time = gst::ClockTime::ZERO;
    for picture in animation.pictures {
        let animation::Picture { bytes, duration } = match picture {
            Ok(picture) => picture,
            Err(error) => {
                lock(state).error = Some(error.to_string());
                return;
            }
        };
        let duration = gst::ClockTime::from_nseconds(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        buffer.make_mut().set_pts(time);
        buffer.make_mut().set_duration(duration);
        time = time.saturating_add(duration);
        if source.push_buffer(buffer).is_err() {
            return;
        }
    }
    // A closed pipeline needs no end of stream.
    let _ = source.end_of_stream();
}

/// Observes the timestamps of buffers at a pad.
fn watch(
    element: &gst::Element,
    pad: &str,
    state: &Arc<Mutex<StreamState>>,
    observe: fn(&mut StreamState, gst::ClockTime),
) {
    let state = Arc::clone(state);
    if let Some(pad) = element.static_pad(pad) {
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(time) = info.buffer().and_then(|buffer| buffer.pts()) {
                observe(&mut lock(&state), time);
            }
            gst::PadProbeReturn::Ok
        });
    }
}

/// The media type and the description in a message about a missing decoder.
fn missing_decoder(structure: &gst::StructureRef) -> Option<(String, String)> {
    if structure.name() != "missing-plugin" {
        return None;
    }
    let caps = structure.get::<gst::Caps>("detail").ok()?;
    let media_type = caps.structure(0)?.name().to_string();
    let name = structure.get::<String>("name").unwrap_or_else(|_unnamed| "decoder".into());
    Some((media_type, name))
}

/// Disables the other MP3 decoders, which lose data.
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

    fn state(decoder: &[(char, u64)]) -> StreamState {
        let mut state = StreamState::default();
        for (way, millis) in decoder {
            let time = gst::ClockTime::from_mseconds(*millis);
            if *way == '<' { state.input(time) } else { state.output(time) }
        }
        state
    }

    #[test]
    fn pictures_that_the_decoder_drops_are_lost() {
        let lost = |decoder: &[(char, u64)]| state(decoder).lost.map(gst::ClockTime::mseconds);
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 60), ('<', 120), ('>', 120)]), Some(60));
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 60), ('>', 60), ('<', 120), ('>', 120)]), None);
        // Pictures that are decoded out of order, and pictures that are never shown.
        let reordered =
            [('<', 0), ('<', 180), ('>', 0), ('<', 60), ('>', 60), ('<', 120), ('>', 120), ('>', 180)];
        assert_eq!(lost(&reordered), None);
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 1), ('<', 60), ('>', 60)]), None);
        // A long gap between two pictures.
        assert_eq!(lost(&[('<', 0), ('>', 0), ('<', 5000), ('>', 5000)]), None);
    }

    #[test]
    fn pictures_that_are_missing_at_the_end_are_lost() {
        let mut cut = state(&[('<', 0), ('>', 0), ('<', 60), ('<', 500), ('<', 560)]);
        cut.end();
        assert_eq!(cut.lost, Some(gst::ClockTime::from_mseconds(500)));
        let mut whole = state(&[('<', 0), ('>', 0), ('<', 60), ('<', 120)]);
        whole.end();
        assert_eq!(whole.lost, None);
    }
}
