//! Output folders: they have another name until they are complete, and one run at a time writes them.
//!
//! ```text
//! NAME.part/lock          locked while the run is active
//!           whole/        the folder that is being filled; it becomes NAME
//!           moving        while an existing folder is filled: the list of entries moved into it
//!           replaced/     the folder that had the name before, until it is no longer read
//! ```
//!
//! The folder is created under a random name with its lock held, then renamed to `NAME.part`. The rename succeeds for
//! one run only. If the lock is free, its process has terminated and the folder is removed. A folder of that name
//! without a lock was not created by Rushes and is never touched.
//!
//! An existing empty folder, such as a mount point or the working directory, is not replaced. It is staged inside as
//! `.rushes.part` and filled by renames; the file that completes it is renamed last.

use crate::Error;
use crate::run_folder::{self, Obstacle, REPLACED, RunFolder};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The folder to fill, in the run folder.
const WHOLE: &str = "whole";
/// The list of entries moved out of it.
const MOVING: &str = "moving";
/// The stem of names inside an existing folder.
const INSIDE: &str = ".rushes";
/// An entry that the root of an empty file system may have.
const LOST_AND_FOUND: &str = "lost+found";
/// Links that are followed before they are treated as a loop.
const LINKS: usize = 40;

/// A folder that is being created.
#[derive(Debug)]
pub struct Staging {
    run_folder: RunFolder,
    /// The final path.
    target: PathBuf,
    kind: Kind,
    /// Folders above the target that were created for it, the innermost first.
    created: CreatedFolders,
}

/// The way in which the folder gets its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By a rename; the name is free.
    New,
    /// The folder exists and is filled.
    InPlace,
    /// By a rename, after the existing folder was moved away.
    Replacement,
}

impl Staging {
    /// Stages the folder `out`, which must not exist or be empty. Links are followed. Missing parent folders are
    /// created.
    ///
    /// # Errors
    /// [`Error::Taken`] if it is not empty, [`Error::Busy`] while another run creates it, [`Error::InTheWay`], and I/O
    /// errors.
    pub fn create(out: &Path) -> Result<Self, Error> {
        let target = resolved(out)?;
        let Some(entries) = entries_of(&target, out)? else { return Self::next_to(target, Kind::New) };
        let unexpected = |name: &OsString| name != LOST_AND_FOUND && name != &part_name(OsStr::new(INSIDE));
        let taken = || Error::Taken { path: out.to_owned() };
        let has_part = entries.iter().any(|name| name == &part_name(OsStr::new(INSIDE)));
        if entries.iter().any(unexpected) && !has_part {
            return Err(taken());
        }
        let run_folder = create_run_folder(&target, OsStr::new(INSIDE), out)?;
        if entries_of(&target, out)?.is_some_and(|entries| entries.iter().any(unexpected)) {
            return Err(taken());
        }
        Self::staged(run_folder, target, Kind::InPlace, CreatedFolders::default())
    }

    /// Stages a folder that replaces the one at this path, if it exists; see [`Self::publish`].
    ///
    /// # Errors
    /// Those of [`Self::create`] except [`Error::Taken`].
    pub fn replace(folder: &Path) -> Result<Self, Error> {
        Self::next_to(folder.to_owned(), Kind::Replacement)
    }

    fn next_to(target: PathBuf, kind: Kind) -> Result<Self, Error> {
        let Some(name) = target.file_name() else {
            let source = io::ErrorKind::NotFound.into();
            return Err(Error::File { action: "create", path: target, source });
        };
        let parent = parent_of(&target);
        let created = CreatedFolders::above(&parent)?;
        let run_folder = create_run_folder(&parent, name, &target)?;
        Self::staged(run_folder, target, kind, created)
    }

    fn staged(
        run_folder: RunFolder,
        target: PathBuf,
        kind: Kind,
        created: CreatedFolders,
    ) -> Result<Self, Error> {
        let whole = run_folder.path().join(WHOLE);
        fs::create_dir(&whole).map_err(Error::file("create", &whole))?;
        Ok(Self { run_folder, target, kind, created })
    }

