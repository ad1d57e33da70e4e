//! A locked folder of one run. See [`crate::staging`] for what it is used for.

use crate::in_use;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What had the target's name before: it may be in use.
pub(crate) const REPLACED: &str = "replaced";
/// The file that is locked.
const LOCK: &str = "lock";
/// Letters and digits of a random name.
const RANDOM: usize = 8;
/// Bytes of a target's name that are in the names beside it, which are longer: a name has at most 255.
const LONGEST: usize = 200;
/// How often something that another run just did is met before it is taken for more than chance.
const ATTEMPTS: usize = 16;

/// Why a name cannot be had.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// A run that lives has it.
    Busy,
    /// What has it was not made by a run.
    Foreign,
    /// The system refuses.
    System(io::Error),
}

/// A locked folder of this run, removed when it is dropped; with something in it that is used, by a later run.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    /// Open for as long as the folder is ours: it carries the lock.
    _lock: File,
}

impl Claim {
    /// Makes a folder with a random name, `NAME.part.RANDOM`.
    pub(crate) fn prepare(parent: &Path, name: &OsStr) -> io::Result<Self> {
        let prefix = stem(name, ".part.");
        for _ in 0..ATTEMPTS {
            let path = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent)?.keep();
            match File::options().read(true).write(true).create_new(true).open(path.join(LOCK)) {
                Ok(lock) => match lock.try_lock() {
                    // Some network file systems know no locks; they work without.
                    Ok(()) | Err(TryLockError::Error(_)) => return Ok(Self { path, _lock: lock }),
                    // Another run looks whether ours is dead, and is about to find so.
                    Err(TryLockError::WouldBlock) => {}
                },
                // Another run found the folder empty.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = fs::remove_dir(&path);
                    return Err(error);
                }
            }
        }
        Err(ErrorKind::ResourceBusy.into())
    }

    /// Makes a folder with the name `fixed`, which one run at a time has. One that a dead run left goes, after
    /// `on_dead`.
    pub(crate) fn take(
        parent: &Path,
        name: &OsStr,
        fixed: &Path,
        on_dead: &dyn Fn(&Path),
    ) -> Result<Self, Obstacle> {
        let mut claim = Self::prepare(parent, name).map_err(Obstacle::System)?;
        for _ in 0..ATTEMPTS {
            match fs::symlink_metadata(fixed) {
                Ok(found) if found.is_dir() => remove_dead(fixed, on_dead)?,
                Ok(_) => return Err(Obstacle::Foreign),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Obstacle::System(error)),
            }
            match fs::rename(&claim.path, fixed) {
                Ok(()) => {
                    claim.path = fixed.to_owned();
                    return Ok(claim);
                }
                Err(error) if is_taken(&error) => {}
                Err(error) => return Err(Obstacle::System(error)),
            }
        }
        Err(Obstacle::Busy)
    }

    /// Removes the folders that dead runs left under random names.
    pub(crate) fn clear_dead(parent: &Path, name: &OsStr) {
        let prefix = stem(name, ".part.");
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let found = entry.file_name();
            let random = found.as_bytes().strip_prefix(prefix.as_bytes());
            let is_random =
                random.is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric));
            if is_random && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                // One without a lock was just made or is almost gone; the system refuses unless it is empty.
                if fs::symlink_metadata(path.join(LOCK)).is_err() {
                    let _ = fs::remove_dir(&path);
                } else {
                    let _ = remove_dead(&path, &|_| ());
                }
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        free(&self.path);
    }
}

/// `NAME` and what follows it.
pub(crate) fn stem(name: &OsStr, end: &str) -> OsString {
    let bytes = name.as_bytes();
    let mut stem = OsStr::from_bytes(&bytes[..bytes.len().min(LONGEST)]).to_owned();
    stem.push(end);
    stem
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory)
}

