//! The names of a store's files and folders, and what makes a folder a store.

use super::durable;
use super::file_system;
use crate::Error;
use bundle::lock::{Locked, Refusal};
use runtime::scheduler::JobId;
use rustix::process::geteuid;
use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The job folder of the runs, in the folder of a job.
pub const RUN: &str = "run";
/// The job folder that a fork goes on from, in the folder of a job.
pub const ORIGIN: &str = "origin";
/// The picture of a take, in the folder of its job.
pub const PICTURE: &str = "take.png";

/// The largest number of a job. Numbers are exact in JSON and fit in SQLite.
const LARGEST_NUMBER: u64 = 1 << 53;
/// How long a process waits for another one that adds jobs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The paths of a store.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

/// An entry of the folder `jobs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The folder of a job.
    Job(JobId),
    /// A job that is being added.
    Part(JobId),
    /// A job that is being removed.
    Gone(JobId),
}

impl Entry {
    fn parse(name: &str) -> Option<Self> {
        let number = |text: &str| {
            let number = text.parse::<u64>().ok().filter(|number| (1..=LARGEST_NUMBER).contains(number))?;
            (number.to_string() == text).then_some(JobId(number))
        };
        if let Some(part) = name.strip_suffix(".part") {
            return number(part).map(Self::Part);
        }
        if let Some(gone) = name.strip_suffix(".gone") {
            return number(gone).map(Self::Gone);
        }
        number(name).map(Self::Job)
    }

    /// The number in the name.
    pub(super) fn id(self) -> JobId {
        match self {
            Self::Job(id) | Self::Part(id) | Self::Gone(id) => id,
        }
    }
}

impl Layout {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn database(&self) -> PathBuf {
        self.root.join("jobs.db")
    }

    pub(super) fn owner_lock(&self) -> PathBuf {
        self.root.join("owner.lock")
    }

    fn jobs_lock(&self) -> PathBuf {
        self.root.join("jobs.lock")
    }

    pub(super) fn last_number(&self) -> PathBuf {
        self.root.join("last-number")
    }

    pub(super) fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub(super) fn auditions(&self) -> PathBuf {
        self.root.join("auditions")
    }

    pub(super) fn sheet(&self, audition: JobId) -> PathBuf {
        self.auditions().join(format!("{}.png", audition.0))
    }

    pub(super) fn job(&self, id: JobId) -> PathBuf {
        self.jobs().join(id.0.to_string())
    }

    pub(super) fn part(&self, id: JobId) -> PathBuf {
        self.jobs().join(format!("{}.part", id.0))
    }

    pub(super) fn gone(&self, id: JobId) -> PathBuf {
        self.jobs().join(format!("{}.gone", id.0))
    }

    /// The path of an entry of the folder `jobs`.
    pub(super) fn path(&self, entry: Entry) -> PathBuf {
        match entry {
            Entry::Job(id) => self.job(id),
            Entry::Part(id) => self.part(id),
            Entry::Gone(id) => self.gone(id),
        }
    }

