//! The settings that all outputs of a run share.

use super::sound::Sound;
use super::{ClipFormat, SigningKey, Tags};
use bundle::Cancel;
use std::time::Duration;

/// The settings that all outputs of a run share.
#[derive(Debug, Clone)]
pub struct OutputOptions {
    /// Size, rate and number of the frames.
    pub format: ClipFormat,
    /// The metadata of every output.
    pub tags: Tags,
    /// An output is stalled when its pipeline has work and makes no progress for this long.
    pub output_timeout: Duration,
    /// The key that mp4 files are signed with.
    pub sign: Option<SigningKey>,
    /// The audio of the clip, for outputs that carry audio.
    pub sound: Option<Sound>,
    /// Ends waiting for outputs that are blocked.
    pub cancel: Cancel,
}

impl OutputOptions {
    /// The default of `output_timeout`.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// Options with the default timeout, without audio and signature.
    pub fn new(format: ClipFormat, tags: Tags, cancel: &Cancel) -> Self {
        let output_timeout = Self::DEFAULT_TIMEOUT;
        Self { format, tags, output_timeout, sign: None, sound: None, cancel: cancel.clone() }
    }
}
