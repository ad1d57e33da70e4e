//! Video encoders and their settings.
//!
//! The settings favour quality over file size: a bounded quantizer and practically no limit on the bit rate. A key
//! frame every half second limits the loss of a killed run, the time of seeking and the wait of a new viewer. Without
//! B-frames decoding order is display order, and a truncated file starts at 0. Without lookahead each frame leaves the
//! encoder before the next one arrives.

use bundle::units::FrameRate;

/// The purpose of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A file: high quality.
    File,
    /// Viewers over a network: low latency, and a bit rate for a common connection.
    Live,
}

/// A GStreamer H.264 encoder that accepts I420.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H264Encoder {
    /// `x264enc`: higher quality per bit, High profile.
    X264,
    /// `openh264enc`: Constrained Baseline, BSD licence. Needs `h264parse` before a muxer.
    OpenH264,
}

impl H264Encoder {
    /// All supported encoders, in order of preference. Hardware encoders are not supported: they accept other pixel
    /// formats, and their quality at a given setting differs between devices.
    pub const ALL: [Self; 2] = [Self::X264, Self::OpenH264];

    /// The best encoder whose elements are all `installed`.
    pub fn choose(installed: impl Fn(&str) -> bool) -> Option<Self> {
        Self::ALL.into_iter().find(|encoder| encoder.elements().all(&installed))
    }

    /// The name of the encoder element.
    pub fn element(self) -> &'static str {
        match self {
            Self::X264 => "x264enc",
            Self::OpenH264 => "openh264enc",
        }
    }

    /// The parser element that the muxer needs, if any.
    pub fn parser(self) -> Option<&'static str> {
        match self {
            Self::X264 => None,
            Self::OpenH264 => Some("h264parse"),
        }
    }

    /// The Debian package of its elements.
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

    /// Properties of [`Self::element`] for a clip at `rate`, as text for GStreamer.
    pub fn settings(self, rate: FrameRate, purpose: Purpose) -> Vec<(&'static str, String)> {
        let key_interval = rate.nominal().div_ceil(2).to_string();
        let (usual, highest) = match purpose {
            Purpose::File => ("14", "18"),
            Purpose::Live => ("20", "30"),
        };
        match self {
            // One thread encodes about 170 frames per second at 480p and 65 at 720p, and its output does not depend on
            // the number of cores. The rate buffer is disabled: it would limit constant quality to `bitrate`, and with
            // a large `bitrate` the stream would have an H.264 level that small devices refuse.
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
            // With `rate-control=off` it ignores the bounds of the quantizer.
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

/// Properties of `vp9enc` for a file at `rate`: constant quality, no lookahead.
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
    fn the_first_encoder_with_all_its_elements_is_chosen() {
        assert_eq!(choose(&["x264enc", "openh264enc", "h264parse"]), Some(H264Encoder::X264));
        assert_eq!(choose(&["openh264enc", "h264parse"]), Some(H264Encoder::OpenH264));
        assert_eq!(choose(&["openh264enc"]), None, "its stream cannot be muxed without the parser");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn the_key_frame_interval_is_half_a_second_rounded_up_to_frames() {
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
