//! Writes to pipes and to standard output that end when the output is closed.
//!
//! A blocking write to a pipe without a reader, or with one that has stopped reading, does not return. Here every wait is
//! a poll with a timeout, so that the thread of the pipeline can be ended. Writes to regular files are not waits: the
//! system completes them, or its file system hangs, which no program can end.

use bundle::Cancel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// The interval at which a wait checks whether the output is closed.
const POLL_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// The interval at which a named pipe without a reader is tried again.
const OPEN_INTERVAL: Duration = Duration::from_millis(20);
/// `PIPE_BUF` of Linux: a pipe that is ready takes this many bytes without a wait.
const WHOLE_WRITE: usize = 4096;

/// A pipe, or whatever standard output is.
#[derive(Debug)]
pub(crate) struct PipeWriter {
    file: File,
    kind: Kind,
    closing: Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A file description of this process alone, in non-blocking mode.
    NonBlocking,
    /// A pipe whose file description other processes may share, so that its mode is not changed.
    SharedPipe,
    /// A socket.
    Socket,
    /// A regular file or a device.
    File,
}

impl PipeWriter {
    /// Opens a named pipe, and waits for its reader.
    ///
    /// # Errors
    /// I/O errors. Returns an error if `closing` is requested during the wait.
    pub(crate) fn open(path: &Path, closing: &Cancel) -> io::Result<Self> {
        loop {
            match non_blocking(path) {
                Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                    check_open(closing)?;
                    std::thread::sleep(OPEN_INTERVAL);
                }
                file => return Ok(Self { file: file?, kind: Kind::NonBlocking, closing: closing.clone() }),
            }
        }
    }

    /// Standard output, without the buffer of the standard library.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn standard_output(closing: &Cancel) -> io::Result<Self> {
        Self::inherited(File::from(io::stdout().as_fd().try_clone_to_owned()?), closing)
    }

    /// A file description that other processes may share.
    fn inherited(file: File, closing: &Cancel) -> io::Result<Self> {
        let found = file.metadata()?.file_type();
        let (file, kind) = if found.is_fifo() {
            // A description of its own; not possible for a pipe of another user.
            match non_blocking(Path::new(&format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(&file)
            ))) {
                Ok(own) => (own, Kind::NonBlocking),
                Err(_) => (file, Kind::SharedPipe),
            }
        } else if found.is_socket() {
            (file, Kind::Socket)
        } else {
            (file, Kind::File)
        };
        Ok(Self { file, kind, closing: closing.clone() })
    }

    /// Waits until bytes can be written, or until it is worth trying again.
    fn wait(&self) -> io::Result<()> {
        check_open(&self.closing)?;
        match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&POLL_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true if a write of up to [`WHOLE_WRITE`] bytes does not wait.
    fn is_ready(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.file, PollFlags::OUT)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            check_open(&self.closing)?;
            let written = match self.kind {
                Kind::NonBlocking | Kind::File => self.file.write(bytes),
                Kind::SharedPipe if self.is_ready()? => {
                    self.file.write(&bytes[..bytes.len().min(WHOLE_WRITE)])
                }
                Kind::SharedPipe => Err(io::ErrorKind::WouldBlock.into()),
                Kind::Socket => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    rustix::net::send(&self.file, bytes, flags).map_err(io::Error::from)
                }
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a file for writing in non-blocking mode.
fn non_blocking(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

fn check_open(closing: &Cancel) -> io::Result<()> {
    if closing.is_cancelled() {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it was closed before its reader took all frames",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    /// More than a pipe or a socket buffers.
    const MUCH: usize = 8 << 20;

    /// A reading and a writing end whose writes may wait.
    fn ends() -> [(File, File, Kind); 2] {
        let (read, write) = io::pipe().unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let file = |fd: std::os::fd::OwnedFd| File::from(fd);
        [
            (file(read.into()), file(write.into()), Kind::NonBlocking),
            (file(one.into()), file(other.into()), Kind::Socket),
        ]
    }

    #[test]
    fn everything_arrives_at_a_reader_that_pauses() {
        let (read, write) = io::pipe().unwrap();
        let shared = (
            File::from(std::os::fd::OwnedFd::from(read)),
            PipeWriter {
                file: File::from(std::os::fd::OwnedFd::from(write)),
                kind: Kind::SharedPipe,
                closing: Cancel::new(),
            },
        );
        let own = ends().map(|(read, write, kind)| {
            let writer = PipeWriter::inherited(write, &Cancel::new()).unwrap();
            assert_eq!(writer.kind, kind);
            (read, writer)
        });
        for (mut read, mut writer) in own.into_iter().chain([shared]) {
            let sent: Vec<u8> = (0..MUCH).map(|index| (index % 251) as u8).collect();
            let received = thread::scope(|scope| {
                scope.spawn(|| {
                    writer.write_all(&sent).unwrap();
                    drop(writer);
                });
                thread::sleep(Duration::from_millis(30));
                let mut received = vec![];
                read.read_to_end(&mut received).unwrap();
                received
            });
            assert!(received == sent);
        }
    }

    #[test]
    fn a_write_without_a_reader_ends_when_the_output_is_closed() {
        for (read, write, _) in ends() {
            let closing = Cancel::new();
            let mut writer = PipeWriter::inherited(write, &closing).unwrap();
            let result = thread::scope(|scope| {
                let writing = scope.spawn(|| writer.write_all(&vec![7; MUCH]));
                thread::sleep(Duration::from_millis(30));
                assert!(!writing.is_finished());
                closing.cancel();
                writing.join().unwrap()
            });
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
            drop(read);
        }
    }

    #[test]
    fn a_reader_that_leaves_is_an_error() {
        for (read, write, _) in ends() {
            let mut writer = PipeWriter::inherited(write, &Cancel::new()).unwrap();
            drop(read);
            assert_eq!(writer.write_all(&[1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
    }

    #[test]
    fn opening_a_pipe_waits_for_its_reader_or_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let closing = Cancel::new();
        let opened = thread::scope(|scope| {
            let opening = scope.spawn(|| PipeWriter::open(&path, &closing).map(drop));
            thread::sleep(Duration::from_millis(50));
            closing.cancel();
            opening.join().unwrap()
        });
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let text = thread::scope(|scope| {
            scope.spawn(|| PipeWriter::open(&path, &Cancel::new()).unwrap().write_all(b"all").unwrap());
            std::fs::read_to_string(&path).unwrap()
        });
        assert_eq!(text, "all");
        assert!(PipeWriter::open(&folder.path().join("none"), &closing).is_err());
    }
}
