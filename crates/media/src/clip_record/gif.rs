//! The record in an application extension of a GIF (GIF89a §26), before the first picture.

use super::findings::Findings;
use super::source::{MAX_VALUE, Source, incomplete};
use crate::record_code::GIF_APPLICATION;
use std::io::{self, Read, Seek};

/// Bytes of the signature and the logical screen.
const HEADER: usize = 13;
/// Blocks begin with one of these bytes.
const EXTENSION: u8 = 0x21;
const PICTURE: u8 = 0x2c;
const END: u8 = 0x3b;
/// Kinds of extensions.
const COMMENT: u8 = 0xfe;
const APPLICATION: u8 = 0xff;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let head = source.read_up_to(0, HEADER)?;
    let flags = head.get(10).filter(|_| head.len() == HEADER).ok_or_else(|| incomplete(0))?;
    // A palette of 2ⁿ⁺¹ colours.
    let palette = if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = HEADER as u64 + palette;
    loop {
        match *source.header(at, 2)? {
            [EXTENSION, kind] => {
                let (blocks, end) = data(source, at + 2)?;
                match (kind, blocks.strip_prefix(&GIF_APPLICATION)) {
                    (APPLICATION, Some(record)) => found.encoded(record),
                    (COMMENT, _) => found.text(&blocks),
                    _ => {}
                }
                at = end;
            }
            [PICTURE, ..] | [END] | [END, _] => return Ok(()),
            _ => return Err(incomplete(at)),
        }
    }
}

/// The data of consecutive sub-blocks, cut after about [`MAX_VALUE`] bytes, and the position after them.
fn data<R: Read + Seek>(source: &mut Source<R>, mut at: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut found = vec![];
    loop {
        let block = source.header(at, 256)?;
        let Some((length, rest)) = block.split_first() else { return Err(incomplete(at)) };
        at += 1 + u64::from(*length);
        if *length == 0 {
            return Ok((found, at));
        }
        let content = rest.get(..usize::from(*length)).ok_or_else(|| incomplete(at))?;
        if found.len() <= GIF_APPLICATION.len() + MAX_VALUE {
            found.extend_from_slice(content);
        }
    }
}
