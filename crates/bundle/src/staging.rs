//! Folders of one run: what is being made has another name until it is whole, and no two runs make the same.
//!
//! ```text
//! NAME.part/lock          locked for as long as the run lives
//!           whole/        the folder that is being filled; it becomes NAME
//!           moving        while a folder that was there already is filled: what was moved into it
//!           replaced/     what had the name before, until nobody uses it
//! ```
//!
//! The folder is made under a random name with its lock held, and then renamed to `NAME.part`, which the system does for
//! one run only. It holds a lock that is free when its run is dead, however that ended; it is cleared then. A folder of
//! that name without a lock was made by somebody else and is never touched.
//!
//! Where the folder to fill is there already and empty, as a mount point or the working folder is, it keeps its place: it
//! is staged inside as `.rushes.part` and filled by renames, the file that makes it whole last.

use crate::Error;
use crate::claim::{self, Claim, Obstacle, REPLACED};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The folder to fill, in the folder of the run.
const WHOLE: &str = "whole";
/// The list of what was moved out of it.
const MOVING: &str = "moving";
/// The stem of names inside of a folder that is there already.
const INSIDE: &str = ".rushes";
/// What the root of a file system may hold from its birth.
const LOST_AND_FOUND: &str = "lost+found";
/// Links that are followed before they are taken for a circle.
const LINKS: usize = 40;

/// A folder that is being made.
#[derive(Debug)]
pub struct Staging {
    claim: Claim,
    /// Where the folder goes.
    target: PathBuf,
    kind: Kind,
    /// Folders above the target that were made for it, the innermost first.
    made: MadeFolders,
}

/// How the folder comes to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It gets it; nothing has it.
    New,
    /// The folder is there, stays in its place and is filled.
    InPlace,
    /// It gets it from what has it.
    Replacement,
}

impl Staging {
    /// Begins to make the folder `out`, which must not be there or be empty; links are followed. Folders above it are
    /// made where they are missing.
    ///
    /// # Errors
    /// [`Error::Taken`] where something is there, [`Error::Busy`] while another run makes the same,
    /// [`Error::InTheWay`], or a place that cannot be written.
    pub fn of_folder(out: &Path) -> Result<Self, Error> {
        let target = resolved(out)?;
        let Some(entries) = entries_of(&target, out)? else { return Self::beside(target, Kind::New) };
        let unexpected = |name: &OsString| name != LOST_AND_FOUND && name != &part_name(OsStr::new(INSIDE));
        let taken = || Error::Taken { path: out.to_owned() };
        let is_left = entries.iter().any(|name| name == &part_name(OsStr::new(INSIDE)));
        if entries.iter().any(unexpected) && !is_left {
            return Err(taken());
        }
        let claim = take(&target, OsStr::new(INSIDE), out)?;
        if entries_of(&target, out)?.is_some_and(|entries| entries.iter().any(unexpected)) {
            return Err(taken());
        }
        Self::staged(claim, target, Kind::InPlace, MadeFolders::default())
    }

    /// Begins to make a folder in place of the one that has its name, if one has; see [`Self::publish`].
    ///
    /// # Errors
    /// As [`Self::of_folder`], but for [`Error::Taken`].
    pub fn of_replacement(folder: &Path) -> Result<Self, Error> {
        Self::beside(folder.to_owned(), Kind::Replacement)
    }

    fn beside(target: PathBuf, kind: Kind) -> Result<Self, Error> {
        let Some(name) = target.file_name() else {
            let source = io::ErrorKind::NotFound.into();
            return Err(Error::File { action: "create", path: target, source });
        };
        let parent = parent_of(&target);
        let made = MadeFolders::above(&parent)?;
        let claim = take(&parent, name, &target)?;
        Self::staged(claim, target, kind, made)
    }

    fn staged(claim: Claim, target: PathBuf, kind: Kind, made: MadeFolders) -> Result<Self, Error> {
        let whole = claim.path().join(WHOLE);
        fs::create_dir(&whole).map_err(Error::file("create", &whole))?;
        Ok(Self { claim, target, kind, made })
    }

    /// The folder to fill.
    pub fn folder(&self) -> PathBuf {
        self.claim.path().join(WHOLE)
    }

