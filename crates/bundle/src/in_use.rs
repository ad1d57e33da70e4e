//! Bundles that are being read: a run that opens one holds a shared lock on its folder, and nothing is removed from it
//! before the last of these locks is gone.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Says that a bundle is being read, until it is dropped.
#[derive(Debug)]
pub struct InUse {
    /// Open for as long as the bundle is read: it carries the lock. None where the file system knows no locks.
    _lock: Option<File>,
}

impl InUse {
    /// Says so of the bundle in `folder`.
    pub fn of(folder: &Path) -> Self {
        let lock = File::open(folder).ok().filter(|lock| lock.lock_shared().is_ok());
        Self { _lock: lock }
    }
}

/// Whether a run reads the bundle in `folder`. Where locks are not known, nobody does.
pub fn is_used(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_used_while_anybody_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (InUse::of(folder.path()), InUse::of(folder.path()));
        assert!(is_used(folder.path()));
        drop(first);
        assert!(is_used(folder.path()));
        drop(second);
        assert!(!is_used(folder.path()));
        assert!(!is_used(&folder.path().join("nothing")));
    }
}
