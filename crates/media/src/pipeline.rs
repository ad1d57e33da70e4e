//! The elements of each output and how they are joined: `appsrc ! stages ! encoder ! muxer ! sink`.

use super::collect::{
    self, Collector, FolderStore, GifFile, HlsWriter, Pace, PngFolder, RtspServer, Unit, WebPFile,
};
use super::collect::{Y4mTarget, Y4mWriter};
use super::encoder::{Purpose, vp9_settings};
use super::feed::{Fault, Feed};
use super::frames::{I420Layout, RgbLayout};
use super::output::OutputOptions;
use super::plugins::{SoundEncoder, sound_encoder};
use super::post_process::{CHANNELS, RATE};
use super::shared_frame::PixelLayout;
use super::tags::Spelling;
use super::target::Place;
#[cfg(feature = "whip")]
use super::whip::WhipSender;
use super::{ClipFormat, Error, FileFormat, OutputSpec, OutputTarget};
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use gstreamer_video as gst_video;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Longest stretch of video in milliseconds that a kill can take from the file.
const FRAGMENT_MILLISECONDS: u32 = 500;

/// Length of a segment of HLS: its target duration is counted in whole seconds.
const SEGMENT_MILLISECONDS: u32 = 1000;

/// A pipeline that has not started yet.
#[derive(Debug)]
pub(super) struct OutputPipeline {
    pub(super) pipeline: gst::Pipeline,
    /// Where the frames go in.
    pub(super) source: AppSrc,
    /// Where the samples of sound go in, and what encodes them.
    pub(super) sound: Option<(AppSrc, SoundEncoder)>,
    /// How they lie in memory there.
    pub(super) layout: PixelLayout,
    /// What its threads have done.
    pub(super) feed: Arc<Feed>,
}

/// What comes after the stages.
struct Tail {
    elements: Vec<gst::Element>,
    /// The element whose input is what the encoder makes; none if a collector counts its frames.
    encoded_before: Option<gst::Element>,
}

impl OutputPipeline {
    /// The pipeline of one output. `stages` lie between the frames and the encoder, and take and give the same layout.
    ///
    /// # Errors
    /// An element that is not there, lacks a setting or cannot be joined to the next; a file that cannot be opened.
    pub(super) fn build(
        target: &OutputTarget,
        options: &OutputOptions,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let layout = layout(&target.spec);
        let feed = Feed::new(options.output_timeout, &options.cancel);
        let builder = Builder { target, options, feed: &feed };
        let source = builder.source(layout)?;
        let tail = builder.tail()?;

        let mut chain: Vec<gst::Element> = vec![source.clone().upcast()];
        chain.extend(stages);
        chain.extend(tail.elements);
        let pipeline = gst::Pipeline::new();
        let failed = |why: &dyn fmt::Display| builder.failed("the pipeline", why);
        pipeline.add_many(&chain).map_err(|error| failed(&error))?;
        gst::Element::link_many(&chain).map_err(|error| failed(&error))?;

        let input = |element: &gst::Element| element.sink_pads().into_iter().next();
        let (Some(frames), Some(bytes)) = (source.static_pad("src"), chain.last().and_then(input)) else {
            return Err(failed(&"an element has no pad"));
        };
        feed.count_taken(&frames);
        if let Some(pad) = tail.encoded_before.as_ref().and_then(input) {
            feed.count_encoded(&pad);
        }
        feed.see(&bytes);
        feed.listen(&pipeline);
        let sound = match &tail.encoded_before {
            Some(muxer) if options.sound.is_some() => builder.add_sound(&pipeline, muxer)?,
            _ => None,
        };
        Ok(Self { pipeline, source, sound, layout, feed })
    }
}

/// How an output wants its frames.
fn layout(spec: &OutputSpec) -> PixelLayout {
    match spec {
        OutputSpec::Frames { .. } | OutputSpec::File { format: FileFormat::Gif | FileFormat::WebP, .. } => {
            PixelLayout::Rgb
        }
        _ => PixelLayout::I420,
    }
}

struct Builder<'a> {
    target: &'a OutputTarget,
    options: &'a OutputOptions,
    feed: &'a Arc<Feed>,
}

