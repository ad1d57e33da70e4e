//! Reading parts of a file whose sizes are not trusted.

use crate::record_code::{LABEL, MAX_BYTES};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;

/// The most bytes of a value that are read: one more than the longest record, so that a longer one is recognised.
pub(super) const MAX_VALUE: usize = LABEL.len() + MAX_BYTES + 1;

/// The most elements of a file. A fragmented mp4 of an hour has some 30 000.
const MAX_ELEMENTS: u32 = 1 << 20;

/// A file with a bound on the number of elements that are read.
#[derive(Debug)]
pub(super) struct Source<R> {
    input: R,
    length: u64,
    elements: u32,
}

impl<R: Read + Seek> Source<R> {
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let length = input.seek(SeekFrom::End(0))?;
        Ok(Self { input, length, elements: 0 })
    }

    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads at most `most` bytes from a position, fewer at the end of the file.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn read_up_to(&mut self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        self.input.seek(SeekFrom::Start(at))?;
        self.input.by_ref().take(most as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the header of an element, at most `most` bytes.
    ///
    /// # Errors
    /// I/O errors. Returns an error if the file has too many elements.
    pub(super) fn header(&mut self, at: u64, most: usize) -> io::Result<Vec<u8>> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(damaged(format!("it has more than {MAX_ELEMENTS} parts")));
        }
        self.read_up_to(at, most)
    }

    /// Reads the start of a value, at most [`MAX_VALUE`] bytes.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn value(&mut self, area: &Range<u64>) -> io::Result<Vec<u8>> {
        let length = area.end.saturating_sub(area.start).min(MAX_VALUE as u64);
        self.read_up_to(area.start, usize::try_from(length).unwrap_or(MAX_VALUE))
    }
}

/// The error of a file whose structure is damaged.
pub(super) fn damaged(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}

/// The error of a part that does not end within the file or the part around it.
pub(super) fn incomplete(at: u64) -> io::Error {
    damaged(format!("the file is damaged or incomplete at byte {at}"))
}
