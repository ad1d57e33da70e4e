//! Why a WAV file cannot be used.

use super::{HIGHEST_RATE, LOWEST_RATE, MOST_CHANNELS};
use std::time::Duration;

/// Why a WAV file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WavError {
    /// It begins like another file.
    #[error("it is no WAV file")]
    NotWav,
    /// It has fewer bytes than it says.
    #[error("`{chunk}` is cut short: it declares {declared} bytes, and {found} are there")]
    CutShort {
        /// The name of the chunk.
        chunk: String,
        /// Bytes that it declares.
        declared: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// It lacks a part.
    #[error("it has no chunk `{chunk}`")]
    Missing {
        /// The name of the chunk.
        chunk: &'static str,
    },
    /// It has a part more than once.
    #[error("it has more than one chunk `{chunk}`")]
    Repeated {
        /// The name of the chunk.
        chunk: &'static str,
    },
    /// Its samples are compressed, or of another kind.
    #[error("`format` is {name}: only uncompressed integers and floats (PCM) are read")]
    Format {
        /// The format.
        name: String,
    },
    /// It has no channel, or too many.
    #[error("`channels` is {found}: a sound has 1 to {MOST_CHANNELS}")]
    Channels {
        /// Channels that it declares.
        found: u16,
    },
    /// Its rate is outside the limits.
    #[error("`sample_rate` is {found}: it may be {LOWEST_RATE} to {HIGHEST_RATE}")]
    Rate {
        /// The rate that it declares.
        found: u32,
    },
    /// Its samples have another width.
    #[error("`bits` is {found}: integers have 8, 16, 24 or 32 bits, and floats 32")]
    Bits {
        /// The width that it declares.
        found: u16,
    },
    /// It is too long.
    #[error("`duration` is {} s: it may be {} s", found.as_secs_f32(), most.as_secs_f32())]
    Duration {
        /// Its duration.
        found: Duration,
        /// The longest duration.
        most: Duration,
    },
    /// It has no sample.
    #[error("it contains no sound")]
    Empty,
    /// A sample is infinite, or not a number.
    #[error("sample {index} is not a finite number")]
    NotFinite {
        /// The number of the sample in the file.
        index: usize,
    },
    /// Its parts contradict each other, or it cannot be read.
    #[error("it is damaged: {why}")]
    Damaged {
        /// The reason.
        why: String,
    },
}
