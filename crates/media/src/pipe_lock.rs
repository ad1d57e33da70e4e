//! Locks on named pipes, so that one run at a time writes to each.
//!
//! The lock is an abstract Unix socket: locking the pipe itself would require opening it, which its reader would
//! notice. The kernel removes the socket with the process. Runs in different network namespaces do not exclude each
//! other.

use super::Error;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

/// A lock on a named pipe.
#[derive(Debug)]
pub(super) struct PipeLock {
    _name: UnixListener,
}

impl PipeLock {
    /// Locks an existing pipe.
    ///
    /// # Errors
    /// Returns an error if another run has locked it. I/O errors.
    pub(super) fn lock(path: &Path) -> Result<Self, Error> {
        let name = std::fs::metadata(path).and_then(|found| {
            let name = format!("rushes-pipe-{}-{}", found.dev(), found.ino());
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
        });
        match name {
            Ok(name) => Ok(Self { _name: name }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(Error::busy(path.to_owned(), path.to_owned()))
            }
            Err(error) => Err(Error::unwritable(path.to_owned(), error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_has_one_lock_under_all_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe.y4m"), folder.path().join("link.y4m"));
        std::fs::write(&pipe, "").unwrap();
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let first = PipeLock::lock(&pipe).unwrap();
        for path in [&pipe, &link, &pipe] {
            assert!(matches!(PipeLock::lock(path), Err(Error::File(bundle::part_file::Error::Busy { .. }))));
        }
        drop(first);
        PipeLock::lock(&link).unwrap();
    }
}
