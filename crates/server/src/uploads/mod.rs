//! Pictures and sounds that clients upload: for a day, within a quota of their token.
//!
//! An upload is decoded at once, by decoders in Rust, and only its pixels or samples are kept ([`decoding`],
//! [`picture`], [`sound`]). What post-processing reads later is a file that this server has written. Other files are
//! refused by name ([`foreign`]). [`policy`] is the right to upload one file without a token, as the SDK of DashScope
//! does it; [`form`] reads the body, and [`routes`] has the routes.

mod content;
mod decoding;
mod foreign;
mod form;
mod picture;
mod policy;
mod routes;
mod sound;

use content::Content;
pub(crate) use routes::{policy_router, router};

use crate::access::Caller;
use crate::config::Limits;
use crate::fault::Fault;
use crate::ids;
use bundle::atomic;
use content::Decoded;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Semaphore;

/// What is known of an upload, in its folder.
const ABOUT: &str = "upload.json";
/// How long an upload is kept, in seconds.
pub(crate) const LIFE: u64 = 24 * 3600;
/// Uploads that are read at a time, each of which is kept in memory.
const READ_AT_ONCE: usize = 16;
/// Uploads that are decoded at a time, each of which may take half a gigabyte. Others wait.
const DECODED_AT_ONCE: usize = 2;
/// The longest name that is kept.
const LONGEST_NAME: usize = 100;

/// The uploads of a server.
#[derive(Debug)]
pub(crate) struct Uploads {
    folder: PathBuf,
    limits: Limits,
    /// Held while the quota is looked at and an upload is added.
    adding: Mutex<()>,
    /// Places for uploads that are read.
    reading: Semaphore,
    /// Places for uploads that are decoded.
    decoding: Semaphore,
}

/// A picture or a sound that a client has uploaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Upload {
    /// Its name on this server.
    pub(crate) id: String,
    /// The id of the token that it belongs to; `None` if it was made without one.
    pub(crate) owner: Option<String>,
    /// The name that the client has for it, without its folder.
    pub(crate) name: String,
    /// When it was uploaded, in seconds since 1970.
    pub(crate) created: u64,
    /// When it is removed.
    pub(crate) expires: u64,
    /// Bytes of the stored file.
    pub(crate) bytes: u64,
    /// What it is.
    #[serde(flatten)]
    pub(crate) content: Content,
}

