//! The record in the XMP of a WebP.

use super::findings::Findings;
use super::source::{Source, incomplete};
use super::xmp;
use std::io::{self, Read, Seek};

/// Bytes of `RIFF`, a length and `WEBP`.
const FILE_HEADER: u64 = 12;
/// Bytes of the name and the length of a chunk.
const HEADER: usize = 8;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let mut at = FILE_HEADER;
    while at < source.length() {
        let head = source.header(at, HEADER)?;
        let Ok([n0, n1, n2, n3, length @ ..]) = <[u8; HEADER]>::try_from(head) else {
            return Err(incomplete(at));
        };
        let length = u64::from(u32::from_le_bytes(length));
        let start = at + HEADER as u64;
        let end = start + length;
        if end > source.length() {
            return Err(incomplete(at));
        }
        if [n0, n1, n2, n3] == *b"XMP " {
            xmp::scan(source, start..end, found)?;
        }
        // Chunks have an even length.
        at = end + length % 2;
    }
    Ok(())
}
