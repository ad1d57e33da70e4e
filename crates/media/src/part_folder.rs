//! Folders of numbered pictures that are `NAME.part` until they are whole.
//!
//! A folder that is there already and empty may be a link, a mount point or where somebody stands, so it is kept: the
//! pictures wait in `NAME/frames.part` and move up one by one. Either part has a file in it that says whose it is:
//! nothing is removed from a folder without it, or that has anything else in it.

use super::Error;
use super::folder_lock::{lock_folder, make_folder, outer_part, still_there};
use bundle::lock::{Locked, Refusal};
use bundle::output_path::{folder_of, resolved};
use bundle::part_file;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name of the part in a folder that is there already.
const INNER_PART: &str = "frames.part";
/// Name of the file that marks a part as ours.
const MARK: &str = ".rushes";
/// What it says to those who wonder.
const MARK_TEXT: &str =
    "Rushes keeps the pictures of a clip here until all are there, and removes this file then.\n";

/// The folder of an output while it is being filled.
#[derive(Debug)]
pub(super) struct PartFolder {
    path: PathBuf,
    part: PathBuf,
    /// Whether the part lies in the folder itself.
    inside: bool,
    /// For as long as the part is ours: of the part, or of the folder that it lies in.
    lock: Mutex<Locked>,
}

impl PartFolder {
    /// Creates and locks the part of `path`. What an earlier run left in it stays until [`Self::empty`].
    ///
    /// # Errors
    /// `path` is there and is no empty folder, the part cannot be created or written or has in it what is not ours,
    /// another run's lock.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::unwritable(path.to_owned(), why);
        let place = resolved(path).map_err(|error| unwritable(error.to_string()))?;
        if place.exists() && !place.is_dir() {
            return Err(unwritable("what has this name is no folder".into()));
        }
        let inside = place.is_dir();
        let part = if inside { place.join(INNER_PART) } else { outer_part(&place) };
        let refused = |refusal: Refusal| match refusal {
            Refusal::Busy => Error::busy(path.to_owned(), part.clone()),
            Refusal::Foreign(why) => unwritable(format!("{} {why}", part.display())),
            Refusal::Io(error) => unwritable(reason(&part, &error)),
        };
        let lock = if inside {
            let lock = lock_folder(&place).map_err(refused)?;
            check_empty(&place).map_err(unwritable)?;
            make_folder(&part).map_err(refused)?;
            lock
        } else {
            make_folder(&part).map_err(refused)?;
            let lock = still_there(Locked::folder(&part)).map_err(refused)?;
            if place.exists() {
                // Another run has just finished. Refused by the system unless the part is empty.
                let _ = fs::remove_dir(&part);
                return Err(refused(Refusal::Busy));
            }
            lock
        };
        check_ours(&part).map_err(unwritable)?;
        let created = Self { path: place, part, inside, lock: Mutex::new(lock) };
        let cannot =
            |error: io::Error| unwritable(format!("{} cannot be written: {error}", created.part.display()));
        created.mark().and_then(|()| tempfile::tempfile_in(&created.part).map(drop)).map_err(cannot)?;
        Ok(created)
    }

    fn mark(&self) -> io::Result<()> {
        fs::write(self.part.join(MARK), MARK_TEXT)
    }

    /// The name that it has until then.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// Removes what an earlier run left in the part, which would be taken for this one's. A part that somebody removed
    /// while it was empty is made again.
    ///
    /// # Errors
    /// Something else is in it by now, another run has it, or what the system said.
    pub(super) fn empty(&self) -> io::Result<()> {
        if !self.part.exists() {
            let said = |refusal: Refusal| match refusal {
                Refusal::Busy => io::Error::other("its part was removed, and another run has it now"),
                Refusal::Foreign(why) => io::Error::other(format!("{} {why}", self.part.display())),
                Refusal::Io(error) => error,
            };
            make_folder(&self.part).map_err(said)?;
            if !self.inside {
                *self.lock() = Locked::folder(&self.part).map_err(said)?;
            }
            self.mark()?;
        }
        check_ours(&self.part).map_err(io::Error::other)?;
        pictures(&self.part)?.iter().try_for_each(|name| fs::remove_file(self.part.join(name)))
    }

    /// Bytes of all its pictures.
    pub(super) fn bytes(&self) -> u64 {
        let folder = if self.part.exists() { &self.part } else { &self.path };
        let names = pictures(folder).unwrap_or_default();
        names.iter().filter_map(|name| folder.join(name).metadata().ok()).map(|found| found.len()).sum()
    }

    /// Gives the pictures their place.
    ///
    /// # Errors
    /// What the system said; what has not got its place stays in the part.
    pub(super) fn publish(&self) -> Result<(), Error> {
        let published = if self.inside { self.move_up() } else { self.rename() };
        Ok(published.map_err(|source| part_file::Error::Publish {
            part: self.part.clone(),
            path: self.path.clone(),
            source,
        })?)
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // Nothing is done in between that could leave it half changed.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rename(&self) -> io::Result<()> {
        self.lock().handle().sync_all()?;
        fs::rename(&self.part, &self.path)?;
        // The clip is whole, whether its mark can be taken off or not.
        let _ = fs::remove_file(self.path.join(MARK));
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
        fs::remove_file(self.part.join(MARK))?;
        fs::remove_dir(&self.part)
    }
}

