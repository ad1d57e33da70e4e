//! The files of snapshots, and the order in which they are written, named and flushed.
//!
//! A snapshot is first written under the name of a part and renamed to `newest.safetensors`: from then on a killed
//! process does not lose it. The file then gets its other names, each as a part that is flushed and renamed, so a name
//! other than `newest` never belongs to a file that is not on disk. No file is changed once it has its name.

use super::disk::Disk;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const NEWEST: &str = "newest.safetensors";
pub(super) const SYNCED: &str = "synced.safetensors";
pub(super) const BOUNDARY: &str = "boundary.safetensors";
// `JobFolder::open` removes parts after a killed run.
const NEWEST_PART: &str = ".rushes-newest.part";
const SYNCED_PART: &str = ".rushes-synced.part";
const KEPT_PART: &str = ".rushes-kept.part";
/// A snapshot is on disk at most this long after it was written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The name of the snapshot after `steps` steps that is kept.
pub(super) fn kept_name(steps: usize) -> String {
    format!("step-{steps:05}.safetensors")
}

/// The number of steps in the name of a snapshot that is kept.
pub(super) fn kept_steps(name: &str) -> Option<usize> {
    let steps = name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (kept_name(steps) == name).then_some(steps)
}

/// The files of the snapshots of one job.
#[derive(Debug)]
pub(super) struct SnapshotFiles {
    disk: Arc<dyn Disk>,
    /// When the oldest snapshot since the last flush was written.
    unsynced_since: Option<Instant>,
}

/// A flush that has begun. Snapshots can be written meanwhile.
#[derive(Debug)]
pub(super) struct Flush(Arc<dyn Disk>);

impl SnapshotFiles {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, unsynced_since: None }
    }

    /// Writes the newest snapshot. A killed process does not lose it then.
    pub(super) fn write_newest(&mut self, bytes: &[u8], now: Instant) -> io::Result<()> {
        self.publish(NEWEST_PART, |disk| {
            disk.write(NEWEST_PART, bytes)?;
            disk.rename(NEWEST_PART, NEWEST)
        })?;
        self.unsynced_since.get_or_insert(now);
        Ok(())
    }

    /// Keeps a snapshot under another name, certainly on disk. Without `bytes` it is the newest one.
    pub(super) fn keep(&self, name: &str, bytes: Option<&[u8]>) -> io::Result<()> {
        self.publish(KEPT_PART, |disk| {
            match bytes {
                Some(bytes) => disk.write(KEPT_PART, bytes)?,
                None => {
                    disk.remove(KEPT_PART)?;
                    disk.link(NEWEST, KEPT_PART)?;
                }
            }
            disk.sync(KEPT_PART)?;
            disk.rename(KEPT_PART, name)?;
            disk.sync_folder()
        })
    }

    /// Runs operations that make a part and rename it. Nothing is left of a part that failed.
    fn publish(&self, part: &str, made: impl FnOnce(&dyn Disk) -> io::Result<()>) -> io::Result<()> {
        made(&*self.disk).inspect_err(|_| drop(self.disk.remove(part)))
    }

    /// How long the newest snapshot can wait to be flushed; `None` if it is on disk, or is being flushed.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        let since = self.unsynced_since?;
        Some(SYNC_EVERY.saturating_sub(now.saturating_duration_since(since)))
    }

    /// Begins to flush the newest snapshot, if that is necessary. The flush before must have ended.
    pub(super) fn begin_flush(&mut self) -> io::Result<Option<Flush>> {
        if self.unsynced_since.take().is_none() {
            return Ok(None);
        }
        // What is flushed keeps its content, also if the newest snapshot is replaced meanwhile.
        self.disk.remove(SYNCED_PART)?;
        self.disk.link(NEWEST, SYNCED_PART)?;
        Ok(Some(Flush(Arc::clone(&self.disk))))
    }
}

impl Flush {
    /// Waits until the snapshot is on disk, and gives it its second name.
    pub(super) fn run(&self) -> io::Result<()> {
        self.0.sync(SYNCED_PART)?;
        self.0.rename(SYNCED_PART, SYNCED)?;
        self.0.sync_folder()
    }
}
