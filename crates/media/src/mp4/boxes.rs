//! Boxes of an mp4 (ISO/IEC 14496-12 §4.2): size, type and content.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// The type of a box.
pub(crate) type Kind = [u8; 4];

/// A box of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBox {
    pub(super) kind: Kind,
    /// The position of its size field.
    pub(super) start: u64,
    /// Bytes with its header.
    pub(super) size: u64,
}

impl FileBox {
    pub(super) fn end(self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// The top-level boxes of a file.
///
/// # Errors
/// I/O errors. Returns an error if a box is incomplete.
pub(crate) fn top_level(file: &mut File) -> io::Result<Vec<FileBox>> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut found: Vec<FileBox> = vec![];
    let mut start = 0;
    while start < length {
        file.seek(SeekFrom::Start(start))?;
        let mut head = Vec::with_capacity(16);
        file.by_ref().take(16).read_to_end(&mut head)?;
        let incomplete = || io::Error::other(format!("the box at byte {start} is incomplete"));
        let (kind, size, _) = parse_header(&head, length - start).ok_or_else(incomplete)?;
        found.push(FileBox { kind, start, size });
        start = start.saturating_add(size);
    }
    Ok(found)
}

/// The content of the first box with a path of types, such as `moov/trak`, within `area` of `bytes`.
pub(super) fn find(bytes: &[u8], area: Range<usize>, path: &[&Kind]) -> Option<Range<usize>> {
    find_all(bytes, area, path).into_iter().next()
}

/// The contents of all boxes with a path of types.
pub(super) fn find_all(bytes: &[u8], area: Range<usize>, path: &[&Kind]) -> Vec<Range<usize>> {
    let Some((first, rest)) = path.split_first() else { return vec![area] };
    let mut found = vec![];
    let mut at = area.start;
    while let Some((kind, size, head)) =
        bytes.get(at..area.end).and_then(|left| parse_header(left, left.len() as u64))
    {
        let Ok(size) = usize::try_from(size) else { break };
        if kind == **first {
            found.extend(find_all(bytes, at + head..at + size, rest));
        }
        at += size;
    }
    found
}

/// The type, the size and the header length of the box at the start of `bytes`. Returns `None` unless it ends within
/// `room`.
pub(crate) fn parse_header(bytes: &[u8], room: u64) -> Option<(Kind, u64, usize)> {
    let kind = bytes.get(4..8)?.try_into().ok()?;
    let (size, head) = match number(bytes, 0)? {
        0 => (room, 8),
        1 => (u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?), 16),
        size => (size.into(), 8),
    };
    (size >= head as u64 && size <= room).then_some((kind, size, head))
}

/// The big-endian `u32` at a position.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A box.
    pub(in super::super) fn boxed(kind: &Kind, content: &[u8]) -> Vec<u8> {
        let size = u32::try_from(content.len() + 8).unwrap();
        [&size.to_be_bytes()[..], kind, content].concat()
    }

    #[test]
    fn a_path_leads_to_every_box_of_its_kind() {
        let tracks = [boxed(b"trak", &boxed(b"tkhd", b"one")), boxed(b"trak", &boxed(b"tkhd", b"two"))];
        let bytes = boxed(b"moov", &[boxed(b"mvhd", b"x"), tracks.concat()].concat());
        let found = find_all(&bytes, 0..bytes.len(), &[b"moov", b"trak", b"tkhd"]);
        let contents: Vec<_> = found.into_iter().map(|area| &bytes[area]).collect();
        assert_eq!(contents, [b"one", b"two"]);
        assert_eq!(find(&bytes, 0..bytes.len(), &[b"moov", b"udta"]), None);
    }

    #[test]
    fn incomplete_boxes_are_not_found() {
        let whole = boxed(b"moov", &boxed(b"mvhd", b"1234"));
        for length in 0..whole.len() {
            assert_eq!(find(&whole[..length], 0..length, &[b"moov"]), None, "{length}");
        }
        for size in [2, 7, u32::MAX] {
            let bytes = [&size.to_be_bytes()[..], b"moov", &[0; 16]].concat();
            assert_eq!(find(&bytes, 0..bytes.len(), &[b"moov"]), None, "{size}");
        }
        let huge = [&1_u32.to_be_bytes()[..], b"moov", &u64::MAX.to_be_bytes()].concat();
        assert_eq!(find(&huge, 0..huge.len(), &[b"moov"]), None);
    }
}