    /// Checks that a folder is a store or can become one, and creates what it lacks.
    ///
    /// # Errors
    /// It is on a network file system, holds other files, or cannot be created.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        file_system::check(folder)?;
        let root = std::path::absolute(folder).map_err(bundle::Error::file("find", folder))?;
        let layout = Self { root };
        layout.create_root()?;
        layout.check_content()?;
        layout.close_to_others()?;
        // The first one marks the folder as a store.
        for lock in [layout.owner_lock(), layout.jobs_lock()] {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&lock);
            file.map_err(bundle::Error::file("create", &lock))?;
        }
        for folder in [layout.jobs(), layout.auditions()] {
            create_private(&folder)?;
        }
        Ok(layout)
    }

    fn create_root(&self) -> Result<(), Error> {
        let root = &self.root;
        match std::fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(self.refused("it is not a folder", "choose a folder with `store`")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let created = DirBuilder::new().recursive(true).mode(0o700).create(root);
                created.map_err(bundle::Error::file("create", root))?;
                match root.parent() {
                    Some(parent) => durable::sync_folder(parent),
                    None => Ok(()),
                }
            }
            Err(error) => Err(bundle::Error::file("read", root)(error).into()),
        }
    }

    fn check_content(&self) -> Result<(), Error> {
        if [self.owner_lock(), self.database()].iter().any(|path| path.exists()) {
            return Ok(());
        }
        let read = std::fs::read_dir(&self.root).and_then(|mut entries| entries.next().transpose());
        match read.map_err(bundle::Error::file("read", &self.root))? {
            None => Ok(()),
            // Another process may have made it a store in the meantime.
            Some(_) if self.owner_lock().exists() => Ok(()),
            Some(_) => Err(self.refused(
                "it holds other files",
                "choose an empty folder with `store`, or one that does not exist",
            )),
        }
    }

    /// Takes the permissions of others from a folder of this user.
    fn close_to_others(&self) -> Result<(), Error> {
        let root = &self.root;
        let found = std::fs::metadata(root).map_err(bundle::Error::file("read", root))?;
        if found.uid() != geteuid().as_raw() || found.mode() & 0o077 == 0 {
            return Ok(());
        }
        let closed = std::fs::set_permissions(root, Permissions::from_mode(0o700));
        Ok(closed.map_err(bundle::Error::file("protect", root))?)
    }

    fn refused(&self, why: &str, fix: &str) -> Error {
        Error::Store { folder: self.root.clone(), why: why.to_owned(), fix: fix.to_owned() }
    }

    /// The entries of the folder `jobs` that have the names of jobs, in the order of their numbers.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let jobs = self.jobs();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&jobs).map_err(bundle::Error::file("read", &jobs))? {
            let entry = entry.map_err(bundle::Error::file("read", &jobs))?;
            found.extend(entry.file_name().to_str().and_then(Entry::parse));
        }
        found.sort_by_key(|entry| entry.id());
        Ok(found)
    }

    /// The number that was given last, of those in use and of those whose jobs were removed.
    ///
    /// # Errors
    /// A file cannot be read, or the file of the last number is damaged.
    pub(super) fn largest_number(&self, largest_row: u64) -> Result<u64, Error> {
        let largest_folder = self.entries()?.last().map_or(0, |entry| entry.id().0);
        // Read last: it is written before a folder is removed.
        Ok(self.read_last_number()?.max(largest_row).max(largest_folder))
    }

    fn read_last_number(&self) -> Result<u64, Error> {
        let path = self.last_number();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(bundle::Error::file("read", &path)(error).into()),
        };
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
        let number = number.and_then(|text| text.parse::<u64>().ok());
        number
            .filter(|number| *number <= LARGEST_NUMBER)
            .ok_or_else(|| Error::Damaged { path, why: "it is not a number".to_owned() })
    }

    /// Notes that numbers up to this one are in use, before a folder is removed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn note_last_number(&self, number: u64) -> Result<(), Error> {
        match self.read_last_number() {
            Ok(noted) if noted >= number => Ok(()),
            _ => durable::write(&self.last_number(), format!("{number}\n").as_bytes()),
        }
    }

    /// The number after `last`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn number_after(&self, last: u64) -> Result<u64, Error> {
        let next = last + 1;
        if next > LARGEST_NUMBER {
            return Err(self.refused("its numbers are used up", "choose another folder with `store`"));
        }
        Ok(next)
    }

    /// Waits for the lock under which jobs are added and the database is created.
    ///
    /// # Errors
    /// Another process holds it for too long, or it cannot be locked.
    pub(super) fn lock_jobs(&self) -> Result<Locked, Error> {
        let path = self.jobs_lock();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Locked::file(&path) {
                Ok(locked) => return Ok(locked),
                Err(Refusal::Busy) if Instant::now() < deadline => {}
                Err(Refusal::Busy) => return Err(Error::Locked { path }),
                Err(refusal) => return Err(refused_lock(&path, refusal)),
            }
        }
    }
}

/// The error of a lock file that is not an ordinary file or cannot be opened.
pub(super) fn refused_lock(path: &Path, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Busy => Error::Locked { path: path.to_owned() },
        Refusal::Foreign(why) => {
            Error::Store { folder: path.to_owned(), why: format!("it {why}"), fix: "remove it".to_owned() }
        }
        Refusal::Io(error) => bundle::Error::file("lock", path)(error).into(),
    }
}

/// Creates a folder that only this user can read, if it does not exist.
pub(super) fn create_private(folder: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        created => Ok(created.map_err(bundle::Error::file("create", folder))?),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::scratch;
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_new_store_belongs_to_its_user_alone() {
        let parent = scratch();
        let root = parent.path().join("data/rushes/queue");
        let layout = Layout::open(&root).unwrap();
        for folder in [root.clone(), layout.jobs(), parent.path().join("data")] {
            assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        }
        std::fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        Layout::open(&root).unwrap();
        assert_eq!(mode(&root), 0o700);
    }

    #[test]
    fn a_folder_with_other_files_is_refused_and_not_changed() {
        let parent = scratch();
        std::fs::write(parent.path().join("mine.txt"), "x").unwrap();
        std::fs::set_permissions(parent.path(), Permissions::from_mode(0o755)).unwrap();
        let error = Layout::open(parent.path()).unwrap_err();
        assert!(error.to_string().contains("holds other files"), "{error}");
        assert_eq!(mode(parent.path()), 0o755);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
        let error = Layout::open(&parent.path().join("mine.txt")).unwrap_err();
        assert!(error.to_string().contains("not a folder"), "{error}");
    }

    #[test]
    fn only_canonical_numbers_are_jobs() {
        assert_eq!(Entry::parse("7"), Some(Entry::Job(JobId(7))));
        assert_eq!(Entry::parse("7.part"), Some(Entry::Part(JobId(7))));
        assert_eq!(Entry::parse("7.gone"), Some(Entry::Gone(JobId(7))));
        for name in ["07", "+7", "0", "-1", "seven", "7.tmp", "", ".part", "18446744073709551615"] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_last_number_only_grows_and_a_damaged_one_is_an_error() {
        let parent = scratch();
        let layout = Layout::open(parent.path()).unwrap();
        assert_eq!(layout.largest_number(3).unwrap(), 3);
        for number in [5, 4] {
            layout.note_last_number(number).unwrap();
        }
        assert_eq!(layout.largest_number(3).unwrap(), 5);
        std::fs::create_dir(layout.part(JobId(9))).unwrap();
        assert_eq!(layout.largest_number(3).unwrap(), 9);
        for text in ["", "5", "5\n5\n", "-5\n", "18446744073709551615\n"] {
            std::fs::write(layout.last_number(), text).unwrap();
            assert!(matches!(layout.largest_number(3), Err(Error::Damaged { .. })), "{text:?}");
        }
        assert!(layout.number_after(LARGEST_NUMBER).is_err());
    }
}