    /// Returns the folder to fill.
    pub fn folder(&self) -> PathBuf {
        self.run_folder.path().join(WHOLE)
    }

    /// Creates a folder for temporary files. It is removed with the staging.
    ///
    /// # Errors
    /// I/O errors.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        let scratch = self.run_folder.path().join("scratch");
        fs::create_dir(&scratch).map_err(Error::file("create", &scratch))?;
        Ok(scratch)
    }

    /// Renames the folder to its final path. `last` is the entry that completes it: a folder without it is incomplete.
    ///
    /// The folder replaced by [`Self::replace`] is removed. If it is being read, a later run removes it.
    ///
    /// # Errors
    /// I/O errors, also if the path was created by another process. Nothing is left then.
    pub fn publish(mut self, last: &str) -> Result<(), Error> {
        let whole = self.folder();
        let replaced = self.run_folder.path().join(REPLACED);
        let published = match self.kind {
            Kind::New => fs::rename(&whole, &self.target),
            Kind::InPlace => move_entries(&whole, &self.target, last, &self.run_folder.path().join(MOVING)),
            Kind::Replacement => match fs::rename(&self.target, &replaced) {
                Ok(()) => fs::rename(&whole, &self.target).inspect_err(|_| {
                    // The first error is reported.
                    let _ = fs::rename(&replaced, &self.target);
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(&whole, &self.target),
                Err(error) => Err(error),
            },
        };
        published.map_err(Error::file("create", &self.target))?;
        self.created.keep();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        roll_back(self.run_folder.path());
    }
}

/// An exclusive lock for changes in a complete folder, such as a bundle.
#[derive(Debug)]
pub struct WriteLock {
    _run_folder: RunFolder,
}

impl WriteLock {
    /// Takes the lock and removes the part files of terminated processes.
    ///
    /// # Errors
    /// [`Error::Busy`] while another run has the lock, and I/O errors.
    pub fn acquire(folder: &Path) -> Result<Self, Error> {
        let run_folder = create_run_folder(folder, OsStr::new(INSIDE), folder)?;
        crate::atomic::remove_parts(folder);
        Ok(Self { _run_folder: run_folder })
    }
}

/// A folder for temporary files of a run. Each run has its own.
#[derive(Debug)]
pub struct Scratch {
    run_folder: RunFolder,
}

impl Scratch {
    /// Creates one in `parent`, with `name` in its name, and removes those of terminated processes.
    ///
    /// # Errors
    /// Returns an error if `parent` cannot be written.
    pub fn create(parent: &Path, name: &str) -> Result<Self, Error> {
        RunFolder::remove_all_abandoned(parent, OsStr::new(name));
        let run_folder = RunFolder::create_random(parent, OsStr::new(name));
        Ok(Self { run_folder: run_folder.map_err(Error::file("write into", parent))? })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        self.run_folder.path()
    }
}

/// Creates `NAME.part` in `parent` for this run.
fn create_run_folder(parent: &Path, name: &OsStr, out: &Path) -> Result<RunFolder, Error> {
    RunFolder::remove_all_abandoned(parent, name);
    let fixed = parent.join(part_name(name));
    RunFolder::create(parent, name, &fixed, &roll_back).map_err(|obstacle| match obstacle {
        Obstacle::Busy => Error::Busy { path: out.to_owned(), part: fixed.clone() },
        Obstacle::Foreign => Error::InTheWay { path: out.to_owned(), part: fixed.clone() },
        Obstacle::System(source) => Error::File { action: "write into", path: parent.to_owned(), source },
    })
}

fn part_name(name: &OsStr) -> OsString {
    run_folder::stem(name, ".part")
}

/// Resolves links. The last link may lead to a path that does not exist.
fn resolved(out: &Path) -> Result<PathBuf, Error> {
    let mut path = out.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(to) => path = parent_of(&path).join(to),
            Err(_) => {
                return match fs::canonicalize(&path) {
                    Ok(path) => Ok(path),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
                    Err(source) => Err(Error::File { action: "read", path: out.to_owned(), source }),
                };
            }
        }
    }
    Err(Error::File { action: "read", path: out.to_owned(), source: io::ErrorKind::NotFound.into() })
}

