//! YUV4MPEG2: a line of text, then uncompressed frames.
//!
//! The format has no field for the colour matrix. The frames are BT.709 in limited range, with chroma in the centre of
//! four pixels. There is no metadata either: readers refuse a header of more than 96 bytes.

use super::pipe::PipeWriter;
use super::{Collector, bytes};
use crate::ClipFormat;
use crate::frames::I420Layout;
use bundle::Cancel;
use gstreamer as gst;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

/// The target of the bytes.
#[derive(Debug)]
pub(crate) enum Y4mTarget {
    /// An open file.
    File(File),
    /// A named pipe. Opening it waits for a reader, so the thread of the pipeline opens it. Waits end when the output
    /// is closed.
    Pipe(PathBuf, Cancel),
    /// Standard output, likewise.
    Stdout(Cancel),
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
    Pipe(BufWriter<PipeWriter>),
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
            Y4mTarget::Pipe(path, closing) => State::Pipe(buffered(PipeWriter::open(&path, &closing)?)),
            Y4mTarget::Stdout(closing) => State::Pipe(buffered(PipeWriter::standard_output(&closing)?)),
        };
        let header = std::mem::take(&mut self.header);
        self.write(|out| out.write_all(header.as_bytes()))
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        match &mut self.state {
            State::Open(file) => write(file).and_then(|()| file.flush()),
            State::Pipe(pipe) => write(pipe).and_then(|()| pipe.flush()),
            State::Pending(_) | State::Closed => Err(io::Error::other("it is not open")),
        }
    }
}

/// A buffer of the size of a pipe.
fn buffered(pipe: PipeWriter) -> BufWriter<PipeWriter> {
    BufWriter::with_capacity(1 << 16, pipe)
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
                    let line = start + y * stride;
                    let line = picture.get(line..line + row);
                    out.write_all(line.ok_or_else(|| io::Error::other("a picture is incomplete"))?)?;
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
