//! Whether the clip goes to standard output, by whatever name.

use super::{FileFormat, OutputSpec};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Paths of standard output on Linux.
const PATHS: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Whether a path is a name of standard output.
pub(super) fn is_its_path(path: &Path) -> bool {
    PATHS.iter().any(|known| path == Path::new(known))
}

impl OutputSpec {
    /// Whether its frames go to this program's standard output: as `-`, under one of its paths, or as a named pipe that
    /// standard output is. Nothing else may be written there then.
    pub fn is_standard_output(&self) -> bool {
        match self {
            Self::Stdout => true,
            Self::File { path, format: FileFormat::Y4m } => is_its_pipe(path),
            _ => false,
        }
    }
}

fn is_its_pipe(path: &Path) -> bool {
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
