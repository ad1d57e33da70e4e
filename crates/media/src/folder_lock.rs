//! Locks on output folders, so that one run at a time writes to each, directly or through a part folder beside it.

use bundle::lock::{Locked, Refusal};
use bundle::output_path::identity;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Creates a folder if it does not exist, and locks it. Returns true with the lock if the folder was created.
///
/// # Errors
/// Returns an error if another run has locked the folder or its part folder. I/O errors. A created folder is kept then.
pub(crate) fn make_locked(folder: &Path) -> Result<(Locked, bool), Refusal> {
    check_part_is_free(folder)?;
    let created = match fs::create_dir(folder) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error.into()),
    };
    Ok((lock_folder(folder)?, created))
}

/// Locks an existing folder.
///
/// # Errors
/// The errors of [`make_locked`].
pub(super) fn lock_folder(folder: &Path) -> Result<Locked, Refusal> {
    let lock = busy_if_removed(Locked::folder(folder))?;
    // Another run may have locked the part folder before this folder existed.
    check_part_is_free(folder)?;
    Ok(lock)
}

fn check_part_is_free(folder: &Path) -> Result<(), Refusal> {
    // The root has no name and no siblings.
    let path = identity(folder).ok().filter(|path| path.file_name().is_some());
    match path.map(|path| Locked::folder(&outer_part(&path))) {
        Some(Err(Refusal::Busy)) => Err(Refusal::Busy),
        _ => Ok(()),
    }
}

/// Turns `NotFound` into `Busy`: an existing folder that disappeared was removed by another run.
///
/// # Errors
/// All other errors are returned unchanged.
pub(super) fn busy_if_removed(locked: Result<Locked, Refusal>) -> Result<Locked, Refusal> {
    match locked {
        Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => Err(Refusal::Busy),
        other => other,
    }
}

/// The path `NAME.part` beside a folder.
pub(super) fn outer_part(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".part");
    path.with_file_name(name)
}

/// Creates a folder unless it exists.
///
/// # Errors
/// I/O errors.
pub(super) fn make_folder(path: &Path) -> Result<(), Refusal> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_locked_part_is_neither_created_nor_locked() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, part) = (parent.path().join("live"), parent.path().join("live.part"));
        make_folder(&part).unwrap();
        let other = Locked::folder(&part).unwrap();
        assert!(matches!(make_locked(&folder), Err(Refusal::Busy)));
        assert!(!folder.exists());
        make_folder(&folder).unwrap();
        assert!(matches!(lock_folder(&folder), Err(Refusal::Busy)));
        drop(other);
        let (first, created) = make_locked(&folder).unwrap();
        assert!(!created && matches!(make_locked(&folder), Err(Refusal::Busy)));
        drop(first);
        fs::remove_dir(&folder).unwrap();
        assert!(make_locked(&folder).unwrap().1);
        let removed = Locked::folder(&parent.path().join("absent"));
        assert!(matches!(busy_if_removed(removed), Err(Refusal::Busy)));
    }
}
