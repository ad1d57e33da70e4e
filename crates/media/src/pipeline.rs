//! The pipeline of each output: `appsrc ! stages ! encoder ! muxer ! sink`.

use super::buffers::caps;
use super::collect::{
    self, Collector, FolderStore, GifFile, HlsWriter, Pace, PngFolder, RtspServer, Unit, WebPFile,
};
use super::collect::{Y4mTarget, Y4mWriter};
use super::encoder::{H264Encoder, Purpose, vp9_settings};
use super::frames::{I420Layout, RgbLayout};
use super::monitor::{Fault, PipelineMonitor};
use super::plugins::{SoundEncoder, sound_encoder};
use super::shared_frame::PixelLayout;
use super::sound::{CHANNELS, RATE};
use super::tags::TagEncoding;
use super::target::Destination;
#[cfg(feature = "whip")]
use super::whip::WhipSender;
use super::{ClipFormat, Error, FileFormat, OutputOptions, OutputSpec, OutputTarget};
use bundle::Cancel;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The length of an mp4 fragment: the most milliseconds of video that are lost if the process is killed.
const FRAGMENT_MILLISECONDS: u32 = 500;

/// The length of an HLS segment. The target duration of a playlist is in whole seconds.
const SEGMENT_MILLISECONDS: u32 = 1000;

/// A pipeline that has not been started.
#[derive(Debug)]
pub(super) struct OutputPipeline {
    pub(super) pipeline: gst::Pipeline,
    /// The source of the frames.
    pub(super) source: AppSrc,
    /// The source of the audio samples, and their encoder.
    pub(super) sound: Option<(AppSrc, SoundEncoder)>,
    /// The layout of the frames.
    pub(super) layout: PixelLayout,
    /// The progress of the pipeline.
    pub(super) monitor: Arc<PipelineMonitor>,
    /// Ends the waits of the collector. Requested before a pipeline that has failed or stalled is stopped.
    pub(super) closing: Cancel,
}

/// The elements after the stages.
struct Tail {
    elements: Vec<gst::Element>,
    /// The element whose input is the encoder's output. `None` if a collector counts the frames.
    encoded_before: Option<gst::Element>,
}

impl OutputPipeline {
    /// Builds the pipeline of one output. `stages` are before the encoder and keep the pixel layout.
    ///
    /// # Errors
    /// Returns an error if an element is missing, lacks a property or cannot be linked, or if a file cannot be opened.
    pub(super) fn build(
        target: &OutputTarget,
        options: &OutputOptions,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let layout = layout(&target.spec);
        let monitor = PipelineMonitor::new(options.output_timeout, &options.cancel);
        let closing = Cancel::new();
        let builder = Builder { target, options, monitor: &monitor, closing: &closing };
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
        monitor.count_taken(&frames);
        if let Some(pad) = tail.encoded_before.as_ref().and_then(input) {
            monitor.count_encoded(&pad);
        }
        monitor.watch_pad(&bytes);
        monitor.watch_bus(&pipeline);
        let sound = match &tail.encoded_before {
            Some(muxer) if options.sound.is_some() => builder.add_sound(&pipeline, muxer)?,
            _ => None,
        };
        Ok(Self { pipeline, source, sound, layout, monitor, closing })
    }
}

/// The pixel layout of an output.
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
    monitor: &'a Arc<PipelineMonitor>,
    closing: &'a Cancel,
}

