//! Files that are either whole or not there.

use crate::Error;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file under a temporary name beside it, flushes it to disk and renames it.
///
/// # Errors
/// The path that could not be written, and what the system said. The temporary file is removed then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = File::create(&part)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| {
        // The first error is the one worth telling; a leftover that cannot be removed is seen by its name.
        let _ = std::fs::remove_file(&part);
        Error::File { action: "write", path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.json");
        write_atomic(&path, b"{}").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{}");
        assert!(write_atomic(&folder.path().join("no/such/folder.json"), b"x").is_err());
        std::fs::create_dir(folder.path().join("taken")).unwrap();
        assert!(write_atomic(&folder.path().join("taken"), b"x").is_err());
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["bundle.json", "taken"]);
    }
}
