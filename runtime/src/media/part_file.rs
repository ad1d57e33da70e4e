//! Outputs that are `NAME.part.EXT` until they are whole.
//!
//! The part is created, and locked, before any work starts, so that a folder that cannot be written is found at once and
//! two runs never write into one file. A file that already has the final name stays as it is until the rename. A part
//! that holds something outlives the run; an empty one does not.

use super::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// The file of an output while it is being written.
#[derive(Debug)]
pub(super) struct PartFile {
    path: PathBuf,
    part: PathBuf,
    /// Open for as long as the part is ours: it carries the lock.
    file: File,
}

impl PartFile {
    /// Creates and locks the part of `path`. What an earlier run left in it stays until something is written.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written, a `path` that is no ordinary file, another run's lock.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let unwritable = |why: String| Error::Unwritable { path: path.to_owned(), why };
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(unwritable("what has this name is no ordinary file".into()));
        }
        let part = part_name(path);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(|error| unwritable(reason(path, &error)))?;
        let created = Self { path: path.to_owned(), part, file };
        match created.file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::Busy { path: created.path.clone(), part: created.part.clone() })
            }
            // Some network file systems know no locks; they work without.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(created),
        }
    }

    /// The name that it has until then.
    pub(super) fn part(&self) -> &Path {
        &self.part
    }

    /// The part, open for writing and empty.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn open(&self) -> io::Result<File> {
        OpenOptions::new().write(true).truncate(true).open(&self.part)
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.len())
    }

    /// Flushes the part to disk and gives it its name, in place of what had that name.
    ///
    /// # Errors
    /// What the system said; the part stays.
    pub(super) fn publish(&self) -> Result<(), Error> {
        self.file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .map_err(|source| Error::Publish { part: self.part.clone(), path: self.path.clone(), source })
    }

    /// Gives another file, which is flushed, the name instead; the part goes. Its bytes.
    ///
    /// # Errors
    /// What the system said; the part stays, and the other file goes.
    pub(super) fn publish_instead(&self, other: TempPath) -> Result<u64, Error> {
        let bytes = other.metadata().map_or(0, |found| found.len());
        other.persist(&self.path).map_err(|error| Error::Publish {
            part: self.part.clone(),
            path: self.path.clone(),
            source: error.error,
        })?;
        self.discard();
        Ok(bytes)
    }

    /// Removes the part, whatever is in it.
    pub(super) fn discard(&self) {
        if self.is_ours() {
            // What cannot be removed is seen by its name to be no finished file.
            let _ = std::fs::remove_file(&self.part);
        }
    }

    /// Whether the name still stands for the file that was created.
    fn is_ours(&self) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        match (self.file.metadata(), std::fs::metadata(&self.part)) {
            (Ok(ours), Ok(found)) => identity(ours) == identity(found),
            _ => false,
        }
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if self.bytes() == 0 {
            self.discard();
        }
    }
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

/// Why a file in the folder of `path` could not be created.
fn reason(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match error.kind() {
        ErrorKind::NotFound if !folder.exists() => format!("the folder {} does not exist", folder.display()),
        ErrorKind::NotADirectory => format!("{} is not a folder", folder.display()),
        _ => format!("no file can be created in {}: {error}", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};

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
        let output = PartFile::create(&path).unwrap();
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
        drop(PartFile::create(&path).unwrap());
        assert_eq!(names(folder.path()), Vec::<String>::new());
        let output = PartFile::create(&path).unwrap();
        std::fs::write(output.part(), "half").unwrap();
        drop(output);
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        drop(PartFile::create(&path).unwrap());
        assert_eq!(std::fs::read(folder.path().join("clip.part.mp4")).unwrap(), b"half");
        PartFile::create(&path).unwrap().discard();
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn a_run_leaves_the_part_of_the_next_run_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = PartFile::create(&path).unwrap();
        first.publish().unwrap();
        let second = PartFile::create(&path).unwrap();
        drop(first);
        assert!(second.part().exists());
    }

    #[test]
    fn two_runs_cannot_write_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.mp4");
        let first = PartFile::create(&path).unwrap();
        std::fs::write(first.part(), "first").unwrap();
        let error = PartFile::create(&path).unwrap_err().report();
        assert_eq!(error.class, ErrorClass::BadInput);
        assert!(error.why.contains("another run"), "{error}");
        drop(first);
        PartFile::create(&path).unwrap();
    }

    #[test]
    fn places_that_cannot_be_written_are_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("file"), "").unwrap();
        std::fs::create_dir(folder.join("taken.mp4")).unwrap();
        let why = |path: &Path| {
            let report = PartFile::create(path).unwrap_err().report();
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
