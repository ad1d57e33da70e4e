//! The bundles with LoRAs that runs keep, in the folder `loras` of their base or of the cache.

use bundle::Error;
use bundle::layout;
use bundle::lock::{Locked, Refusal};
use bundle::manifest::Bundle;
use bundle::staging::Staging;
use bundle::units::ByteCount;
use serde_json::{Value, json};
use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The record of a kept bundle: the folder of its base bundle, and BLAKE3 of the manifest of that. Its time of change is
/// that of the last use.
const RECORD: &str = "branches.json";
/// The end of the name of a folder that is being filled.
const PART: &str = ".part";

/// Why a kept bundle is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Uselessness {
    /// A run was ended while it made the bundle.
    Unfinished,
    /// A file of the bundle is missing or cannot be read.
    Damaged,
    /// It does not say what it was made of: an earlier version made it.
    NoRecord,
    /// There is no bundle any more where its base was.
    BaseGone,
    /// The base has other graphs or weights now.
    BaseChanged,
}

impl Uselessness {
    /// The reason, for messages.
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Unfinished => "it was not completed",
            Self::Damaged => "a file of it is missing or damaged",
            Self::NoRecord => "an earlier version made it",
            Self::BaseGone => "its base bundle is gone",
            Self::BaseChanged => "its base bundle has changed",
        }
    }
}

/// A kept bundle.
#[derive(Debug)]
pub(in crate::cli) struct Kept {
    pub(in crate::cli) folder: PathBuf,
    /// The size of the files that it does not share with its base.
    pub(super) bytes: ByteCount,
    /// None if a run may use it.
    pub(super) useless: Option<Uselessness>,
    /// The time since its last use.
    pub(in crate::cli) unused_for: Duration,
}

/// Writes the record of a bundle that is about to be kept in `folder`.
///
/// # Errors
/// I/O errors.
pub(super) fn write_record(folder: &Path, base: &Bundle) -> Result<(), Error> {
    let path = folder.join(RECORD);
    let absolute = fs::canonicalize(&base.folder).map_err(Error::file("read", &base.folder))?;
    let record = json!({ "base": absolute.to_string_lossy(), "manifest": base.manifest.digest().blake3 });
    fs::write(&path, record.to_string()).map_err(Error::file("write", &path))
}

/// Notes that a kept bundle is used now. On a file system that cannot be written, its age is that of its making.
pub(super) fn note_use(folder: &Path) {
    let record = File::options().write(true).open(folder.join(RECORD));
    let noted = record.and_then(|record| record.set_modified(SystemTime::now()));
    if let Err(error) = noted {
        tracing::debug!(%error, folder = %folder.display(), "the use of a bundle with LoRAs is not noted");
    }
}

/// The kept bundles in a folder `loras`; none if there is no such folder.
///
/// # Errors
/// I/O errors.
pub(in crate::cli) fn list(loras: &Path) -> Result<Vec<Kept>, Error> {
    let entries = match fs::read_dir(loras) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("read", loras))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let folder = entry.map_err(Error::file("read", loras))?.path();
        if folder.is_dir() {
            all.push(Kept::find(folder)?);
        }
    }
    all.sort_by(|one, other| one.folder.cmp(&other.folder));
    Ok(all)
}

impl Kept {
    fn find(folder: PathBuf) -> Result<Self, Error> {
        let bytes = own_bytes(&folder)?;
        let used = fs::metadata(folder.join(RECORD)).or_else(|_| fs::metadata(&folder));
        let used = used.and_then(|found| found.modified()).map_err(Error::file("read", &folder))?;
        let unused_for = SystemTime::now().duration_since(used).unwrap_or_default();
        Ok(Self { bytes, useless: uselessness(&folder), unused_for, folder })
    }

    /// Returns true if it was made of this base.
    pub(in crate::cli) fn is_of(&self, base: &Bundle) -> bool {
        let made_of = fs::canonicalize(&base.folder).ok();
        let recorded = record(&self.folder)["base"].as_str().map(PathBuf::from);
        made_of.is_some() && made_of == recorded
    }

    /// Removes it. Returns false if a run uses or makes it.
    ///
    /// # Errors
    /// I/O errors.
    pub(in crate::cli) fn remove(&self) -> Result<bool, Error> {
        let folder = &self.folder;
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(target) = name.strip_suffix(PART) {
            // Taking the lock removes what an ended run has left, and dropping it removes the folder.
            return match Staging::replace(&folder.with_file_name(target)) {
                Ok(staging) => {
                    drop(staging);
                    Ok(true)
                }
                Err(Error::Busy { .. }) => Ok(false),
                Err(error) => Err(error),
            };
        }
        match Locked::folder(folder) {
            Ok(_lock) => fs::remove_dir_all(folder).map(|()| true).map_err(Error::file("remove", folder)),
            Err(Refusal::Busy | Refusal::Foreign(_)) => Ok(false),
            Err(Refusal::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(Refusal::Io(source)) => Err(Error::File { action: "lock", path: folder.clone(), source }),
        }
    }
}

/// What a kept bundle says that it was made of; null if it says nothing.
fn record(folder: &Path) -> Value {
    let record = fs::read(folder.join(RECORD)).ok();
    record.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn uselessness(folder: &Path) -> Option<Uselessness> {
    if folder.extension().is_some_and(|extension| extension == "part") {
        return Some(Uselessness::Unfinished);
    }
    if !folder.join(layout::MANIFEST).is_file() || Bundle::open(folder).is_err() {
        return Some(Uselessness::Damaged);
    }
    let record = record(folder);
    let (Some(base), Some(manifest)) = (record["base"].as_str(), record["manifest"].as_str()) else {
        return Some(Uselessness::NoRecord);
    };
    match Bundle::read(Path::new(base)) {
        Err(_) => Some(Uselessness::BaseGone),
        Ok(base) => (base.manifest.digest().blake3 != manifest).then_some(Uselessness::BaseChanged),
    }
}

/// The size of the files in a folder that have no other name.
fn own_bytes(folder: &Path) -> Result<ByteCount, Error> {
    let mut bytes = ByteCount(0);
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        // A folder that is being filled may lose a file meanwhile.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let is_own = |found: &Metadata| found.is_file() && found.nlink() == 1;
        if found.is_dir() {
            bytes = bytes + own_bytes(&path)?;
        } else if is_own(&found) {
            bytes = bytes + ByteCount(found.len());
        }
    }
    Ok(bytes)
}
