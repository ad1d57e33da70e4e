//! What the server notes about a clip, in the folder of its job.
//!
//! The folder of a job is written whole before the client gets an answer, so a ticket is never lost without its job,
//! nor a job without its ticket.

use crate::loras::request::ClipLora;
use crate::webhooks::Callback;
use media::FileFormat;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The name of the file in the folder of a job.
const FILE: &str = "http.json";
/// A file that says that the client has deleted the clip.
const DELETED: &str = "http-deleted";
/// A file that says that the client has deleted the audition of the clip, which was kept.
const DELETED_AUDITION: &str = "http-audition-deleted";
/// A file that says why the frames of the clip were refused.
const REFUSED: &str = "http-refused";

/// What the server notes about a clip.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ticket {
    /// The public name of the clip.
    pub id: String,
    /// The id of the token that it belongs to; `None` if it was made without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The model as the client named it.
    pub model: String,
    /// The extension of the clip.
    pub extension: String,
    /// The clip that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remixed_from: Option<String>,
    /// The public name of the audition that it is a take of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audition: Option<String>,
    /// The LoRAs of the clip, as the client named them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<ClipLora>,
    /// The bundle that they are applied to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// A digest of what the clip is made of; absent if it goes on from another clip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Whom to tell when the clip has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) callback: Option<Callback>,
    /// The idempotency key, and the digest of the request that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Idempotency>,
}

/// An idempotency key with the request that had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Idempotency {
    /// The key.
    pub key: String,
    /// The digest of route and body.
    pub request: String,
}

impl Ticket {
    /// The file of the clip, in the folder of the clips.
    pub(crate) fn clip(&self, clips: &Path) -> PathBuf {
        clips.join(format!("{}.{}", self.id, self.extension))
    }

    /// The format of the file.
    pub(crate) fn format(&self) -> FileFormat {
        let known = FileFormat::ALL.into_iter().find(|format| format.extension() == self.extension);
        known.unwrap_or(FileFormat::Mp4)
    }

    /// Writes the ticket into the folder of a job that is being added.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), bundle::Error> {
        let path = folder.join(FILE);
        let failed = bundle::Error::file("write", &path);
        let json = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        json.and_then(|json| std::fs::write(&path, json)).map_err(failed)
    }

    /// Reads the ticket of a job; `None` if it has none, or the client has deleted the clip.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        if folder.join(DELETED).exists() {
            return None;
        }
        let path = folder.join(FILE);
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!("{} cannot be read, so its clip is not shown: {error}", path.display());
                None
            }
            Ok(bytes) => serde_json::from_slice::<Self>(&bytes)
                .map(|ticket| ticket.without_deleted(folder))
                .inspect_err(|error| {
                    tracing::error!("{} is damaged, so its clip is not shown: {error}", path.display());
                })
                .ok(),
        }
    }

    /// Notes on disk why the frames of a clip were refused.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn refuse(folder: &Path, why: &str) -> Result<(), bundle::Error> {
        bundle::atomic::write_atomic(&folder.join(REFUSED), why.as_bytes())
    }

    /// Why the frames of a clip were refused, if they were.
    pub(crate) fn refusal(folder: &Path) -> Option<String> {
        // A file that cannot be read refuses too.
        let path = folder.join(REFUSED);
        path.exists().then(|| std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string()))
    }

    /// The ticket without an audition that the client has deleted.
    fn without_deleted(mut self, folder: &Path) -> Self {
        if self.audition.is_some() && folder.join(DELETED_AUDITION).exists() {
            self.audition = None;
        }
        self
    }

    /// Notes on disk that the client has deleted the audition of the clip, and not the clip.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn delete_audition(folder: &Path) -> Result<(), bundle::Error> {
        mark(folder, DELETED_AUDITION)
    }

    /// Notes on disk that the client has deleted the clip.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn delete(folder: &Path) -> Result<(), bundle::Error> {
        mark(folder, DELETED)
    }
}

/// Puts an empty file into the folder of a job, which survives a power cut.
fn mark(folder: &Path, name: &str) -> Result<(), bundle::Error> {
    let path = folder.join(name);
    bundle::atomic::write_atomic(&path, b"")?;
    let synced = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(bundle::Error::file("write", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_audition_leaves_the_clip_that_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let audition = Some("audition_1".to_owned());
        let ticket = Ticket { id: "video_1".into(), extension: "mp4".into(), audition, ..Ticket::default() };
        ticket.write(folder.path()).unwrap();
        assert_eq!(Ticket::read(folder.path()), Some(ticket.clone()));
        Ticket::delete_audition(folder.path()).unwrap();
        assert_eq!(Ticket::read(folder.path()), Some(Ticket { audition: None, ..ticket }));
        Ticket::delete(folder.path()).unwrap();
        assert_eq!(Ticket::read(folder.path()), None);
    }
}