impl Builder<'_> {
    /// The element that takes our frames.
    fn source(&self, layout: PixelLayout) -> Result<AppSrc, Error> {
        let ClipFormat { size, rate, .. } = self.options.format;
        let caps = caps(size, rate, layout).map_err(|error| self.failed("appsrc", &error))?;
        // The queue is bounded by `Feed::wait_for_room`, which also notices when nothing moves.
        Ok(AppSrc::builder().caps(&caps).format(gst::Format::Time).max_bytes(0).build())
    }

    /// A second way into the muxer, if the output carries sound.
    fn add_sound(
        &self,
        pipeline: &gst::Pipeline,
        muxer: &gst::Element,
    ) -> Result<Option<(AppSrc, SoundEncoder)>, Error> {
        let Some(encoder) = sound_encoder(&self.target.spec)? else { return Ok(None) };
        let caps = gst::Caps::builder("audio/x-raw")
            .field("format", "S16LE")
            .field("layout", "interleaved")
            .field("rate", i32::try_from(RATE).unwrap_or(i32::MAX))
            .field("channels", i32::try_from(CHANNELS).unwrap_or(i32::MAX))
            .field("channel-mask", gst::Bitmask::new(0b11))
            .build();
        // Bounded by the frames, which it accompanies.
        let source = AppSrc::builder().caps(&caps).format(gst::Format::Time).max_bytes(0).build();
        let mut chain: Vec<gst::Element> = vec![source.clone().upcast()];
        for element in encoder.elements {
            chain.push(self.element(element, &[])?);
        }
        let failed = |why: &dyn fmt::Display| self.failed("the pipeline", why);
        pipeline.add_many(&chain).map_err(|error| failed(&error))?;
        chain.push(muxer.clone());
        gst::Element::link_many(&chain).map_err(|error| failed(&error))?;
        Ok(Some((source, encoder)))
    }

    fn tail(&self) -> Result<Tail, Error> {
        match &self.target.spec {
            OutputSpec::File { format, .. } => match format {
                FileFormat::Mp4 => {
                    // Fragments survive a kill and a full disk; finalising makes an ordinary mp4 of them in the end.
                    let muxer = self.element(
                        "mp4mux",
                        &[
                            ("fragment-duration", FRAGMENT_MILLISECONDS.to_string()),
                            ("fragment-mode", "first-moov-then-finalise".into()),
                        ],
                    )?;
                    self.file(self.h264(Purpose::File)?, muxer, Spelling::Words)
                }
                FileFormat::Mkv => {
                    let muxer = self.element("matroskamux", &[])?;
                    self.file(self.h264(Purpose::File)?, muxer, Spelling::OneWord)
                }
                FileFormat::WebM => {
                    let encoder = self.element("vp9enc", &vp9_settings(self.options.format.rate))?;
                    self.file(vec![encoder], self.element("webmmux", &[])?, Spelling::OneWord)
                }
                FileFormat::Gif | FileFormat::WebP | FileFormat::Y4m => self.collected(),
            },
            OutputSpec::Frames { .. } | OutputSpec::Stdout => self.collected(),
            OutputSpec::Rtmp { url } => self.rtmp(url),
            OutputSpec::Window => {
                let convert = self.element("videoconvert", &[])?;
                // What it would select for touch screens is not always what it meant, and X ends the program for that.
                let window = self.element("ximagesink", &[("handle-events", "false".into())])?;
                Ok(Tail { elements: vec![convert.clone(), window], encoded_before: Some(convert) })
            }
            OutputSpec::Hls { .. } => {
                let settings = [
                    ("fragment-duration", SEGMENT_MILLISECONDS.to_string()),
                    ("fragment-mode", "dash-or-mss".into()),
                    ("streamable", "true".into()),
                ];
                let muxer = self.element("mp4mux", &settings)?;
                let encoder = self.h264(Purpose::Live)?;
                self.options.tags.apply(&muxer, Spelling::Words, &name_of(&encoder));
                self.streamed(encoder, muxer, Pace::AtOnce)
            }
            OutputSpec::Whip { .. } => {
                // What every WebRTC peer decodes, with parameter sets before each key frame.
                let caps = gst::Caps::builder("video/x-h264")
                    .field("stream-format", "byte-stream")
                    .field("alignment", "au")
                    .field("profile", "constrained-baseline")
                    .build();
                let profile = self.element("capsfilter", &[])?;
                profile.set_property("caps", caps);
                self.streamed(self.h264(Purpose::Live)?, profile, Pace::AtOnce)
            }
            OutputSpec::Rtsp { .. } => {
                // Parameter sets before each key frame, so that a viewer can begin at any of them.
                let payloader = self.element("rtph264pay", &[("config-interval", "-1".into())])?;
                self.streamed(self.h264(Purpose::Live)?, payloader, Pace::ByTheClock)
            }
        }
    }

    /// Encoder, muxer and a writer of our own.
    fn streamed(&self, encoder: Vec<gst::Element>, muxer: gst::Element, pace: Pace) -> Result<Tail, Error> {
        let mut elements = encoder;
        elements.extend([muxer.clone(), self.collecting(Unit::Packets, pace)?]);
        Ok(Tail { elements, encoded_before: Some(muxer) })
    }

    /// Encoder, muxer and a file.
    fn file(
        &self,
        encoder: Vec<gst::Element>,
        muxer: gst::Element,
        spelling: Spelling,
    ) -> Result<Tail, Error> {
        self.options.tags.apply(&muxer, spelling, &name_of(&encoder));
        if let Place::File(file) = &self.target.place {
            file.hold().map_err(|error| self.unwritable(&error))?;
        }
        let location = self.target.part().unwrap_or(Path::new("")).to_owned();
        let sink = gst::ElementFactory::make("filesink")
            .property("location", location)
            .build()
            .map_err(|error| self.failed("filesink", &error))?;
        let mut elements = encoder;
        elements.extend([muxer.clone(), sink]);
        Ok(Tail { elements, encoded_before: Some(muxer) })
    }

    fn rtmp(&self, url: &str) -> Result<Tail, Error> {
        let mut elements = self.h264(Purpose::Live)?;
        let encoder = name_of(&elements);
        // openh264enc brings a parser of its own.
        if self.target.encoder.is_some_and(|encoder| encoder.parser().is_none()) {
            elements.push(self.element("h264parse", &[])?);
        }
        let muxer = self.element("flvmux", &[("streamable", "true".into())])?;
        self.options.tags.apply(&muxer, Spelling::Words, &encoder);
        let sink = self.element("rtmp2sink", &[("location", url.to_owned())])?;
        elements.extend([muxer.clone(), sink]);
        Ok(Tail { elements, encoded_before: Some(muxer) })
    }

    /// A writer of our own instead of encoder, muxer and sink.
    fn collected(&self) -> Result<Tail, Error> {
        Ok(Tail { elements: vec![self.collecting(Unit::Frames, Pace::AtOnce)?], encoded_before: None })
    }

    fn collecting(&self, unit: Unit, pace: Pace) -> Result<gst::Element, Error> {
        let collector = self.collector().map_err(|error| self.unwritable(&error))?;
        let name = format!("the writer of {}", self.target.spec);
        Ok(collect::sink(&name, collector, self.feed, (unit, pace)).upcast())
    }

    fn collector(&self) -> io::Result<Box<dyn Collector>> {
        let OutputOptions { format, tags, .. } = self.options;
        let size = format.size;
        let rgb = RgbLayout { width: size.width, height: size.height };
        let y4m = |target| -> io::Result<Box<dyn Collector>> {
            let layout = I420Layout::new(size.width, size.height)
                .ok_or_else(|| io::Error::other("the sides of the picture are not even"))?;
            Ok(Box::new(Y4mWriter::new(target, *format, layout)))
        };
        match (&self.target.spec, &self.target.place) {
            (OutputSpec::File { format: FileFormat::Gif, .. }, Place::File(file)) => {
                Ok(Box::new(GifFile::create(file.open()?, *format, rgb, &tags.comment())?))
            }
            (OutputSpec::File { format: FileFormat::WebP, .. }, Place::File(file)) => {
                Ok(Box::new(WebPFile::create(file.open()?, *format, rgb, tags.xmp())?))
            }
            (OutputSpec::Frames { .. }, Place::Folder(folder)) => {
                folder.empty()?;
                Ok(Box::new(PngFolder::new(FolderStore(folder.part().to_owned()), rgb, tags.comment())))
            }
            (OutputSpec::Hls { .. }, Place::Playlist(folder)) => {
                folder.clear()?;
                let (rate, endless) = (format.rate, format.frames.is_none());
                let store = Box::new(FolderStore(folder.path().to_owned()));
                Ok(Box::new(HlsWriter::new(store, rate, endless)))
            }
            (OutputSpec::Rtsp { .. }, Place::Listener(listener)) => {
                Ok(Box::new(RtspServer::start(listener, &tags.comment())?))
            }
            #[cfg(feature = "whip")]
            (OutputSpec::Whip { url, token }, _) => Ok(Box::new(WhipSender::start(url, token.as_ref())?)),
            (OutputSpec::File { path, .. }, Place::Pipe { .. }) => y4m(Y4mTarget::Pipe(path.clone())),
            (_, Place::File(file)) => y4m(Y4mTarget::File(file.open()?)),
            _ => y4m(Y4mTarget::Stdout),
        }
    }

    /// The H.264 encoder with its settings, and its parser.
    fn h264(&self, purpose: Purpose) -> Result<Vec<gst::Element>, Error> {
        let Some(encoder) = self.target.encoder else {
            return Err(Error::NoEncoder { output: self.target.spec.to_string() });
        };
        let mut elements =
            vec![self.element(encoder.element(), &encoder.settings(self.options.format.rate, purpose))?];
        if let Some(parser) = encoder.parser() {
            elements.push(self.element(parser, &[])?);
        }
        Ok(elements)
    }

    fn element(&self, name: &str, settings: &[(&str, String)]) -> Result<gst::Element, Error> {
        let element = gst::ElementFactory::make(name).build().map_err(|error| self.failed(name, &error))?;
        for (setting, value) in settings {
            if element.find_property(setting).is_none() {
                return Err(self.failed(name, &format!("it has no setting {setting}")));
            }
            element.set_property_from_str(setting, value);
        }
        Ok(element)
    }

    fn failed(&self, element: &str, why: &dyn fmt::Display) -> Error {
        Error::Pipeline {
            output: self.target.spec.to_string(),
            element: element.to_owned(),
            why: why.to_string(),
        }
    }

    fn unwritable(&self, why: &io::Error) -> Error {
        if Fault::of_io("", why).disk_full {
            return Error::DiskFull { output: self.target.spec.to_string() };
        }
        Error::unwritable(self.target.spec.to_string(), why.to_string())
    }
}

