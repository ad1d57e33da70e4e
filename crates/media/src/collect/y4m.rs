//! YUV4MPEG2: a line of text, then uncompressed frames.
//!
//! The format has no field for the colour matrix. The frames are BT.709 in limited range, with chroma in the centre of
//! four pixels. There is no metadata either: readers refuse a header of more than 96 bytes.

use super::{Collector, bytes};
use crate::ClipFormat;
use crate::frames::I420Layout;
use gstreamer as gst;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// The target of the bytes.
#[derive(Debug)]
pub(crate) enum Y4mTarget {
    /// An open file.
    File(File),
    /// A named pipe. Opening it blocks until there is a reader, so the thread of the pipeline opens it.
    Pipe(PathBuf),
    /// Standard output.
    Stdout,
}

/// Writes uncompressed frames.
#[derive(Debug)]
pub(crate) struct Y4mWriter {
    header: String,
    layout: I420Layout,
    state: State,
}

#[derive(Debug)]
enum State {
    Pending(Y4mTarget),
    Open(BufWriter<File>),
    Stdout,
    Closed,
}

impl Y4mWriter {
    /// A writer of frames in a layout. Nothing is opened or written before the first frame.
    pub(crate) fn new(target: Y4mTarget, format: ClipFormat, layout: I420Layout) -> Self {
        let (frames, seconds) = format.rate.fraction();
        let header = format!(
            "YUV4MPEG2 W{} H{} F{frames}:{seconds} Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n",
            format.size.width, format.size.height,
        );
        Self { header, layout, state: State::Pending(target) }
    }

    fn open(&mut self) -> io::Result<()> {
        let State::Pending(target) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(io::Error::other("it is already closed"));
        };
        self.state = match target {
            Y4mTarget::File(file) => State::Open(BufWriter::new(file)),
            Y4mTarget::Pipe(path) => State::Open(BufWriter::new(OpenOptions::new().write(true).open(path)?)),
            Y4mTarget::Stdout => State::Stdout,
        };
        let header = std::mem::take(&mut self.header);
        self.write(|out| out.write_all(header.as_bytes()))
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        match &mut self.state {
            State::Open(file) => write(file).and_then(|()| file.flush()),
            State::Stdout => {
                let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
                write(&mut out).and_then(|()| out.flush())
            }
            State::Pending(_) | State::Closed => Err(io::Error::other("it is not open")),
        }
    }
}

impl Collector for Y4mWriter {
    fn take(&mut self, buffer: &gst::BufferRef) -> io::Result<()> {
        if matches!(self.state, State::Pending(_)) {
            self.open()?;
        }
        let picture = bytes(buffer)?;
        let planes = self.layout.planes();
        self.write(|out| {
            out.write_all(b"FRAME\n")?;
            for (start, stride, row, rows) in planes {
                for y in 0..rows {
                    out.write_all(&picture[start + y * stride..][..row])?;
                }
            }
            Ok(())
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        self.state = State::Closed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::units::FrameRate;

    #[test]
    fn frames_are_written_without_padding() {
        gst::init().unwrap();
        let layout = I420Layout::new(2, 2).unwrap();
        let format =
            ClipFormat { size: "2x2".parse().unwrap(), rate: FrameRate::try_new(16).unwrap(), frames: None };
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Y4mTarget::File(file.reopen().unwrap());
        let mut writer = Y4mWriter::new(target, format, layout);
        let picture = [1, 2, 0, 0, 3, 4, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0];
        writer.take(&gst::Buffer::from_slice(picture)).unwrap();
        writer.finish().unwrap();
        let written = std::fs::read(file.path()).unwrap();
        let expected = b"YUV4MPEG2 W2 H2 F16:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n\
            FRAME\n\x01\x02\x03\x04\x05\x06";
        assert_eq!(written, expected);
        assert!(writer.take(&gst::Buffer::from_slice(picture)).is_err());
    }
}
