//! The SQLite database of a store: connections, tables, versions.

use super::layout::Layout;
use super::{job_rows, lease, order_rows};
use crate::Error;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The version of the tables.
pub(super) const SCHEMA_VERSION: i64 = 1;
/// How long a statement waits for other processes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between two attempts where SQLite does not wait itself.
const PAUSE: Duration = Duration::from_millis(5);

/// The tables. `format` repeats the version, so that damage to the header of the file is not taken for a newer version;
/// every version keeps this table.
const SCHEMA: &str = "
    CREATE TABLE format (version INTEGER NOT NULL) STRICT;
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        state TEXT NOT NULL,
        request TEXT NOT NULL,
        progress TEXT NOT NULL,
        submitted REAL NOT NULL,
        started REAL,
        ended REAL,
        outcome TEXT
    ) STRICT;
    CREATE TABLE orders (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL,
        content TEXT NOT NULL,
        given REAL NOT NULL,
        answer TEXT
    ) STRICT;
    CREATE TABLE lease (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        pid INTEGER NOT NULL,
        process_start INTEGER,
        boot_id TEXT NOT NULL,
        since REAL NOT NULL,
        heartbeat REAL NOT NULL
    ) STRICT;
";

/// A connection to the database of a store.
#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    connection: Connection,
    /// Device and inode of the file that is open.
    identity: Option<(u64, u64)>,
}

impl Database {
    /// Opens the database of a store. That of a new store is created.
    ///
    /// # Errors
    /// It is damaged, of a newer version, or cannot be read. A store with jobs that has lost its database counts as
    /// damaged.
    pub(super) fn open(layout: &Layout) -> Result<Self, Error> {
        let found = Self::connect(layout)?;
        if found.version()? != 0 {
            found.check_version()?;
            return Ok(found);
        }
        drop(found);
        let _lock = layout.lock_jobs()?;
        Self::open_or_create(layout)
    }

    /// As [`Self::open`], for a process that has locked the jobs.
    pub(super) fn open_or_create(layout: &Layout) -> Result<Self, Error> {
        let mut found = Self::connect(layout)?;
        if found.version()? == 0 {
            if !layout.entries()?.is_empty() {
                let why = "it is missing or empty, although the store has jobs".to_owned();
                return Err(Error::Damaged { path: layout.database(), why });
            }
            found.create()?;
        }
        found.check_version()?;
        Ok(found)
    }

    /// Opens a connection without looking at the content.
    pub(super) fn connect(layout: &Layout) -> Result<Self, Error> {
        let path = layout.database();
        let failed = Error::database(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(&failed)?;
        let configure = || -> rusqlite::Result<()> {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // A process that still has a database open that was moved aside would otherwise remove the log of the new
            // one, which it knows by its path.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
            connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA cell_size_check = ON")
        };
        configure().map_err(&failed)?;
        let identity = identity(&path);
        Ok(Self { path, connection, identity })
    }

    /// Creates the tables of a database that has none.
    pub(super) fn create(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        // SQLite does not wait here for a process that reads the version at the same time.
        while let Err(error) = self.turn_log_on() {
            if !matches!(error, Error::Locked { .. }) || Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
        }
        self.change(|transaction| {
            transaction.execute_batch(SCHEMA)?;
            transaction.execute("INSERT INTO format (version) VALUES (?1)", [SCHEMA_VERSION])?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)
        })
    }

