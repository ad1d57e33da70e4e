//! Outputs that are `NAME.part.EXT` until they are whole.
//!
//! The part is created, and locked, before any work starts, so that a folder that cannot be written is found at once and
//! two runs never write into one file: what is not locked is not ours, and nothing is done to it. A file that already has
//! the final name stays as it is until the rename. A part that holds something outlives the run; an empty one does not.

use crate::lock::{Locked, Refusal};
use crate::place::{check_replaceable, folder_of, resolved};
use crate::{Diagnose, Report};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempPath;

/// Why an output cannot be written or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The output cannot be created where it was asked for.
    Unwritable {
        /// The output that was asked for.
        path: PathBuf,
        /// What stands in the way.
        why: String,
    },
    /// Another run is writing the same output.
    Busy {
        /// The output that was asked for.
        path: PathBuf,
        /// The part file that the other run holds.
        part: PathBuf,
    },
    /// The finished file could not be flushed or renamed.
    Publish {
        /// The part file.
        part: PathBuf,
        /// The name that it should have got.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Busy { path, part } => Report::bad_input(
                format!("cannot write {}", path.display()),
                format!("another run or output is writing {}", part.display()),
                "wait for it, or choose another name with -o",
            ),
            Self::Unwritable { path, why } => Report::bad_input(
                format!("cannot write {}", path.display()),
                why.clone(),
                "choose another place with -o, where you may write",
            ),
            Self::Publish { part, path, source } => Report::failed(
                format!("cannot give {} its name {}", part.display(), path.display()),
                source.to_string(),
                "the clip in the part file is whole: rename it by hand",
            ),
        }
    }
}

crate::display_as_report!(Error);

/// Bytes of a part that are looked at to see what it is.
const HEAD: u64 = 64;

/// The file of an output while it is being written.
#[derive(Debug)]
pub struct PartFile {
    /// What gets replaced: where a link is the output, what it leads to.
    path: PathBuf,
    part: PathBuf,
    /// The part for as long as it is ours.
    locked: Mutex<Locked>,
}

impl PartFile {
    /// Creates and locks the part of `path`. What an earlier run left in it stays until something is written.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written, a `path` that cannot be replaced in the end, another run's lock,
    /// a part whose first bytes `could_be_ours` does not know.
    pub fn create(path: &Path, could_be_ours: impl Fn(&[u8]) -> bool) -> Result<Self, Error> {
        let unwritable = |why: String| Error::Unwritable { path: path.to_owned(), why };
        let place = resolved(path).map_err(|error| unwritable(error.to_string()))?;
        if std::fs::metadata(&place).is_ok_and(|found| !found.is_file()) {
            return Err(unwritable("what has this name is no ordinary file".into()));
        }
        let part = part_name(&place);
        let locked = Locked::file(&part).map_err(|refusal| match refusal {
            Refusal::Busy => Error::Busy { path: path.to_owned(), part: part.clone() },
            Refusal::Foreign(why) => {
                unwritable(format!("{}, which it would be called until it is whole, {why}", part.display()))
            }
            Refusal::Io(error) => unwritable(reason(&part, &error)),
        })?;
        let created = Self { path: place, part, locked: Mutex::new(locked) };
        let uid = created.locked().handle().metadata().map_or(u32::MAX, |found| found.uid());
        check_replaceable(&created.path, uid).map_err(unwritable)?;
        let head = head_of(created.locked().handle())
            .map_err(|error| unwritable(format!("{}: {error}", created.part.display())))?;
        // Zeros are what a power cut makes of the newest files.
        if head.iter().any(|byte| *byte != 0) && !could_be_ours(&head) {
            return Err(unwritable(format!(
                "{}, which it would be called until it is whole, holds something else",
                created.part.display()
            )));
        }
        Ok(created)
    }

