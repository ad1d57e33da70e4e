//! Video encoders and their settings.
//!
//! The settings favour quality over file size: a bounded quantizer and practically no limit on the bit rate. A key
//! frame every half second limits the loss of a killed run, the time of seeking and the wait of a new viewer. Without
//! B-frames decoding order is display order, and a truncated file starts at 0. Without lookahead each frame leaves the
//! encoder before the next one arrives.

use bundle::geometry::PixelSize;
use bundle::units::FrameRate;

/// The purpose of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A file: high quality.
    File,
    /// Viewers over a network: low latency, and a bit rate for a common connection.
    Live,
}

/// A GStreamer H.264 encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum H264Encoder {
    /// `nvcudah264enc`: NVENC of NVIDIA GPUs.
    NvCuda,
    /// `vah264enc`: VA-API.
    Va,
    /// `vaapih264enc`: VA-API, in the older plugin.
    Vaapi,
    /// `x264enc`: higher quality per bit, High profile.
    X264,
    /// `openh264enc`: Constrained Baseline, BSD licence. Needs `h264parse` before a muxer.
    OpenH264,
}

impl H264Encoder {
    /// All supported encoders, in order of preference. Those of hardware are registered only where they work.
    pub const ALL: [Self; 5] = [Self::NvCuda, Self::Va, Self::Vaapi, Self::X264, Self::OpenH264];

    /// The encoders whose elements are all `installed`, best first.
    pub fn installed(installed: impl Fn(&str) -> bool) -> Vec<Self> {
        Self::ALL.into_iter().filter(|encoder| encoder.elements().all(&installed)).collect()
    }

    /// The first of `encoders` for pictures of a size. `only_software` leaves out those of hardware.
    pub fn choose(encoders: &[Self], size: PixelSize, only_software: bool) -> Option<Self> {
        let mut suitable = encoders
            .iter()
            .filter(|encoder| encoder.takes(size) && !(only_software && encoder.is_hardware()));
        suitable.next().copied()
    }

    /// Returns true if it is not a program. The bits of its streams depend on the device and its driver.
    pub fn is_hardware(self) -> bool {
        match self {
            Self::NvCuda | Self::Va | Self::Vaapi => true,
            Self::X264 | Self::OpenH264 => false,
        }
    }

    /// Returns true if it encodes pictures of this size. Smaller or larger ones are refused by some devices: NVENC states
    /// 160x64 to 4096x4096; drivers of VA-API state no bounds, and AMD's needs 128x128.
    pub fn takes(self, size: PixelSize) -> bool {
        let (width, height) = match self {
            Self::NvCuda => (160, 64),
            Self::Va | Self::Vaapi => (128, 128),
            Self::X264 | Self::OpenH264 => return true,
        };
        (width..=4096).contains(&size.width) && (height..=4096).contains(&size.height)
    }

