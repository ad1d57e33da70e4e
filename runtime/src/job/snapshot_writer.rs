//! The thread that writes the snapshots of a job, so that steps do not wait for the disk.
//!
//! # What can be lost
//! * The process is killed: the step that runs. The step before it is lost too if its snapshot was not yet written, which
//!   takes a small part of a step; the one before that never is. [`SnapshotWriter::write`] therefore waits while two
//!   snapshots are unwritten. The snapshot of a clip of 1280x720 and 81 frames has 116 MB, and is written in half a second.
//! * The power fails: what the last second, or the last step if that is longer, has changed. The newest snapshot is flushed
//!   a second after the oldest that is not on disk was written; those at the boundary and those that are kept at once.
//!   While a flush takes longer than a second, the next one waits for it.
//! * The disk is full: nothing that was written before. Snapshots under lasting names (boundary, kept steps) that could
//!   not be written stay in memory, [`MAX_OWED`] at most, and are written with the next one that can be.

use super::disk::Disk;
use super::snapshot_files::{Flush, SnapshotFiles};
use super::stored_snapshot::StoredSnapshot;
use crate::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Snapshots that may be unwritten while a step runs.
const MAX_UNWRITTEN: u64 = 1;
/// Snapshots with lasting names that are kept in memory until they can be written. The owner of a job that sees
/// [`Storing::DiskFull`] after a step lets it wait, and by then two snapshots may have failed.
const MAX_OWED: usize = 2;
/// How often a wait looks at whether the job was cancelled.
const POLL: Duration = Duration::from_millis(50);

/// Whether the snapshots of a job are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storing {
    /// The last one that was handed to the disk was written, or none was.
    #[default]
    Ok,
    /// There is no room for it. Those before are whole.
    DiskFull,
    /// It could not be written for another reason. Those before are whole.
    Failed,
}

impl Storing {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Self::DiskFull,
            _ => Self::Failed,
        }
    }
}

/// A snapshot for the disk, and its names besides that of the newest one.
#[derive(Debug, Clone)]
pub(super) struct ToWrite {
    pub(super) snapshot: StoredSnapshot,
    pub(super) names: Vec<String>,
}

