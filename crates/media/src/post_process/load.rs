//! Pictures and sound out of any file that GStreamer reads.

use super::gapless;
use super::reader::{Kind, Reader};
use super::sound::{CHANNELS, RATE};
use super::whole;
use crate::Error;
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer_video as gst_video;
use ndarray::Array3;
use std::path::Path;

/// The first picture of a file as `RGBA` bytes, and its size.
///
/// # Errors
/// A file that cannot be read or holds no picture.
pub(super) fn picture(flag: &'static str, path: &Path) -> Result<(Vec<u8>, PixelSize), Error> {
    let mut reader = Reader::open(Kind::Pictures, flag, path, "videoconvert ! video/x-raw,format=RGBA")?;
    let sample = reader.next()?.ok_or_else(|| reader.error("there is no picture in it"))?;
    let side = |pixels: u32| usize::try_from(pixels).unwrap_or(usize::MAX);
    let found = sample.caps().and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
    let found = found.and_then(|info| {
        let bytes = sample.buffer()?.map_readable().ok()?;
        let size = PixelSize { width: side(info.width()), height: side(info.height()) };
        let stride = usize::try_from(info.stride()[0]).ok()?;
        let rows = bytes.chunks(stride).take(size.height).filter_map(|row| row.get(..4 * size.width));
        Some((rows.flatten().copied().collect(), size))
    });
    found.ok_or_else(|| reader.error("its picture has no known form"))
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
        let mut reader = Reader::open(Kind::Pictures, flag, path, &wanted)?;
        let first = reader.next()?.and_then(|sample| colours(&sample, size));
        let first = first.ok_or_else(|| reader.error("there is no picture in it"))?;
        Ok(Self { reader, size, shown: first, is_first: true, ended: false })
    }

    /// Decodes what a clip of `frames` will show, so that nothing is wrong with it when they are made; how many pictures
    /// there are, up to that.
    ///
    /// # Errors
    /// Damage, with its time.
    pub(super) fn check(
        flag: &'static str,
        path: &Path,
        size: PixelSize,
        rate: FrameRate,
        frames: usize,
    ) -> Result<usize, Error> {
        let mut film = Self::open(flag, path, size, rate)?;
        for number in 0..frames {
            film.next()?;
            if film.ended {
                return Ok(number);
            }
        }
        Ok(frames)
    }

    /// The next picture `[3,H,W]` in -1..1.
    ///
    /// # Errors
    /// A file that cannot be read any further.
    pub(super) fn next(&mut self) -> Result<&Array3<f32>, Error> {
        if !std::mem::take(&mut self.is_first) && !self.ended {
            match self.reader.next()? {
                Some(sample) => {
                    let next = colours(&sample, self.size);
                    self.shown = next.ok_or_else(|| self.reader.error("one of its pictures is not whole"))?;
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
    let stride = crate::frames::RgbLayout { width: size.width, height: size.height }.stride();
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
    let mut reader = Reader::open(Kind::Sound, flag, path, &wanted)?;
    let silence = gapless::silence(path).unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few minutes at most")]
    let most = (seconds * RATE as f64).ceil() as usize * CHANNELS + silence.before * CHANNELS;
    let mut samples = Vec::new();
    let mut ended = false;
    while samples.len() < most && !ended {
        match reader.next()? {
            Some(sample) => {
                let whole = sample.buffer().and_then(|buffer| buffer.map_readable().ok());
                let bytes = whole.ok_or_else(|| reader.error("one of its packets is not whole"))?;
                samples.extend(bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)));
            }
            None => ended = true,
        }
    }
    if ended {
        let (there, said) = (samples.len() / CHANNELS, whole::samples(path).unwrap_or_default());
        if let Some(said) = said.filter(|said| there + RATE / 10 < *said) {
            let [there, said] = [there, said].map(|samples| samples as f64 / RATE as f64);
            return Err(reader.error(&format!("it is cut short: it has {there:.2} of {said:.2} s")));
        }
        samples.truncate(samples.len().saturating_sub(silence.after * CHANNELS));
    }
    samples.drain(..(silence.before * CHANNELS).min(samples.len()));
    if samples.is_empty() { Err(reader.error("there is no sound in it")) } else { Ok(samples) }
}