impl Uploads {
    /// The uploads in a folder, which is created.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn open(folder: PathBuf, limits: Limits) -> Result<Self, bundle::Error> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)))
            .map_err(bundle::Error::file("create", &folder))?;
        let (reading, decoding) = (Semaphore::new(READ_AT_ONCE), Semaphore::new(DECODED_AT_ONCE));
        Ok(Self { folder, limits, adding: Mutex::default(), reading, decoding })
    }

    /// A new name, which nobody can guess.
    pub(crate) fn new_id() -> String {
        format!("upload_{}", ids::hex(&ids::random::<16>()))
    }

    /// Decodes a file and keeps its content under a name that was not used before. Takes a while: not for a thread that
    /// answers requests.
    ///
    /// # Errors
    /// The file is no picture or sound within the limits, the name was used, the quota is exceeded, or the disk is full.
    pub(crate) fn add(
        &self,
        id: &str,
        owner: Option<&str>,
        name: &str,
        sent: &[u8],
        now: u64,
    ) -> Result<Upload, Fault> {
        let Decoded { file, content } = decoding::decoded(sent, &self.limits)?;
        let bytes = file.len() as u64;
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_quota(owner, bytes, now)?;
        let name = plain_name(name, content.kind());
        let owner = owner.map(str::to_owned);
        let upload =
            Upload { id: id.to_owned(), owner, name, created: now, expires: now + LIFE, bytes, content };
        let folder = self.folder.join(id);
        match std::fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let message = "the upload policy was used already: ask for a new one for each file";
                return Err(Fault::conflict("policy_used", message));
            }
            Err(error) => return Err(full_or_internal(&error)),
        }
        let about = serde_json::to_vec_pretty(&upload).map_err(Fault::internal)?;
        let written = atomic::write_atomic(&self.file(&upload), &file)
            .and_then(|()| atomic::write_atomic(&folder.join(ABOUT), &about));
        if let Err(error) = written {
            // Without what is known of it, it is not an upload.
            let _ = std::fs::remove_dir_all(&folder);
            return Err(match &error {
                bundle::Error::File { source, .. } => full_or_internal(source),
                error => Fault::internal(error),
            });
        }
        Ok(upload)
    }

    fn check_quota(&self, owner: Option<&str>, bytes: u64, now: u64) -> Result<(), Fault> {
        let Limits { upload_quota, uploads, .. } = &self.limits;
        let own: Vec<Upload> = self.all().filter(|known| known.owner.as_deref() == owner).collect();
        let stored: u64 = own.iter().map(|upload| upload.bytes).sum();
        if own.len() < *uploads && stored.saturating_add(bytes) <= *upload_quota {
            return Ok(());
        }
        let free = own.iter().map(|upload| upload.expires.saturating_sub(now)).min().unwrap_or(1);
        let message = format!(
            "{} uploads with {stored} bytes are kept, and a token may have {uploads} with {upload_quota} bytes; delete \
             some, or wait until they expire",
            own.len()
        );
        Err(Fault::too_many(message, u32::try_from(free.max(1)).unwrap_or(u32::MAX)))
    }

    /// Every upload that has its file.
    fn all(&self) -> impl Iterator<Item = Upload> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| read(&entry.path()))
    }

    /// The uploads of a caller that have not expired, oldest first.
    pub(crate) fn list(&self, caller: &Caller, now: u64) -> Vec<Upload> {
        let is_seen = |upload: &Upload| caller.may_see(upload.owner.as_deref()) && now < upload.expires;
        let mut found: Vec<Upload> = self.all().filter(is_seen).collect();
        found.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        found
    }

    /// The upload of a name, if the caller may see it. The name is that of this server, or `oss://` and the key that
    /// the SDK of DashScope makes of a policy.
    ///
    /// # Errors
    /// There is none that the caller may see.
    pub(crate) fn find(&self, caller: &Caller, given: &str, now: u64) -> Result<Upload, Fault> {
        let id = match given.strip_prefix("oss://").and_then(|key| key.strip_prefix(policy::FOLDER)) {
            Some(key) => key.trim_start_matches('/').split('/').next().unwrap_or_default(),
            None => given,
        };
        let found = Some(id).filter(|id| is_id(id)).and_then(|id| read(&self.folder.join(id)));
        let found = found.filter(|upload| {
            caller.may_see(upload.owner.as_deref()) && now < upload.expires && upload.id == id
        });
        found.ok_or_else(|| Fault::not_found("upload"))
    }

    /// The file of the pixels or samples of an upload.
    pub(crate) fn file(&self, upload: &Upload) -> PathBuf {
        self.folder.join(&upload.id).join(upload.content.file())
    }

    /// Deletes an upload. Its name stays used, so that its policy cannot make it again.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn delete(&self, upload: &Upload) -> Result<(), Fault> {
        std::fs::remove_file(self.file(upload)).map_err(Fault::internal)
    }

    /// Removes what has expired.
    pub(crate) fn sweep(&self, now: u64) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if !entry.file_name().to_str().is_some_and(is_id) {
                continue;
            }
            let modified = entry.metadata().and_then(|about| about.modified()).ok();
            let age = modified.and_then(|time| time.elapsed().ok()).map_or(0, |age| age.as_secs());
            let is_over = read(&path).map_or(age > LIFE, |upload| upload.expires <= now);
            if is_over && let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }
}

