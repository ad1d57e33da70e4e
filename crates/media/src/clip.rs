//! What goes into a clip and what comes out.

use super::OutputSpec;
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use std::fmt;
use std::path::PathBuf;

/// What a clip is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipFormat {
    /// Size of each frame.
    pub size: PixelSize,
    /// How fast they are played.
    pub rate: FrameRate,
    /// How many there are; none for a stream that runs until it is stopped.
    pub frames: Option<usize>,
}

/// A clip that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenClip {
    /// Where it went.
    pub output: OutputSpec,
    /// Its frames; fewer than the clip has where the format cannot show them as fast.
    pub frames: usize,
    /// Its bytes, where it is a file or a folder.
    pub bytes: Option<u64>,
}

/// What is left of a clip that was stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remainder {
    /// No frame had been written; there is no file.
    Nothing,
    /// The part file or folder can be played and holds every frame that was given.
    Whole {
        /// The part.
        part: PathBuf,
        /// Its frames.
        frames: usize,
    },
    /// The part was not closed, but plays up to what was written last.
    UpTo {
        /// The part.
        part: PathBuf,
        /// The most frames it can hold.
        frames: usize,
    },
    /// Frames went to a reader, who has them.
    Sent {
        /// To whom.
        to: OutputSpec,
        /// How many at most.
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
            Self::Sent { to, frames } => write!(f, "up to {frames} frame{} went to {to}", plural(frames)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_told_in_one_line() {
        let part = PathBuf::from("clip.part.mp4");
        assert_eq!(Remainder::Nothing.to_string(), "no frame was written, nothing was kept");
        let kept = Remainder::Whole { part: part.clone(), frames: 1 };
        assert_eq!(kept.to_string(), "kept the first 1 frame in clip.part.mp4");
        assert_eq!(Remainder::UpTo { part, frames: 12 }.to_string(), "kept up to 12 frames in clip.part.mp4");
        let sent = Remainder::Sent { to: OutputSpec::Stdout, frames: 3 };
        assert_eq!(sent.to_string(), "up to 3 frames went to standard output");
    }
}
