//! The boxes that an mp4 is made of (ISO/IEC 14496-12 §4.2): a size, a type, a content.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// The type of a box.
pub(crate) type Kind = [u8; 4];

/// A box of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBox {
    pub(super) kind: Kind,
    /// Where its size stands.
    pub(super) start: u64,
    /// Bytes with its head.
    pub(super) size: u64,
}

impl FileBox {
    pub(super) fn end(self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// The outermost boxes of a file.
///
/// # Errors
/// What the system said; a file that is not made of whole boxes.
pub(crate) fn outermost(file: &mut File) -> io::Result<Vec<FileBox>> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut found: Vec<FileBox> = vec![];
    let mut start = 0;
    while start < length {
        file.seek(SeekFrom::Start(start))?;
        let mut head = Vec::with_capacity(16);
        file.by_ref().take(16).read_to_end(&mut head)?;
        let broken = || io::Error::other(format!("the box at byte {start} is not whole"));
        let (kind, size, _) = head_of(&head, length - start).ok_or_else(broken)?;
        found.push(FileBox { kind, start, size });
        start = start.saturating_add(size);
    }
    Ok(found)
}

/// The content of the first box that `path` leads to, from the outermost box of `bytes` within `area` inwards.
pub(super) fn find(bytes: &[u8], area: Range<usize>, path: &[&Kind]) -> Option<Range<usize>> {
    find_all(bytes, area, path).into_iter().next()
}

/// The contents of all boxes that `path` leads to.
pub(super) fn find_all(bytes: &[u8], area: Range<usize>, path: &[&Kind]) -> Vec<Range<usize>> {
    let Some((first, rest)) = path.split_first() else { return vec![area] };
    let mut found = vec![];
    let mut at = area.start;
    while let Some((kind, size, head)) =
        bytes.get(at..area.end).and_then(|left| head_of(left, left.len() as u64))
    {
        let Ok(size) = usize::try_from(size) else { break };
        if kind == **first {
            found.extend(find_all(bytes, at + head..at + size, rest));
        }
        at += size;
    }
    found
}

/// Type, size and length of the head of the box that begins here; none if it is no box that ends within `room`.
fn head_of(bytes: &[u8], room: u64) -> Option<(Kind, u64, usize)> {
    let kind = bytes.get(4..8)?.try_into().ok()?;
    let (size, head) = match number(bytes, 0)? {
        0 => (room, 8),
        1 => (u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?), 16),
        size => (size.into(), 8),
    };
    (size >= head as u64 && size <= room).then_some((kind, size, head))
}

/// The big-endian number of 4 bytes at a place.
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
    fn boxes_that_are_not_whole_lead_nowhere() {
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