    /// The name of the encoder element.
    pub fn element(self) -> &'static str {
        match self {
            Self::NvCuda => "nvcudah264enc",
            Self::Va => "vah264enc",
            Self::Vaapi => "vaapih264enc",
            Self::X264 => "x264enc",
            Self::OpenH264 => "openh264enc",
        }
    }

    /// The element before it that makes NV12 of I420, if it does not accept I420.
    pub fn converter(self) -> Option<&'static str> {
        self.is_hardware().then_some("videoconvert")
    }

    /// The parser element that the muxer needs, if any.
    pub fn parser(self) -> Option<&'static str> {
        match self {
            Self::X264 => None,
            Self::NvCuda | Self::Va | Self::Vaapi | Self::OpenH264 => Some("h264parse"),
        }
    }

    /// The Debian package of its elements.
    pub fn package(self) -> &'static str {
        match self {
            Self::Vaapi => "gstreamer1.0-vaapi",
            Self::X264 => "gstreamer1.0-plugins-ugly",
            Self::NvCuda | Self::Va | Self::OpenH264 => "gstreamer1.0-plugins-bad",
        }
    }

    /// All its elements, in the order in which they are linked.
    pub fn elements(self) -> impl Iterator<Item = &'static str> {
        self.converter().into_iter().chain([self.element()]).chain(self.parser())
    }

    /// Properties of [`Self::element`] for a clip at `rate`, as text for GStreamer.
    pub fn settings(self, rate: FrameRate, purpose: Purpose) -> Vec<(&'static str, String)> {
        let key_interval = rate.nominal().div_ceil(2).to_string();
        let (usual, highest) = match purpose {
            Purpose::File => ("14", "18"),
            Purpose::Live => ("20", "30"),
        };
        match self {
            Self::NvCuda => vec![
                ("rate-control", "cqp".into()),
                ("qp-i", usual.into()),
                ("qp-p", usual.into()),
                ("gop-size", key_interval),
            ],
            Self::Va => vec![
                ("rate-control", "cqp".into()),
                ("qpi", usual.into()),
                ("qpp", usual.into()),
                ("b-frames", "0".into()),
                ("key-int-max", key_interval),
            ],
            Self::Vaapi => vec![
                ("rate-control", "cqp".into()),
                ("init-qp", usual.into()),
                ("max-bframes", "0".into()),
                ("keyframe-period", key_interval),
            ],
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

    fn choose(installed: &[&str], size: &str, only_software: bool) -> Option<H264Encoder> {
        let encoders = H264Encoder::installed(|element| installed.contains(&element));
        H264Encoder::choose(&encoders, size.parse().unwrap(), only_software)
    }

    #[test]
    fn the_first_encoder_with_all_its_elements_is_chosen() {
        let choose = |installed: &[&str]| choose(installed, "832x480", false);
        let all = [
            "openh264enc",
            "x264enc",
            "vaapih264enc",
            "vah264enc",
            "nvcudah264enc",
            "videoconvert",
            "h264parse",
        ];
        assert_eq!(choose(&all), Some(H264Encoder::NvCuda));
        let without = |names: &[&str]| {
            let left: Vec<&str> = all.into_iter().filter(|name| !names.contains(name)).collect();
            choose(&left)
        };
        assert_eq!(without(&["nvcudah264enc"]), Some(H264Encoder::Va));
        assert_eq!(without(&["nvcudah264enc", "vah264enc"]), Some(H264Encoder::Vaapi));
        assert_eq!(without(&["videoconvert"]), Some(H264Encoder::X264), "hardware takes no I420");
        assert_eq!(without(&["h264parse"]), Some(H264Encoder::X264));
        assert_eq!(choose(&["x264enc", "openh264enc", "h264parse"]), Some(H264Encoder::X264));
        assert_eq!(choose(&["openh264enc", "h264parse"]), Some(H264Encoder::OpenH264));
        assert_eq!(choose(&["openh264enc"]), None, "its stream cannot be muxed without the parser");
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn hardware_is_not_chosen_for_sizes_that_it_refuses_or_where_it_is_not_wanted() {
        let all = ["nvcudah264enc", "vah264enc", "x264enc", "videoconvert", "h264parse"];
        for (size, expected) in [
            ("64x48", H264Encoder::X264),
            ("144x144", H264Encoder::Va),
            ("160x62", H264Encoder::X264),
            ("160x64", H264Encoder::NvCuda),
            ("4096x2160", H264Encoder::NvCuda),
            ("4112x2160", H264Encoder::X264),
        ] {
            assert_eq!(choose(&all, size, false), Some(expected), "{size}");
            assert_eq!(choose(&all, size, true), Some(H264Encoder::X264), "{size}");
        }
        assert_eq!(choose(&all[..2], "832x480", true), None);
    }

    #[test]
    fn the_key_frame_interval_is_half_a_second_rounded_up_to_frames() {
        for (fps, frames) in [(1, "1"), (15, "8"), (16, "8"), (30, "15"), (240, "120")] {
            let rate = FrameRate::try_new(fps).unwrap();
            for (encoder, property) in [
                (H264Encoder::X264, "key-int-max"),
                (H264Encoder::OpenH264, "gop-size"),
                (H264Encoder::NvCuda, "gop-size"),
                (H264Encoder::Va, "key-int-max"),
                (H264Encoder::Vaapi, "keyframe-period"),
            ] {
                let settings = encoder.settings(rate, Purpose::File);
                assert!(
                    settings.contains(&(property, frames.to_owned())),
                    "{encoder:?} at {fps}: {settings:?}"
                );
            }
        }
    }
}
