//! What the snapshot writer does to a disk, as operations that a test can record, fail and replay.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

/// Operations on the files of one folder. What they change is on disk for certain only after [`Self::sync`] and
/// [`Self::sync_folder`].
pub(super) trait Disk: Debug + Send + Sync {
    /// Creates a file, or replaces its content.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file a second name, which must be free. Where there are no hard links, copies it.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames a file, and replaces the one that has the name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, if it exists.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Waits until the content of a file is on disk.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Waits until the names of the folder are on disk.
    fn sync_folder(&self) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Disk for Folder {
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        File::create(self.0.join(name))?.write_all(bytes)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.0.join(from), self.0.join(to));
        if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(from, to)?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.0.join(name))?.sync_all()
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}
