//! The record in the XMP of a WebP.

use super::findings::Findings;
use super::source::{Source, incomplete};
use super::xmp;
use std::io::{self, Read, Seek};
use std::ops::Range;

/// Bytes of `RIFF` and a length, and of `WEBP`.
const RIFF: u64 = 8;
const NAME: u64 = 4;
/// Bytes of the name and the length of a chunk.
const HEADER: usize = 8;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let (_, file) = chunk(source, 0)?;
    let mut at = RIFF + NAME;
    while at < file.end {
        let (name, content) = chunk(source, at)?;
        at = content.end;
        // Chunks have an even length.
        at += at % 2;
        if name == *b"XMP " {
            xmp::scan(source, content, found)?;
        }
    }
    Ok(())
}

/// The name and the content of the chunk at a position.
fn chunk<R: Read + Seek>(source: &mut Source<R>, at: u64) -> io::Result<([u8; 4], Range<u64>)> {
    let head = source.header(at, HEADER)?;
    let Ok([n0, n1, n2, n3, length @ ..]) = <[u8; HEADER]>::try_from(head) else {
        return Err(incomplete(at));
    };
    let start = at + HEADER as u64;
    let end = start + u64::from(u32::from_le_bytes(length));
    if end > source.length() { Err(incomplete(at)) } else { Ok(([n0, n1, n2, n3], start..end)) }
}
