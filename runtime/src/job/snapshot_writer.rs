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

/// Writes what is queued until the queue is closed.
fn run(folder: &Path, shared: &Shared) {
    let mut unsynced: Option<(File, Instant)> = None;
    loop {
        let mut queue = shared.lock();
        while queue.newest.is_none() && queue.boundary.is_none() && !queue.is_closed {
            let wait = unsynced.as_ref().map(|(_, since)| SYNC_EVERY.saturating_sub(since.elapsed()));
            queue = match wait {
                None => shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(wait) => {
                    shared.changed.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let (newest, boundary, is_closed) = (queue.newest.take(), queue.boundary.take(), queue.is_closed);
        drop(queue);
        let written = write_all(folder, newest, boundary, is_closed, &mut unsynced);
        if let Err(error) = written {
            shared.lock().failed.get_or_insert(bundle::Error::file("write", folder)(error).into());
        }
        if is_closed {
            return;
        }
    }
}

fn write_all(
    folder: &Path,
    newest: Option<StoredSnapshot>,
    boundary: Option<StoredSnapshot>,
    is_closed: bool,
    unsynced: &mut Option<(File, Instant)>,
) -> io::Result<()> {
    if let Some(snapshot) = boundary {
        // Once per clip, so it is synced at once.
        let path = folder.join(BOUNDARY);
        let mut part = atomic::create_part(&path)?;
        part.write_all(&snapshot.to_bytes())?;
        atomic::publish(part, &path)?;
    }
    if let Some(snapshot) = newest {
        let path = folder.join(NEWEST);
        let mut part = atomic::create_part(&path)?;
        part.write_all(&snapshot.to_bytes())?;
        let file = part.persist(&path).map_err(|error| error.error)?;
        let since = unsynced.take().map_or_else(Instant::now, |(_, since)| since);
        *unsynced = Some((file, since));
    }
    let is_due = unsynced.as_ref().is_some_and(|(_, since)| since.elapsed() >= SYNC_EVERY);
    if (is_due || is_closed)
        && let Some((file, _)) = unsynced.take()
    {
        file.sync_all()?;
        link_synced(folder)?;
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Makes the newest snapshot, which is on disk, the synced one too.
fn link_synced(folder: &Path) -> io::Result<()> {
    let (newest, synced) = (folder.join(NEWEST), folder.join(SYNCED));
    let part = folder.join(format!("{SYNCED}.part"));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if std::fs::hard_link(&newest, &part).is_err() {
        // The file system has no hard links.
        std::fs::copy(&newest, &part)?;
        File::open(&part)?.sync_all()?;
    }
    std::fs::rename(&part, &synced)
}
