//! Detection of outputs that write to standard output.

use super::{FileFormat, OutputSpec};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

impl OutputSpec {
    /// Returns true if the frames are written to standard output of this process: `-`, one of its paths, or a named
    /// pipe that standard output is connected to. Nothing else may be written there then.
    pub fn is_standard_output(&self) -> bool {
        match self {
            Self::Stdout => true,
            Self::File { path, format: FileFormat::Y4m } => is_stdout_pipe(path),
            _ => false,
        }
    }
}

/// Returns true if the path is a named pipe that standard output is connected to.
fn is_stdout_pipe(path: &Path) -> bool {
    let standard_output =
        || -> io::Result<Metadata> { File::from(io::stdout().as_fd().try_clone_to_owned()?).metadata() };
    let Ok(named) = std::fs::metadata(path) else { return false };
    named.file_type().is_fifo()
        && standard_output().is_ok_and(|found| (found.dev(), found.ino()) == (named.dev(), named.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_has_many_names() {
        for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "//dev/./stdout"] {
            assert_eq!(name.parse::<OutputSpec>().unwrap(), OutputSpec::Stdout, "{name}");
        }
        for name in ["a.y4m", "-.mp4", "stdout.y4m", "frames/"] {
            assert!(!name.parse::<OutputSpec>().unwrap().is_standard_output(), "{name}");
        }
        for name in ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/0", "/dev/null"] {
            assert!(name.parse::<OutputSpec>().is_err(), "{name}");
        }
    }
}
