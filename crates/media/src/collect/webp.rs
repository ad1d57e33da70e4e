//! Animated WebP in an endless loop: pictures of libwebp in a container that is written incrementally.
//!
//! The layout follows the WebP Container Specification: `RIFF(WEBP: VP8X, ANIM, ANMF…, XMP)`. The length in the header
//! is updated after every frame, so that a truncated file can be read up to its last complete frame.

use super::delays::{DelayUnit, Delays};
use super::{Collector, bytes, rgb_rows};
use crate::ClipFormat;
use crate::frames::RgbLayout;
use gstreamer as gst;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// The quality of libwebp, 0 to 100.
const QUALITY: f32 = 90.0;

/// Flags of `VP8X`: animation and XMP.
const FLAGS: u8 = 0x02 | 0x04;
/// Flag of `ANMF`: the frame is not blended with the previous one.
const REPLACE: u8 = 0x02;

/// Writes each frame as a complete picture.
#[derive(Debug)]
pub(crate) struct WebPFile {
    file: File,
    layout: RgbLayout,
    delays: Delays,
    xmp: String,
    taken: usize,
    closed: bool,
}

impl WebPFile {
    /// Writes the header of the file.
    ///
    /// # Errors
    /// Returns an error if the picture is too large for a WebP. I/O errors.
    pub(crate) fn create(
        mut file: File,
        format: ClipFormat,
        layout: RgbLayout,
        xmp: String,
    ) -> io::Result<Self> {
        let (width, height) = (side(layout.width())?, side(layout.height())?);
        let head = [
            b"RIFF\0\0\0\0WEBP".to_vec(),
            chunk(b"VP8X", &[&[FLAGS, 0, 0, 0][..], &u24(width - 1), &u24(height - 1)].concat()),
            // The background colour, then the loop count: 0 is endless.
            chunk(b"ANIM", &[0; 6]),
        ];
        file.write_all(&head.concat())?;
        let delays = Delays::new(DelayUnit::WEBP, format.rate.fraction(), format.frames);
        Ok(Self { file, layout, delays, xmp, taken: 0, closed: false })
    }

    fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        let length = self.file.stream_position()?;
        let riff =
            u32::try_from(length - 8).map_err(|_too_large| io::Error::other("a WebP has at most 4 GB"))?;
        self.file.seek(SeekFrom::Start(4))?;
        self.file.write_all(&riff.to_le_bytes())?;
        self.file.seek(SeekFrom::End(0)).map(drop)
    }
}

impl Collector for WebPFile {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let duration = self.delays.delay(self.taken);
        self.taken += 1;
        let Some(duration) = duration else { return Ok(()) };
        let (width, height) = (side(self.layout.width())?, side(self.layout.height())?);
        let picture = rgb_rows(&bytes(buffer)?, self.layout);
        let still = webp::Encoder::from_rgb(&picture, width, height)
            .encode_simple(false, QUALITY)
            .map_err(|error| io::Error::other(format!("libwebp failed: {error:?}")))?;
        let duration = u32::try_from(duration).unwrap_or(u32::MAX);
        let frame = [
            &u24(0)[..],
            &u24(0),
            &u24(width - 1),
            &u24(height - 1),
            &u24(duration),
            &[REPLACE],
            // Without the file header: `RIFF`, a length, `WEBP`.
            still.get(12..).unwrap_or_default(),
        ];
        self.append(&chunk(b"ANMF", &frame.concat()))
    }

    fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let xmp = chunk(b"XMP ", self.xmp.as_bytes());
        self.append(&xmp)
    }
}

fn side(pixels: usize) -> io::Result<u32> {
    let most = 16383;
    let side = u32::try_from(pixels).ok().filter(|side| (1..=most).contains(side));
    side.ok_or_else(|| io::Error::other(format!("a WebP has at most {most} pixels a side")))
}

fn u24(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

/// A chunk of a RIFF file: name, length and content, padded to an even length.
fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let padding = if content.len() % 2 == 1 { &[0][..] } else { &[] };
    [&name[..], &length.to_le_bytes(), content, padding].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_an_even_length() {
        assert_eq!(chunk(b"XMP ", b"abc"), b"XMP \x03\0\0\0abc\0");
        assert_eq!(chunk(b"ANIM", b"ab"), b"ANIM\x02\0\0\0ab");
        assert_eq!(u24(831), [0x3f, 3, 0]);
    }
}
