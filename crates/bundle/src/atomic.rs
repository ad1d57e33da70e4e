//! Atomic file writes: a file is written under another name, flushed and renamed.

use crate::Error;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::NamedTempFile;

/// Prefix and suffix of the names of part files.
const PART: [&str; 2] = [".rushes-", ".part"];
/// Levels of subfolders that are searched for abandoned parts: components, experts, their weights.
const DEPTH: usize = 3;

/// Creates a part file with a unique name in the folder of `path`. It is removed when dropped; [`publish`] renames it.
///
/// # Errors
/// I/O errors.
pub fn create_part(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let [start, end] = PART;
    // Those of any new file; the system applies the umask.
    let permissions = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(start).suffix(end).permissions(permissions).tempfile_in(folder)
}

/// Flushes a part to disk and renames it to `path`, replacing an existing file.
///
/// # Errors
/// I/O errors. The part is removed then.
pub fn publish(part: NamedTempFile, path: &Path) -> io::Result<()> {
    let (file, part) = part.into_parts();
    flush_and_rename(&file, &part, path)?;
    // The old name no longer exists, so there is nothing to remove.
    part.keep().map(drop).map_err(|error| error.error)
}

/// Flushes an open file to disk and renames it from `part` to `path`, replacing an existing file.
pub(crate) fn flush_and_rename(file: &File, part: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    std::fs::rename(part, path)
}

/// Writes a file under another name in the same folder, flushes it to disk and renames it.
///
/// # Errors
/// I/O errors, with the path. No part is left then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = create_part(path).and_then(|mut part| {
        part.write_all(bytes)?;
        publish(part, path)
    });
    written.map_err(|source| Error::File { action: "write", path: path.to_owned(), source })
}

/// Removes the parts of terminated processes in a folder and its subfolders. No other run may be writing there.
pub fn remove_parts(folder: &Path) {
    remove_parts_to(folder, DEPTH);
}

fn remove_parts_to(folder: &Path, depth: usize) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, kind) = (entry.file_name(), entry.file_type());
        let [start, end] = PART;
        let is_part = name.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end));
        match kind {
            Ok(kind) if kind.is_dir() && depth > 0 => remove_parts_to(&entry.path(), depth - 1),
            // A part that cannot be removed only takes disk space.
            Ok(kind) if kind.is_file() && is_part => drop(std::fs::remove_file(entry.path())),
            _ => {}
        }
    }
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