    fn turn_log_on(&self) -> Result<(), Error> {
        self.read(|database| database.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())))
    }

    fn version(&self) -> Result<i64, Error> {
        self.read(|database| database.query_row("PRAGMA user_version", [], |row| row.get(0)))
    }

    fn check_version(&self) -> Result<(), Error> {
        let version = self.version()?;
        let format =
            self.read(|database| database.query_row("SELECT version FROM format", [], |row| row.get(0)));
        if version == 0 || !format.as_ref().is_ok_and(|format: &i64| *format == version) {
            format?;
            return Err(self.damaged("its version is not the one that was written"));
        }
        if version != SCHEMA_VERSION {
            return Err(Error::Newer {
                what: format!("the store {}", self.path.display()),
                found: u64::try_from(version).unwrap_or(0),
                reads: SCHEMA_VERSION.unsigned_abs(),
            });
        }
        let mode: String =
            self.read(|database| database.query_row("PRAGMA journal_mode", [], |row| row.get(0)))?;
        if mode != "wal" {
            return Err(self.damaged("its write-ahead log is turned off"));
        }
        Ok(())
    }

    /// Checks every page, the tables and every row.
    ///
    /// # Errors
    /// [`Error::Damaged`] if anything differs from what is written.
    pub(super) fn check_whole(&mut self) -> Result<(), Error> {
        self.check_version()?;
        let found: String =
            self.read(|database| database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
        if found != "ok" {
            return Err(self.damaged(&found));
        }
        let expected = Connection::open_in_memory()
            .and_then(|memory| memory.execute_batch(SCHEMA).and_then(|()| tables(&memory)))
            .map_err(Error::database(&self.path))?;
        if self.read(tables)? != expected {
            return Err(self.damaged("its tables are not those that were written"));
        }
        self.read(|database| {
            job_rows::all(database)?;
            order_rows::pending(database)?;
            lease::read(database).map(drop)
        })?;
        self.check_header()?;
        let writable = self.change(|_| Ok(()));
        match writable {
            // The version in the header is too high, if the file itself may be written.
            Err(Error::Database { source, .. })
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ReadOnly)
                    && rustix::fs::access(&self.path, rustix::fs::Access::WRITE_OK).is_ok() =>
            {
                Err(self.damaged("it cannot be written"))
            }
            writable => writable,
        }
    }

    /// Checks the versions in the header of the file: a write-ahead log may hide it for a while, and SQLite refuses to
    /// write a database of a version that it does not know.
    fn check_header(&self) -> Result<(), Error> {
        const WITH_LOG: u8 = 2;
        let mut header = [0; 20];
        let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut header));
        read.map_err(bundle::Error::file("read", &self.path))?;
        if header[18..] == [WITH_LOG; 2] {
            Ok(())
        } else {
            Err(self.damaged("its header is not the one that was written"))
        }
    }

    fn damaged(&self, why: &str) -> Error {
        Error::Damaged { path: self.path.clone(), why: why.to_owned() }
    }

    /// Returns false if the database was moved aside, and another one is in its place.
    pub(super) fn is_current(&self) -> bool {
        identity(&self.path) == self.identity
    }

    /// Reads.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        read(&self.connection).map_err(Error::database(&self.path))
    }

    /// Changes something in one transaction: all of it, or nothing.
    pub(super) fn change<T>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let failed = Error::database(&self.path);
        self.change_with(|transaction| change(transaction).map_err(&failed))
    }

    /// As [`Self::change`], with errors that are not those of the database.
    pub(super) fn change_with<T>(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let failed = Error::database(&self.path);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let changed = change(&transaction)?;
        transaction.commit().map_err(&failed)?;
        Ok(changed)
    }

    /// Writes the log back into the database, unless another process uses it just now. What is not written back stays in
    /// the log.
    pub(super) fn checkpoint(&self) {
        let written = self.read(|database| {
            database.busy_timeout(Duration::ZERO)?;
            let written = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            database.busy_timeout(BUSY_TIMEOUT)?;
            written
        });
        if let Err(error) = written {
            tracing::debug!("no checkpoint: {error}");
        }
    }

    /// A number that changes when another connection has changed the database.
    pub(super) fn data_version(&self) -> Result<i64, Error> {
        self.read(|database| database.query_row("PRAGMA data_version", [], |row| row.get(0)))
    }

    #[cfg(test)]
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The names and definitions of the tables.
fn tables(database: &Connection) -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let mut statement = database.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::scratch;
    use super::*;

    #[test]
    fn a_newer_version_is_refused_by_number_and_a_wrong_one_is_damage() {
        let folder = scratch();
        let layout = Layout::open(folder.path()).unwrap();
        drop(Database::open(&layout).unwrap());
        let change = |sql: &str| Database::connect(&layout).unwrap().connection().execute_batch(sql).unwrap();
        change("PRAGMA user_version = 7");
        assert!(matches!(Database::open(&layout), Err(Error::Damaged { .. })));
        change("UPDATE format SET version = 7");
        let error = Database::open(&layout).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 7, .. }), "{error}");
        assert!(error.to_string().contains("version is 7, and this program reads version 1"), "{error}");
    }

    #[test]
    fn another_journal_and_other_tables_are_damage() {
        let folder = scratch();
        let layout = Layout::open(folder.path()).unwrap();
        let mut database = Database::open(&layout).unwrap();
        database.check_whole().unwrap();
        database.connection().execute_batch("ALTER TABLE jobs RENAME COLUMN started TO begun").unwrap();
        assert!(matches!(database.check_whole(), Err(Error::Damaged { .. })));
        database.connection().execute_batch("ALTER TABLE jobs RENAME COLUMN begun TO started").unwrap();
        let mode: String =
            database.connection().query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete");
        drop(database);
        assert!(matches!(Database::open(&layout), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_transaction_of_another_process_that_does_not_end_is_an_error() {
        let folder = scratch();
        let layout = Layout::open(folder.path()).unwrap();
        let (one, mut two) = (Database::open(&layout).unwrap(), Database::open(&layout).unwrap());
        one.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
        two.connection().busy_timeout(Duration::from_millis(20)).unwrap();
        let error = two.change(|_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert!(error.to_string().contains("another process has locked it"), "{error}");
        one.connection().execute_batch("ROLLBACK").unwrap();
        two.change(|_| Ok(())).unwrap();
    }
}
