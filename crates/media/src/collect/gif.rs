//! Animated GIF in an endless loop.

use super::delays::{DelayUnit, Delays};
use super::{Collector, bytes, rgb_rows};
use crate::ClipFormat;
use crate::frames::RgbLayout;
use crate::record_code::{EncodedRecord, GIF_APPLICATION};
use gif::{AnyExtension, Encoder, EncodingError, Extension, Frame, Repeat};
use gstreamer as gst;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// The sampling factor of the palette: 1 reads every pixel, 30 every thirtieth.
const PALETTE_SPEED: i32 = 10;

/// Writes each frame with its own palette.
pub(crate) struct GifFile {
    encoder: Option<Encoder<BufWriter<File>>>,
    layout: RgbLayout,
    delays: Delays,
    taken: usize,
}

impl GifFile {
    /// Writes the header of the file.
    ///
    /// # Errors
    /// Returns an error if the picture is too large for a GIF. I/O errors.
    pub(crate) fn create(
        file: File,
        format: ClipFormat,
        layout: RgbLayout,
        comment: Option<&str>,
        record: Option<&EncodedRecord>,
    ) -> io::Result<Self> {
        let mut encoder =
            Encoder::new(BufWriter::new(file), side(layout.width())?, side(layout.height())?, &[])
                .map_err(io_error)?;
        encoder.set_repeat(Repeat::Infinite).map_err(io_error)?;
        let mut extension = |kind: Extension, blocks: &[&[u8]]| {
            encoder.write_raw_extension(AnyExtension(kind as u8), blocks).map_err(io_error)
        };
        if let Some(comment) = comment {
            extension(Extension::Comment, &comment.as_bytes().chunks(255).collect::<Vec<_>>())?;
        }
        if let Some(record) = record {
            let blocks = std::iter::once(&GIF_APPLICATION[..]).chain(record.as_str().as_bytes().chunks(255));
            extension(Extension::Application, &blocks.collect::<Vec<_>>())?;
        }
        let delays = Delays::new(DelayUnit::GIF, format.rate.fraction(), format.frames);
        Ok(Self { encoder: Some(encoder), layout, delays, taken: 0 })
    }
}

impl Collector for GifFile {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        let delay = self.delays.delay(self.taken);
        self.taken += 1;
        let Some(delay) = delay else { return Ok(()) };
        let picture = rgb_rows(&bytes(buffer)?, self.layout);
        let (width, height) = (side(self.layout.width())?, side(self.layout.height())?);
        let mut frame = Frame::from_rgb_speed(width, height, &picture, PALETTE_SPEED);
        frame.delay = u16::try_from(delay).unwrap_or(u16::MAX);
        let encoder = self.encoder.as_mut().ok_or_else(|| io::Error::other("it is already closed"))?;
        encoder.write_frame(&frame).map_err(io_error)?;
        encoder.get_mut().flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.encoder.take() {
            Some(encoder) => encoder.into_inner().map_err(io_error)?.flush(),
            None => Ok(()),
        }
    }
}

fn side(pixels: usize) -> io::Result<u16> {
    u16::try_from(pixels).map_err(|_too_large| io::Error::other("a GIF has at most 65535 pixels a side"))
}

/// Unwraps I/O errors.
fn io_error(error: EncodingError) -> io::Error {
    match error {
        EncodingError::Io(error) => error,
        other => io::Error::other(other),
    }
}