    /// A folder for what is needed on the way and goes with the staging.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        let scratch = self.claim.path().join("scratch");
        fs::create_dir(&scratch).map_err(Error::file("create", &scratch))?;
        Ok(scratch)
    }

    /// Gives the folder its name. `last` is the entry that makes it whole: nothing without it is taken for the folder.
    ///
    /// What [`Self::of_replacement`] replaces is removed, unless a run uses it: then a later run does.
    ///
    /// # Errors
    /// The system refuses, or the name was taken in the meantime. Nothing is left then.
    pub fn publish(mut self, last: &str) -> Result<(), Error> {
        let whole = self.folder();
        let replaced = self.claim.path().join(REPLACED);
        let published = match self.kind {
            Kind::New => fs::rename(&whole, &self.target),
            Kind::InPlace => move_entries(&whole, &self.target, last, &self.claim.path().join(MOVING)),
            Kind::Replacement => match fs::rename(&self.target, &replaced) {
                Ok(()) => fs::rename(&whole, &self.target).inspect_err(|_| {
                    // The first error is the one worth telling.
                    let _ = fs::rename(&replaced, &self.target);
                }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(&whole, &self.target),
                Err(error) => Err(error),
            },
        };
        published.map_err(Error::file("create", &self.target))?;
        self.made.keep();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        roll_back(self.claim.path());
    }
}

/// The right to change a folder that is whole, such as a bundle: one run at a time has it.
#[derive(Debug)]
pub struct Writing {
    _claim: Claim,
}

impl Writing {
    /// Takes the right. What a dead run left is cleared.
    ///
    /// # Errors
    /// [`Error::Busy`] while another run has it, or a folder that cannot be written.
    pub fn of(folder: &Path) -> Result<Self, Error> {
        let claim = take(folder, OsStr::new(INSIDE), folder)?;
        crate::atomic::clear_parts(folder);
        Ok(Self { _claim: claim })
    }
}

/// A folder for what is only needed while the run lives; any number of runs have one each.
#[derive(Debug)]
pub struct Scratch {
    claim: Claim,
}

impl Scratch {
    /// Makes one in `parent`, with `name` in its name, and clears those of dead runs.
    ///
    /// # Errors
    /// `parent` cannot be written.
    pub fn create(parent: &Path, name: &str) -> Result<Self, Error> {
        Claim::clear_dead(parent, OsStr::new(name));
        let claim = Claim::prepare(parent, OsStr::new(name)).map_err(Error::file("write into", parent))?;
        Ok(Self { claim })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.claim.path()
    }
}

/// Takes `NAME.part` in `parent` for this run.
fn take(parent: &Path, name: &OsStr, out: &Path) -> Result<Claim, Error> {
    Claim::clear_dead(parent, name);
    let fixed = parent.join(part_name(name));
    Claim::take(parent, name, &fixed, &roll_back).map_err(|obstacle| match obstacle {
        Obstacle::Busy => Error::Busy { path: out.to_owned(), part: fixed.clone() },
        Obstacle::Foreign => Error::InTheWay { path: out.to_owned(), part: fixed.clone() },
        Obstacle::System(source) => Error::File { action: "write into", path: parent.to_owned(), source },
    })
}

fn part_name(name: &OsStr) -> OsString {
    claim::stem(name, ".part")
}

/// The path that links end in; the last of them may lead to nothing yet.
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

/// What a folder holds; nothing where there is none.
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

/// Moves all entries of `from` into `to`, `last` at the end. `list` names them before the first is moved.
fn move_entries(from: &Path, to: &Path, last: &str, list: &Path) -> io::Result<()> {
    let mut names =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>()?;
    names.sort_by_key(|name| name == last);
    let lines = [last.to_owned()].into_iter().chain(names.iter().map(|name| name.to_string_lossy().into()));
    fs::write(list, lines.collect::<Vec<String>>().join("\n"))?;
    for name in &names {
        // An empty folder would be replaced, and a file too: neither was there when the folder was taken.
        if fs::symlink_metadata(to.join(name)).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(from.join(name), to.join(name))?;
    }
    Ok(())
}

/// Takes back what a run moved into its target when it did not come to the last entry; and gives a name back whose folder
/// was to be replaced.
fn roll_back(folder: &Path) {
    let (Some(target), Ok(list)) = (folder.parent(), fs::read_to_string(folder.join(MOVING))) else { return };
    let mut names = list.lines();
    let Some(last) = names.next() else { return };
    if target.join(last).exists() {
        return;
    }
    // A name that is not in the staged folder any more was moved.
    let whole = folder.join(WHOLE);
    let is_plain =
        |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    for name in names.filter(is_plain).filter(|name| fs::symlink_metadata(whole.join(name)).is_err()) {
        let moved = target.join(name);
        // What cannot be removed keeps the folder from being taken for empty.
        let _ = if moved.is_dir() { fs::remove_dir_all(&moved) } else { fs::remove_file(&moved) };
    }
}

