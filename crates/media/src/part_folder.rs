//! Folders of numbered pictures that are named `NAME.part` until they are complete.
//!
//! An existing empty folder may be a link, a mount point or the current directory of a process, so it is not replaced:
//! the pictures are written to `NAME/frames.part` and moved up one by one. A part folder contains a marker file.
//! Nothing is removed from a folder that has no marker or contains other files.

use super::Error;
use super::folder_lock::{busy_if_removed, lock_folder, make_folder, outer_part};
use bundle::lock::{Locked, Refusal};
use bundle::output_path::{folder_of, resolved};
use bundle::part_file;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The name of the part folder in an existing folder.
const INNER_PART: &str = "frames.part";
/// The name of the marker file of a part folder.
const MARKER: &str = ".rushes";
/// The content of the marker file.
const MARKER_TEXT: &str =
    "Rushes keeps the pictures of a clip here until all are there, and removes this file then.\n";

/// The part folder of an output.
#[derive(Debug)]
pub(super) struct PartFolder {
    path: PathBuf,
    part: PathBuf,
    /// True if the part folder is in the output folder.
    inside: bool,
    /// The lock of the part folder, or of the output folder if that contains the part.
    lock: Mutex<Locked>,
}

impl PartFolder {
    /// Creates and locks the part folder of `path`. Pictures of an earlier run are kept until [`Self::empty`].
    ///
    /// # Errors
    /// Returns an error if `path` exists and is not an empty folder, if the part folder cannot be written or contains
    /// other files, or if another run has locked it.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::unwritable(path.to_owned(), why);
        let target = resolved(path).map_err(|error| unwritable(error.to_string()))?;
        if target.exists() && !target.is_dir() {
            return Err(unwritable("it exists and is not a folder".into()));
        }
        let inside = target.is_dir();
        let part = if inside { target.join(INNER_PART) } else { outer_part(&target) };
        let refused = |refusal: Refusal| match refusal {
            Refusal::Busy => Error::busy(path.to_owned(), part.clone()),
            Refusal::Foreign(why) => unwritable(format!("{} {why}", part.display())),
            Refusal::Io(error) => unwritable(reason(&part, &error)),
        };
        let lock = if inside {
            let lock = lock_folder(&target).map_err(refused)?;
            check_empty(&target).map_err(unwritable)?;
            make_folder(&part).map_err(refused)?;
            lock
        } else {
            make_folder(&part).map_err(refused)?;
            let lock = busy_if_removed(Locked::folder(&part)).map_err(refused)?;
            if target.exists() {
                // Another run has just finished. The system removes the part folder only if it is empty.
                let _ = fs::remove_dir(&part);
                return Err(refused(Refusal::Busy));
            }
            lock
        };
        check_contents(&part).map_err(unwritable)?;
        let created = Self { path: target, part, inside, lock: Mutex::new(lock) };
        let failed =
            |error: io::Error| unwritable(format!("{} cannot be written: {error}", created.part.display()));
        created.mark().and_then(|()| tempfile::tempfile_in(&created.part).map(drop)).map_err(failed)?;
        Ok(created)
    }

    fn mark(&self) -> io::Result<()> {
        fs::write(self.part.join(MARKER), MARKER_TEXT)
    }

    /// The path of the part folder.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Removes the pictures of an earlier run. A part folder that was removed meanwhile is created again.
    ///
    /// # Errors
    /// Returns an error if it contains other files or if another run has locked it. I/O errors.
    pub(super) fn empty(&self) -> io::Result<()> {
        if !self.part.exists() {
            let failed = |refusal: Refusal| match refusal {
                Refusal::Busy => io::Error::other("its part folder was removed and created by another run"),
                Refusal::Foreign(why) => io::Error::other(format!("{} {why}", self.part.display())),
                Refusal::Io(error) => error,
            };
            make_folder(&self.part).map_err(failed)?;
            if !self.inside {
                *self.lock() = Locked::folder(&self.part).map_err(failed)?;
            }
            self.mark()?;
        }
        check_contents(&self.part).map_err(io::Error::other)?;
        pictures(&self.part)?.iter().try_for_each(|name| fs::remove_file(self.part.join(name)))
    }

    /// Bytes of all pictures.
    pub(super) fn bytes(&self) -> u64 {
        let folder = if self.part.exists() { &self.part } else { &self.path };
        let names = pictures(folder).unwrap_or_default();
        names.iter().filter_map(|name| folder.join(name).metadata().ok()).map(|found| found.len()).sum()
    }

    /// Moves the pictures to the output folder.
    ///
    /// # Errors
    /// I/O errors. Pictures that were not moved are kept in the part folder.
    pub(super) fn publish(&self) -> Result<(), Error> {
        let published = if self.inside { self.move_up() } else { self.rename() };
        Ok(published.map_err(|source| part_file::Error::Publish {
            part: self.part.clone(),
            path: self.path.clone(),
            source,
        })?)
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // The lock is replaced in a single assignment, so it is valid even after a panic.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rename(&self) -> io::Result<()> {
        self.lock().handle().sync_all()?;
        fs::rename(&self.part, &self.path)?;
        // The clip is complete even if its marker cannot be removed.
        let _ = fs::remove_file(self.path.join(MARKER));
        Ok(())
    }

    fn move_up(&self) -> io::Result<()> {
        check_empty(&self.path).map_err(io::Error::other)?;
        let mut names = pictures(&self.part)?;
        names.sort();
        for name in names {
            fs::rename(self.part.join(&name), self.path.join(&name))?;
        }
        self.lock().handle().sync_all()?;
        fs::remove_file(self.part.join(MARKER))?;
        fs::remove_dir(&self.part)
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        let is_unused = self.lock().is_current() && pictures(&self.part).is_ok_and(|names| names.is_empty());
        if is_unused {
            let _ = fs::remove_file(self.part.join(MARKER));
            // The system removes it only if it is empty.
            let _ = fs::remove_dir(&self.part);
        }
    }
}

