//! Folders that are `NAME.part` until they are whole.

use super::Error;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The folder of an output while it is being filled.
#[derive(Debug)]
pub(super) struct PartFolder {
    path: PathBuf,
    part: PathBuf,
    /// Open for as long as the part is ours: it carries the lock.
    lock: File,
}

impl PartFolder {
    /// Creates and locks the part of `path`. What an earlier run left in it stays until [`Self::empty`].
    ///
    /// # Errors
    /// `path` is there and is no empty folder, the part cannot be created, another run's lock.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::Unwritable { path: path.to_owned(), why };
        if path.exists() && !path.is_dir() {
            return Err(unwritable("what has this name is no folder".into()));
        }
        if std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(unwritable("the folder is there already and has something in it".into()));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let part = path.with_file_name(name);
        let cannot = |error: &io::Error| unwritable(format!("{} cannot be used: {error}", part.display()));
        match std::fs::create_dir(&part) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(&error)),
            _ => {}
        }
        let lock = File::open(&part).map_err(|error| cannot(&error))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::Busy { path: path.to_owned(), part });
        }
        Ok(Self { path: path.to_owned(), part, lock })
    }

    /// The name that it has until then.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Removes what an earlier run left in the part, which would be taken for this one's.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn empty(&self) -> io::Result<()> {
        std::fs::read_dir(&self.part)?.try_for_each(|entry| std::fs::remove_file(entry?.path()))
    }

    /// Bytes of all its files.
    pub(super) fn bytes(&self) -> u64 {
        let folder = if self.part.exists() { &self.part } else { &self.path };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// What the system said; the part stays.
    pub(super) fn publish(&self) -> Result<(), Error> {
        self.lock
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .map_err(|source| Error::Publish { part: self.part.clone(), path: self.path.clone(), source })
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        // Refused by the system unless it is empty.
        let _ = std::fs::remove_dir(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Diagnose;

    #[test]
    fn a_folder_gets_its_name_when_it_is_whole_and_not_before() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("frames");
        std::fs::create_dir(&path).unwrap();
        let folder = PartFolder::create(&path).unwrap();
        std::fs::write(folder.part().join("00001.png"), "one").unwrap();
        assert_eq!(folder.bytes(), 3);
        folder.publish().unwrap();
        assert_eq!(folder.bytes(), 3);
        drop(folder);
        assert_eq!(std::fs::read(path.join("00001.png")).unwrap(), b"one");
        let report = PartFolder::create(&path).unwrap_err().report();
        assert_eq!(report.why, "the folder is there already and has something in it");
    }

    #[test]
    fn the_part_of_an_earlier_run_is_emptied_and_an_empty_one_goes() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("frames");
        let part = parent.path().join("frames.part");
        std::fs::create_dir(&part).unwrap();
        std::fs::write(part.join("00001.png"), "old").unwrap();
        let folder = PartFolder::create(&path).unwrap();
        assert_eq!(std::fs::read_dir(&part).unwrap().count(), 1);
        folder.empty().unwrap();
        assert_eq!(std::fs::read_dir(&part).unwrap().count(), 0);
        let report = PartFolder::create(&path).unwrap_err().report();
        assert!(report.why.contains("another run"), "{report}");
        drop(folder);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
