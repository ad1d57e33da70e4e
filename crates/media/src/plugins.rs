//! Installed GStreamer elements, and the Debian packages of missing ones.

use super::encoder::{H264Encoder, Purpose};
use super::{Error, FileFormat, OutputSpec};
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;

/// The decoders of libav.
const LIBAV: &str = "gstreamer1.0-libav";
const CORE: &str = "libgstreamer1.0-0";
const BASE: &str = "gstreamer1.0-plugins-base";
const GOOD: &str = "gstreamer1.0-plugins-good";
const BAD: &str = "gstreamer1.0-plugins-bad";
const X: &str = "gstreamer1.0-x";

/// An element that is not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingElement {
    /// The name of the element.
    pub element: &'static str,
    /// The Debian package that contains it.
    pub package: &'static str,
}

/// The elements of an output except its H.264 encoder, each with its Debian package.
pub fn elements(spec: &OutputSpec) -> Vec<(&'static str, &'static str)> {
    let always = [("appsrc", BASE), ("appsink", BASE)];
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
    always.iter().chain(rest).copied().collect()
}

/// Returns true if an output needs an H.264 encoder.
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

/// An audio encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoundEncoder {
    /// The elements, the encoder first.
    pub elements: &'static [&'static str],
    /// The encoder delay in samples, if GStreamer does not store it in the container.
    pub delay: usize,
    package: &'static str,
}

const AAC: SoundEncoder = SoundEncoder { elements: &["voaacenc"], delay: 1600, package: BAD };
/// The delay of LAME is 576 samples, that of every decoder 529.
const MP3: SoundEncoder =
    SoundEncoder { elements: &["lamemp3enc", "mpegaudioparse"], delay: 576 + 529, package: GOOD };
/// Matroska and WebM have a field for the delay, which GStreamer writes.
const OPUS: SoundEncoder = SoundEncoder { elements: &["opusenc"], delay: 0, package: BASE };

fn initialize() -> Result<(), Error> {
    gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })
}

/// The audio encoder of an output. Returns `None` if the output carries no audio.
///
/// # Errors
/// Returns an error if no encoder is installed, or if GStreamer cannot be initialized.
pub fn sound_encoder(spec: &OutputSpec) -> Result<Option<SoundEncoder>, Error> {
    initialize()?;
    let known: &[SoundEncoder] = match spec {
        // Many players do not support Opus in mp4.
        OutputSpec::File { format: FileFormat::Mp4, .. } => &[AAC, MP3],
        OutputSpec::File { format: FileFormat::Mkv | FileFormat::WebM, .. } => &[OPUS],
        _ => return Ok(None),
    };
    let found = known.iter().find(|encoder| encoder.elements.iter().all(|element| installed(element)));
    match (found, known.last()) {
        (Some(encoder), _) => Ok(Some(*encoder)),
        (None, Some(SoundEncoder { elements, package, .. })) => Err(Error::MissingElements {
            output: format!("the audio of {spec}"),
            elements: vec![MissingElement { element: elements[0], package }],
        }),
        (None, None) => Ok(None),
    }
}

/// The Debian package of a decoder for a GStreamer media type.
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

/// The video output support of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Version of the GStreamer library, like `GStreamer 1.22.0`.
    pub version: String,
    /// The H.264 encoders that can be used, best first.
    pub encoders: Vec<H264Encoder>,
}

impl Survey {
    /// Checks that an output can be written. Returns the H.264 encoders, best first, if it needs one.
    ///
    /// # Errors
    /// Returns an error with the missing elements and their packages.
    pub fn ready(&self, spec: &OutputSpec) -> Result<Vec<H264Encoder>, Error> {
        self.ready_with(spec, installed)
    }

    fn ready_with(
        &self,
        spec: &OutputSpec,
        installed: impl Fn(&str) -> bool,
    ) -> Result<Vec<H264Encoder>, Error> {
        let elements = missing(elements(spec), installed);
        if !elements.is_empty() {
            return Err(Error::MissingElements { output: spec.to_string(), elements });
        }
        match &self.encoders {
            _ if !needs_h264(spec) => Ok(Vec::new()),
            none if none.is_empty() => Err(Error::NoEncoder { output: spec.to_string() }),
            encoders => Ok(encoders.clone()),
        }
    }
}

