//! Locks on files and folders.
//!
//! A lock is an advisory lock of the system on an open file. It ends with the process. The path may be replaced between
//! opening and locking, so it is checked again once the lock is held.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts to lock a path that is replaced while it is being locked.
const ATTEMPTS: usize = 100;

/// An exclusive lock on a file or folder. Dropping it releases the lock and removes nothing.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    handle: File,
}

/// The reason why a path cannot be locked.
#[derive(Debug)]
pub enum Refusal {
    /// Another process, or another part of this one, holds the lock.
    Busy,
    /// The path is not an ordinary file or folder: a predicate for messages, such as "is a link".
    Foreign(&'static str),
    /// An I/O error.
    Io(io::Error),
}

/// The result of an attempt to lock an open file without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The lock was free and is now held.
    Acquired,
    /// Another holder has the lock.
    Busy,
    /// The file system does not support locks; some network file systems do not.
    Unsupported,
}

/// Tries to take the exclusive lock of an open file.
pub(crate) fn try_exclusive(file: &File) -> Attempt {
    match file.try_lock() {
        Ok(()) => Attempt::Acquired,
        Err(TryLockError::WouldBlock) => Attempt::Busy,
        Err(TryLockError::Error(_)) => Attempt::Unsupported,
    }
}

/// Returns true if `path` still refers to the open file.
pub(crate) fn is_current(handle: &File, path: &Path) -> bool {
    let identity = |found: Metadata| (found.dev(), found.ino());
    match (handle.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(opened), Ok(found)) => identity(opened) == identity(found),
        _ => false,
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Locked {
    /// Opens a file for reading and writing, creates it if it does not exist, and locks it. Its content is kept.
    ///
    /// # Errors
    /// Returns an error if it is locked, is a link, is not an ordinary file or has several hard links; and I/O errors.
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

    /// Locks an existing folder.
    ///
    /// # Errors
    /// Returns an error if it is locked, is a link or is not a folder; and I/O errors.
    pub fn folder(path: &Path) -> Result<Self, Refusal> {
        Self::take(path, || {
            if !std::fs::symlink_metadata(path)?.is_dir() {
                return Err(Refusal::Foreign("is not a folder"));
            }
            Ok(File::open(path)?)
        })
    }

    fn take(path: &Path, open: impl Fn() -> Result<File, Refusal>) -> Result<Self, Refusal> {
        for _ in 0..ATTEMPTS {
            let locked = Self { path: path.to_owned(), handle: open()? };
            if !is_free_soon(&locked.handle) {
                return Err(Refusal::Busy);
            }
            if locked.is_current() {
                return Ok(locked);
            }
        }
        Err(Refusal::Busy)
    }

    /// Returns the open file.
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the path still refers to the locked file.
    pub fn is_current(&self) -> bool {
        is_current(&self.handle, &self.path)
    }
}

/// Locks a file, and waits a moment if it is locked. Returns false if it stays locked.
///
/// A process that is being started has copies of all open files of the one that starts it, and with them its locks, until
/// the new program runs.
fn is_free_soon(handle: &File) -> bool {
    const TRIES: usize = 10;
    const PAUSE: Duration = Duration::from_millis(20);
    (0..TRIES).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        try_exclusive(handle) != Attempt::Busy
    })
}

/// A shared lock on a bundle that is being read. Nothing is removed from a bundle before its last read lock is
/// released.
///
/// On file systems without locks it does nothing.
#[derive(Debug)]
pub struct ReadLock {
    /// Carries the lock while it is open.
    _handle: Option<File>,
}

impl ReadLock {
    /// Locks the bundle in `folder` for reading.
    pub fn acquire(folder: &Path) -> Self {
        let handle = File::open(folder).ok().filter(|handle| handle.lock_shared().is_ok());
        Self { _handle: handle }
    }
}

/// Returns true if a [`ReadLock`] of the bundle in `folder` is held; false on file systems without locks.
pub fn is_being_read(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|handle| try_exclusive(&handle) == Attempt::Busy)
}

/// Refuses a path whose change would affect other paths.
fn may_be_written(found: &Metadata) -> Result<(), Refusal> {
    if found.is_symlink() {
        Err(Refusal::Foreign("is a link"))
    } else if !found.is_file() {
        Err(Refusal::Foreign("is not an ordinary file"))
    } else if found.nlink() > 1 {
        Err(Refusal::Foreign("is a file with several hard links"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_released_lock_can_be_taken_again() {
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
    fn links_and_other_kinds_of_file_are_refused_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "content").unwrap();
        std::fs::hard_link(at("file"), at("hard")).unwrap();
        for (link, target) in [("soft", "file"), ("dangling", "absent"), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        std::fs::create_dir(at("folder")).unwrap();
        for name in ["hard", "soft", "dangling", "loop", "folder"] {
            assert!(matches!(Locked::file(&at(name)), Err(Refusal::Foreign(_))), "{name}");
        }
        for name in ["file", "soft"] {
            assert!(matches!(Locked::folder(&at(name)), Err(Refusal::Foreign(_))), "{name}");
        }
        assert!(!at("absent").exists());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"content");
        assert!(matches!(Locked::folder(&at("absent")), Err(Refusal::Io(_))));
    }

    #[test]
    fn a_bundle_is_being_read_until_its_last_read_lock_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (ReadLock::acquire(folder.path()), ReadLock::acquire(folder.path()));
        assert!(is_being_read(folder.path()));
        drop(first);
        assert!(is_being_read(folder.path()));
        drop(second);
        assert!(!is_being_read(folder.path()));
        assert!(!is_being_read(&folder.path().join("nothing")));
    }

    /// Another process renames or removes the file between opening and locking.
    #[test]
    fn a_path_that_is_replaced_while_it_is_locked_is_opened_again() {
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
                        std::fs::write(&file, "from another process")?;
                    }
                }
                Ok(found)
            };
            let locked = Locked::take(&file, open).unwrap();
            assert_eq!(opened.load(Ordering::Relaxed), 2);
            assert!(locked.is_current());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"from another process");
    }
}
