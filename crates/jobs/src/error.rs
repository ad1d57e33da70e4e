//! Errors of jobs and their store.

use crate::store::State;
use bundle::{Diagnose, ErrorClass, Report};
use runtime::scheduler::JobId;
use rusqlite::ErrorCode as SqliteCode;
use std::io;
use std::path::{Path, PathBuf};

/// An error of a job or its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value, a file or a bundle is invalid.
    Contract(#[from] bundle::Error),
    /// The clip cannot be made.
    Runtime(#[from] runtime::Error),
    /// An output cannot be written.
    Media(#[from] media::Error),
    /// The database cannot be read or written.
    Database {
        /// The database.
        path: PathBuf,
        /// The error of SQLite.
        #[source]
        source: rusqlite::Error,
    },
    /// The disk is full. Nothing of the change was stored.
    DiskFull {
        /// The file or folder that was written.
        path: PathBuf,
    },
    /// Another process has locked the store for too long. Nothing of the change was stored.
    Locked {
        /// What is locked.
        path: PathBuf,
    },
    /// The database, or another file of the store, is damaged. An owner repairs it.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The store or a request was written by a newer program.
    Newer {
        /// What was read, as `the store DIR`.
        what: String,
        /// Its version.
        found: u64,
        /// The version that this program reads.
        reads: u64,
    },
    /// The request of a job is invalid.
    Request {
        /// The problem.
        why: String,
    },
    /// There is no such job.
    NoJob {
        /// The number that was given.
        id: JobId,
    },
    /// An order does not suit the state of the job.
    Unsuitable {
        /// The job.
        id: JobId,
        /// The order, as `cancel`.
        order: &'static str,
        /// Its state.
        state: State,
        /// What can be done with it.
        fix: String,
    },
    /// Another process owns the store.
    Owned {
        /// The store.
        folder: PathBuf,
        /// The process, if it is known.
        pid: Option<u32>,
    },
    /// The folder cannot be a store.
    Store {
        /// The folder.
        folder: PathBuf,
        /// The problem.
        why: String,
        /// What to do.
        fix: String,
    },
}

impl Error {
    /// Returns a closure that adds the path of the database to an error of SQLite, and sorts out full disks, locks and
    /// damage.
    pub(crate) fn database(path: &Path) -> impl Fn(rusqlite::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            let source = match source {
                rusqlite::Error::FromSqlConversionFailure(column, kind, inner) => {
                    match inner.downcast::<Self>() {
                        Ok(newer) if matches!(*newer, Self::Newer { .. }) => return *newer,
                        Ok(other) => rusqlite::Error::FromSqlConversionFailure(column, kind, other),
                        Err(inner) => rusqlite::Error::FromSqlConversionFailure(column, kind, inner),
                    }
                }
                source => source,
            };
            match Trouble::of(&source) {
                Trouble::DiskFull => Self::DiskFull { path },
                Trouble::Locked => Self::Locked { path },
                Trouble::Damaged => Self::Damaged { path, why: source.to_string() },
                Trouble::Other => Self::Database { path, source },
            }
        }
    }

    /// Returns true if the same call may succeed after a while: a disk is full, or another process has locked the store.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Locked { .. }) || self.is_disk_full()
    }

    /// Returns true if there is no room on a disk. The same call may succeed when there is.
    pub fn is_disk_full(&self) -> bool {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        matches!(self, Self::DiskFull { .. })
            || causes.filter_map(|error| error.downcast_ref::<io::Error>()).any(|error| is_full(error.kind()))
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

fn it_is(state: State) -> String {
    match state {
        State::Failed => "it has failed".to_owned(),
        state => format!("it is {state}"),
    }
}

/// The kind of an error of SQLite.
enum Trouble {
    DiskFull,
    Locked,
    Damaged,
    Other,
}

impl Trouble {
    fn of(error: &rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                SqliteCode::DiskFull => Self::DiskFull,
                // The index of the write-ahead log could not be enlarged.
                _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => Self::DiskFull,
                SqliteCode::DatabaseBusy
                | SqliteCode::DatabaseLocked
                | SqliteCode::FileLockingProtocolFailed => Self::Locked,
                SqliteCode::DatabaseCorrupt | SqliteCode::NotADatabase => Self::Damaged,
                // A table or column is absent: statements are constant, so the schema has changed.
                SqliteCode::Unknown => Self::Damaged,
                _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ => Self::Damaged,
                _ => Self::Other,
            },
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..) => Self::Damaged,
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report().fmt(f)
    }
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Runtime(error) => error.report(),
            Self::Media(error) => error.report(),
            Self::Database { path, source } => Report::new(
                ErrorClass::Failed,
                format!("cannot use the store {}", path.display()),
                source.to_string(),
                "check that the folder can be written and that its disk has no faults, then try again",
            ),
            Self::DiskFull { path } => Report::new(
                ErrorClass::Failed,
                format!("cannot write {}", path.display()),
                "there is no room on the disk",
                "remove something, or give the store less room with `store_budget`; nothing incomplete was stored",
            ),
            Self::Locked { path } => Report::new(
                ErrorClass::Failed,
                format!("cannot use {}", path.display()),
                "another process has locked it for too long",
                "try again; if that does not help, find the process with `fuser` and end it",
            ),
            Self::Damaged { path, why } => Report::damaged(
                format!("{} is damaged", path.display()),
                why.clone(),
                "repair the store with `rushes jobs run`, which reads the jobs from their folders again",
            ),
            Self::Newer { what, found, reads } => Report::bad_input(
                format!("cannot read {what}"),
                format!("its version is {found}, and this program reads version {reads}"),
                "use a newer program",
            ),
            Self::Request { why } => Report::bad_input(
                "cannot read the request of a job",
                why.clone(),
                "use the program that wrote it, or submit the job again",
            ),
            Self::NoJob { id } => Report::bad_input(
                format!("there is no {id}"),
                "the store has no job of this number",
                "`rushes jobs list` shows the jobs",
            ),
            Self::Unsuitable { id, order, state, fix } => {
                Report::bad_input(format!("cannot {order} {id}"), it_is(*state), fix.clone())
            }
            Self::Owned { folder, pid } => Report::new(
                ErrorClass::Failed,
                format!("cannot run the jobs of {}", folder.display()),
                match pid {
                    Some(pid) => format!("process {pid} runs them already"),
                    None => "another process runs them already".to_owned(),
                },
                "submit jobs to it, end it, or use another store",
            ),
            Self::Store { folder, why, fix } => Report::bad_input(
                format!("cannot use {} as a store", folder.display()),
                why.clone(),
                fix.clone(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A device of the system on which every write fails for lack of room.
    #[test]
    fn a_full_disk_is_recognised_in_errors_of_files_and_of_the_database() {
        let path = Path::new("/dev/full");
        let full = std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"x").unwrap_err();
        let file = || bundle::Error::file("write", path)(full.kind().into());
        for error in [file().into(), runtime::Error::from(file()).into(), media::Error::from(file()).into()] {
            let error: Error = error;
            assert!(error.is_disk_full(), "{error}");
        }
        let failure = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        for code in [rusqlite::ffi::SQLITE_FULL, rusqlite::ffi::SQLITE_IOERR_SHMSIZE] {
            assert!(Error::database(path)(failure(code)).is_disk_full());
        }
        let other = Error::from(bundle::Error::file("read", path)(io::ErrorKind::NotFound.into()));
        assert!(!other.is_disk_full());
        assert!(!Error::database(path)(failure(rusqlite::ffi::SQLITE_IOERR)).is_disk_full());
    }

    #[test]
    fn errors_of_the_database_are_sorted() {
        let path = Path::new("jobs.db");
        let sorted = |code| {
            Error::database(path)(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None))
        };
        assert!(matches!(sorted(rusqlite::ffi::SQLITE_BUSY), Error::Locked { .. }));
        assert!(matches!(sorted(rusqlite::ffi::SQLITE_CORRUPT), Error::Damaged { .. }));
        assert!(matches!(sorted(rusqlite::ffi::SQLITE_NOTADB), Error::Damaged { .. }));
        assert!(matches!(sorted(rusqlite::ffi::SQLITE_IOERR_WRITE), Error::Database { .. }));
    }
}
