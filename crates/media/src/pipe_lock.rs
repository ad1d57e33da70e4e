//! A named pipe that one run at a time writes to.
//!
//! A lock on the pipe itself would need it open, which its reader would notice. A socket name of the kernel ends with the
//! process and leaves nothing behind; runs in different network namespaces do not see each other's.

use super::Error;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

/// Held for as long as a run may write to a pipe.
#[derive(Debug)]
pub(super) struct PipeLock {
    _name: UnixListener,
}

impl PipeLock {
    /// Takes a pipe that is there.
    ///
    /// # Errors
    /// Another run has it, or what the system said.
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
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
    fn one_run_at_a_time_under_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe.y4m"), folder.path().join("link.y4m"));
        std::fs::write(&pipe, "").unwrap();
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let first = PipeLock::take(&pipe).unwrap();
        for path in [&pipe, &link, &pipe] {
            assert!(matches!(PipeLock::take(path), Err(Error::File(bundle::part_file::Error::Busy { .. }))));
        }
        drop(first);
        PipeLock::take(&link).unwrap();
    }
}
