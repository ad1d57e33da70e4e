//! The record in a PNG: an `iTXt` chunk (PNG specification §11.3.3.4).

use super::findings::Findings;
use super::source::{MAX_VALUE, Source, incomplete};
use crate::record_code::KEY;
use std::io::{self, Read, Seek};

/// Bytes of the signature.
const SIGNATURE: u64 = 8;
/// Bytes of a length and a type, and of the checksum after the content.
const HEADER: usize = 8;
const CHECKSUM: u64 = 4;
/// The most bytes of a text chunk that are read: keyword, flags, language and translated keyword before the text.
const MAX_TEXT: usize = MAX_VALUE + 512;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let mut at = SIGNATURE;
    loop {
        let head = source.header(at, HEADER)?;
        let Ok([l0, l1, l2, l3, kind @ ..]) = <[u8; HEADER]>::try_from(head) else {
            return Err(incomplete(at));
        };
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let start = at + HEADER as u64;
        let end = start + u64::from(length);
        if end + CHECKSUM > source.length() {
            return Err(incomplete(at));
        }
        let most = (length as usize).min(MAX_TEXT);
        match &kind {
            b"iTXt" => international_text(&source.read_up_to(start, most)?, found),
            b"tEXt" => {
                let content = source.read_up_to(start, most)?;
                if let Some((keyword, text)) = split(&content) {
                    found.tag(keyword, text);
                }
            }
            b"IEND" => return Ok(()),
            _ => {}
        }
        at = end + CHECKSUM;
    }
}

fn international_text(content: &[u8], found: &mut Findings) {
    let Some((keyword, [compressed, _method, rest @ ..])) = split(content) else { return };
    let text = split(rest).and_then(|(_language, rest)| split(rest)).map(|(_translated, text)| text);
    match text {
        Some(text) if *compressed == 0 => found.tag(keyword, text),
        _ if keyword == KEY.as_bytes() => found.unreadable("a program has compressed or cut it"),
        _ => {}
    }
}

/// The bytes before and after the first zero.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}
