//! Films of the formats that we write and that GStreamer reads only with further packages, or as their first picture:
//! GIF, WebP and YUV4MPEG2.

mod canvas;
mod gif;
mod webp;
mod y4m;

use bundle::geometry::PixelSize;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::time::Duration;

/// A picture of a film.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// Its bytes, laid out as the film says.
    pub(super) bytes: Vec<u8>,
    /// For how long it is shown.
    pub(super) duration: Duration,
}

/// How the bytes of a picture lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pixels {
    /// Red, green, blue and cover, 8 bits each, without padding.
    Rgba,
    /// 4:2:0 in BT.709, limited range, as `I420Layout` says.
    I420,
}

/// Pictures one after the other; after the first that cannot be read there is none.
pub(super) type Pictures = Box<dyn Iterator<Item = io::Result<Picture>> + Send>;

/// A film that is read here.
pub(super) struct Animation {
    pub(super) pixels: Pixels,
    pub(super) size: PixelSize,
    pub(super) pictures: Pictures,
}

/// A film of one of these formats; none if it is of another.
///
/// # Errors
/// What the system said; what is wrong with it.
pub(super) fn open(path: &Path) -> io::Result<Option<Animation>> {
    let mut file = File::open(path)?;
    let mut head = vec![];
    file.by_ref().take(12).read_to_end(&mut head)?;
    file.rewind()?;
    let file = BufReader::new(file);
    match head.as_slice() {
        [b'G', b'I', b'F', b'8', ..] => gif::open(file).map(Some),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => webp::open(file).map(Some),
        [b'Y', b'U', b'V', b'4', b'M', b'P', b'E', b'G', b'2', ..] => y4m::open(file).map(Some),
        _ => Ok(None),
    }
}

/// What is wrong with a file.
fn broken(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
