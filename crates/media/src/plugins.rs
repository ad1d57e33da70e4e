//! What the installed GStreamer can do, and which Debian package has what it cannot.

use super::encoder::H264Encoder;
use super::{Error, FileFormat, OutputSpec};
use gstreamer as gst;
use gstreamer::prelude::*;

/// libav's decoders.
const LIBAV: &str = "gstreamer1.0-libav";
const CORE: &str = "libgstreamer1.0-0";
const BASE: &str = "gstreamer1.0-plugins-base";
const GOOD: &str = "gstreamer1.0-plugins-good";
const BAD: &str = "gstreamer1.0-plugins-bad";
const X: &str = "gstreamer1.0-x";

/// An element that is not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingElement {
    /// Name of the element.
    pub element: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// What an output is made of besides an H.264 encoder: its elements, and the Debian package of each.
pub fn elements(spec: &OutputSpec) -> Vec<(&'static str, &'static str)> {
    let ours = [("appsrc", BASE), ("appsink", BASE)];
    let rest: &[(&str, &str)] = match spec {
        OutputSpec::File { format: FileFormat::Mp4, .. } => &[("mp4mux", GOOD), ("filesink", CORE)],
        OutputSpec::File { format: FileFormat::Mkv, .. } => &[("matroskamux", GOOD), ("filesink", CORE)],
        OutputSpec::File { format: FileFormat::WebM, .. } => {
            &[("vp9enc", GOOD), ("webmmux", GOOD), ("filesink", CORE)]
        }
        OutputSpec::File { .. } | OutputSpec::Frames { .. } | OutputSpec::Stdout => &[],
        OutputSpec::Hls { .. } => &[("mp4mux", GOOD)],
        OutputSpec::Rtmp { .. } => &[("h264parse", BAD), ("flvmux", GOOD), ("rtmp2sink", BAD)],
        OutputSpec::Rtsp { .. } => &[("rtph264pay", GOOD)],
        OutputSpec::Whip { .. } => &[("capsfilter", CORE)],
        OutputSpec::Window => &[("videoconvert", BASE), ("ximagesink", X)],
    };
    ours.iter().chain(rest).copied().collect()
}

/// Whether an output is made with an H.264 encoder.
pub fn needs_h264(spec: &OutputSpec) -> bool {
    match spec {
        OutputSpec::File { format, .. } => matches!(format, FileFormat::Mp4 | FileFormat::Mkv),
        OutputSpec::Frames { .. } | OutputSpec::Stdout | OutputSpec::Window => false,
        OutputSpec::Hls { .. }
        | OutputSpec::Rtmp { .. }
        | OutputSpec::Rtsp { .. }
        | OutputSpec::Whip { .. } => true,
    }
}

/// How sound is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoundEncoder {
    /// The elements that encode it, the encoder first.
    pub elements: &'static [&'static str],
    /// Samples of silence that its decoders give first, where the container is not told of them.
    pub delay: usize,
    package: &'static str,
}

const AAC: SoundEncoder = SoundEncoder { elements: &["voaacenc"], delay: 1600, package: BAD };
/// LAME's own delay of 576 samples, and 529 of every decoder.
const MP3: SoundEncoder =
    SoundEncoder { elements: &["lamemp3enc", "mpegaudioparse"], delay: 576 + 529, package: GOOD };
/// Matroska and WebM have a field for the delay, and GStreamer fills it.
const OPUS: SoundEncoder = SoundEncoder { elements: &["opusenc"], delay: 0, package: BASE };

/// The encoder of sound for an output; none if it carries no sound.
///
/// # Errors
/// Such an output on a machine without an encoder for it.
pub fn sound_encoder(spec: &OutputSpec) -> Result<Option<SoundEncoder>, Error> {
    let known: &[SoundEncoder] = match spec {
        // Opus in mp4 is not played global.
        OutputSpec::File { format: FileFormat::Mp4, .. } => &[AAC, MP3],
        OutputSpec::File { format: FileFormat::Mkv | FileFormat::WebM, .. } => &[OPUS],
        _ => return Ok(None),
    };
    let found = known.iter().find(|encoder| encoder.elements.iter().all(|element| installed(element)));
    match (found, known.last()) {
        (Some(encoder), _) => Ok(Some(*encoder)),
        (None, Some(SoundEncoder { elements, package, .. })) => Err(Error::MissingElements {
            output: format!("the sound of {spec}"),
            elements: vec![MissingElement { element: elements[0], package }],
        }),
        (None, None) => Ok(None),
    }
}