/// The reason why the part folder could not be created.
fn reason(part: &Path, error: &io::Error) -> String {
    let folder = folder_of(part);
    match error.kind() {
        io::ErrorKind::NotFound if !folder.exists() => {
            format!("the folder {} does not exist", folder.display())
        }
        _ => format!("{} cannot be used: {error}", part.display()),
    }
}

/// Returns an error if a folder contains anything but a part folder.
fn check_empty(folder: &Path) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("it cannot be read: {error}"))?;
    let is_free = entries.flatten().all(|entry| entry.file_name() == INNER_PART);
    if is_free { Ok(()) } else { Err("the folder exists and is not empty".into()) }
}

/// Returns an error if a part folder contains files that no run of Rushes wrote.
fn check_contents(part: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} cannot be read: {error}", part.display());
    if !fs::symlink_metadata(part).map_err(failed)?.is_dir() {
        return Err(format!("{} is not a folder", part.display()));
    }
    let entries = fs::read_dir(part).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(failed)?;
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let is_marked = entries.iter().any(|entry| entry.file_name() == MARKER && is_file(entry));
    let foreign = entries.iter().find(|entry| {
        let name = entry.file_name();
        !(is_marked && is_file(entry) && (name == MARKER || is_picture(&name)))
    });
    match foreign {
        Some(entry) => Err(format!("{} was not written by Rushes", entry.path().display())),
        None => Ok(()),
    }
}

fn is_picture(name: &OsStr) -> bool {
    is_numbered(name, ".png") || is_numbered(name, ".png.part")
}

/// The names of the pictures in a folder.
fn pictures(folder: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().filter(|name| is_picture(name)).collect())
}

