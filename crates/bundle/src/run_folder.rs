//! Locked part folders of a run. [`crate::staging`] describes their use.

use crate::lock::{self, Attempt};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder that was replaced; it may still be read.
pub(crate) const REPLACED: &str = "replaced";
/// The locked file in the folder.
const LOCK: &str = "lock";
/// Characters of a random suffix.
const RANDOM: usize = 8;
/// Bytes of the target's name that are kept in the longer names derived from it. A file name has at most 255 bytes.
const LONGEST: usize = 200;
/// Attempts while other runs create or remove the same folder.
const ATTEMPTS: usize = 16;

/// The reason why a folder cannot be created.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// A running process has it.
    Busy,
    /// It was not created by Rushes.
    Foreign,
    /// An I/O error.
    System(io::Error),
}

/// A locked folder of this run. It is removed when dropped. If a bundle in it is being read, a later run removes it.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Carries the lock while it is open.
    _lock: File,
}

impl RunFolder {
    /// Creates a folder with a random name, `NAME.part.RANDOM`.
    pub(crate) fn create_random(parent: &Path, name: &OsStr) -> io::Result<Self> {
        let prefix = stem(name, ".part.");
        for _ in 0..ATTEMPTS {
            let path = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent)?.keep();
            match File::options().read(true).write(true).create_new(true).open(path.join(LOCK)) {
                Ok(lock) => match lock::try_exclusive(&lock) {
                    Attempt::Acquired | Attempt::Unsupported => return Ok(Self { path, _lock: lock }),
                    // Another run checks this folder, takes it for abandoned and removes it.
                    Attempt::Busy => {}
                },
                // Another run removed the folder while it was empty.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
        Err(ErrorKind::ResourceBusy.into())
    }

    /// Creates the folder `fixed`, which one run at a time can have. The folder of a terminated process is removed
    /// after a call of `on_abandoned`.
    pub(crate) fn create(
        parent: &Path,
        name: &OsStr,
        fixed: &Path,
        on_abandoned: &dyn Fn(&Path),
    ) -> Result<Self, Obstacle> {
        let mut folder = Self::create_random(parent, name).map_err(Obstacle::System)?;
        for _ in 0..ATTEMPTS {
            match fs::symlink_metadata(fixed) {
                Ok(found) if found.is_dir() => remove_abandoned(fixed, on_abandoned)?,
                Ok(_) => return Err(Obstacle::Foreign),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Obstacle::System(error)),
            }
            match fs::rename(&folder.path, fixed) {
                Ok(()) => {
                    folder.path = fixed.to_owned();
                    return Ok(folder);
                }
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(Obstacle::System(error)),
            }
        }
        Err(Obstacle::Busy)
    }

    /// Removes the folders of terminated processes that have random names.
    pub(crate) fn remove_all_abandoned(parent: &Path, name: &OsStr) {
        let prefix = stem(name, ".part.");
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let found = entry.file_name();
            let random = found.as_bytes().strip_prefix(prefix.as_bytes());
            let is_random =
                random.is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric));
            if is_random && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                // Without a lock it is being created or removed; only an empty folder can be removed.
                if fs::symlink_metadata(path.join(LOCK)).is_err() {
                    let _ = fs::remove_dir(&path);
                } else {
                    let _ = remove_abandoned(&path, &|_| ());
                }
            }
        }
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        release(&self.path);
    }
}

/// Returns `NAME`, shortened if needed, followed by `end`.
pub(crate) fn stem(name: &OsStr, end: &str) -> OsString {
    let bytes = name.as_bytes();
    let mut stem = OsStr::from_bytes(&bytes[..bytes.len().min(LONGEST)]).to_owned();
    stem.push(end);
    stem
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory)
}

/// Removes the folder of a terminated process.
fn remove_abandoned(path: &Path, on_abandoned: &dyn Fn(&Path)) -> Result<(), Obstacle> {
    let lock_path = path.join(LOCK);
    let before = identity(path);
    let lock = match File::options().read(true).write(true).open(&lock_path) {
        Ok(lock) => lock,
        // Another run has removed the folder, and a third may have created it again. A folder of a run has its lock from
        // the moment it has its name until it loses it.
        Err(_) if before.is_none() || identity(path) != before => return Ok(()),
        Err(_) => return Err(Obstacle::Foreign),
    };
    match lock::try_exclusive(&lock) {
        Attempt::Acquired => {}
        Attempt::Busy => return Err(Obstacle::Busy),
        // Without locks, a running process cannot be distinguished from a terminated one.
        Attempt::Unsupported => return Err(Obstacle::Foreign),
    }
    // Another run may have removed the folder, and a third created it again, before the lock was taken.
    if !lock::is_current(&lock, &lock_path) {
        return Ok(());
    }
    on_abandoned(path);
    release(path);
    Ok(())
}

