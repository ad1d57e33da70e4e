//! The format of a clip, and the results of writing it.

use super::OutputSpec;
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use std::fmt;
use std::path::PathBuf;

/// The format of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipFormat {
    /// Size of each frame.
    pub size: PixelSize,
    /// The frame rate.
    pub rate: FrameRate,
    /// The number of frames. `None` for a stream that runs until it is stopped.
    pub frames: Option<usize>,
}

/// A complete clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenClip {
    /// The output.
    pub output: OutputSpec,
    /// Frames in the output. Fewer than in the clip if the format cannot show them at the rate of the clip.
    pub frames: usize,
    /// Bytes of the file or folder.
    pub bytes: Option<u64>,
}

/// The remainder of a clip that was stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remainder {
    /// No frame was written. There is no file.
    Nothing,
    /// The part file or folder can be played and contains every frame that was pushed.
    Whole {
        /// The part.
        part: PathBuf,
        /// Its frames.
        frames: usize,
    },
    /// The part was not closed, but can be played up to the last write.
    UpTo {
        /// The part.
        part: PathBuf,
        /// The most frames that it can contain.
        frames: usize,
    },
    /// Frames were sent to a reader.
    Sent {
        /// The output.
        to: OutputSpec,
        /// The most frames that were sent.
        frames: usize,
    },
}

impl fmt::Display for Remainder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |frames: &usize| if *frames == 1 { "" } else { "s" };
        match self {
            Self::Nothing => write!(f, "no frame was written, nothing was kept"),
            Self::Whole { part, frames } => {
                write!(f, "kept the first {frames} frame{} in {}", plural(frames), part.display())
            }
            Self::UpTo { part, frames } => {
                write!(f, "kept up to {frames} frame{} in {}", plural(frames), part.display())
            }
            Self::Sent { to, frames } => {
                write!(f, "up to {frames} frame{} were sent to {to}", plural(frames))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remainder_is_described_in_one_line() {
        let part = PathBuf::from("clip.part.mp4");
        assert_eq!(Remainder::Nothing.to_string(), "no frame was written, nothing was kept");
        let kept = Remainder::Whole { part: part.clone(), frames: 1 };
        assert_eq!(kept.to_string(), "kept the first 1 frame in clip.part.mp4");
        assert_eq!(Remainder::UpTo { part, frames: 12 }.to_string(), "kept up to 12 frames in clip.part.mp4");
        let sent = Remainder::Sent { to: OutputSpec::Stdout, frames: 3 };
        assert_eq!(sent.to_string(), "up to 3 frames were sent to standard output");
    }
}