impl Drop for PartFolder {
    fn drop(&mut self) {
        let is_ours = self.lock().is_current() && pictures(&self.part).is_ok_and(|names| names.is_empty());
        if is_ours {
            let _ = fs::remove_file(self.part.join(MARK));
            // Refused by the system unless it is empty.
            let _ = fs::remove_dir(&self.part);
        }
    }
}

/// Why the part could not be created.
fn reason(part: &Path, error: &io::Error) -> String {
    let folder = folder_of(part);
    match error.kind() {
        io::ErrorKind::NotFound if !folder.exists() => {
            format!("the folder {} does not exist", folder.display())
        }
        _ => format!("{} cannot be used: {error}", part.display()),
    }
}

/// Refuses a folder with anything in it but the part of an earlier run.
fn check_empty(folder: &Path) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("it cannot be read: {error}"))?;
    let is_free = entries.flatten().all(|entry| entry.file_name() == INNER_PART);
    if is_free { Ok(()) } else { Err("the folder is there already and has something in it".into()) }
}

/// Refuses a part that has in it what no run put there.
fn check_ours(part: &Path) -> Result<(), String> {
    let cannot = |error: io::Error| format!("{} cannot be read: {error}", part.display());
    if !fs::symlink_metadata(part).map_err(cannot)?.is_dir() {
        return Err(format!("{} is no folder", part.display()));
    }
    let entries = fs::read_dir(part).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(cannot)?;
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let is_marked = entries.iter().any(|entry| entry.file_name() == MARK && is_file(entry));
    let foreign = entries.iter().find(|entry| {
        let name = entry.file_name();
        !(is_marked && is_file(entry) && (name == MARK || is_picture(&name)))
    });
    match foreign {
        Some(entry) => Err(format!("{} is in the way: no run left it there", entry.path().display())),
        None => Ok(()),
    }
}

fn is_picture(name: &OsStr) -> bool {
    is_numbered(name, ".png") || is_numbered(name, ".png.part")
}

/// The names of our files.
fn pictures(folder: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().filter(|name| is_picture(name)).collect())
}

/// Whether a name is a number of at least five digits with this ending.
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
    fn a_folder_gets_its_name_when_it_is_whole_and_not_before() {
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
        assert_eq!(why(&path), "the folder is there already and has something in it");
    }

    #[test]
    fn a_folder_that_is_there_is_kept_and_filled_when_all_is_whole() {
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
    fn a_folder_is_not_filled_from_beside_and_from_inside_at_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("frames");
        let beside = PartFolder::create(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(why(&path).contains("another run"));
        drop(beside);
        PartFolder::create(&path).unwrap();
    }

    #[test]
    fn the_part_of_an_earlier_run_is_emptied_and_an_empty_one_goes() {
        let parent = tempfile::tempdir().unwrap();
        let (path, part) = (parent.path().join("frames"), parent.path().join("frames.part"));
        let killed = PartFolder::create(&path).unwrap();
        for name in ["00001.png", "100000.png", "00002.png.part"] {
            fs::write(part.join(name), "old").unwrap();
        }
        drop(killed);
        let folder = PartFolder::create(&path).unwrap();
        assert_eq!(names(&part).len(), 4, "what is left stays until the first picture");
        folder.empty().unwrap();
        assert_eq!(names(&part), [MARK]);
        drop(folder);
        assert_eq!(names(parent.path()), Vec::<String>::new());
        // Killed before it could mark it.
        fs::create_dir(&part).unwrap();
        drop(PartFolder::create(&path).unwrap());
        assert_eq!(names(parent.path()), Vec::<String>::new());
    }

    #[test]
    fn a_part_that_somebody_removed_is_made_again() {
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
    fn nothing_is_taken_from_a_part_that_is_not_ours() {
        let parent = tempfile::tempdir().unwrap();
        let (path, part) = (parent.path().join("frames"), parent.path().join("frames.part"));
        fs::create_dir(&part).unwrap();
        fs::write(part.join("00001.png"), "mine").unwrap();
        assert_eq!(why(&path), "HERE/frames.part/00001.png is in the way: no run left it there");
        assert_eq!(names(&part), ["00001.png"]);
        fs::write(part.join(MARK), MARK_TEXT).unwrap();
        fs::remove_file(part.join("00001.png")).unwrap();
        for name in ["1.png", "note", "00001.jpg", "0000a.png"] {
            fs::write(part.join(name), "mine").unwrap();
            assert!(why(&path).contains(name), "{name}");
            fs::remove_file(part.join(name)).unwrap();
        }
        fs::create_dir(part.join("00001.png")).unwrap();
        assert!(why(&path).contains("00001.png is in the way"));
        fs::remove_dir(part.join("00001.png")).unwrap();
        std::os::unix::fs::symlink("elsewhere", part.join("00002.png")).unwrap();
        assert!(why(&path).contains("00002.png is in the way"));
        assert_eq!(names(&part), [MARK, "00002.png"]);
        fs::remove_dir_all(&part).unwrap();
        fs::write(&part, "mine").unwrap();
        assert_eq!(why(&path), "HERE/frames.part is no folder");
        fs::remove_file(&part).unwrap();
        std::os::unix::fs::symlink("elsewhere", &part).unwrap();
        assert_eq!(why(&path), "HERE/frames.part is no folder");
    }
}
