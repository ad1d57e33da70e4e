//! Which H.264 encoder, and with which settings.
//!
//! The settings hold the picture close to the frames that came in rather than the file small: a bound on the quantizer,
//! no limit on the bit rate that matters, and a key frame every half second, so that a run which is killed loses little,
//! seeking is quick and a viewer who comes late waits little. No B-frames: the order of decoding is the order of showing,
//! and a file cut short starts at 0. No lookahead: a frame that goes in comes out before the next one is needed.

use bundle::units::FrameRate;

/// What a stream is encoded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A file: the picture close to the frames that came in.
    File,
    /// Viewers at the other end of a network: no frame waits for another, and one stream suits a common line.
    Live,
}

/// An H.264 encoder of GStreamer that takes I420.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H264Encoder {
    /// `x264enc`: the better picture for its bits, High profile.
    X264,
    /// `openh264enc`: Constrained Baseline, BSD licence. Needs `h264parse` in front of a muxer.
    OpenH264,
}

impl H264Encoder {
    /// All that are known, the best first. Encoders of graphics cards are not among them: they take other pixel formats,
    /// and their quality at a given setting differs from card to card.
    pub const ALL: [Self; 2] = [Self::X264, Self::OpenH264];

    /// The best encoder whose elements are all `installed`.
    pub fn choose(installed: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|encoder| encoder.elements().all(&installed))
    }

    /// Name of the encoding element.
    pub fn element(self) -> &'static str {
        match self {
            Self::X264 => "x264enc",
            Self::OpenH264 => "openh264enc",
        }
    }

    /// The element that turns its stream into what a muxer takes, where one is needed.
    pub fn parser(self) -> Option<&'static str> {
        match self {
            Self::X264 => None,
            Self::OpenH264 => Some("h264parse"),
        }
    }

    /// The Debian package that has its elements.
    pub fn package(self) -> &'static str {
        match self {
            Self::X264 => "gstreamer1.0-plugins-ugly",
            Self::OpenH264 => "gstreamer1.0-plugins-bad",
        }
    }

    /// All its elements, in the order in which they are linked.
    pub fn elements(self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.element()).chain(self.parser())
    }

    /// Properties of [`Self::element`] for a clip played at `rate`, as GStreamer reads them from text.
    pub fn settings(self, rate: FrameRate, purpose: Purpose) -> Vec<(&'static str, String)> {
        let key_interval = rate.nominal().div_ceil(2).to_string();
        let (usual, highest) = match purpose {
            Purpose::File => ("14", "18"),
            Purpose::Live => ("20", "30"),
        };
        match self {
            // One thread encodes 480p at some 170 and 720p at some 65 frames per second, and gives the same bytes
            // whatever the number of cores. The rate buffer would cap constant quality at `bitrate`, and with a large
            // `bitrate` it would claim an H.264 level that small devices refuse: it is switched off.
            Self::X264 => vec![
                ("speed-preset", "veryfast".into()),
                ("pass", "qual".into()),
                ("quantizer", usual.into()),
                ("qp-max", highest.into()),
                ("vbv-buf-capacity", "0".into()),
                ("bframes", "0".into()),
                ("rc-lookahead", "0".into()),
                ("sliced-threads", "false".into()),
                ("threads", "1".into()),
                ("key-int-max", key_interval),
            ],
            // With `rate-control=off` it would take no notice of the quantizer's bounds.
            Self::OpenH264 => vec![
                ("rate-control", "quality".into()),
                ("bitrate", "100000000".into()),
                ("qp-min", "10".into()),
                ("qp-max", highest.into()),
                ("enable-frame-skip", "false".into()),
                ("complexity", "high".into()),
                ("multi-thread", "1".into()),
                ("gop-size", key_interval),
            ],
        }
    }
}

/// Properties of `vp9enc` for a file played at `rate`: constant quality, no frame waits for another.
pub fn vp9_settings(rate: FrameRate) -> Vec<(&'static str, String)> {
    vec![
        ("deadline", "1".into()),
        ("cpu-used", "5".into()),
        ("lag-in-frames", "0".into()),
        ("end-usage", "cq".into()),
        ("cq-level", "14".into()),
        ("max-quantizer", "22".into()),
        ("target-bitrate", "100000000".into()),
        ("keyframe-max-dist", rate.nominal().div_ceil(2).to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(installed: &[&str]) -> Option<H264Encoder> {
        H264Encoder::choose(|element| installed.contains(&element))
    }

    #[test]
    fn the_best_whole_set_of_elements_is_chosen() {
        assert_eq!(choose(&["x264enc", "openh264enc", "h264parse"]), Some(H264Encoder::X264));
        assert_eq!(choose(&["openh264enc", "h264parse"]), Some(H264Encoder::OpenH264));
        assert_eq!(choose(&["openh264enc"]), None, "its stream cannot be muxed without the parser");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_key_frame_comes_at_least_every_half_second_rounded_up_to_frames() {
        for (fps, frames) in [(1, "1"), (15, "8"), (16, "8"), (30, "15"), (240, "120")] {
            let rate = FrameRate::try_new(fps).unwrap();
            for (encoder, property) in
                [(H264Encoder::X264, "key-int-max"), (H264Encoder::OpenH264, "gop-size")]
            {
                let settings = encoder.settings(rate, Purpose::File);
                assert!(
                    settings.contains(&(property, frames.to_owned())),
                    "{encoder:?} at {fps}: {settings:?}"
                );
            }
        }
    }
}
