//! Changes that are on disk when they return.

use crate::Error;
use bundle::atomic;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

/// Flushes a folder: the names in it.
///
/// # Errors
/// I/O errors.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(synced.map_err(bundle::Error::file("flush", folder))?)
}

/// Flushes a folder and everything in it. Links are not followed.
///
/// # Errors
/// I/O errors.
pub(super) fn sync_tree(folder: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(bundle::Error::file("read", folder))? {
        let entry = entry.map_err(bundle::Error::file("read", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(bundle::Error::file("read", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(bundle::Error::file("flush", &path))?;
        }
    }
    sync_folder(folder)
}

/// Replaces a file.
///
/// # Errors
/// I/O errors. The file is what it was, or what was to be written.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    atomic::write_atomic(path, bytes)?;
    sync_parent(path)
}

/// Renames a file or folder within one folder.
///
/// # Errors
/// I/O errors.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(bundle::Error::file("rename", from))?;
    sync_parent(to)
}

/// Removes a file, if it exists.
///
/// # Errors
/// I/O errors.
pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => {
            removed.map_err(bundle::Error::file("remove", path))?;
            sync_parent(path)
        }
    }
}

/// Removes a folder, if it exists. It is renamed to `aside` first, so what is left of it after a crash is not taken for
/// the whole folder. `aside` is removed too, if it exists.
///
/// # Errors
/// I/O errors.
pub(super) fn remove_folder(folder: &Path, aside: &Path) -> Result<(), Error> {
    remove_leftover(aside)?;
    match std::fs::rename(folder, aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(bundle::Error::file("remove", folder))?,
    }
    sync_parent(folder)?;
    remove_leftover(aside)
}

/// Removes a folder, if it exists. What is left of it after a crash has no meaning.
///
/// # Errors
/// I/O errors.
pub(super) fn remove_leftover(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => Ok(removed.map_err(bundle::Error::file("remove", folder))?),
    }
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), sync_folder)
}