/// The Debian package with a decoder for what GStreamer calls so.
pub(super) fn decoder_package(media_type: &str) -> &'static str {
    match media_type {
        "application/x-yuv4mpeg"
        | "image/webp"
        | "image/svg+xml"
        | "video/mpegts"
        | "video/x-dirac"
        | "audio/x-mod"
        | "audio/midi" => BAD,
        "image/jpeg" | "image/png" | "video/x-vp8" | "video/x-vp9" | "audio/x-flac" | "audio/x-wav" => GOOD,
        "application/ogg" | "audio/x-vorbis" | "audio/x-opus" | "video/x-theora" => BASE,
        _ => LIBAV,
    }
}

/// What this machine offers for video out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Version of the GStreamer library, like `GStreamer 1.22.0`.
    pub version: String,
    /// The H.264 encoder that is used.
    pub encoder: Option<H264Encoder>,
}

impl Survey {
    /// The encoder of an output that can be written here, if it needs one.
    ///
    /// # Errors
    /// The elements or the encoder that are missing, with their packages.
    pub fn ready(&self, spec: &OutputSpec) -> Result<Option<H264Encoder>, Error> {
        self.ready_with(spec, installed)
    }

    fn ready_with(
        &self,
        spec: &OutputSpec,
        installed: impl Fn(&str) -> bool,
    ) -> Result<Option<H264Encoder>, Error> {
        let elements = missing(elements(spec), installed);
        if !elements.is_empty() {
            return Err(Error::MissingElements { output: spec.to_string(), elements });
        }
        match self.encoder {
            None if needs_h264(spec) => Err(Error::NoEncoder { output: spec.to_string() }),
            encoder => Ok(encoder.filter(|_| needs_h264(spec))),
        }
    }
}

/// Starts GStreamer, once per process, and looks at what is installed.
///
/// # Errors
/// GStreamer cannot start.
pub fn survey() -> Result<Survey, Error> {
    gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })?;
    Ok(Survey { version: gst::version_string().to_string(), encoder: H264Encoder::choose(installed) })
}

/// Whether an element is there and its library can be loaded.
pub(super) fn installed(element: &str) -> bool {
    gst::ElementFactory::find(element).is_some_and(|factory| factory.load().is_ok())
}

fn missing(
    elements: Vec<(&'static str, &'static str)>,
    installed: impl Fn(&str) -> bool,
) -> Vec<MissingElement> {
    elements
        .into_iter()
        .filter(|(element, _)| !installed(element))
        .map(|(element, package)| MissingElement { element, package })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(spec: &str, elements: &[&str]) -> Result<Option<H264Encoder>, Error> {
        let installed = |element: &str| elements.contains(&element);
        let survey = Survey { version: "GStreamer 1.22.0".into(), encoder: H264Encoder::choose(installed) };
        survey.ready_with(&spec.parse().unwrap(), installed)
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        insta::assert_snapshot!(ready("a.mp4", &["appsink", "filesink", "x264enc"]).unwrap_err(), @"a.mp4 cannot be written on this machine: GStreamer has no appsrc, mp4mux (install it with `sudo apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good`)");
        insta::assert_snapshot!(ready("a.mp4", &["appsrc", "appsink", "mp4mux", "filesink"]).unwrap_err(), @"a.mp4 cannot be written on this machine: GStreamer has no H.264 encoder, none of x264enc, openh264enc (install one with `sudo apt-get install gstreamer1.0-plugins-ugly`)");
        insta::assert_snapshot!(
            ready("rtmp://a/b/c", &["appsrc", "appsink", "flvmux", "x264enc"]).unwrap_err(),
            @"rtmp://a/b/c cannot be written on this machine: GStreamer has no h264parse, rtmp2sink (install it with `sudo apt-get install gstreamer1.0-plugins-bad`)"
        );
    }

    #[test]
    fn only_h264_needs_its_encoder() {
        let all = ["appsrc", "appsink", "mp4mux", "filesink", "vp9enc", "webmmux"];
        assert_eq!(ready("a.webm", &all).unwrap(), None);
        assert_eq!(ready("a.gif", &all).unwrap(), None);
        assert!(ready("a.mp4", &all).is_err());
        let with_encoder = [&all[..], &["x264enc"]].concat();
        assert_eq!(ready("a.mp4", &with_encoder).unwrap(), Some(H264Encoder::X264));
        assert_eq!(ready("a.webm", &with_encoder).unwrap(), None);
    }
}