/// Folders that were made on the way to a target; they go again where nothing came of it.
#[derive(Debug, Default)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes `folder` and what is missing above it.
    fn above(folder: &Path) -> Result<Self, Error> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made = Self(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        Ok(made)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // The system refuses where something came into one.
        self.0.iter().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_use::InUse;

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
    fn a_folder_gets_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let staging = Staging::of_folder(&out).unwrap();
        fill(&staging);
        assert_eq!(names(&folder.path().join("a")), ["b.part"]);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&folder.path().join("a")), ["b"]);
        assert_eq!(names(&out), ["bundle.json", "weights"]);
        assert!(matches!(Staging::of_folder(&out), Err(Error::Taken { .. })));
        assert!(matches!(Staging::of_folder(&out.join("bundle.json")), Err(Error::Taken { .. })));
    }

    #[test]
    fn what_comes_to_nothing_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::of_folder(&folder.path().join("a/b/c")).unwrap();
        fill(&staging);
        drop(staging);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn folders_that_are_there_keep_their_place() {
        use std::os::unix::fs::{MetadataExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        fs::create_dir(&there).unwrap();
        fs::create_dir(there.join(LOST_AND_FOUND)).unwrap();
        symlink("there", folder.path().join("link")).unwrap();
        symlink("../nowhere/yet", there.join(LOST_AND_FOUND).join("dangling")).unwrap();
        let inode = fs::metadata(&there).unwrap().ino();
        let staging = Staging::of_folder(&folder.path().join("link")).unwrap();
        assert!(matches!(Staging::of_folder(&there), Err(Error::Busy { .. })));
        fill(&staging);
        assert_eq!(names(&there), [".rushes.part", LOST_AND_FOUND]);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&there), ["bundle.json", LOST_AND_FOUND, "weights"]);
        assert_eq!(fs::metadata(&there).unwrap().ino(), inode);
        // A link to nothing leads to where the folder will be.
        let staging = Staging::of_folder(&there.join(LOST_AND_FOUND).join("dangling")).unwrap();
        fill(&staging);
        staging.publish("bundle.json").unwrap();
        assert_eq!(names(&there.join("nowhere/yet")), ["bundle.json", "weights"]);
    }

    #[test]
    fn a_run_that_died_while_it_filled_a_folder_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let dead = |whole: &[&str]| {
            let part = folder.path().join(".rushes.part");
            fs::create_dir_all(part.join(WHOLE)).unwrap();
            fs::write(part.join("lock"), "").unwrap();
            fs::write(part.join(MOVING), "bundle.json\nweights\ntokenizer.json\n../x\nbundle.json").unwrap();
            whole.iter().for_each(|name| fs::write(part.join(WHOLE).join(name), "").unwrap());
        };
        dead(&["bundle.json", "tokenizer.json"]);
        fs::create_dir(folder.path().join("weights")).unwrap();
        let staging = Staging::of_folder(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".rushes.part"]);
        drop(staging);
        // Something that the run did not make.
        dead(&["bundle.json"]);
        fs::write(folder.path().join("mine"), "").unwrap();
        assert!(matches!(Staging::of_folder(folder.path()), Err(Error::Taken { .. })));
        assert_eq!(names(folder.path()), ["mine"]);
        fs::remove_file(folder.path().join("mine")).unwrap();
        // It had come to the end.
        dead(&[]);
        fs::write(folder.path().join("bundle.json"), "{}").unwrap();
        assert!(matches!(Staging::of_folder(folder.path()), Err(Error::Taken { .. })));
        assert_eq!(names(folder.path()), ["bundle.json"]);
    }

    #[test]
    fn what_is_replaced_stays_until_nobody_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("mini");
        let publish = || {
            let staging = Staging::of_replacement(&target).unwrap();
            fill(&staging);
            staging.publish("bundle.json").unwrap();
        };
        publish();
        assert_eq!(names(folder.path()), ["mini"]);
        let used = InUse::of(&target);
        fs::write(target.join("old"), "").unwrap();
        publish();
        assert_eq!(names(&target), ["bundle.json", "weights"]);
        let left = names(folder.path());
        assert!(left.len() == 2 && left[1].starts_with("mini.part."), "{left:?}");
        assert!(folder.path().join(&left[1]).join(REPLACED).join("old").is_file());
        publish();
        assert_eq!(names(folder.path()).len(), 2, "it is used still");
        drop(used);
        publish();
        assert_eq!(names(folder.path()), ["mini"]);
    }

    #[test]
    fn one_run_changes_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bundle.json"), "{}").unwrap();
        let first = Writing::of(folder.path()).unwrap();
        assert!(matches!(Writing::of(folder.path()), Err(Error::Busy { .. })));
        drop(first);
        fs::write(folder.path().join(".rushes-0a1b2c.part"), "half").unwrap();
        drop(Writing::of(folder.path()).unwrap());
        assert_eq!(names(folder.path()), ["bundle.json"]);
    }

    #[test]
    fn every_run_has_its_scratch_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) =
            (Scratch::create(folder.path(), "s").unwrap(), Scratch::create(folder.path(), "s").unwrap());
        assert_ne!(first.folder(), second.folder());
        assert!(first.folder().is_dir());
        drop((first, second));
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
