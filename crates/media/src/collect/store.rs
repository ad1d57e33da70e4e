//! Where collectors of many files put them: each gets its name when it is whole.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

/// What a file is called, after its name, until it is whole.
pub(crate) const PART: &str = ".part";

/// A place for files.
pub(crate) trait Store: Debug + Send {
    /// Writes a file that is whole on the disk afterwards.
    ///
    /// # Errors
    /// What the system said; nothing of it stays then.
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Gives a file another name, in place of what had that.
    ///
    /// # Errors
    /// What the system said.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system said.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Writes a file under its name only when it is whole.
    ///
    /// # Errors
    /// What the system said; nothing of it stays then.
    fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let part = format!("{name}{PART}");
        self.write(&part, content)?;
        let named = self.rename(&part, name);
        if named.is_err() {
            // What cannot be removed is seen by its name to be no finished file.
            let _ = self.remove(&part);
        }
        named
    }
}

/// A folder that is there.
#[derive(Debug)]
pub(crate) struct FolderStore(pub(crate) PathBuf);

impl Store for FolderStore {
    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.0.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(content)?;
            // Some file systems say only now, or never, that there was no room.
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
    let why = format!("{expected} bytes were written and {found} are there");
    Err(io::Error::new(io::ErrorKind::StorageFull, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_whole_does_not_get_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore(folder.path().to_owned());
        store.put("a", b"one").unwrap();
        store.put("a", b"two").unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"two");
        fs::create_dir(folder.path().join("b")).unwrap();
        store.put("b", b"one").unwrap_err();
        // A disk without room.
        std::os::unix::fs::symlink("/dev/full", folder.path().join("c.part")).unwrap();
        assert_eq!(store.put("c", b"one").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(check_length(2, 3).unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b"]);
    }
}
