//! The process that owns a store.
//!
//! The lock on `owner.lock` decides who it is; the system releases it when the process ends, however it ends. The row of
//! the lease only says which process that is. A process id alone says nothing: it is given again after a while, and each
//! container counts its own.

use super::clock;
use super::database::Database;
use super::layout::{Layout, refused_lock};
use super::types::Lease;
use crate::Error;
use bundle::lock::{Locked, Refusal};
use rusqlite::{Connection, OptionalExtension, params};
use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

/// A lease that was renewed within this time is not stale, even if its process cannot be seen from here.
const FRESH: f64 = 10.0;
/// How long a process that becomes the owner waits for one that only carries out an order.
const MOMENT: Duration = Duration::from_secs(5);

/// The lease with what tells its process from later ones of the same id.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LeaseRow {
    pub(super) pid: u32,
    /// When the process started, in clock ticks since the boot; `None` if the system does not say.
    pub(super) process_start: Option<u64>,
    pub(super) boot_id: String,
    /// Seconds since 1970.
    pub(super) since: f64,
    /// Seconds since 1970.
    pub(super) heartbeat: f64,
}

impl LeaseRow {
    fn of_this_process() -> Self {
        let pid = std::process::id();
        let now = clock::now();
        Self { pid, process_start: process_start(pid), boot_id: boot_id(), since: now, heartbeat: now }
    }

    /// Returns true if the process that wrote the row may still run: in this boot, and either it renewed the lease just
    /// now, or the process of this id started when the row says.
    fn may_run(&self, boot_id: &str, process_start: Option<u64>, now: f64) -> bool {
        let is_fresh = (0.0..FRESH).contains(&(now - self.heartbeat));
        self.boot_id == boot_id
            && (is_fresh || (process_start.is_some() && self.process_start == process_start))
    }
}

/// Reads the lease.
pub(super) fn read(database: &Connection) -> rusqlite::Result<Option<LeaseRow>> {
    let sql = "SELECT pid, process_start, boot_id, since, heartbeat FROM lease";
    let found = database.query_row(sql, [], |row| {
        Ok(LeaseRow {
            pid: row.get(0)?,
            process_start: row.get::<_, Option<i64>>(1)?.and_then(|start| u64::try_from(start).ok()),
            boot_id: row.get(2)?,
            since: row.get(3)?,
            heartbeat: row.get(4)?,
        })
    });
    found.optional()
}

/// Writes the lease of this process.
pub(super) fn take(database: &Connection) -> rusqlite::Result<()> {
    let LeaseRow { pid, process_start, boot_id, since, heartbeat } = LeaseRow::of_this_process();
    let start = process_start.and_then(|start| i64::try_from(start).ok());
    let sql = "INSERT OR REPLACE INTO lease (only, pid, process_start, boot_id, since, heartbeat)
        VALUES (1, ?1, ?2, ?3, ?4, ?5)";
    database.execute(sql, params![pid, start, boot_id, since, heartbeat]).map(drop)
}

/// Renews the lease.
pub(super) fn renew(database: &Connection) -> rusqlite::Result<()> {
    database.execute("UPDATE lease SET heartbeat = ?1", [clock::now()]).map(drop)
}

/// Gives the lease back.
pub(super) fn give_back(database: &Connection) -> rusqlite::Result<()> {
    database.execute("DELETE FROM lease", []).map(drop)
}

/// The process that owns the store; `None` if none does, or if it has not written its lease yet.
pub(super) fn of_owner(layout: &Layout, database: &Database) -> Result<Option<Lease>, Error> {
    if !is_owned(layout) {
        return Ok(None);
    }
    let Some(row) = database.read(read)? else { return Ok(None) };
    if !row.may_run(&boot_id(), process_start(row.pid), clock::now()) {
        return Ok(None);
    }
    let LeaseRow { pid, boot_id, since, heartbeat, .. } = row;
    Ok(Some(Lease { pid, boot_id, since: clock::time(since), heartbeat: clock::time(heartbeat) }))
}

/// Returns true if a process holds the lock of the owner.
pub(super) fn is_owned(layout: &Layout) -> bool {
    let Ok(file) = File::open(layout.owner_lock()) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Takes the lock of the owner.
///
/// # Errors
/// Another process is the owner, and its process id is in the error if it is known.
pub(super) fn lock_owner(layout: &Layout) -> Result<Locked, Error> {
    let path = layout.owner_lock();
    let deadline = Instant::now() + MOMENT;
    loop {
        match Locked::file(&path) {
            Ok(locked) => return Ok(locked),
            Err(Refusal::Busy) => {
                // A process that only carries out an order writes no lease.
                let lease = Database::open(layout).and_then(|database| of_owner(layout, &database));
                let pid = lease.ok().flatten().map(|lease| lease.pid);
                if pid.is_some() || Instant::now() >= deadline {
                    return Err(Error::Owned { folder: layout.root().to_owned(), pid });
                }
            }
            Err(refusal) => return Err(refused_lock(&path, refusal)),
        }
    }
}

/// The boot of the machine; empty if the system does not say.
fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// When a process started, in clock ticks since the boot.
fn process_start(pid: u32) -> Option<u64> {
    start_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start in `/proc/PID/stat`: field 22. The second field is the name of the program in brackets, and may contain
/// spaces and brackets.
fn start_in(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> LeaseRow {
        let boot_id = "one".to_owned();
        LeaseRow { pid: 7, process_start: Some(100), boot_id, since: 1000.0, heartbeat: 1005.0 }
    }

    #[test]
    fn a_lease_of_another_boot_or_of_a_dead_process_is_stale() {
        let late = 2000.0;
        assert!(row().may_run("one", Some(100), late));
        assert!(!row().may_run("two", Some(100), late));
        assert!(!row().may_run("two", Some(100), 1006.0));
        // The process id was given again.
        assert!(!row().may_run("one", Some(101), late));
        assert!(!row().may_run("one", None, late));
        // In another container, which has just renewed it.
        assert!(row().may_run("one", None, 1006.0));
        // The clock was set back.
        assert!(!row().may_run("one", None, 900.0));
        let unknown = LeaseRow { process_start: None, ..row() };
        assert!(!unknown.may_run("one", None, late));
    }

    #[test]
    fn the_start_of_a_process_follows_any_name() {
        let fields: Vec<String> = (4..=30).map(|field| field.to_string()).collect();
        let stat = format!("7 (a ) (b) S {}", fields.join(" "));
        assert_eq!(start_in(&stat), Some(22));
        assert_eq!(start_in("7 (a"), None);
        let pid = std::process::id();
        assert!(process_start(pid).is_some());
        assert!(!boot_id().is_empty());
    }
}