/// Writes snapshots in the background. If several wait, the newest one is written, and those with lasting names.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    newest: Option<ToWrite>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<ToWrite>,
    /// Snapshots handed over; those that are written or failed; and those that have their names too.
    handed: u64,
    written: u64,
    named: u64,
    /// The end of the flush in progress.
    flushed: Option<io::Result<()>>,
    is_closed: bool,
    storing: Storing,
    failed: Option<Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another thread has changed something, or for a time.
    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>, time: Option<Duration>) -> MutexGuard<'a, Queue> {
        match time {
            None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            Some(time) => self.changed.wait_timeout(queue, time).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl SnapshotWriter {
    /// Starts the thread. `folder` is that of the disk, for messages.
    pub(super) fn start(disk: Arc<dyn Disk>, folder: PathBuf) -> Self {
        let shared = Arc::new(Shared::default());
        let files = SnapshotFiles::new(disk);
        let mut of_thread = Writing { files, folder, shared: Arc::clone(&shared), owed: Vec::new() };
        let thread = std::thread::spawn(move || of_thread.run());
        Self { shared, thread: Some(thread), newest: None }
    }

    /// Hands a snapshot to the thread. Waits while the one before it is not written, unless `is_cancelled`.
    pub(super) fn write(&mut self, snapshot: ToWrite, is_cancelled: impl Fn() -> bool) {
        self.newest = Some(snapshot.clone());
        self.hand_over(snapshot);
        let mut queue = self.shared.lock();
        while queue.handed - queue.written > MAX_UNWRITTEN && !is_cancelled() && self.is_running() {
            queue = self.shared.wait(queue, Some(POLL));
        }
    }

    /// Writes the newest snapshot again, and waits for it, unless `is_cancelled`.
    #[cfg(test)]
    pub(super) fn write_again(&mut self, is_cancelled: impl Fn() -> bool) -> Storing {
        if let Some(newest) = self.newest.clone() {
            self.hand_over(newest);
        }
        let mut queue = self.shared.lock();
        while queue.named < queue.handed && !is_cancelled() && self.is_running() {
            queue = self.shared.wait(queue, Some(POLL));
        }
        queue.storing
    }

    fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn hand_over(&self, snapshot: ToWrite) {
        self.shared.change(|queue| {
            queue.waiting.push(snapshot);
            queue.handed += 1;
        });
    }

    /// Whether snapshots are stored.
    pub(super) fn storing(&self) -> Storing {
        self.shared.lock().storing
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
        if self.storing() != Storing::Ok
            && let Some(newest) = self.newest.take()
        {
            // There may be room by now.
            self.hand_over(newest);
        }
        self.shared.change(|queue| queue.is_closed = true);
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

/// The state of the thread.
struct Writing {
    files: SnapshotFiles,
    folder: PathBuf,
    shared: Arc<Shared>,
    /// Snapshots with lasting names that could not be written.
    owed: Vec<ToWrite>,
}

impl Writing {
    /// Writes what is handed over until the queue is closed.
    fn run(&mut self) {
        let mut is_flushing = false;
        loop {
            let mut queue = self.shared.lock();
            let (waiting, is_closed) = loop {
                if let Some(flushed) = queue.flushed.take() {
                    is_flushing = false;
                    self.note_failed(&mut queue, flushed);
                }
                let due = self.files.due_in(Instant::now()).filter(|_| !is_flushing);
                let may_close = queue.is_closed && !is_flushing;
                if !queue.waiting.is_empty() || may_close || due == Some(Duration::ZERO) {
                    break (std::mem::take(&mut queue.waiting), may_close);
                }
                queue = self.shared.wait(queue, due);
            };
            drop(queue);
            let is_urgent = waiting.iter().any(|snapshot| !snapshot.names.is_empty());
            self.write(waiting);
            if is_closed {
                let flushed = self.files.begin_flush().and_then(|flush| flush.map_or(Ok(()), |f| f.run()));
                self.note_failed(&mut self.shared.lock(), flushed);
                return;
            }
            let is_due = self.files.due_in(Instant::now()).is_some_and(|due| is_urgent || due.is_zero());
            if is_due && !is_flushing {
                match self.files.begin_flush() {
                    Ok(None) => {}
                    Ok(Some(flush)) => {
                        is_flushing = true;
                        self.flush(flush);
                    }
                    Err(error) => self.note_failed(&mut self.shared.lock(), Err(error)),
                }
            }
        }
    }

    /// Writes snapshots that were handed over.
    fn write(&mut self, waiting: Vec<ToWrite>) {
        let count = waiting.len() as u64;
        let Some(newest) = waiting.last() else { return };
        let bytes = newest.snapshot.to_bytes();
        let mut written = self.files.write_newest(&bytes, Instant::now());
        self.shared.change(|queue| queue.written += count);
        let is_newest = written.is_ok();
        let older = std::mem::take(&mut self.owed).into_iter().map(|owed| (owed, false));
        let last = waiting.len() - 1;
        let all = older.chain(waiting.into_iter().enumerate().map(|(index, w)| (w, index == last)));
        for (mut snapshot, is_last) in all {
            let mut left = Vec::new();
            for name in std::mem::take(&mut snapshot.names) {
                let kept = match (is_last && is_newest, is_last) {
                    (true, _) => self.files.keep(&name, None),
                    (false, true) => self.files.keep(&name, Some(&bytes)),
                    (false, false) => self.files.keep(&name, Some(&snapshot.snapshot.to_bytes())),
                };
                if let Err(error) = kept {
                    left.push(name);
                    written = written.and(Err(error));
                }
            }
            if !left.is_empty() {
                // The same one can be handed over twice.
                self.owed.retain(|owed| owed.names != left);
                self.owed.push(ToWrite { names: left, ..snapshot });
            }
        }
        let too_many = self.owed.len().saturating_sub(MAX_OWED);
        self.owed.drain(..too_many);
        let mut queue = self.shared.lock();
        queue.storing = Storing::Ok;
        self.note_failed(&mut queue, written);
        queue.named += count;
        drop(queue);
        self.shared.changed.notify_all();
    }

    fn flush(&self, flush: Flush) {
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            let flushed = flush.run();
            shared.change(|queue| queue.flushed = Some(flushed));
        });
    }

    /// Records how a flush or a write ended, if it failed. That of an older snapshot says nothing good of the newest.
    fn note_failed(&self, queue: &mut Queue, result: io::Result<()>) {
        if let Err(error) = result {
            queue.storing = Storing::of(&error);
            let error = bundle::Error::file("write a snapshot in", &self.folder)(error).into();
            queue.failed.get_or_insert(error);
        }
    }
}
