//! The record of a clip, read from its file: everything that repeats the clip, as JSON.
//!
//! A clip has its record where programs that copy it keep it:
//!
//! | container | place |
//! |---|---|
//! | mp4 | `rushes:job` in XMP, and the long description of iTunes, which `ffmpeg -c copy` keeps |
//! | mkv, webm | the tag `RUSHES_JOB`, and the tag `SYNOPSIS` for a copy as mp4 |
//! | PNG | `iTXt` chunk `RUSHES_JOB` in the first picture of a folder |
//! | WebP | `rushes:job` in XMP |
//! | GIF | application extension `RUSHES_JOB1` |
//!
//! The text is base64url without padding, at most 64 kB. Streams and y4m carry none. Files may come from anywhere:
//! sizes are checked, and a file is read up to a limited number of elements.

mod error;
mod findings;
mod gif;
mod matroska;
mod mp4;
mod png;
mod source;
mod webp;
mod xmp;

pub use error::Error;

use findings::Findings;
use source::Source;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

/// Reads the record of a file, or of the first PNG in a folder.
///
/// ```no_run
/// let record = media::clip_record::read("clip.mp4".as_ref())?;
/// # Ok::<(), media::clip_record::Error>(())
/// ```
///
/// # Errors
/// Returns an error that names what was lost if the file carries no record. Returns an error if it is damaged, has
/// another format or cannot be read.
pub fn read(path: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(unreadable)?;
    let file = if found.is_dir() {
        let first = first_picture(path).map_err(unreadable)?;
        first.ok_or_else(|| Error::Format { path: path.to_owned(), why: "the folder has no PNG".into() })?
    } else if found.is_file() {
        path.to_owned()
    } else {
        // Opening a pipe would wait for its writer.
        return Err(Error::Format { path: path.to_owned(), why: "it is not an ordinary file".into() });
    };
    let opened = File::open(&file).map_err(|source| Error::Unreadable { path: file.clone(), source })?;
    read_open(opened, &file)
}

/// Reads the record of an open file. `path` is its name in errors.
///
/// # Errors
/// Those of [`read`].
pub fn read_open(input: impl Read + Seek, path: &Path) -> Result<String, Error> {
    let path = path.to_owned();
    read_from(input).map_err(|fault| match fault {
        Fault::Io(source) => Error::Unreadable { path, source },
        Fault::Format(why) => Error::Format { path, why },
        Fault::Absent(why) => Error::Absent { path, why },
        Fault::Damaged(why) => Error::Damaged { path, why },
    })
}

/// The first PNG of a folder in the order of names.
fn first_picture(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut first: Option<PathBuf> = None;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_picture = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        if is_picture && path.is_file() && first.as_ref().is_none_or(|first| path < *first) {
            first = Some(path);
        }
    }
    Ok(first)
}

/// [`Error`] without the path.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Format(String),
    Absent(String),
    Damaged(String),
}

fn read_from(input: impl Read + Seek) -> Result<String, Fault> {
    let mut source = Source::new(input).map_err(Fault::Io)?;
    let head = source.read_up_to(0, 12).map_err(Fault::Io)?;
    let container = Container::from_head(&head).ok_or_else(|| Fault::Format(other_format(&head)))?;
    let mut found = Findings::default();
    let scanned = match container {
        Container::Mp4 => mp4::scan(&mut source, &mut found),
        Container::Matroska => matroska::scan(&mut source, &mut found),
        Container::Png => png::scan(&mut source, &mut found),
        Container::WebP => webp::scan(&mut source, &mut found),
        Container::Gif => gif::scan(&mut source, &mut found),
    };
    // A damaged end does not matter if the record is whole.
    if let Some(record) = found.record().map_err(Fault::Damaged)? {
        return Ok(record);
    }
    match scanned {
        Ok(()) if container == Container::Png => Err(Fault::Absent(found.absence_in_picture())),
        Ok(()) => Err(Fault::Absent(found.absence())),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            Err(Fault::Damaged(format!("{error}, and no record precedes it")))
        }
        Err(error) => Err(Fault::Io(error)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Mp4,
    Matroska,
    Png,
    WebP,
    Gif,
}

impl Container {
    /// The container of a file from its first 12 bytes.
    fn from_head(head: &[u8]) -> Option<Self> {
        match (head, head.get(4..8), head.get(8..12)) {
            ([0x1a, 0x45, 0xdf, 0xa3, ..], _, _) => Some(Self::Matroska),
            ([0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..], _, _) => Some(Self::Png),
            ([b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..], _, _) => Some(Self::Gif),
            ([b'R', b'I', b'F', b'F', ..], _, Some(b"WEBP")) => Some(Self::WebP),
            (_, Some(b"ftyp" | b"moov" | b"mdat" | b"free" | b"wide"), _) => Some(Self::Mp4),
            _ => None,
        }
    }
}

fn other_format(head: &[u8]) -> String {
    match head {
        [] => "it is empty",
        [b'Y', b'U', b'V', b'4', b'M', b'P', b'E', b'G', ..] => "it is y4m, which has no metadata",
        [b'#', b'E', b'X', b'T', b'M', b'3', b'U', ..] => "it is a playlist, and streams carry no record",
        _ => "it is not mp4, mkv, webm, PNG, WebP or GIF",
    }
    .to_owned()
}

#[cfg(test)]
mod tests;
