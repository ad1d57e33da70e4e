//! Output files that are named `NAME.part.EXT` until they are complete.
//!
//! The part is created and locked before any work starts. An unwritable folder is thus reported immediately, and two
//! runs never write the same file. A part whose lock is not held is not touched. An existing file with the final name
//! is kept until the rename. A part with content is kept after the run; an empty part is removed.

use crate::lock::{Locked, Refusal};
use crate::output_path::{check_replaceable, folder_of, resolved};
use crate::{Diagnose, Report, atomic};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempPath;

/// The reason why an output cannot be written or published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The output cannot be created.
    Unwritable {
        /// The requested output.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// Another run is writing the same output.
    Busy {
        /// The requested output.
        path: PathBuf,
        /// The part file that the other run has locked.
        part: PathBuf,
    },
    /// The finished file could not be flushed or renamed.
    Publish {
        /// The part file.
        part: PathBuf,
        /// The final path.
        path: PathBuf,
        /// The I/O error.
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
                "wait for it, or choose another `output`",
            ),
            Self::Unwritable { path, why } => Report::bad_input(
                format!("cannot write {}", path.display()),
                why.clone(),
                "create its folder, or choose another `output`, in a folder that you can write to",
            ),
            Self::Publish { part, path, source } => Report::failed(
                format!("cannot rename {} to {}", part.display(), path.display()),
                source.to_string(),
                "the clip in the part file is complete; rename it manually",
            ),
        }
    }
}

crate::display_as_report!(Error);

/// Bytes of a part that are read to recognise it.
const HEAD: u64 = 64;

/// An output file while it is being written.
#[derive(Debug)]
pub struct PartFile {
    /// The final path, with links resolved.
    path: PathBuf,
    part: PathBuf,
    /// The lock on the part.
    locked: Mutex<Locked>,
}

impl PartFile {
    /// Creates and locks the part of `path`. The content of an earlier part is kept until the first write.
    ///
    /// # Errors
    /// Returns an error if the folder does not exist or cannot be written, if `path` cannot be replaced, if another run
    /// has the lock, or if `is_part` returns false for the first bytes of an existing part.
    pub fn create(path: &Path, is_part: impl Fn(&[u8]) -> bool) -> Result<Self, Error> {
        let unwritable = |why: String| Error::Unwritable { path: path.to_owned(), why };
        let resolved_path = resolved(path).map_err(|error| unwritable(error.to_string()))?;
        if std::fs::metadata(&resolved_path).is_ok_and(|found| !found.is_file()) {
            return Err(unwritable("this path is not an ordinary file".into()));
        }
        let part = part_name(&resolved_path);
        let locked = Locked::file(&part).map_err(|refusal| match refusal {
            Refusal::Busy => Error::Busy { path: path.to_owned(), part: part.clone() },
            Refusal::Foreign(why) => {
                unwritable(format!("{}, its name until it is complete, {why}", part.display()))
            }
            Refusal::Io(error) => unwritable(reason(&part, &error)),
        })?;
        let created = Self { path: resolved_path, part, locked: Mutex::new(locked) };
        let uid = created.locked().handle().metadata().map_or(u32::MAX, |found| found.uid());
        check_replaceable(&created.path, uid).map_err(unwritable)?;
        let head = head_of(created.locked().handle())
            .map_err(|error| unwritable(format!("{}: {error}", created.part.display())))?;
        // After a power loss, new files may contain zeros.
        if head.iter().any(|byte| *byte != 0) && !is_part(&head) {
            return Err(unwritable(format!(
                "{}, its name until it is complete, exists with other content",
                created.part.display()
            )));
        }
        Ok(created)
    }

    /// Returns the path of the part.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Returns the final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Truncates the part and opens it for writing.
    ///
    /// # Errors
    /// I/O errors.
    pub fn open(&self) -> io::Result<File> {
        self.hold()?;
        OpenOptions::new().write(true).truncate(true).open(&self.part)
    }

    /// Creates and locks the part again if it was removed while it was empty. Call before writing to its path.
    ///
    /// # Errors
    /// Returns an error if another run has the part now or it cannot be created.
    pub fn hold(&self) -> io::Result<()> {
        let mut locked = self.locked();
        if !locked.is_current() {
            *locked = Locked::file(&self.part).map_err(|refusal| match refusal {
                Refusal::Busy => io::Error::other("its part was removed and is now locked by another run"),
                Refusal::Foreign(why) => io::Error::other(format!("{} {why}", self.part.display())),
                Refusal::Io(error) => error,
            })?;
        }
        Ok(())
    }