/// What tells a folder from another one that has its name later; `None` if there is none.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Renames a folder whose lock is held, and removes it. If a bundle in it is being read, it keeps its random name until
/// a later run can remove it.
fn release(path: &Path) {
    let moved = moved_away(path).unwrap_or_else(|_| path.to_owned());
    let replaced = moved.join(REPLACED);
    if fs::symlink_metadata(&replaced).is_err() || !lock::is_being_read(&replaced) {
        remove(&moved);
    }
}

/// Renames a folder to a random name, unless it has one.
fn moved_away(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let Some(name) = name.strip_suffix(b".part") else { return Ok(path.to_owned()) };
    let prefix = stem(OsStr::from_bytes(name), ".part.");
    let parent = path.parent().unwrap_or(Path::new("."));
    let empty = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent)?;
    // An empty folder is replaced.
    fs::rename(path, empty.path())?;
    Ok(empty.keep())
}

/// Removes a folder and its contents, the lock last, so that an incomplete removal is recognised later.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name() != LOCK {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // A later run tries again.
            let _ = if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        }
    }
    if fs::read_dir(path).is_ok_and(|entries| entries.count() <= 1) {
        let _ = fs::remove_file(path.join(LOCK));
        let _ = fs::remove_dir(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn create(parent: &Path) -> Result<RunFolder, Obstacle> {
        RunFolder::create(parent, OsStr::new("b"), &parent.join("b.part"), &|_| ())
    }

    #[test]
    fn one_run_at_a_time_has_the_folder_and_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = create(folder.path()).unwrap();
        fs::create_dir(first.path().join("weights")).unwrap();
        assert!(matches!(create(folder.path()), Err(Obstacle::Busy)));
        assert_eq!(names(folder.path()), ["b.part"]);
        assert!(first.path().join("weights").is_dir());
        drop(first);
        assert_eq!(names(folder.path()), Vec::<String>::new());
        create(folder.path()).unwrap();
    }

    /// Creates the folder that a killed process leaves.
    fn abandoned(parent: &Path, name: &str) {
        fs::create_dir_all(parent.join(name).join("weights")).unwrap();
        fs::write(parent.join(name).join("weights/old.safetensors"), "old").unwrap();
        fs::write(parent.join(name).join(LOCK), "").unwrap();
    }

    #[test]
    fn folders_of_terminated_processes_are_removed_and_others_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        abandoned(folder.path(), "b.part");
        abandoned(folder.path(), "b.part.0a1b2c3d");
        for foreign in ["b.part.1", "b.part.photos12", "c.part.0a1b2c3d"] {
            fs::create_dir(folder.path().join(foreign)).unwrap();
            fs::write(folder.path().join(foreign).join("picture"), "").unwrap();
        }
        RunFolder::remove_all_abandoned(folder.path(), OsStr::new("b"));
        let created = create(folder.path()).unwrap();
        assert_eq!(names(created.path()), [LOCK]);
        drop(created);
        assert_eq!(names(folder.path()), ["b.part.1", "b.part.photos12", "c.part.0a1b2c3d"]);
    }

    #[test]
    fn a_path_without_a_lock_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("b.part");
        let make: [&dyn Fn(); 3] =
            [&|| fs::create_dir(&part).unwrap(), &|| fs::write(&part, "a file").unwrap(), &|| {
                std::os::unix::fs::symlink("elsewhere", &part).unwrap()
            }];
        for make in make {
            make();
            assert!(matches!(create(folder.path()), Err(Obstacle::Foreign)));
            assert_eq!(names(folder.path()), ["b.part"]);
            let _ = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
        }
    }

    #[test]
    fn one_of_many_concurrent_runs_gets_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..100 {
            if round % 2 == 1 {
                abandoned(folder.path(), "b.part");
            }
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| create(folder.path()))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let successes = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(successes, 1, "{results:?}");
            assert!(
                results.iter().all(|result| matches!(result, Ok(_) | Err(Obstacle::Busy))),
                "{results:?}"
            );
            drop(results);
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }
}