/// Initializes GStreamer, once per process, and finds the installed encoders.
///
/// # Errors
/// Returns an error if GStreamer cannot be initialized.
pub fn survey() -> Result<Survey, Error> {
    initialize()?;
    let ranks = std::env::var(RANKS).unwrap_or_default();
    let mut encoders = H264Encoder::installed(installed);
    encoders.retain(|encoder| !is_hidden(&ranks, encoder.element()) && accepts_its_settings(*encoder));
    Ok(Survey { version: gst::version_string().to_string(), encoders })
}

/// GStreamer's variable with ranks of elements, such as `nvcudah264enc:NONE,vah264enc:NONE`.
const RANKS: &str = "GST_PLUGIN_FEATURE_RANK";

/// Returns true if the variable gives an element the lowest rank: then it is not used.
fn is_hidden(ranks: &str, element: &str) -> bool {
    // The last entry counts.
    let mut ranks = ranks.split(',').rev().filter_map(|entry| entry.split_once(':'));
    let rank = ranks.find(|(name, _)| name.trim() == element);
    rank.is_some_and(|(_, rank)| rank.trim() == "0" || rank.trim().eq_ignore_ascii_case("none"))
}

/// Returns false for an encoder of hardware whose device lacks a setting that is needed.
fn accepts_its_settings(encoder: H264Encoder) -> bool {
    if !encoder.is_hardware() {
        return true;
    }
    let Ok(element) = gst::ElementFactory::make(encoder.element()).build() else { return false };
    let settings = encoder.settings(FrameRate::WAN, Purpose::File);
    settings.iter().all(|(name, value)| {
        let property = element.find_property(name);
        property.is_some_and(|property| gst::glib::Value::deserialize_with_pspec(value, &property).is_ok())
    })
}

/// Returns true if an element is installed and its library can be loaded.
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

    fn ready(spec: &str, elements: &[&str]) -> Result<Vec<H264Encoder>, Error> {
        let installed = |element: &str| elements.contains(&element);
        let survey =
            Survey { version: "GStreamer 1.22.0".into(), encoders: H264Encoder::installed(installed) };
        survey.ready_with(&spec.parse().unwrap(), installed)
    }

    #[test]
    fn missing_elements_are_reported_with_their_packages() {
        insta::assert_snapshot!(ready("a.mp4", &["appsink", "filesink", "x264enc"]).unwrap_err(), @"a.mp4 cannot be written on this machine: GStreamer has no appsrc, mp4mux (install it with `sudo apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good`)");
        insta::assert_snapshot!(ready("a.mp4", &["appsrc", "appsink", "mp4mux", "filesink"]).unwrap_err(), @"a.mp4 cannot be written on this machine: GStreamer has no H.264 encoder, none of nvcudah264enc, vah264enc, vaapih264enc, x264enc, openh264enc (install one with `sudo apt-get install gstreamer1.0-plugins-ugly`)");
        insta::assert_snapshot!(
            ready("rtmp://a/b/c", &["appsrc", "appsink", "flvmux", "x264enc"]).unwrap_err(),
            @"rtmp://a/b/c cannot be written on this machine: GStreamer has no h264parse, rtmp2sink (install it with `sudo apt-get install gstreamer1.0-plugins-bad`)"
        );
    }

    #[test]
    fn only_h264_outputs_need_an_h264_encoder() {
        let all = ["appsrc", "appsink", "mp4mux", "filesink", "vp9enc", "webmmux"];
        assert_eq!(ready("a.webm", &all).unwrap(), []);
        assert_eq!(ready("a.gif", &all).unwrap(), []);
        assert!(ready("a.mp4", &all).is_err());
        let with_encoder = [&all[..], &["x264enc"]].concat();
        assert_eq!(ready("a.mp4", &with_encoder).unwrap(), [H264Encoder::X264]);
        assert_eq!(ready("a.webm", &with_encoder).unwrap(), []);
    }

    #[test]
    fn elements_with_the_lowest_rank_are_hidden() {
        let ranks = "nvcudah264enc:NONE, vah264enc : none,x264enc:0,openh264enc:PRIMARY,vaapih264enc:MAX,vaapih264enc:NONE";
        for (element, hidden) in [
            ("nvcudah264enc", true),
            ("vah264enc", true),
            ("x264enc", true),
            ("openh264enc", false),
            ("vaapih264enc", true),
            ("nvh264enc", false),
        ] {
            assert_eq!(is_hidden(ranks, element), hidden, "{element}");
        }
        assert!(!is_hidden("", "x264enc") && !is_hidden("x264enc", "x264enc"));
    }
}