/// The upload in a folder, if it has its file.
fn read(folder: &Path) -> Option<Upload> {
    let about = std::fs::read(folder.join(ABOUT)).ok()?;
    let upload: Upload = serde_json::from_slice(&about).ok()?;
    folder.join(upload.content.file()).is_file().then_some(upload)
}

/// Returns true if a text has the form of the name of an upload.
fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix("upload_").unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The last part of a name, without what cannot be seen; `without` if nothing is left.
fn plain_name(name: &str, without: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = name.chars().filter(|character| !character.is_control()).take(LONGEST_NAME).collect();
    if name.is_empty() { without.to_owned() } else { name }
}

fn full_or_internal(error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Fault::unavailable("the upload cannot be stored: the disk of the server is full")
        }
        _ => Fault::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::picture::tests::png;
    use super::sound::tests::wav;
    use super::*;

    fn uploads(folder: &Path) -> Uploads {
        let limits = Limits { uploads: 2, upload_quota: 10_000, ..Limits::default() };
        Uploads::open(folder.join("uploads"), limits).unwrap()
    }

    #[test]
    fn an_upload_is_kept_for_a_day_and_its_name_is_used_once() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        let id = Uploads::new_id();
        let upload = uploads.add(&id, None, "../a/logo.png", &png(8, 4), 100).unwrap();
        assert_eq!((&*upload.name, &upload.content), ("logo.png", &Content::Picture { width: 8, height: 4 }));
        assert_eq!(uploads.list(&Caller::Local, 100), std::slice::from_ref(&upload));
        let key = format!("oss://uploads/{id}/logo.png");
        for given in [&id, &key] {
            assert_eq!(uploads.find(&Caller::Local, given, 100).unwrap(), upload);
        }
        assert_eq!(uploads.add(&id, None, "b", &png(8, 4), 100).unwrap_err().code, "policy_used");
        assert!(uploads.find(&Caller::Local, &id, 100 + LIFE).is_err());
        uploads.delete(&upload).unwrap();
        assert!(uploads.find(&Caller::Local, &id, 100).is_err());
        assert_eq!(uploads.add(&id, None, "b", &png(8, 4), 100).unwrap_err().code, "policy_used");
        for wrong in ["", "..", "upload_", "../uploads", "oss://uploads/../x", "oss://other/x"] {
            assert_eq!(uploads.find(&Caller::Local, wrong, 100).unwrap_err().code, "not_found");
        }
    }

    #[test]
    fn a_sound_is_kept_as_a_picture_is() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        let id = Uploads::new_id();
        let upload = uploads.add(&id, None, "/", &wav(8000, 1, 800), 100).unwrap();
        assert_eq!((&*upload.name, upload.bytes), ("sound", 1644));
        assert_eq!(uploads.find(&Caller::Local, &id, 100).unwrap(), upload);
        assert!(uploads.file(&upload).ends_with("sound.wav"));
        // The quota counts what is stored.
        let full = uploads.add(&Uploads::new_id(), None, "a", &wav(8000, 2, 2100), 100).unwrap_err();
        assert_eq!(full.code, "rate_limit_exceeded");
        uploads.delete(&upload).unwrap();
        assert!(uploads.find(&Caller::Local, &id, 100).is_err());
    }

    #[test]
    fn a_token_has_a_quota_of_uploads_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        let add = |owner| uploads.add(&Uploads::new_id(), owner, "a", &png(8, 4), 100);
        add(Some("alice")).unwrap();
        add(Some("alice")).unwrap();
        let full = add(Some("alice")).unwrap_err();
        assert_eq!((full.code, full.retry_after), ("rate_limit_exceeded", Some(86_400)));
        add(Some("bob")).unwrap();
        uploads.sweep(99 + LIFE);
        assert_eq!(uploads.list(&Caller::Local, 100).len(), 3);
        uploads.sweep(100 + LIFE);
        assert_eq!(std::fs::read_dir(folder.path().join("uploads")).unwrap().count(), 0);
    }
}
