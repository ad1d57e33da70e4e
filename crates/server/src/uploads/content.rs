//! What an upload is: a picture or a sound.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an upload is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = UploadContent)]
pub(crate) enum Content {
    /// Pixels.
    Picture {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// Samples.
    Sound {
        /// Seconds.
        duration: f64,
        /// Samples per second.
        sample_rate: u32,
        /// Channels.
        channels: u16,
    },
}

impl Content {
    /// The name of the kind, for clients.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Picture { .. } => "picture",
            Self::Sound { .. } => "sound",
        }
    }

    /// The name of the file that has it, in the folder of the upload.
    pub(super) fn file(&self) -> &'static str {
        match self {
            // Without loss.
            Self::Picture { .. } => "picture.webp",
            Self::Sound { .. } => "sound.wav",
        }
    }
}

/// A decoded upload.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decoded {
    /// The file that this server has made of it: it has the pixels or samples, and nothing else of what was sent.
    pub(super) file: Vec<u8>,
    /// What it is.
    pub(super) content: Content,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_pictures_of_earlier_versions_is_read() {
        let read = |json: &str| serde_json::from_str::<Content>(json);
        assert_eq!(read(r#"{"width": 8, "height": 4}"#).unwrap(), Content::Picture { width: 8, height: 4 });
        let sound = Content::Sound { duration: 0.5, sample_rate: 44_100, channels: 2 };
        assert_eq!(read(&serde_json::to_string(&sound).unwrap()).unwrap(), sound);
        assert!(read("{}").is_err());
    }
}
