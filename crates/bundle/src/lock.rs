//! Files and folders that one process at a time may write to.
//!
//! The lock is the system's own on an open file: it ends with the process, however that ends. A name can be given to
//! another file between opening and locking, so it is looked at again once the lock is held.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How often a name may change hands while it is being locked.
const ATTEMPTS: usize = 100;

/// A file or folder that no other process has locked. Dropping it ends the lock and removes nothing.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    handle: File,
}

/// Why something cannot be locked.
#[derive(Debug)]
pub enum Refusal {
    /// Another process, or another part of this one, holds the lock.
    Busy,
    /// What has the name is not a file or folder of its own: the reason, to be said after its name.
    Foreign(&'static str),
    /// What the system said.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Locked {
    /// Opens a file for reading and writing, creates it where it is not there, and locks it. Its content stays.
    ///
    /// # Errors
    /// Another lock; a name that is a link, no ordinary file, or one of several names of a file; what the system said.
    pub fn file(path: &Path) -> Result<Self, Refusal> {
        Self::take(path, || {
            match std::fs::symlink_metadata(path) {
                Ok(found) => may_be_written(&found)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
        })
    }

    /// Locks a folder that is there.
    ///
    /// # Errors
    /// Another lock; a name that is a link or no folder; what the system said.
    pub fn folder(path: &Path) -> Result<Self, Refusal> {
        Self::take(path, || {
            if !std::fs::symlink_metadata(path)?.is_dir() {
                return Err(Refusal::Foreign("is no folder"));
            }
            Ok(File::open(path)?)
        })
    }

    fn take(path: &Path, open: impl Fn() -> Result<File, Refusal>) -> Result<Self, Refusal> {
        for _ in 0..ATTEMPTS {
            let locked = Self { path: path.to_owned(), handle: open()? };
            match locked.handle.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(Refusal::Busy),
                // Some network file systems know no locks; they work without.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            if locked.is_current() {
                return Ok(locked);
            }
        }
        Err(Refusal::Busy)
    }

    /// The open file.
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still stands for what was locked.
    pub fn is_current(&self) -> bool {
        let identity = |found: Metadata| (found.dev(), found.ino());
        match (self.handle.metadata(), std::fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(found)) => identity(ours) == identity(found),
            _ => false,
        }
    }
}

/// Refuses what would change something beyond its own name.
fn may_be_written(found: &Metadata) -> Result<(), Refusal> {
    if found.is_symlink() {
        Err(Refusal::Foreign("is a link"))
    } else if !found.is_file() {
        Err(Refusal::Foreign("is no ordinary file"))
    } else if found.nlink() > 1 {
        Err(Refusal::Foreign("is a file with several names"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_at_a_time_and_the_next_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let first = Locked::file(&file).unwrap();
        std::fs::write(&file, "first").unwrap();
        for _ in 0..2 {
            assert!(matches!(Locked::file(&file), Err(Refusal::Busy)));
        }
        assert!(first.is_current());
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        drop(first);
        Locked::file(&file).unwrap();
        let first = Locked::folder(folder.path()).unwrap();
        assert!(matches!(Locked::folder(folder.path()), Err(Refusal::Busy)));
        drop(first);
        Locked::folder(folder.path()).unwrap();
    }

    #[test]
    fn what_is_more_than_its_name_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("mine"), "mine").unwrap();
        std::fs::hard_link(at("mine"), at("hard")).unwrap();
        for (link, target) in [("soft", "mine"), ("dangling", "absent"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        std::fs::create_dir(at("folder")).unwrap();
        for name in ["hard", "soft", "dangling", "loop", "folder"] {
            assert!(matches!(Locked::file(&at(name)), Err(Refusal::Foreign(_))), "{name}");
        }
        for name in ["mine", "soft"] {
            assert!(matches!(Locked::folder(&at(name)), Err(Refusal::Foreign(_))), "{name}");
        }
        assert!(!at("absent").exists());
        assert_eq!(std::fs::read(at("mine")).unwrap(), b"mine");
        assert!(matches!(Locked::folder(&at("absent")), Err(Refusal::Io(_))));
    }

    /// Another process renames or removes the file in the moment between opening and locking.
    #[test]
    fn a_name_that_changes_hands_while_it_is_locked_is_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for removes in [true, false] {
            let opened = AtomicUsize::new(0);
            let open = || -> Result<File, Refusal> {
                let found = OpenOptions::new().write(true).create(true).truncate(false).open(&file)?;
                if opened.fetch_add(1, Ordering::Relaxed) == 0 {
                    if removes {
                        std::fs::remove_file(&file)?;
                    } else {
                        std::fs::rename(&file, folder.path().join("published"))?;
                        std::fs::write(&file, "of another")?;
                    }
                }
                Ok(found)
            };
            let locked = Locked::take(&file, open).unwrap();
            assert_eq!(opened.load(Ordering::Relaxed), 2);
            assert!(locked.is_current());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"of another");
    }
}