    /// Returns the number of bytes written.
    pub fn bytes(&self) -> u64 {
        self.locked().handle().metadata().map_or(0, |found| found.len())
    }

    /// Checks that the part's path still refers to the written file.
    ///
    /// # Errors
    /// Returns an error if another process removed or replaced it.
    pub fn ensure_ours(&self) -> Result<(), Error> {
        if self.locked().is_current() {
            return Ok(());
        }
        let why = "another process removed or replaced it while it was written";
        Err(self.unpublished(io::Error::new(ErrorKind::NotFound, why)))
    }

    /// Flushes the part to disk and renames it to the final path, replacing an existing file.
    ///
    /// # Errors
    /// Returns an error if another process removed or replaced the part; and I/O errors. The part is kept.
    pub fn publish(&self) -> Result<(), Error> {
        self.ensure_ours()?;
        let renamed = atomic::flush_and_rename(self.locked().handle(), &self.part, &self.path);
        renamed.map_err(|source| self.unpublished(source))
    }

    fn unpublished(&self, source: io::Error) -> Error {
        Error::Publish { part: self.part.clone(), path: self.path.clone(), source }
    }

    /// Renames another, flushed file to the final path and removes the part. Returns the file's length.
    ///
    /// # Errors
    /// I/O errors. The part is kept and the other file is removed.
    pub fn publish_instead(&self, other: TempPath) -> Result<u64, Error> {
        let bytes = other.metadata().map_or(0, |found| found.len());
        other.persist(&self.path).map_err(|error| self.unpublished(error.error))?;
        self.discard();
        Ok(bytes)
    }

    /// Removes the part with its content.
    pub fn discard(&self) {
        if self.locked().is_current() {
            // A part that cannot be removed is marked as incomplete by its name.
            let _ = std::fs::remove_file(&self.part);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Locked> {
        // The value is replaced in one step, so it is valid even after a panic.
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

/// Returns `clip.part.mp4` for `clip.mp4`.
fn part_name(path: &Path) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(".part");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Returns the reason why a part could not be created.
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
    fn a_file_has_its_name_only_once_it_is_complete() {
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
    fn an_empty_part_is_removed_and_one_with_content_is_kept() {
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
    fn a_run_does_not_remove_the_part_of_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = create(&path).unwrap();
        first.publish().unwrap();
        let second = create(&path).unwrap();
        drop(first);
        assert!(second.part().exists());
    }

    #[test]
    fn two_runs_cannot_write_the_same_file() {
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
    fn a_refused_run_does_not_remove_an_empty_part() {
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
    fn a_removed_part_is_created_again_and_a_replaced_part_is_not_published() {
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
    fn a_part_with_other_content_is_refused_and_kept() {
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
        insta::assert_snapshot!(why(&at("a.mp4")), @"HERE/a.part.mp4, its name until it is complete, exists with other content");
        insta::assert_snapshot!(why(&at("b.mp4")), @"HERE/b.part.mp4, its name until it is complete, is a link");
        insta::assert_snapshot!(why(&at("c.mp4")), @"HERE/c.part.mp4, its name until it is complete, is a file with several hard links");
        insta::assert_snapshot!(why(&at("d.mp4")), @"HERE/d.part.mp4, its name until it is complete, is not an ordinary file");
        assert_eq!(std::fs::read(at("a.part.mp4")).unwrap(), b"notes");
        assert_eq!(std::fs::read(at("b")).unwrap(), b"clip");
        for left in ["clip of a run", "\0\0\0\0", ""] {
            std::fs::write(at("e.part.mp4"), left).unwrap();
            PartFile::create(&at("e.mp4"), |head| head.starts_with(b"clip")).unwrap();
        }
    }

    #[test]
    fn a_link_is_kept_and_its_target_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("disk")).unwrap();
        for (link, target) in [("clip.mp4", "disk/real.mp4"), ("again.mp4", "clip.mp4")] {
            std::os::unix::fs::symlink(target, at(link)).unwrap();
        }
        // The target does not exist in the first round.
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
    fn unwritable_paths_are_reported_on_creation() {
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
        insta::assert_snapshot!(why(&folder.join("taken.mp4")), @"this path is not an ordinary file");
        // Not even root creates files here.
        assert!(why("/proc/self/clip.mp4".as_ref()).starts_with("no file can be created in /proc/self: "));
    }
}
