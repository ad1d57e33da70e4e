//! Pictures and audio from any file that GStreamer decodes.

use super::gapless;
use super::integrity;
use super::reader::{Kind, Reader};
use crate::Error;
use crate::frames::RgbLayout;
use crate::sound::{CHANNELS, RATE};
use bundle::Field;
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer_video as gst_video;
use ndarray::Array3;
use std::path::Path;

/// Decodes the first picture of a file to `RGBA` bytes. Returns its size too.
///
/// # Errors
/// Returns an error if the file cannot be read or contains no picture.
pub(super) fn picture(field: Field, path: &Path) -> Result<(Vec<u8>, PixelSize), Error> {
    let mut reader = Reader::open(Kind::Pictures, field, path, "videoconvert ! video/x-raw,format=RGBA")?;
    let sample = reader.next()?.ok_or_else(|| reader.error("it contains no picture"))?;
    let side = |pixels: u32| usize::try_from(pixels).unwrap_or(usize::MAX);
    let found = sample.caps().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
    let found = found.and_then(|info| {
        let bytes = sample.buffer()?.map_readable().ok()?;
        let size = PixelSize { width: side(info.width()), height: side(info.height()) };
        let stride = usize::try_from(info.stride()[0]).ok().filter(|stride| *stride > 0)?;
        let rows = bytes.chunks(stride).take(size.height).filter_map(|row| row.get(..4 * size.width));
        let rgba: Vec<u8> = rows.flatten().copied().collect();
        (rgba.len() == 4 * size.width * size.height).then_some((rgba, size))
    });
    found.ok_or_else(|| reader.error("the format of its picture is unknown"))
}

/// An endless sequence of pictures: those of a video at the given size and rate, then its last one repeatedly.
#[derive(Debug)]
pub(super) struct BackgroundVideo {
    reader: Reader,
    size: PixelSize,
    shown: Array3<f32>,
    is_first: bool,
    ended: bool,
}

impl BackgroundVideo {
    /// Opens a video or a picture, scaled to a size.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or contains no picture.
    pub(super) fn open(field: Field, path: &Path, size: PixelSize, rate: FrameRate) -> Result<Self, Error> {
        let PixelSize { width, height } = size;
        let (frames, seconds) = rate.fraction();
        let wanted = format!(
            "videoconvert ! videoscale add-borders=false ! videorate ! \
             video/x-raw,format=RGB,width={width},height={height},pixel-aspect-ratio=1/1,framerate={frames}/{seconds}"
        );
        let mut reader = Reader::open(Kind::Pictures, field, path, &wanted)?;
        let first = reader.next()?.and_then(|sample| colours(&sample, size));
        let first = first.ok_or_else(|| reader.error("it contains no picture"))?;
        Ok(Self { reader, size, shown: first, is_first: true, ended: false })
    }

    /// Decodes the pictures for a clip of `frames`, to find damage before the run. Returns the number of pictures, at
    /// most `frames`.
    ///
    /// # Errors
    /// Returns an error if the file is damaged, with the time.
    pub(super) fn check(
        field: Field,
        path: &Path,
        size: PixelSize,
        rate: FrameRate,
        frames: usize,
    ) -> Result<usize, Error> {
        let mut video = Self::open(field, path, size, rate)?;
        for number in 0..frames {
            video.next()?;
            if video.ended {
                return Ok(number);
            }
        }
        Ok(frames)
    }

    /// The next picture `[3,H,W]` in -1..1.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub(super) fn next(&mut self) -> Result<&Array3<f32>, Error> {
        if !std::mem::take(&mut self.is_first) && !self.ended {
            match self.reader.next()? {
                Some(sample) => {
                    let next = colours(&sample, self.size);
                    self.shown =
                        next.ok_or_else(|| self.reader.error("one of its pictures is incomplete"))?;
                }
                None => self.ended = true,
            }
        }
        Ok(&self.shown)
    }
}

/// The colours `[3,H,W]` in -1..1 of an RGB sample.
pub(super) fn colours(sample: &gst::Sample, size: PixelSize) -> Option<Array3<f32>> {
    let bytes = sample.buffer()?.map_readable().ok()?;
    let layout = RgbLayout::new(size.width, size.height)?;
    let stride = layout.stride();
    (bytes.len() >= layout.bytes()).then(|| {
        Array3::from_shape_fn((3, size.height, size.width), |(c, y, x)| {
            f32::from(bytes[y * stride + 3 * x + c]) / 127.5 - 1.0
        })
    })
}

/// Decodes the first `seconds` of audio: 16-bit samples, [`CHANNELS`] interleaved, [`RATE`] per second.
///
/// # Errors
/// Returns an error if the file cannot be read or contains no audio.
pub(super) fn samples(field: Field, path: &Path, seconds: f64) -> Result<Vec<i16>, Error> {
    let wanted = format!(
        "audioconvert ! audioresample ! audio/x-raw,format=S16LE,rate={RATE},channels={CHANNELS},layout=interleaved"
    );
    let mut reader = Reader::open(Kind::Sound, field, path, &wanted)?;
    let silence = gapless::silence(path).unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes at most")]
    let limit = (seconds * RATE as f64).ceil() as usize * CHANNELS + silence.before * CHANNELS;
    let mut samples = Vec::new();
    let mut ended = false;
    while samples.len() < limit && !ended {
        match reader.next()? {
            Some(sample) => {
                let whole = sample.buffer().and_then(|buffer| buffer.map_readable().ok());
                let bytes = whole.ok_or_else(|| reader.error("one of its packets is incomplete"))?;
                samples.extend(bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)));
            }
            None => ended = true,
        }
    }
    if ended {
        let (found, declared) = (samples.len() / CHANNELS, integrity::samples(path).unwrap_or_default());
        if let Some(declared) = declared.filter(|declared| found + RATE / 10 < *declared) {
            let [found, declared] = [found, declared].map(|samples| samples as f64 / RATE as f64);
            return Err(reader.error(&format!("it is cut short: it has {found:.2} of {declared:.2} s")));
        }
        samples.truncate(samples.len().saturating_sub(silence.after * CHANNELS));
    }
    samples.drain(..(silence.before * CHANNELS).min(samples.len()));
    if samples.is_empty() { Err(reader.error("it contains no sound")) } else { Ok(samples) }
}