/// What our frames are called in GStreamer.
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

/// The picture with the time at which it is shown, from its number.
pub(super) fn timed(mut picture: gst::Buffer, number: usize, rate: FrameRate) -> gst::Buffer {
    let start = |number: usize| {
        gst::ClockTime::from_nseconds(rate.timestamp(number as u64, gst::ClockTime::SECOND.nseconds()))
    };
    let buffer = picture.make_mut();
    buffer.set_pts(start(number));
    buffer.set_duration(start(number + 1) - start(number));
    picture
}

/// A frame's samples of sound, the first of which is number `start`.
pub(super) fn timed_sound(samples: Vec<u8>, start: usize) -> gst::Buffer {
    let time = |number: usize| gst::ClockTime::SECOND.mul_div_floor(number as u64, RATE as u64);
    let end = start + samples.len() / (2 * CHANNELS);
    let mut buffer = gst::Buffer::from_mut_slice(samples);
    let written = buffer.make_mut();
    written.set_pts(time(start));
    written.set_duration(time(end).zip(time(start)).map(|(end, start)| end - start));
    buffer
}

fn name_of(encoder: &[gst::Element]) -> String {
    let factory = encoder.first().and_then(|element| element.factory());
    factory.map_or_else(String::new, |factory| factory.name().to_string())
}
