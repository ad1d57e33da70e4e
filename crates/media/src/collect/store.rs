//! Storage for collectors that write many files. Each file is renamed when it is complete.
//!
//! Part files have fixed names (`NAME.part`), unlike those of `bundle::atomic`, so that the next run can recognize and
//! remove those of a killed run in a folder that also contains files of others.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// The suffix of the name of a file until it is complete.
pub(crate) const PART_SUFFIX: &str = ".part";

/// A folder of files.
pub(crate) trait Store: Debug + Send {
    /// Writes a file and flushes it to disk.
    ///
    /// # Errors
    /// I/O errors. The file is removed then.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Renames a file. An existing file is replaced.
    ///
    /// # Errors
    /// I/O errors.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// I/O errors.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Writes a part file and renames it.
    ///
    /// # Errors
    /// I/O errors. The part file is removed then.
    fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let part = format!("{name}{PART_SUFFIX}");
        self.write(&part, content)?;
        let renamed = self.rename(&part, name);
        if renamed.is_err() {
            // If it cannot be removed, its name still marks it as incomplete.
            let _ = self.remove(&part);
        }
        renamed
    }
}

/// An existing folder on disk.
#[derive(Debug)]
pub(crate) struct FolderStore(pub(crate) PathBuf);

impl Store for FolderStore {
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(content)?;
            // Some file systems report a full disk only on flush, or not at all.
            file.sync_all()?;
            check_length(file.metadata()?.len(), content.len())
        });
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }
}

fn check_length(found: u64, expected: usize) -> io::Result<()> {
    if found == expected as u64 {
        return Ok(());
    }
    let why = format!("{expected} bytes were written, but the file has {found}");
    Err(io::Error::new(io::ErrorKind::StorageFull, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_file_is_not_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore(folder.path().to_owned());
        store.put("a", b"one").unwrap();
        store.put("a", b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"two");
        fs::create_dir(folder.path().join("b")).unwrap();
        store.put("b", b"one").unwrap_err();
        // A full disk.
        std::os::unix::fs::symlink("/dev/full", folder.path().join("c.part")).unwrap();
        assert_eq!(store.put("c", b"one").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(check_length(2, 3).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }
}
