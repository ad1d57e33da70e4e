//! The elements of an mp4 and how they are joined: `appsrc ! encoder ! mp4mux ! filesink`.

use super::encoder::H264Encoder;
use super::feed::Feed;
use super::{ClipFormat, Error, OutputTarget, Tags};
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use gstreamer_video as gst_video;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Longest stretch of video in milliseconds that a kill can take from the file.
const FRAGMENT_MILLISECONDS: u32 = 500;

/// A pipeline that has not started yet.
#[derive(Debug)]
pub(super) struct Mp4Pipeline {
    pub(super) pipeline: gst::Pipeline,
    /// Where the frames go in.
    pub(super) source: AppSrc,
    /// What its threads have done.
    pub(super) feed: Arc<Feed>,
}

impl Mp4Pipeline {
    /// The pipeline of one clip. `stages` lie between the frames and the encoder, and take and give I420.
    ///
    /// # Errors
    /// An element that is not there, lacks a setting or cannot be joined to the next.
    pub(super) fn build(
        target: &OutputTarget,
        format: ClipFormat,
        tags: &Tags,
        stall_limit: Duration,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let source = source(format)?;
        // Fragments survive a kill and a full disk; finalising makes an ordinary mp4 of them in the end.
        let muxer = gst::ElementFactory::make("mp4mux")
            .property("fragment-duration", FRAGMENT_MILLISECONDS)
            .property_from_str("fragment-mode", "first-moov-then-finalise")
            .build()
            .map_err(|error| failed("mp4mux", &error))?;
        tags.apply(&muxer, target.encoder());
        let sink = gst::ElementFactory::make("filesink")
            .property("location", target.part())
            .build()
            .map_err(|error| failed("filesink", &error))?;

        let mut chain = vec![source.clone().upcast()];
        chain.extend(stages);
        chain.extend(encoder(target.encoder(), format.rate)?);
        chain.extend([muxer.clone(), sink.clone()]);
        let pipeline = gst::Pipeline::new();
        pipeline.add_many(&chain).map_err(|error| failed("the pipeline", &error))?;
        gst::Element::link_many(&chain).map_err(|error| failed("the pipeline", &error))?;

        let pads = (source.static_pad("src"), muxer.sink_pads().into_iter().next(), sink.static_pad("sink"));
        let (Some(frames), Some(packets), Some(bytes)) = pads else {
            return Err(failed("the pipeline", &"an element has no pad"));
        };
        let feed = Feed::watch(&pipeline, [&frames, &packets, &bytes], stall_limit);
        Ok(Self { pipeline, source, feed })
    }
}

/// The element that takes our frames.
fn source(format: ClipFormat) -> Result<AppSrc, Error> {
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    let rate = i32::try_from(format.rate.per_second()).unwrap_or(i32::MAX);
    let colorimetry: gst_video::VideoColorimetry =
        "bt709".parse().map_err(|error| failed("appsrc", &error))?;
    let caps = gst_video::VideoInfo::builder(
        gst_video::VideoFormat::I420,
        side(format.size.width),
        side(format.size.height),
    )
    .fps(gst::Fraction::new(rate, 1))
    .colorimetry(&colorimetry)
    .chroma_site(gst_video::VideoChromaSite::JPEG)
    .build()
    .and_then(|info| info.to_caps())
    .map_err(|error| failed("appsrc", &error))?;
    // The queue is bounded by `Feed::wait_for_room`, which also notices when nothing moves.
    Ok(AppSrc::builder().caps(&caps).format(gst::Format::Time).max_bytes(0).build())
}

/// The encoder with its settings, and its parser.
fn encoder(encoder: H264Encoder, rate: FrameRate) -> Result<Vec<gst::Element>, Error> {
    let elements = encoder
        .elements()
        .map(|name| gst::ElementFactory::make(name).build().map_err(|error| failed(name, &error)))
        .collect::<Result<Vec<_>, _>>()?;
    for (name, value) in encoder.settings(rate) {
        if elements[0].find_property(name).is_none() {
            return Err(failed(encoder.element(), &format!("it has no setting {name}")));
        }
        elements[0].set_property_from_str(name, &value);
    }
    Ok(elements)
}

/// The picture with the time at which it is shown, from its number.
pub(super) fn timed(picture: Vec<u8>, number: usize, rate: FrameRate) -> gst::Buffer {
    let start = |number: usize| gst::ClockTime::SECOND.mul_div_floor(number as u64, rate.per_second().into());
    let duration = start(number + 1).zip(start(number)).map(|(end, start)| end - start);
    let mut buffer = gst::Buffer::from_mut_slice(picture);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(start(number));
        buffer.set_duration(duration);
    }
    buffer
}

fn failed(element: &str, why: &dyn fmt::Display) -> Error {
    Error::Pipeline { element: element.to_owned(), why: why.to_string() }
}
