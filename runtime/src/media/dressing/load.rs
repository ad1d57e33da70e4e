//! Pictures and sound out of any file that GStreamer reads.

use super::sound::{CHANNELS, RATE};
use crate::media::Error;
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSink;
use gstreamer_video as gst_video;
use ndarray::Array3;
use std::path::{Path, PathBuf};

/// Longest wait for the next picture or samples of a file.
const LIMIT: gst::ClockTime = gst::ClockTime::from_seconds(20);

/// A file that is being read.
#[derive(Debug)]
struct Reader {
    pipeline: gst::Pipeline,
    sink: AppSink,
    flag: &'static str,
    path: PathBuf,
}

impl Reader {
    /// Reads what `wanted` describes: converters, and caps after them.
    fn open(flag: &'static str, path: &Path, wanted: &str) -> Result<Self, Error> {
        let refused = |why: String| Error::Dressing { flag, given: path.display().to_string(), why };
        std::fs::File::open(path).map_err(|error| refused(error.to_string()))?;
        gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })?;
        let text =
            format!("filesrc name=file ! decodebin ! {wanted} ! appsink name=sink sync=false max-buffers=2");
        let built = gst::parse::launch(&text).map_err(|error| refused(error.to_string()))?;
        let pipeline =
            built.downcast::<gst::Pipeline>().map_err(|_other| refused("it is no pipeline".into()))?;
        let (Some(file), Some(sink)) = (pipeline.by_name("file"), pipeline.by_name("sink")) else {
            return Err(refused("its pipeline lacks an end".into()));
        };
        file.set_property("location", path);
        let sink = sink.downcast::<AppSink>().map_err(|_other| refused("its pipeline has no sink".into()))?;
        let reader = Self { pipeline, sink, flag, path: path.to_owned() };
        match reader.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(reader),
            Err(_) => Err(reader.error()),
        }
    }

    /// What comes next; none at the end.
    fn next(&self) -> Result<Option<gst::Sample>, Error> {
        match self.sink.try_pull_sample(LIMIT) {
            Some(sample) => Ok(Some(sample)),
            None if self.sink.is_eos() && !self.has_failed() => Ok(None),
            None => Err(self.error()),
        }
    }

    fn has_failed(&self) -> bool {
        self.pipeline
            .bus()
            .is_some_and(|bus| bus.peek().is_some_and(|m| m.type_() == gst::MessageType::Error))
    }

    fn error(&self) -> Error {
        let said = self.pipeline.bus().and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
        let why = match said.as_ref().map(|message| message.view()) {
            Some(gst::MessageView::Error(error)) => error.error().message().to_owned(),
            _ => "nothing of that kind can be read from it".into(),
        };
        Error::Dressing { flag: self.flag, given: self.path.display().to_string(), why }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It reads one file, and nothing waits for it any more.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// The first picture of a file as `RGBA` bytes, and its size.
///
/// # Errors
/// A file that cannot be read or holds no picture.
pub(super) fn picture(flag: &'static str, path: &Path) -> Result<(Vec<u8>, PixelSize), Error> {
    let reader = Reader::open(flag, path, "videoconvert ! video/x-raw,format=RGBA")?;
    let sample = reader.next()?.ok_or_else(|| reader.error())?;
    let side = |pixels: u32| usize::try_from(pixels).unwrap_or(usize::MAX);
    let found = sample.caps().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
    let found = found.and_then(|info| {
        let bytes = sample.buffer()?.map_readable().ok()?;
        let size = PixelSize { width: side(info.width()), height: side(info.height()) };
        let stride = usize::try_from(info.stride()[0]).ok()?;
        let rows = bytes.chunks(stride).take(size.height).filter_map(|row| row.get(..4 * size.width));
        Some((rows.flatten().copied().collect(), size))
    });
    found.ok_or_else(|| reader.error())
}

/// Pictures of one size, as many as are asked for: those of a film at a rate, then its last one again and again.
#[derive(Debug)]
pub(super) struct Film {
    reader: Reader,
    size: PixelSize,
    shown: Array3<f32>,
    is_first: bool,
    ended: bool,
}

impl Film {
    /// A film or a picture, scaled to a size.
    ///
    /// # Errors
    /// A file that cannot be read or holds no picture.
    pub(super) fn open(
        flag: &'static str,
        path: &Path,
        size: PixelSize,
        rate: FrameRate,
    ) -> Result<Self, Error> {
        let PixelSize { width, height } = size;
        let (frames, seconds) = rate.fraction();
        let wanted = format!(
            "videoconvert ! videoscale add-borders=false ! videorate ! \
             video/x-raw,format=RGB,width={width},height={height},pixel-aspect-ratio=1/1,framerate={frames}/{seconds}"
        );
        let reader = Reader::open(flag, path, &wanted)?;
        let first = reader.next()?.and_then(|sample| colours(&sample, size)).ok_or_else(|| reader.error())?;
        Ok(Self { reader, size, shown: first, is_first: true, ended: false })
    }

    /// The next picture `[3,H,W]` in -1..1.
    pub(super) fn next(&mut self) -> &Array3<f32> {
        if !std::mem::take(&mut self.is_first) && !self.ended {
            match self.reader.next() {
                Ok(Some(sample)) => {
                    if let Some(colours) = colours(&sample, self.size) {
                        self.shown = colours;
                    }
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    tracing::warn!(%error, "the background stays as it is");
                    self.ended = true;
                }
            }
        }
        &self.shown
    }
}

/// The colours `[3,H,W]` in -1..1 of an RGB sample.
pub(super) fn colours(sample: &gst::Sample, size: PixelSize) -> Option<Array3<f32>> {
    let bytes = sample.buffer()?.map_readable().ok()?;
    let stride = crate::media::frames::RgbLayout { width: size.width, height: size.height }.stride();
    (bytes.len() >= stride * size.height).then(|| {
        Array3::from_shape_fn((3, size.height, size.width), |(c, y, x)| {
            f32::from(bytes[y * stride + 3 * x + c]) / 127.5 - 1.0
        })
    })
}

/// The first `seconds` of a file's sound: 16-bit samples, [`CHANNELS`] interleaved, [`RATE`] per second.
///
/// # Errors
/// A file that cannot be read or holds no sound.
pub(super) fn samples(flag: &'static str, path: &Path, seconds: f64) -> Result<Vec<i16>, Error> {
    let wanted = format!(
        "audioconvert ! audioresample ! audio/x-raw,format=S16LE,rate={RATE},channels={CHANNELS},layout=interleaved"
    );
    let reader = Reader::open(flag, path, &wanted)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes at most")]
    let most = (seconds * RATE as f64).ceil() as usize * CHANNELS;
    let mut samples = Vec::new();
    while samples.len() < most {
        let Some(sample) = reader.next()? else { break };
        let Some(bytes) = sample.buffer().and_then(|buffer| buffer.map_readable().ok()) else { break };
        samples.extend(bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)));
    }
    if samples.is_empty() { Err(reader.error()) } else { Ok(samples) }
}
