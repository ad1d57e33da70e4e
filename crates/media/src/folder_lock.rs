//! One run at a time for a folder, whether it fills it from inside or from a part beside it.

use bundle::lock::{Locked, Refusal};
use bundle::output_path::identity;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Makes a folder if it is not there, and locks it, unless another run is filling its part. Whether it was made.
///
/// # Errors
/// Another lock on it or on its part, or what the system said; a folder that was made stays then.
pub(crate) fn make_locked(folder: &Path) -> Result<(Locked, bool), Refusal> {
    check_part_is_free(folder)?;
    let made = match fs::create_dir(folder) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error.into()),
    };
    Ok((lock_folder(folder)?, made))
}

/// Locks a folder that is there, unless another run is filling its part.
///
/// # Errors
/// Those of [`make_locked`].
pub(super) fn lock_folder(folder: &Path) -> Result<Locked, Refusal> {
    let lock = still_there(Locked::folder(folder))?;
    // A run that began to fill it while it was not there yet.
    check_part_is_free(folder)?;
    Ok(lock)
}

fn check_part_is_free(folder: &Path) -> Result<(), Refusal> {
    // The root has no name, and nothing beside it.
    let place = identity(folder).ok().filter(|place| place.file_name().is_some());
    match place.map(|place| Locked::folder(&outer_part(&place))) {
        Some(Err(Refusal::Busy)) => Err(Refusal::Busy),
        _ => Ok(()),
    }
}

/// A folder that was there a moment ago is another run's doing, if it is gone.
///
/// # Errors
/// Those that were met, as such.
pub(super) fn still_there(locked: Result<Locked, Refusal>) -> Result<Locked, Refusal> {
    match locked {
        Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => Err(Refusal::Busy),
        other => other,
    }
}

/// `NAME.part` beside a folder, from which it may be filled.
pub(super) fn outer_part(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".part");
    path.with_file_name(name)
}

/// Makes a folder unless it is there.
///
/// # Errors
/// What the system said.
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
    fn a_folder_whose_part_is_being_filled_is_neither_made_nor_locked() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, part) = (parent.path().join("live"), parent.path().join("live.part"));
        make_folder(&part).unwrap();
        let other = Locked::folder(&part).unwrap();
        assert!(matches!(make_locked(&folder), Err(Refusal::Busy)));
        assert!(!folder.exists());
        make_folder(&folder).unwrap();
        assert!(matches!(lock_folder(&folder), Err(Refusal::Busy)));
        drop(other);
        let (first, made) = make_locked(&folder).unwrap();
        assert!(!made && matches!(make_locked(&folder), Err(Refusal::Busy)));
        drop(first);
        fs::remove_dir(&folder).unwrap();
        assert!(make_locked(&folder).unwrap().1);
        let gone = Locked::folder(&parent.path().join("absent"));
        assert!(matches!(still_there(gone), Err(Refusal::Busy)));
    }
}
