//! Errors of reading the record of a clip.

use bundle::{Diagnose, Report};
use std::io;
use std::path::PathBuf;

/// The reason why no record was read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file or folder cannot be read.
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// Clips of this format carry no record.
    Format {
        /// The file or folder.
        path: PathBuf,
        /// The format.
        why: String,
    },
    /// The file is whole and carries no record.
    Absent {
        /// The file.
        path: PathBuf,
        /// The program that left it out, if the file names it.
        why: String,
    },
    /// The record or the file is damaged.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        why: String,
    },
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Unreadable { path, source } => Report::bad_input(
                format!("cannot read {}", path.display()),
                source.to_string(),
                "give a clip that exists and that you may read",
            ),
            Self::Format { path, why } => Report::bad_input(
                format!("{} carries no record", path.display()),
                why.clone(),
                "give an mp4, mkv, webm, WebP or GIF, or a folder of PNGs, that rushes wrote",
            ),
            Self::Absent { path, why } => Report::bad_input(
                format!("{} carries no record", path.display()),
                why.clone(),
                "give the file that rushes wrote; `ffmpeg -c copy` to mp4, mkv or webm keeps the record",
            ),
            Self::Damaged { path, why } => Report::bad_input(
                format!("the record of {} cannot be read", path.display()),
                why.clone(),
                "give another copy of the clip",
            ),
        }
    }
}

bundle::display_as_report!(Error);
