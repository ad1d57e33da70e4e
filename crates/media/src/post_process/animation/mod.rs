//! Decoders of GIF, WebP and YUV4MPEG2, of which GStreamer needs further packages or decodes only the first picture.

mod canvas;
mod gif;
mod webp;
mod y4m;

use bundle::geometry::PixelSize;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::time::Duration;

/// A picture of an animation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// The bytes, in the layout of the animation.
    pub(super) bytes: Vec<u8>,
    /// The time for which it is shown.
    pub(super) duration: Duration,
}

/// The layout of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pixels {
    /// Red, green, blue and alpha, 8 bits each, without padding.
    Rgba,
    /// 4:2:0 in BT.709, limited range, in the layout of `I420Layout`.
    I420,
}

/// The pictures in order. Ends after the first error.
pub(super) type Pictures = Box<dyn Iterator<Item = io::Result<Picture>> + Send>;

/// An open animation.
pub(super) struct Animation {
    pub(super) pixels: Pixels,
    pub(super) size: PixelSize,
    pub(super) pictures: Pictures,
}

/// Opens an animation. Returns `None` for other formats.
///
/// # Errors
/// I/O errors. Returns an error if the file is damaged.
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

/// The error of a damaged file.
fn damaged(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}
