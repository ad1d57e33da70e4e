//! Files that are either whole or not there.

use crate::Error;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::NamedTempFile;

/// How names of files begin that are being written, and how they end.
const PART: [&str; 2] = [".rushes-", ".part"];
/// Folders below one that is cleared of them: components, experts, their weights.
const DEPTH: usize = 3;

/// A file in the folder of `path` with a name that nobody else has, removed when it is dropped; [`publish`] gives it its
/// name.
///
/// # Errors
/// What the system said.
pub fn part_of(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let [start, end] = PART;
    // As any new file: what the user's mask takes is taken by the system.
    let permissions = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(start).suffix(end).permissions(permissions).tempfile_in(folder)
}

/// Flushes a part to disk and gives it its name, in place of what had that name.
///
/// # Errors
/// What the system said; the part is removed then.
pub fn publish(part: NamedTempFile, path: &Path) -> io::Result<()> {
    part.as_file().sync_all()?;
    part.persist(path).map(|_| ()).map_err(|error| error.error)
}

/// Writes a file under another name beside it, flushes it to disk and renames it.
///
/// # Errors
/// The path that could not be written, and what the system said. Nothing is left of the part then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = part_of(path).and_then(|mut part| {
        part.write_all(bytes)?;
        publish(part, path)
    });
    written.map_err(|source| Error::File { action: "write", path: path.to_owned(), source })
}

/// Removes the parts that dead runs left in a folder and those below it. No other run may be writing there.
pub(crate) fn clear_parts(folder: &Path) {
    clear_to(folder, DEPTH);
}

fn clear_to(folder: &Path, depth: usize) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, kind) = (entry.file_name(), entry.file_type());
        let [start, end] = PART;
        let is_part = name.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end));
        match kind {
            Ok(kind) if kind.is_dir() && depth > 0 => clear_to(&entry.path(), depth - 1),
            // One that cannot be removed wastes room and harms nothing.
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
