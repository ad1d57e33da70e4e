//! Waiting for room on a full disk.

use bundle::atomic;
use bundle::units::ByteCount;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a full disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Room that must be there before work goes on, beside what a snapshot needs.
const MARGIN: ByteCount = ByteCount(4 << 20);

/// A disk that is full. No unit is started while there is one.
#[derive(Debug)]
pub(super) struct Hold {
    /// A folder on the disk.
    folder: PathBuf,
    /// What must fit.
    room: ByteCount,
    looked: Instant,
}

impl Hold {
    /// A disk on which `path` could not be written, although it needs `bytes` at most.
    pub(super) fn new(path: &Path, bytes: ByteCount) -> Self {
        let is_folder = path.is_dir();
        let folder = if is_folder { Some(path) } else { path.parent() };
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { folder: folder.to_owned(), room: bytes + MARGIN, looked: Instant::now() }
    }

    /// What to tell the user.
    pub(super) fn message(&self) -> String {
        format!(
            "the disk of {} is full: all jobs wait until {} are free there",
            self.folder.display(),
            self.room
        )
    }

    /// Looks for room, at most once in a second. A folder that is gone counts as room: writing to it tells why.
    pub(super) fn has_room(&mut self) -> bool {
        if self.looked.elapsed() < LOOK_EVERY {
            return false;
        }
        self.looked = Instant::now();
        match reserve(&self.folder, self.room) {
            Ok(()) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            ),
        }
    }
}

/// Writes a file of this size, which is removed at once. Reserving the space alone would not count quotas of all file
/// systems.
fn reserve(folder: &Path, bytes: ByteCount) -> io::Result<()> {
    let mut part = atomic::create_part(&folder.join("room"))?;
    let block = vec![0_u8; 1 << 20];
    let mut left = bytes.0;
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(block.len()).min(block.len());
        part.write_all(block.get(..size).unwrap_or(&block))?;
        left -= size as u64;
    }
    part.as_file().sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_found_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        reserve(folder.path(), ByteCount(3 << 20)).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut hold = Hold::new(&folder.path().join("missing/clip.mp4"), ByteCount(1));
        assert!(!hold.has_room(), "it was looked at just now");
        hold.looked = Instant::now().checked_sub(LOOK_EVERY).unwrap();
        assert!(hold.has_room(), "a missing folder is not a full disk");
    }
}