    /// The name that it has until then.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// The name that it gets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The part, open for writing and empty.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(&self) -> io::Result<File> {
        self.hold()?;
        OpenOptions::new().write(true).truncate(true).open(&self.part)
    }

    /// Makes sure that the part is there and ours before something is written under its name: somebody may have removed
    /// it while it was empty.
    ///
    /// # Errors
    /// It was, and another run has it now, or it cannot be created.
    pub fn hold(&self) -> io::Result<()> {
        let mut locked = self.locked();
        if !locked.is_current() {
            *locked = Locked::file(&self.part).map_err(|refusal| match refusal {
                Refusal::Busy => io::Error::other("its part was removed, and another run has it now"),
                Refusal::Foreign(why) => io::Error::other(format!("{} {why}", self.part.display())),
                Refusal::Io(error) => error,
            })?;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.locked().handle().metadata().map_or(0, |found| found.len())
    }

    /// Makes sure that the name still stands for what was written.
    ///
    /// # Errors
    /// Somebody removed or replaced it.
    pub fn ensure_ours(&self) -> Result<(), Error> {
        if self.locked().is_current() {
            return Ok(());
        }
        let why = "somebody removed or replaced it while it was written";
        Err(self.unpublished(io::Error::new(ErrorKind::NotFound, why)))
    }

    /// Flushes the part to disk and gives it its name, in place of what had that name.
    ///
    /// # Errors
    /// Somebody removed or replaced the part, or what the system said; the part stays.
    pub fn publish(&self) -> Result<(), Error> {
        self.ensure_ours()?;
        let flushed = self.locked().handle().sync_all();
        flushed
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .map_err(|source| self.unpublished(source))
    }

    fn unpublished(&self, source: io::Error) -> Error {
        Error::Publish { part: self.part.clone(), path: self.path.clone(), source }
    }

    /// Gives another file, which is flushed, the name instead; the part goes. Its bytes.
    ///
    /// # Errors
    /// What the system said; the part stays, and the other file goes.
    pub fn publish_instead(&self, other: TempPath) -> Result<u64, Error> {
        let bytes = other.metadata().map_or(0, |found| found.len());
        other.persist(&self.path).map_err(|error| self.unpublished(error.error))?;
        self.discard();
        Ok(bytes)
    }

    /// Removes the part, whatever is in it.
    pub fn discard(&self) {
        if self.locked().is_current() {
            // What cannot be removed is seen by its name to be no finished file.
            let _ = std::fs::remove_file(&self.part);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Locked> {
        // Nothing is done in between that could leave it half changed.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.bytes() == 0 {
            self.discard();
        }
    }
}

fn head_of(mut file: &File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// `clip.part.mp4` of `clip.mp4`.
fn part_name(path: &Path) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(".part");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Why a part could not be created.
fn reason(part: &Path, error: &io::Error) -> String {
    let folder = folder_of(part);
    match error.kind() {
        ErrorKind::NotFound if !folder.exists() => format!("the folder {} does not exist", folder.display()),
        ErrorKind::NotADirectory => format!("{} is not a folder", folder.display()),
        _ if part.exists() => format!("{} cannot be written: {error}", part.display()),
        _ => format!("no file can be created in {}: {error}", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    fn create(path: &Path) -> Result<PartFile, Error> {
        PartFile::create(path, |_| true)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_part_keeps_the_extension() {
        assert_eq!(part_name("a/clip.mp4".as_ref()), Path::new("a/clip.part.mp4"));
        assert_eq!(part_name("my.first.clip.MP4".as_ref()), Path::new("my.first.clip.part.MP4"));
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_whole_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        std::fs::write(&path, "old").unwrap();
        let output = create(&path).unwrap();
        std::fs::write(output.part(), "new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(output.bytes(), 3);
        output.publish().unwrap();
        drop(output);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["clip.mp4"]);
    }

    #[test]
    fn an_empty_part_goes_and_one_with_content_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        drop(create(&path).unwrap());
        assert_eq!(names(folder.path()), Vec::<String>::new());
        let output = create(&path).unwrap();
        std::fs::write(output.part(), "half").unwrap();
        drop(output);
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        drop(create(&path).unwrap());
        assert_eq!(std::fs::read(folder.path().join("clip.part.mp4")).unwrap(), b"half");
        create(&path).unwrap().discard();
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_run_leaves_the_part_of_the_next_run_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = create(&path).unwrap();
        first.publish().unwrap();
        let second = create(&path).unwrap();
        drop(first);
        assert!(second.part().exists());
    }

    #[test]
    fn two_runs_cannot_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = create(&path).unwrap();
        std::fs::write(first.part(), "first").unwrap();
        let error = create(&path).unwrap_err().report();
        assert_eq!(error.class, ErrorClass::BadInput);
        assert!(error.why.contains("another run"), "{error}");
        create(&path).unwrap_err();
        assert_eq!(std::fs::read(first.part()).unwrap(), b"first");
        first.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        create(&path).unwrap();
    }

    #[test]
    fn a_refused_run_leaves_an_empty_part_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = create(&path).unwrap();
        create(&path).unwrap_err();
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        create(&path).unwrap_err();
        std::fs::write(first.part(), "first").unwrap();
        first.publish().unwrap();
    }

    #[test]
    fn a_part_that_somebody_removed_is_made_again_and_one_that_was_replaced_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = create(&path).unwrap();
        std::fs::remove_file(first.part()).unwrap();
        first.hold().unwrap();
        create(&path).unwrap_err();
        std::fs::remove_file(first.part()).unwrap();
        let second = create(&path).unwrap();
        assert!(first.hold().unwrap_err().to_string().contains("another run"));
        std::fs::write(second.part(), "second").unwrap();
        assert!(matches!(first.publish(), Err(Error::Publish { .. })));
        drop(first);
        second.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
    }

    #[test]
    fn a_part_that_is_not_ours_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let why = |path: &Path| {
            let error = PartFile::create(path, |head| head.starts_with(b"clip")).unwrap_err();
            error.report().why.replace(&folder.path().display().to_string(), "HERE")
        };
        std::fs::write(at("a.part.mp4"), "notes").unwrap();
        std::fs::write(at("b"), "clip").unwrap();
        std::os::unix::fs::symlink("b", at("b.part.mp4")).unwrap();
        std::fs::hard_link(at("b"), at("c.part.mp4")).unwrap();
        std::fs::create_dir(at("d.part.mp4")).unwrap();
        insta::assert_snapshot!(why(&at("a.mp4")), @"HERE/a.part.mp4, which it would be called until it is whole, holds something else");
        insta::assert_snapshot!(why(&at("b.mp4")), @"HERE/b.part.mp4, which it would be called until it is whole, is a link");
        insta::assert_snapshot!(why(&at("c.mp4")), @"HERE/c.part.mp4, which it would be called until it is whole, is a file with several names");
        insta::assert_snapshot!(why(&at("d.mp4")), @"HERE/d.part.mp4, which it would be called until it is whole, is no ordinary file");
        assert_eq!(std::fs::read(at("a.part.mp4")).unwrap(), b"notes");
        assert_eq!(std::fs::read(at("b")).unwrap(), b"clip");
        for left in ["clip of a run", "\0\0\0\0", ""] {
            std::fs::write(at("e.part.mp4"), left).unwrap();
            PartFile::create(&at("e.mp4"), |head| head.starts_with(b"clip")).unwrap();
        }
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("disk")).unwrap();
        for (link, target) in [("clip.mp4", "disk/real.mp4"), ("again.mp4", "clip.mp4")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        // Not there at first, then there.
        for content in ["one", "two"] {
            let output = create(&at("again.mp4")).unwrap();
            assert_eq!(output.part(), at("disk/real.part.mp4"));
            create(&at("disk/real.mp4")).unwrap_err();
            std::fs::write(output.part(), content).unwrap();
            output.publish().unwrap();
            assert_eq!(std::fs::read_to_string(at("again.mp4")).unwrap(), content);
            assert!(at("again.mp4").is_symlink() && at("clip.mp4").is_symlink());
        }
        std::os::unix::fs::symlink("away/clip.mp4", at("broken.mp4")).unwrap();
        assert!(create(&at("broken.mp4")).unwrap_err().report().why.contains("away does not exist"));
    }

    #[test]
    fn places_that_cannot_be_written_are_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("file"), "").unwrap();
        std::fs::create_dir(folder.join("taken.mp4")).unwrap();
        let why = |path: &Path| {
            let report = create(path).unwrap_err().report();
            assert_eq!(report.class, ErrorClass::BadInput);
            report.why.replace(&folder.display().to_string(), "HERE")
        };
        insta::assert_snapshot!(why(&folder.join("no/clip.mp4")), @"the folder HERE/no does not exist");
        insta::assert_snapshot!(why(&folder.join("file/clip.mp4")), @"HERE/file is not a folder");
        insta::assert_snapshot!(why(&folder.join("taken.mp4")), @"what has this name is no ordinary file");
        // Not even root creates files here.
        assert!(why("/proc/self/clip.mp4".as_ref()).starts_with("no file can be created in /proc/self: "));
    }
}