impl Builder<'_> {
    /// The source of the frames.
    fn source(&self, layout: PixelLayout) -> Result<AppSrc, Error> {
        let ClipFormat { size, rate, .. } = self.options.format;
        let caps = caps(size, rate, layout).map_err(|error| self.failed("appsrc", &error))?;
        // `PipelineMonitor::wait_for_room` bounds the queue and detects stalls.
        Ok(AppSrc::builder().caps(&caps).format(gst::Format::Time).max_bytes(0).build())
    }

    /// Adds the audio branch, if the output carries audio.
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
        // The frames bound this queue.
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
                    // Fragments survive a kill and a full disk. At the end they are finalised to an ordinary mp4.
                    let muxer = self.element(
                        "mp4mux",
                        &[
                            ("fragment-duration", FRAGMENT_MILLISECONDS.to_string()),
                            ("fragment-mode", "first-moov-then-finalise".into()),
                        ],
                    )?;
                    self.file(self.h264(Purpose::File)?, muxer, TagEncoding::Text)
                }
                FileFormat::Mkv => {
                    let muxer = self.element("matroskamux", &[])?;
                    self.file(self.h264(Purpose::File)?, muxer, TagEncoding::Token)
                }
                FileFormat::WebM => {
                    let encoder = self.element("vp9enc", &vp9_settings(self.options.format.rate))?;
                    self.file(vec![encoder], self.element("webmmux", &[])?, TagEncoding::Token)
                }
                FileFormat::Gif | FileFormat::WebP | FileFormat::Y4m => self.collected(),
            },
            OutputSpec::Frames { .. } | OutputSpec::Stdout => self.collected(),
            OutputSpec::Rtmp { url } => self.rtmp(url),
            OutputSpec::Window => {
                let convert = self.element("videoconvert", &[])?;
                // With event handling the sink may select invalid touch events, for which X terminates the process.
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
                self.options.tags.apply(&muxer, TagEncoding::Text, &name_of(&encoder));
                self.streamed(encoder, muxer, Pace::Immediate)
            }
            OutputSpec::Whip { .. } => {
                // The profile that every WebRTC peer decodes, with parameter sets before each key frame.
                let caps = gst::Caps::builder("video/x-h264")
                    .field("stream-format", "byte-stream")
                    .field("alignment", "au")
                    .field("profile", "constrained-baseline")
                    .build();
                let profile = self.element("capsfilter", &[])?;
                profile.set_property("caps", caps);
                self.streamed(self.h264(Purpose::Live)?, profile, Pace::Immediate)
            }
            OutputSpec::Rtsp { .. } => {
                // Parameter sets before each key frame, so that a viewer can start at any of them.
                let payloader = self.element("rtph264pay", &[("config-interval", "-1".into())])?;
                self.streamed(self.h264(Purpose::Live)?, payloader, Pace::RealTime)
            }
        }
    }

    /// Encoder, muxer and a collector.
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
        encoding: TagEncoding,
    ) -> Result<Tail, Error> {
        self.options.tags.apply(&muxer, encoding, &name_of(&encoder));
        if let Destination::File(file) = &self.target.destination {
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
        // All but x264enc already have a parser.
        if self.encoder()?.parser().is_none() {
            elements.push(self.element("h264parse", &[])?);
        }
        let muxer = self.element("flvmux", &[("streamable", "true".into())])?;
        self.options.tags.apply(&muxer, TagEncoding::Text, &encoder);
        let sink = self.element("rtmp2sink", &[("location", url.to_owned())])?;
        elements.extend([muxer.clone(), sink]);
        Ok(Tail { elements, encoded_before: Some(muxer) })
    }

    /// A collector of raw frames.
    fn collected(&self) -> Result<Tail, Error> {
        Ok(Tail { elements: vec![self.collecting(Unit::Frames, Pace::Immediate)?], encoded_before: None })
    }

    fn collecting(&self, unit: Unit, pace: Pace) -> Result<gst::Element, Error> {
        let collector = self.collector().map_err(|error| self.unwritable(&error))?;
        let name = format!("the writer of {}", self.target.spec);
        Ok(collect::sink(&name, collector, self.monitor, (unit, pace)).upcast())
    }

    fn collector(&self) -> io::Result<Box<dyn Collector>> {
        let OutputOptions { format, tags, .. } = self.options;
        let record = tags.encoded_record().map_err(|error| io::Error::other(error.to_string()))?;
        let size = format.size;
        let rgb = RgbLayout::new(size.width, size.height)
            .ok_or_else(|| io::Error::other(format!("a picture cannot be {size}")))?;
        let y4m = |target| -> io::Result<Box<dyn Collector>> {
            let layout = I420Layout::new(size.width, size.height)
                .ok_or_else(|| io::Error::other("the sides of the picture are not even"))?;
            Ok(Box::new(Y4mWriter::new(target, *format, layout)))
        };
        match (&self.target.spec, &self.target.destination) {
            (OutputSpec::File { format: FileFormat::Gif, .. }, Destination::File(file)) => Ok(Box::new(
                GifFile::create(file.open()?, *format, rgb, tags.comment().as_deref(), record.as_ref())?,
            )),
            (OutputSpec::File { format: FileFormat::WebP, .. }, Destination::File(file)) => {
                Ok(Box::new(WebPFile::create(file.open()?, *format, rgb, tags.xmp())?))
            }
            (OutputSpec::Frames { .. }, Destination::Folder(folder)) => {
                folder.empty()?;
                let store = FolderStore(folder.part().to_owned());
                Ok(Box::new(PngFolder::new(store, rgb, tags.comment(), record)))
            }
            (OutputSpec::Hls { .. }, Destination::Playlist(folder)) => {
                folder.clear()?;
                let (rate, endless) = (format.rate, format.frames.is_none());
                let store = Box::new(FolderStore(folder.path().to_owned()));
                Ok(Box::new(HlsWriter::new(store, rate, endless)))
            }
            (OutputSpec::Rtsp { .. }, Destination::Listener(listener)) => {
                Ok(Box::new(RtspServer::start(listener, &tags.comment().unwrap_or_else(|| "-".into()))?))
            }
            #[cfg(feature = "whip")]
            (OutputSpec::Whip { url, token }, _) => {
                Ok(Box::new(WhipSender::start(url, token.as_ref(), self.closing)?))
            }
            (OutputSpec::File { path, .. }, Destination::Pipe { .. }) => {
                y4m(Y4mTarget::Pipe(path.clone(), self.closing.clone()))
            }
            (_, Destination::File(file)) => y4m(Y4mTarget::File(file.open()?)),
            _ => y4m(Y4mTarget::Stdout(self.closing.clone())),
        }
    }

    /// The H.264 encoder for the size of the clip. WHIP has those that make its profile everywhere.
    fn encoder(&self) -> Result<H264Encoder, Error> {
        let only_software = matches!(self.target.spec, OutputSpec::Whip { .. });
        let size = self.options.format.size;
        match (H264Encoder::choose(&self.target.encoders, size, only_software), self.target.encoders.first())
        {
            (Some(encoder), _) => Ok(encoder),
            (None, Some(first)) => Err(self.failed(
                first.element(),
                &format!(
                    "it cannot be used for this output in {size}, and no other H.264 encoder is installed"
                ),
            )),
            (None, None) => Err(Error::NoEncoder { output: self.target.spec.to_string() }),
        }
    }

    /// The H.264 encoder with its settings, what converts frames for it, and its parser.
    fn h264(&self, purpose: Purpose) -> Result<Vec<gst::Element>, Error> {
        let encoder = self.encoder()?;
        let mut elements = Vec::new();
        if let Some(converter) = encoder.converter() {
            let layout = self.element("capsfilter", &[])?;
            layout.set_property("caps", gst::Caps::builder("video/x-raw").field("format", "NV12").build());
            elements.extend([self.element(converter, &[])?, layout]);
        }
        let settings = encoder.settings(self.options.format.rate, purpose);
        elements.push(self.element(encoder.element(), &settings)?);
        if let Some(parser) = encoder.parser() {
            elements.push(self.element(parser, &[])?);
        }
        Ok(elements)
    }

    fn element(&self, name: &str, settings: &[(&str, String)]) -> Result<gst::Element, Error> {
        let element = gst::ElementFactory::make(name).build().map_err(|error| self.failed(name, &error))?;
        for (setting, value) in settings {
            let Some(property) = element.find_property(setting) else {
                return Err(self.failed(name, &format!("it has no property {setting}")));
            };
            let value = gst::glib::Value::deserialize_with_pspec(value, &property).map_err(|error| {
                self.failed(name, &format!("its property {setting} cannot be {value}: {error}"))
            })?;
            element.set_property_from_value(setting, &value);
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
        if Fault::from_io("", why).disk_full {
            return Error::DiskFull { output: self.target.spec.to_string() };
        }
        Error::unwritable(self.target.spec.to_string(), why.to_string())
    }
}

/// The name of the encoder among the elements up to its parser.
fn name_of(elements: &[gst::Element]) -> String {
    let mut factories = elements.iter().filter_map(|element| element.factory());
    let encoder = factories.find(|factory| factory.has_type(gst::ElementFactoryType::ENCODER));
    encoder.map_or_else(String::new, |factory| factory.name().to_string())
}