/// Removes the folder of a dead run.
fn remove_dead(path: &Path, on_dead: &dyn Fn(&Path)) -> Result<(), Obstacle> {
    let lock_path = path.join(LOCK);
    let lock = match File::options().read(true).write(true).open(&lock_path) {
        Ok(lock) => lock,
        // Gone in the meantime, which is as good.
        Err(_) if fs::symlink_metadata(path).is_err() => return Ok(()),
        Err(_) => return Err(Obstacle::Foreign),
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Obstacle::Busy),
        // Whether its run lives cannot be told.
        Err(TryLockError::Error(_)) => return Err(Obstacle::Foreign),
    }
    // Another run may have cleared it, and a third begun anew, before the lock was ours.
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let is_same = match (lock.metadata(), fs::metadata(&lock_path)) {
        (Ok(ours), Ok(found)) => identity(ours) == identity(found),
        _ => false,
    };
    if !is_same {
        return Ok(());
    }
    on_dead(path);
    free(path);
    Ok(())
}

/// Frees the name of a folder whose lock is held, and removes the folder; one with something in it that is used keeps
/// its random name until a later run finds that it is used no more.
fn free(path: &Path) {
    let moved = moved_away(path).unwrap_or_else(|_| path.to_owned());
    let replaced = moved.join(REPLACED);
    if fs::symlink_metadata(&replaced).is_err() || !in_use::is_used(&replaced) {
        remove(&moved);
    }
}

/// Gives a folder a random name, unless it has one.
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

/// Removes a folder with all that is in it, its lock last, so that what is left of it is known for what it is.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name() != LOCK {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // What cannot be removed now is left for a later run.
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

    fn take(parent: &Path) -> Result<Claim, Obstacle> {
        Claim::take(parent, OsStr::new("b"), &parent.join("b.part"), &|_| ())
    }

    #[test]
    fn one_run_has_a_name_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path()).unwrap();
        fs::create_dir(first.path().join("weights")).unwrap();
        assert!(matches!(take(folder.path()), Err(Obstacle::Busy)));
        assert_eq!(names(folder.path()), ["b.part"]);
        assert!(first.path().join("weights").is_dir());
        drop(first);
        assert_eq!(names(folder.path()), Vec::<String>::new());
        take(folder.path()).unwrap();
    }

    /// What a run leaves that is killed.
    fn dead(parent: &Path, name: &str) {
        fs::create_dir_all(parent.join(name).join("weights")).unwrap();
        fs::write(parent.join(name).join("weights/old.safetensors"), "old").unwrap();
        fs::write(parent.join(name).join(LOCK), "").unwrap();
    }

    #[test]
    fn what_dead_runs_left_is_cleared_and_what_others_made_is_not() {
        let folder = tempfile::tempdir().unwrap();
        dead(folder.path(), "b.part");
        dead(folder.path(), "b.part.0a1b2c3d");
        for foreign in ["b.part.1", "b.part.photos12", "c.part.0a1b2c3d"] {
            fs::create_dir(folder.path().join(foreign)).unwrap();
            fs::write(folder.path().join(foreign).join("picture"), "").unwrap();
        }
        Claim::clear_dead(folder.path(), OsStr::new("b"));
        let claim = take(folder.path()).unwrap();
        assert_eq!(names(claim.path()), [LOCK]);
        drop(claim);
        assert_eq!(names(folder.path()), ["b.part.1", "b.part.photos12", "c.part.0a1b2c3d"]);
    }

    #[test]
    fn a_folder_without_a_lock_is_somebodys() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("b.part");
        let make: [&dyn Fn(); 3] =
            [&|| fs::create_dir(&part).unwrap(), &|| fs::write(&part, "a file").unwrap(), &|| {
                std::os::unix::fs::symlink("elsewhere", &part).unwrap()
            }];
        for make in make {
            make();
            assert!(matches!(take(folder.path()), Err(Obstacle::Foreign)));
            assert_eq!(names(folder.path()), ["b.part"]);
            let _ = fs::remove_file(&part).or_else(|_| fs::remove_dir(&part));
        }
    }

    #[test]
    fn of_many_at_once_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            if round % 2 == 1 {
                dead(folder.path(), "b.part");
            }
            let claims: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take(folder.path()))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let had = claims.iter().filter(|claim| claim.is_ok()).count();
            assert_eq!(had, 1, "{claims:?}");
            assert!(claims.iter().all(|claim| matches!(claim, Ok(_) | Err(Obstacle::Busy))), "{claims:?}");
            drop(claims);
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }
}