/// Returns true if a name is a number of at least five digits followed by `ending`.
pub(super) fn is_numbered(name: &OsStr, ending: &str) -> bool {
    let number = name.as_bytes().strip_suffix(ending.as_bytes());
    number.is_some_and(|number| number.len() >= 5 && number.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::Diagnose;

    fn why(path: &Path) -> String {
        let here = folder_of(path).display().to_string();
        PartFolder::create(path).unwrap_err().report().why.replace(&here, "HERE")
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn numbers_have_five_digits_or_more() {
        let cases =
            [("00001.png", true), ("123456.png", true), ("0001.png", false), ("00001.png.part", false)];
        for (name, is) in cases {
            assert_eq!(is_numbered(name.as_ref(), ".png"), is, "{name}");
        }
    }

    #[test]
    fn a_folder_is_renamed_when_it_is_complete() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("frames");
        let folder = PartFolder::create(&path).unwrap();
        assert_eq!(folder.part(), parent.path().join("frames.part"));
        assert_eq!(why(&path), "another run or output is writing HERE/frames.part");
        fs::write(folder.part().join("00001.png"), "one").unwrap();
        assert_eq!(folder.bytes(), 3);
        assert!(!path.exists());
        folder.publish().unwrap();
        assert_eq!(folder.bytes(), 3);
        drop(folder);
        assert_eq!(names(parent.path()), ["frames"]);
        assert_eq!(names(&path), ["00001.png"]);
        assert_eq!(why(&path), "the folder exists and is not empty");
    }

    #[test]
    fn an_existing_folder_is_kept_and_filled_when_the_clip_is_complete() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink("real", at("link")).unwrap();
        drop(PartFolder::create(&at("link")).unwrap());
        assert_eq!(names(&at("real")), Vec::<String>::new());
        let folder = PartFolder::create(&at("link/")).unwrap();
        for other in ["real", "link", "real/."] {
            assert!(PartFolder::create(&at(other)).unwrap_err().report().why.contains("another run"));
        }
        fs::write(folder.part().join("00001.png"), "one").unwrap();
        fs::write(folder.part().join("00002.png"), "two").unwrap();
        assert_eq!(names(&at("real")), ["frames.part"]);
        folder.publish().unwrap();
        assert_eq!(folder.bytes(), 6);
        drop(folder);
        assert_eq!(names(&at("real")), ["00001.png", "00002.png"]);
        assert!(at("link").is_symlink());
    }

    #[test]
    fn a_folder_has_no_part_inside_and_beside_it_at_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("frames");
        let beside = PartFolder::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(why(&path).contains("another run"));
        drop(beside);
        PartFolder::create(&path).unwrap();
    }

    #[test]
    fn the_part_of_an_earlier_run_is_emptied_and_an_empty_part_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (path, part) = (parent.path().join("frames"), parent.path().join("frames.part"));
        let killed = PartFolder::create(&path).unwrap();
        for name in ["00001.png", "100000.png", "00002.png.part"] {
            fs::write(part.join(name), "old").unwrap();
        }
        drop(killed);
        let folder = PartFolder::create(&path).unwrap();
        assert_eq!(names(&part).len(), 4, "the pictures are kept until the first new picture");
        folder.empty().unwrap();
        assert_eq!(names(&part), [MARKER]);
        drop(folder);
        assert_eq!(names(parent.path()), Vec::<String>::new());
        // A part of a run that was killed before it wrote the marker.
        fs::create_dir(&part).unwrap();
        drop(PartFolder::create(&path).unwrap());
        assert_eq!(names(parent.path()), Vec::<String>::new());
    }

    #[test]
    fn a_removed_part_is_created_again() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("there")).unwrap();
        for name in ["new", "there"] {
            let path = parent.path().join(name);
            let folder = PartFolder::create(&path).unwrap();
            fs::remove_dir_all(folder.part()).unwrap();
            folder.empty().unwrap();
            assert!(why(&path).contains("another run"));
            fs::write(folder.part().join("00001.png"), "one").unwrap();
            folder.publish().unwrap();
            assert_eq!(names(&path), ["00001.png"]);
        }
    }

    #[test]
    fn nothing_is_removed_from_a_part_with_other_files() {
        let parent = tempfile::tempdir().unwrap();
        let (path, part) = (parent.path().join("frames"), parent.path().join("frames.part"));
        fs::create_dir(&part).unwrap();
        fs::write(part.join("00001.png"), "mine").unwrap();
        assert_eq!(why(&path), "HERE/frames.part/00001.png was not written by Rushes");
        assert_eq!(names(&part), ["00001.png"]);
        fs::write(part.join(MARKER), MARKER_TEXT).unwrap();
        fs::remove_file(part.join("00001.png")).unwrap();
        for name in ["1.png", "note", "00001.jpg", "0000a.png"] {
            fs::write(part.join(name), "mine").unwrap();
            assert!(why(&path).contains(name), "{name}");
            fs::remove_file(part.join(name)).unwrap();
        }
        fs::create_dir(part.join("00001.png")).unwrap();
        assert!(why(&path).contains("00001.png was not written"));
        fs::remove_dir(part.join("00001.png")).unwrap();
        std::os::unix::fs::symlink("elsewhere", part.join("00002.png")).unwrap();
        assert!(why(&path).contains("00002.png was not written"));
        assert_eq!(names(&part), [MARKER, "00002.png"]);
        fs::remove_dir_all(&part).unwrap();
        fs::write(&part, "mine").unwrap();
        assert_eq!(why(&path), "HERE/frames.part is not a folder");
        fs::remove_file(&part).unwrap();
        std::os::unix::fs::symlink("elsewhere", &part).unwrap();
        assert_eq!(why(&path), "HERE/frames.part is not a folder");
    }
}
