//! The thread that writes the snapshots of a job, so that steps do not wait for the disk.

use super::folder::{BOUNDARY, NEWEST, SYNCED};
use super::stored_snapshot::StoredSnapshot;
use crate::Error;
use bundle::atomic;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A snapshot that is being flushed. `JobFolder::open` removes it after a killed run.
const SYNCING: &str = ".rushes-synced.part";
/// A snapshot is on disk at most this long after it was written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Writes snapshots in the background. A newer snapshot replaces one that was not written yet; the one at the boundary
/// is always written.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    newest: Option<StoredSnapshot>,
    boundary: Option<StoredSnapshot>,
    is_closed: bool,
    failed: Option<Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SnapshotWriter {
    /// Starts the thread.
    pub(super) fn start(folder: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(&folder, &of_thread));
        Self { shared, thread: Some(thread) }
    }

    /// Hands a snapshot to the thread. Returns at once.
    pub(super) fn write(&mut self, snapshot: StoredSnapshot, is_boundary: bool) {
        let mut queue = self.shared.lock();
        if is_boundary {
            queue.boundary = Some(snapshot.clone());
        }
        queue.newest = Some(snapshot);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// The first error since the last call. The thread goes on after an error.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.shared.lock().failed.take()
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// A snapshot could not be written.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.close();
        self.take_error().map_or(Ok(()), Err)
    }

    fn close(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_one();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.close();
        }
    }
}

/// A snapshot that is not certainly on disk.
struct Unsynced {
    file: File,
    /// When the oldest snapshot since the last sync was written.
    since: Instant,
}

/// What the thread does to the disk.
struct Disk<'a> {
    folder: &'a Path,
    unsynced: Option<Unsynced>,
    /// A sync in progress. Snapshots are written meanwhile, so that a killed process does not lose them.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

/// Writes what is queued until the queue is closed.
fn run(folder: &Path, shared: &Shared) {
    let mut disk = Disk { folder, unsynced: None, syncing: None };
    loop {
        let mut queue = shared.lock();
        while queue.newest.is_none() && queue.boundary.is_none() && !queue.is_closed {
            let wait = disk.unsynced.as_ref().map(|last| SYNC_EVERY.saturating_sub(last.since.elapsed()));
            queue = match wait {
                None => shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) if disk.is_sync_due() => break,
                // A sync is in progress.
                Some(Duration::ZERO) => {
                    shared.changed.wait_timeout(queue, SYNC_EVERY).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(wait) => {
                    shared.changed.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let (newest, boundary, is_closed) = (queue.newest.take(), queue.boundary.take(), queue.is_closed);
        drop(queue);
        let mut written = disk.write(newest, boundary);
        if is_closed {
            written = written.and(disk.sync()).and(disk.finish_sync());
        } else if disk.is_sync_due() {
            written = written.and(disk.sync());
        }
        if let Err(error) = written {
            shared.lock().failed.get_or_insert(bundle::Error::file("write", folder)(error).into());
        }
        if is_closed {
            return;
        }
    }
}

impl Disk<'_> {
    fn write(&mut self, newest: Option<StoredSnapshot>, boundary: Option<StoredSnapshot>) -> io::Result<()> {
        if let Some(snapshot) = boundary {
            // Once per clip, so it is synced at once.
            let path = self.folder.join(BOUNDARY);
            let mut part = atomic::create_part(&path)?;
            part.write_all(&snapshot.to_bytes())?;
            atomic::publish(part, &path)?;
        }
        if let Some(snapshot) = newest {
            let path = self.folder.join(NEWEST);
            let mut part = atomic::create_part(&path)?;
            part.write_all(&snapshot.to_bytes())?;
            let file = part.persist(&path).map_err(|error| error.error)?;
            let since = self.unsynced.take().map_or_else(Instant::now, |last| last.since);
            self.unsynced = Some(Unsynced { file, since });
        }
        Ok(())
    }

    /// Begins to flush the newest snapshot to disk, and then gives it its second name.
    fn sync(&mut self) -> io::Result<()> {
        // One at a time, in order.
        self.finish_sync()?;
        let Some(Unsynced { file, .. }) = self.unsynced.take() else { return Ok(()) };
        let (folder, synced) = (self.folder.to_owned(), self.folder.join(SYNCED));
        let part = self.folder.join(SYNCING);
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let is_linked = std::fs::hard_link(self.folder.join(NEWEST), &part).is_ok();
        if !is_linked {
            // The file system has no hard links.
            std::fs::copy(self.folder.join(NEWEST), &part)?;
        }
        self.syncing = Some(std::thread::spawn(move || {
            if is_linked {
                file.sync_all()?
            } else {
                File::open(&part)?.sync_all()?
            }
            std::fs::rename(&part, &synced)?;
            File::open(folder)?.sync_all()
        }));
        Ok(())
    }

    /// Returns true if a snapshot waits for a second, and no sync is in progress.
    fn is_sync_due(&self) -> bool {
        let is_idle = self.syncing.as_ref().is_none_or(JoinHandle::is_finished);
        is_idle && self.unsynced.as_ref().is_some_and(|last| last.since.elapsed() >= SYNC_EVERY)
    }

    fn finish_sync(&mut self) -> io::Result<()> {
        match self.syncing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}
