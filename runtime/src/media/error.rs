//! What can go wrong between a frame and a file.

use super::encoder::H264Encoder;
use super::plugins::MissingElement;
use bundle::geometry::PixelSize;
use bundle::{Diagnose, Report};
use std::path::PathBuf;
use std::time::Duration;

/// Errors of video out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of the output ends in something that cannot be written.
    Extension {
        /// The output that was asked for.
        path: PathBuf,
    },
    /// The output cannot be created where it was asked for.
    Unwritable {
        /// The output that was asked for.
        path: PathBuf,
        /// What stands in the way.
        why: String,
    },
    /// Another run is writing the same output.
    Busy {
        /// The output that was asked for.
        path: PathBuf,
        /// The part file that the other run holds.
        part: PathBuf,
    },
    /// GStreamer cannot start at all.
    NoGStreamer {
        /// What it said.
        why: String,
    },
    /// GStreamer lacks elements that the pipeline is made of.
    MissingElements {
        /// Which, and where Debian has them.
        elements: Vec<MissingElement>,
    },
    /// None of the known H.264 encoders is installed.
    NoEncoder,
    /// A picture that 4:2:0 video cannot hold.
    OddSize {
        /// Its size.
        size: PixelSize,
    },
    /// Frames of another shape than the clip's.
    Shape {
        /// `[3,H,W]` of the clip.
        expected: [usize; 3],
        /// What came.
        found: [usize; 3],
    },
    /// The clip was finished before all its frames were there.
    FramesMissing {
        /// Frames that were announced.
        expected: usize,
        /// Frames that came through the encoder.
        found: usize,
    },
    /// No room left for the file.
    DiskFull {
        /// The file as far as it got.
        part: PathBuf,
    },
    /// An element of the pipeline failed.
    Pipeline {
        /// Its name.
        element: String,
        /// What it said.
        why: String,
    },
    /// Frames waited, and nothing moved in the pipeline.
    Stalled {
        /// The file as far as it got.
        part: PathBuf,
        /// For how long nothing moved.
        limit: Duration,
    },
    /// The finished file could not be flushed or renamed.
    Publish {
        /// The file as it lies there.
        part: PathBuf,
        /// The name it should have got.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Extension { .. } | Self::Unwritable { .. } | Self::Busy { .. } | Self::OddSize { .. } => {
                self.report_of_input()
            }
            Self::NoGStreamer { why } => Report::missing(
                "GStreamer cannot start",
                why.clone(),
                "install it with `make setup` or `sudo apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
                 gstreamer1.0-plugins-ugly`",
            ),
            Self::MissingElements { elements } => {
                let names: Vec<_> = elements.iter().map(|missing| missing.element).collect();
                let mut packages: Vec<_> = elements.iter().map(|missing| missing.package).collect();
                packages.dedup();
                Report::missing(
                    "video cannot be written on this machine",
                    format!("GStreamer has no {}", names.join(", ")),
                    format!("install it with `sudo apt-get install {}`", packages.join(" ")),
                )
            }
            Self::NoEncoder => {
                let known: Vec<_> = H264Encoder::ALL.iter().map(|encoder| encoder.element()).collect();
                Report::missing(
                    "no H.264 encoder is installed",
                    format!("GStreamer has none of {}", known.join(", ")),
                    format!("install one with `sudo apt-get install {}`", H264Encoder::ALL[0].package()),
                )
            }
            Self::Shape { expected, found } => Report::failed(
                "the decoder's frames do not fit the clip",
                format!("expected {expected:?} per frame, found {found:?}"),
                "export the checkpoint again with this version of rushes",
            ),
            Self::FramesMissing { expected, found } => Report::failed(
                "the clip is not whole",
                format!("{expected} frames were announced, {found} were encoded"),
                "run it again; what there is lies in the part file",
            ),
            Self::DiskFull { part } => Report::failed(
                format!("cannot go on writing {}", part.display()),
                "there is no room left on its disk",
                "free some room or choose another folder with -o; what was written so far can be played",
            ),
            Self::Pipeline { element, why } => Report::failed(
                format!("the video pipeline failed in {element}"),
                why.clone(),
                "see what `rushes doctor` says about this machine's encoders",
            ),
            Self::Stalled { part, limit } => Report::failed(
                format!("writing {} does not go on", part.display()),
                format!("nothing has moved in the video pipeline for {limit:?}"),
                "check that the disk answers, or choose another folder with -o",
            ),
            Self::Publish { part, path, source } => Report::failed(
                format!("cannot give {} its name {}", part.display(), path.display()),
                source.to_string(),
                "the clip in the part file is whole: rename it by hand",
            ),
        }
    }
}

impl Error {
    fn report_of_input(&self) -> Report {
        match self {
            Self::Busy { path, part } => Report::bad_input(
                format!("cannot write {}", path.display()),
                format!("another run is writing {}", part.display()),
                "wait for it, or choose another name with -o",
            ),
            Self::Unwritable { path, why } => Report::bad_input(
                format!("cannot write {}", path.display()),
                why.clone(),
                "choose a file in a folder that you may write with -o",
            ),
            Self::OddSize { size } => Report::bad_input(
                format!("a clip cannot be {size}"),
                "4:2:0 video takes an even width and height",
                "choose an even --size",
            ),
            other => Report::bad_input(
                match other {
                    Self::Extension { path } => format!("cannot write {}", path.display()),
                    _ => "cannot write the clip".to_owned(),
                },
                "the name does not end in .mp4",
                "give the output a name like clip.mp4",
            ),
        }
    }
}

bundle::display_as_report!(Error);
