//! Animated GIF, played for ever.

use super::delays::{Clockwork, Delays};
use super::{Collector, bytes, rgb_rows};
use crate::ClipFormat;
use crate::frames::RgbLayout;
use gif::{AnyExtension, Encoder, EncodingError, Extension, Frame, Repeat};
use gstreamer as gst;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// How carefully the palette of a frame is chosen: 1 looks at each pixel, 30 at every thirtieth.
const PALETTE_SPEED: i32 = 10;

/// Writes each frame with a palette of its own.
pub(crate) struct GifFile {
    encoder: Option<Encoder<BufWriter<File>>>,
    layout: RgbLayout,
    delays: Delays,
    taken: usize,
}

impl GifFile {
    /// Writes the head of the file.
    ///
    /// # Errors
    /// A picture larger than a GIF can be, or what the system said.
    pub(crate) fn create(
        file: File,
        format: ClipFormat,
        layout: RgbLayout,
        comment: &str,
    ) -> io::Result<Self> {
        let mut encoder = Encoder::new(BufWriter::new(file), side(layout.width)?, side(layout.height)?, &[])
            .map_err(plain)?;
        encoder.set_repeat(Repeat::Infinite).map_err(plain)?;
        let lines: Vec<&[u8]> = comment.as_bytes().chunks(255).collect();
        encoder.write_raw_extension(AnyExtension(Extension::Comment as u8), &lines).map_err(plain)?;
        let delays = Delays::new(Clockwork::GIF, format.rate.fraction(), format.frames);
        Ok(Self { encoder: Some(encoder), layout, delays, taken: 0 })
    }
}

impl Collector for GifFile {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let delay = self.delays.of(self.taken);
        self.taken += 1;
        let Some(delay) = delay else { return Ok(()) };
        let picture = rgb_rows(&bytes(buffer)?, self.layout);
        let (width, height) = (side(self.layout.width)?, side(self.layout.height)?);
        let mut frame = Frame::from_rgb_speed(width, height, &picture, PALETTE_SPEED);
        frame.delay = u16::try_from(delay).unwrap_or(u16::MAX);
        let encoder = self.encoder.as_mut().ok_or_else(|| io::Error::other("it is closed already"))?;
        encoder.write_frame(&frame).map_err(plain)?;
        encoder.get_mut().flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.encoder.take() {
            Some(encoder) => encoder.into_inner().map_err(plain)?.flush(),
            None => Ok(()),
        }
    }
}

fn side(pixels: usize) -> io::Result<u16> {
    u16::try_from(pixels).map_err(|_too_large| io::Error::other("a GIF has at most 65535 pixels a side"))
}

/// The system's own error, where that is what it was.
fn plain(error: EncodingError) -> io::Error {
    match error {
        EncodingError::Io(error) => error,
        other => io::Error::other(other),
    }
}