/// Returns the entries of a folder; none if it does not exist.
fn entries_of(folder: &Path, out: &Path) -> Result<Option<Vec<OsString>>, Error> {
    let listed = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>());
    match listed {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::Taken { path: out.to_owned() })
        }
        Err(source) => Err(Error::File { action: "read", path: out.to_owned(), source }),
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Moves all entries of `from` into `to`, `last` at the end. The file `list` is written before the first move.
fn move_entries(from: &Path, to: &Path, last: &str, list: &Path) -> io::Result<()> {
    let mut names =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>()?;
    names.sort_by_key(|name| name == last);
    let lines = [last.to_owned()].into_iter().chain(names.iter().map(|name| name.to_string_lossy().into()));
    fs::write(list, lines.collect::<Vec<String>>().join("\n"))?;
    for name in &names {
        // A rename would replace a file or an empty folder that was created in the meantime.
        if fs::symlink_metadata(to.join(name)).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(from.join(name), to.join(name))?;
    }
    Ok(())
}

/// Removes the entries that a run moved into its target, if the last entry is missing.
fn roll_back(folder: &Path) {
    let (Some(target), Ok(list)) = (folder.parent(), fs::read_to_string(folder.join(MOVING))) else { return };
    let mut names = list.lines();
    let Some(last) = names.next() else { return };
    if target.join(last).exists() {
        return;
    }
    // A name that is no longer in the staged folder was moved.
    let whole = folder.join(WHOLE);
    let is_plain =
        |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    for name in names.filter(is_plain).filter(|name| fs::symlink_metadata(whole.join(name)).is_err()) {
        let moved = target.join(name);
        // An entry that cannot be removed makes the folder count as not empty.
        let _ = if moved.is_dir() { fs::remove_dir_all(&moved) } else { fs::remove_file(&moved) };
    }
}

/// Parent folders that were created for a target. They are removed if the target is not published.
#[derive(Debug, Default)]
struct CreatedFolders(Vec<PathBuf>);

