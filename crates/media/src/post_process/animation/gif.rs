//! GIF.

use super::canvas::{Area, Canvas, Disposal};
use super::{Animation, Picture, Pixels, damaged};
use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, DisposalMethod, MemoryLimit};
use bundle::geometry::PixelSize;
use std::fs::File;
use std::io::{self, BufReader};
use std::num::NonZeroU64;
use std::time::Duration;

/// The most bytes of one picture.
const MAX_BYTES: NonZeroU64 = NonZeroU64::MIN.saturating_add(1 << 30);

pub(super) fn open(file: BufReader<File>) -> io::Result<Animation> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    options.set_memory_limit(MemoryLimit::Bytes(MAX_BYTES));
    let decoder = options.read_info(file).map_err(|error| io_error(0, error))?;
    let size = PixelSize { width: decoder.width().into(), height: decoder.height().into() };
    let canvas = Canvas::new(size).ok_or_else(|| damaged(format!("a GIF cannot be {size}")))?;
    let frames = Frames { decoder, canvas, read: 0, ended: false };
    Ok(Animation { pixels: Pixels::Rgba, size, pictures: Box::new(frames) })
}

struct Frames {
    decoder: Decoder<BufReader<File>>,
    canvas: Canvas,
    read: usize,
    ended: bool,
}

impl Frames {
    fn read(&mut self) -> io::Result<Option<Picture>> {
        let Some(frame) = self.decoder.read_next_frame().map_err(|error| io_error(self.read, error))? else {
            return Ok(None);
        };
        let area = Area {
            left: frame.left.into(),
            top: frame.top.into(),
            size: PixelSize { width: frame.width.into(), height: frame.height.into() },
        };
        let after = match frame.dispose {
            DisposalMethod::Any | DisposalMethod::Keep => Disposal::Keep,
            DisposalMethod::Background => Disposal::Clear,
            DisposalMethod::Previous => Disposal::Restore,
        };
        let bytes = self.canvas.compose(&frame.buffer, area, true, after);
        let bytes = bytes.ok_or_else(|| damaged("a picture is outside of the GIF"))?;
        self.read += 1;
        // The behaviour of players.
        let hundredths = if frame.delay < 2 { 10 } else { frame.delay };
        Ok(Some(Picture { bytes, duration: Duration::from_millis(10 * u64::from(hundredths)) }))
    }
}

impl Iterator for Frames {
    type Item = io::Result<Picture>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// Returns I/O errors unchanged. Other errors name the damaged picture.
fn io_error(picture: usize, error: DecodingError) -> io::Error {
    match error {
        DecodingError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => error,
        DecodingError::Io(_) => damaged(format!("it is cut short in picture {picture}")),
        other => damaged(format!("it is damaged in picture {picture}: {other}")),
    }
}
