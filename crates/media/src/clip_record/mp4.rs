//! The record in an mp4: in XMP, or in the tags of its index.

use super::findings::Findings;
use super::source::{Source, damaged, incomplete};
use super::xmp;
use crate::mp4::{Kind, parse_header};
use crate::xmp_box::XMP;
use std::io::{self, Read, Seek};
use std::ops::Range;

/// The most levels of boxes: `moov`, `udta`, `meta`, `ilst`.
const MAX_DEPTH: usize = 4;

pub(super) fn scan<R: Read + Seek>(source: &mut Source<R>, found: &mut Findings) -> io::Result<()> {
    let all = 0..source.length();
    if scan_boxes(source, all, MAX_DEPTH, found)? {
        Ok(())
    } else {
        Err(damaged("the file is incomplete: its index or its frames are missing"))
    }
}

/// Scans the boxes of the file or of a box that contains tags. Returns true if there are an index and frames.
fn scan_boxes<R: Read + Seek>(
    source: &mut Source<R>,
    area: Range<u64>,
    depth: usize,
    found: &mut Findings,
) -> io::Result<bool> {
    let (mut has_index, mut has_frames) = (false, false);
    let mut at = area.start;
    while let Some((kind, content)) = next(source, at..area.end)? {
        at = content.end;
        has_index |= kind == *b"moov";
        has_frames |= kind == *b"mdat";
        match &kind {
            b"uuid" => {
                let id = source.read_up_to(content.start, XMP.len())?;
                if id == XMP && content.end - content.start >= XMP.len() as u64 {
                    xmp::scan(source, content.start + XMP.len() as u64..content.end, found)?;
                }
            }
            b"moov" | b"udta" if depth > 0 => {
                scan_boxes(source, content, depth - 1, found)?;
            }
            b"meta" if depth > 0 => {
                // QuickTime has no version and flags before the boxes, ISO has.
                let head = source.read_up_to(content.start, 8)?;
                let skipped = if head.ends_with(b"hdlr") { 0 } else { 4 };
                let boxes = (content.start + skipped).min(content.end)..content.end;
                scan_boxes(source, boxes, depth - 1, found)?;
            }
            b"ilst" => scan_tags(source, content, found)?,
            _ => {}
        }
    }
    Ok(has_index && has_frames)
}

/// Scans the items of a tag list.
fn scan_tags<R: Read + Seek>(
    source: &mut Source<R>,
    list: Range<u64>,
    found: &mut Findings,
) -> io::Result<()> {
    let mut at = list.start;
    while let Some((kind, item)) = next(source, at..list.end)? {
        at = item.end;
        let mut name = if kind == *b"\xa9too" { b"ENCODER".to_vec() } else { kind.to_vec() };
        let mut part = item.start;
        while let Some((kind, content)) = next(source, part..item.end)? {
            part = content.end;
            match &kind {
                // After version and flags.
                b"name" => name = source.value(&after(&content, 4))?,
                // After type and locale.
                b"data" => found.tag(&name, &source.value(&after(&content, 8))?),
                _ => {}
            }
        }
    }
    Ok(())
}

fn after(area: &Range<u64>, bytes: u64) -> Range<u64> {
    (area.start + bytes).min(area.end)..area.end
}

/// The type and the content of the box at the start of an area. `None` if the area is empty.
fn next<R: Read + Seek>(source: &mut Source<R>, area: Range<u64>) -> io::Result<Option<(Kind, Range<u64>)>> {
    if area.is_empty() {
        return Ok(None);
    }
    let head = source.header(area.start, 16)?;
    let (kind, size, header) =
        parse_header(&head, area.end - area.start).ok_or_else(|| incomplete(area.start))?;
    Ok(Some((kind, area.start + header as u64..area.start + size)))
}