impl CreatedFolders {
    /// Creates `folder` and its missing parents.
    fn above(folder: &Path) -> Result<Self, Error> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let created = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        Ok(created)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedFolders {
    fn drop(&mut self) {
        // Only empty folders are removed.
        self.0.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::ReadLock;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn fill(staging: &Staging) {
        fs::create_dir(staging.folder().join("weights")).unwrap();
        fs::write(staging.folder().join("weights/w"), "new").unwrap();
        fs::write(staging.folder().join("bundle.json"), "{}").unwrap();
    }

    #[test]
    fn a_folder_has_its_name_only_once_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let staging = Staging::create(&out).unwrap();
        fill(&staging);
        assert_eq!(names(&folder.path().join("a")), ["b.part"]);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&folder.path().join("a")), ["b"]);
        assert_eq!(names(&out), ["bundle.json", "weights"]);
        assert!(matches!(Staging::create(&out), Err(Error::Taken { .. })));
        assert!(matches!(Staging::create(&out.join("bundle.json")), Err(Error::Taken { .. })));
    }

    #[test]
    fn a_staging_that_is_not_published_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::create(&folder.path().join("a/b/c")).unwrap();
        fill(&staging);
        drop(staging);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn existing_folders_are_filled_in_place() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let existing = folder.path().join("there");
        fs::create_dir(&existing).unwrap();
        fs::create_dir(existing.join(LOST_AND_FOUND)).unwrap();
        symlink("there", folder.path().join("link")).unwrap();
        symlink("../nowhere/yet", existing.join(LOST_AND_FOUND).join("dangling")).unwrap();
        let inode = fs::metadata(&existing).unwrap().ino();
        let staging = Staging::create(&folder.path().join("link")).unwrap();
        assert!(matches!(Staging::create(&existing), Err(Error::Busy { .. })));
        fill(&staging);
        assert_eq!(names(&existing), [".rushes.part", LOST_AND_FOUND]);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&existing), ["bundle.json", LOST_AND_FOUND, "weights"]);
        assert_eq!(fs::metadata(&existing).unwrap().ino(), inode);
        // A dangling link: the folder is created at its target.
        let staging = Staging::create(&existing.join(LOST_AND_FOUND).join("dangling")).unwrap();
        fill(&staging);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&existing.join("nowhere/yet")), ["bundle.json", "weights"]);
    }

    #[test]
    fn entries_moved_by_a_terminated_process_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let abandoned = |whole: &[&str]| {
            let part = folder.path().join(".rushes.part");
            fs::create_dir_all(part.join(WHOLE)).unwrap();
            fs::write(part.join("lock"), "").unwrap();
            fs::write(part.join(MOVING), "bundle.json\nweights\ntokenizer.json\n../x\nbundle.json").unwrap();
            whole.iter().for_each(|name| fs::write(part.join(WHOLE).join(name), "").unwrap());
        };
        abandoned(&["bundle.json", "tokenizer.json"]);
        fs::create_dir(folder.path().join("weights")).unwrap();
        let staging = Staging::create(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".rushes.part"]);
        drop(staging);
        // An entry that the run did not create.
        abandoned(&["bundle.json"]);
        fs::write(folder.path().join("foreign"), "").unwrap();
        assert!(matches!(Staging::create(folder.path()), Err(Error::Taken { .. })));
        assert_eq!(names(folder.path()), ["foreign"]);
        fs::remove_file(folder.path().join("foreign")).unwrap();
        // All entries were moved.
        abandoned(&[]);
        fs::write(folder.path().join("bundle.json"), "{}").unwrap();
        assert!(matches!(Staging::create(folder.path()), Err(Error::Taken { .. })));
        assert_eq!(names(folder.path()), ["bundle.json"]);
    }

    #[test]
    fn a_replaced_folder_is_kept_while_it_is_being_read() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("mini");
        let publish = || {
            let staging = Staging::replace(&target).unwrap();
            fill(&staging);
            staging.publish("bundle.json").unwrap();
        };
        publish();
        assert_eq!(names(folder.path()), ["mini"]);
        let read = ReadLock::acquire(&target);
        fs::write(target.join("old"), "").unwrap();
        publish();
        assert_eq!(names(&target), ["bundle.json", "weights"]);
        let left = names(folder.path());
        assert!(left.len() == 2 && left[1].starts_with("mini.part."), "{left:?}");
        assert!(folder.path().join(&left[1]).join(REPLACED).join("old").is_file());
        publish();
        assert_eq!(names(folder.path()).len(), 2, "it is still being read");
        drop(read);
        publish();
        assert_eq!(names(folder.path()), ["mini"]);
    }

    #[test]
    fn one_run_at_a_time_changes_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bundle.json"), "{}").unwrap();
        let first = WriteLock::acquire(folder.path()).unwrap();
        assert!(matches!(WriteLock::acquire(folder.path()), Err(Error::Busy { .. })));
        drop(first);
        fs::write(folder.path().join(".rushes-0a1b2c.part"), "half").unwrap();
        drop(WriteLock::acquire(folder.path()).unwrap());
        assert_eq!(names(folder.path()), ["bundle.json"]);
    }

    #[test]
    fn every_run_has_its_own_scratch_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) =
            (Scratch::create(folder.path(), "s").unwrap(), Scratch::create(folder.path(), "s").unwrap());
        assert_ne!(first.folder(), second.folder());
        assert!(first.folder().is_dir());
        drop((first, second));
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
