//! The record in the tags of a Matroska or WebM file.

use super::findings::Findings;
use super::source::{Source, incomplete};
use crate::matroska::ebml::{Header, MAX_HEADER, id};
use std::io::{self, Read, Seek};
use std::ops::Range;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let mut writing_app = vec![];
    // Until a segment that ends within the file.
    let mut is_whole = false;
    let mut at = 0;
    while at < source.length() {
        let (header, content) = header_at(source, at)?;
        let end = header.size.and_then(|size| content.checked_add(size));
        at = match (header.id, end) {
            // Its children follow. Those of a live stream, of unknown size, end where the next element begins.
            (id::SEGMENT, end) => {
                is_whole = end.is_none_or(|end| end <= source.length());
                content
            }
            (id::CLUSTER, None) => content,
            (_, Some(end)) if end <= source.length() => end,
            _ => return Err(incomplete(at)),
        };
        match header.id {
            id::TAGS => scan_tags(source, content..at, found)?,
            id::INFO => {
                for (_, value) in
                    children(source, content..at)?.iter().filter(|child| child.0 == id::WRITING_APP)
                {
                    writing_app = source.value(value)?;
                }
            }
            _ => {}
        }
    }
    if !found.has_program() {
        found.program(&writing_app);
    }
    if is_whole { Ok(()) } else { Err(incomplete(source.length())) }
}

fn scan_tags<R: Read + Seek>(
    source: &mut Source<R>,
    tags: Range<u64>,
    found: &mut Findings,
) -> io::Result<()> {
    for (_, tag) in children(source, tags)?.into_iter().filter(|child| child.0 == id::TAG) {
        for (_, simple) in children(source, tag)?.into_iter().filter(|child| child.0 == id::SIMPLE_TAG) {
            let (mut name, mut text) = (vec![], None);
            for (child, value) in children(source, simple)? {
                match child {
                    id::TAG_NAME => name = source.value(&value)?,
                    id::TAG_STRING => text = Some(source.value(&value)?),
                    _ => {}
                }
            }
            if let Some(text) = text {
                found.tag(&name, &text);
            }
        }
    }
    Ok(())
}

/// The identifiers and contents of the elements in an element.
fn children<R: Read + Seek>(source: &mut Source<R>, area: Range<u64>) -> io::Result<Vec<(u32, Range<u64>)>> {
    let mut found = vec![];
    let mut at = area.start;
    while at < area.end {
        let (header, content) = header_at(source, at)?;
        let end = header.size.and_then(|size| content.checked_add(size)).filter(|end| *end <= area.end);
        let end = end.ok_or_else(|| incomplete(at))?;
        found.push((header.id, content..end));
        at = end;
    }
    Ok(found)
}

/// The header of the element at a position, and the start of its content.
fn header_at<R: Read + Seek>(source: &mut Source<R>, at: u64) -> io::Result<(Header, u64)> {
    let header = Header::parse(&source.header(at, MAX_HEADER)?).ok_or_else(|| incomplete(at))?;
    Ok((header, at + header.length as u64))
}
