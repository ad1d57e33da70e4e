//! GStreamer caps and buffers of frames and audio samples, with their timestamps.

use super::shared_frame::PixelLayout;
use super::sound::{CHANNELS, RATE};
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_video as gst_video;

/// The caps of frames in a layout.
pub(super) fn caps(
    size: PixelSize,
    rate: FrameRate,
    layout: PixelLayout,
) -> Result<gst::Caps, gst::glib::BoolError> {
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let (frames, seconds) = rate.fraction();
    let whole = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let (pixels, colorimetry) = match layout {
        PixelLayout::I420 => (gst_video::VideoFormat::I420, "bt709"),
        PixelLayout::Rgb => (gst_video::VideoFormat::Rgb, "sRGB"),
    };
    let colorimetry: gst_video::VideoColorimetry = colorimetry.parse()?;
    let info = gst_video::VideoInfo::builder(pixels, side(size.width), side(size.height))
        .fps(gst::Fraction::new(whole(frames), whole(seconds)))
        .colorimetry(&colorimetry);
    match layout {
        PixelLayout::I420 => info.chroma_site(gst_video::VideoChromaSite::JPEG).build()?.to_caps(),
        PixelLayout::Rgb => info.build()?.to_caps(),
    }
}

/// Sets the timestamp and the duration of frame `number`.
pub(super) fn timed(mut picture: gst::Buffer, number: usize, rate: FrameRate) -> gst::Buffer {
    let start = |number: usize| {
        gst::ClockTime::from_nseconds(rate.timestamp(number as u64, gst::ClockTime::SECOND.nseconds()))
    };
    let buffer = picture.make_mut();
    buffer.set_pts(start(number));
    buffer.set_duration(start(number + 1) - start(number));
    picture
}

/// A buffer of interleaved samples, the first of which is sample `start` of the clip.
pub(super) fn timed_sound(samples: Vec<u8>, start: usize) -> gst::Buffer {
    let time = |number: usize| gst::ClockTime::SECOND.mul_div_floor(number as u64, RATE as u64);
    let end = start + samples.len() / (2 * CHANNELS);
    let mut buffer = gst::Buffer::from_mut_slice(samples);
    let written = buffer.make_mut();
    written.set_pts(time(start));
    written.set_duration(time(end).zip(time(start)).map(|(end, start)| end - start));
    buffer
}
