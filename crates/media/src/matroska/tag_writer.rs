//! Adds tags to a closed Matroska file.
//!
//! GStreamer writes only tags that it knows. Its tags are the last element of the file, which the seek head points to,
//! so they are replaced in place: no frame moves. If that fails, the old end of the file is restored.

use super::ebml::{Header, MAX_HEADER, element, id, size_field};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The most bytes of the tags that GStreamer writes.
const MAX_TAG_BYTES: u64 = 1 << 20;

/// Adds tags to those of the whole file. After an error the file is unchanged.
///
/// # Errors
/// I/O errors. Returns an error if the file is not one segment that ends with its tags.
pub(crate) fn add_tags(path: &Path, tags: &[(&str, &str)]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let unknown = || io::Error::other("its elements are not as expected");

    let head = element_at(&file, 0, length)?;
    let segment = element_at(&file, head.end, length)?;
    let has_form = (head.header.id, segment.header.id) == (id::EBML, id::SEGMENT) && segment.end == length;
    let segment_size = segment.header.size.filter(|_| has_form).ok_or_else(unknown)?;
    let mut last = None;
    let mut at = segment.content;
    while at < segment.end {
        let found = element_at(&file, at, segment.end)?;
        at = found.end;
        last = Some(found);
    }
    let old = last.filter(|found| found.header.id == id::TAGS).ok_or_else(unknown)?;
    if old.end - old.content > MAX_TAG_BYTES {
        return Err(unknown());
    }
    let mut tail = vec![0; usize::try_from(old.end - old.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut tail, old.start)?;
    let children = tail.get(old.header.length..).filter(|children| !begins_with_checksum(children));
    let new = element(id::TAGS, &[children.ok_or_else(unknown)?, &whole_file_tag(tags)].concat());

    let size = segment_size - (old.end - old.start) + new.len() as u64;
    let width = segment.header.length - segment.header.id_length;
    let size = size_field(size, width).ok_or_else(unknown)?;
    let old_size = size_field(segment_size, width).ok_or_else(unknown)?;
    let size_at = segment.start + segment.header.id_length as u64;
    let written = file.write_all_at(&new, old.start).and_then(|()| file.write_all_at(&size, size_at));
    if written.is_err() {
        file.write_all_at(&old_size, size_at)?;
        file.write_all_at(&tail, old.start)?;
        file.set_len(length)?;
    }
    written
}

/// An element of a file.
#[derive(Debug, Clone, Copy)]
struct FileElement {
    header: Header,
    start: u64,
    content: u64,
    end: u64,
}

/// The element at a position, which must have a size and end at or before `end`.
fn element_at(file: &File, start: u64, end: u64) -> io::Result<FileElement> {
    let incomplete = || io::Error::other(format!("the element at byte {start} is incomplete"));
    let mut bytes = [0; MAX_HEADER];
    let mut read = 0;
    // `read_at` may return less than there is.
    while read < MAX_HEADER {
        match file.read_at(&mut bytes[read..], start + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    let header = Header::parse(&bytes[..read]).ok_or_else(incomplete)?;
    let content = start + header.length as u64;
    let found = header.size.and_then(|size| content.checked_add(size)).filter(|found| *found <= end);
    Ok(FileElement { header, start, content, end: found.ok_or_else(incomplete)? })
}

fn begins_with_checksum(children: &[u8]) -> bool {
    Header::parse(children).is_some_and(|first| first.id == id::CRC_32)
}

/// A `Tag` about the whole file.
fn whole_file_tag(tags: &[(&str, &str)]) -> Vec<u8> {
    let simple = tags.iter().flat_map(|(name, value)| {
        let children = [
            element(id::TAG_NAME, name.as_bytes()),
            element(id::TAG_LANGUAGE, b"und"),
            element(id::TAG_DEFAULT, &[1]),
            element(id::TAG_STRING, value.as_bytes()),
        ];
        element(id::SIMPLE_TAG, &children.concat())
    });
    element(id::TAG, &[element(id::TARGETS, &[]), simple.collect()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn file(children: &[Vec<u8>]) -> Vec<u8> {
        [element(id::EBML, b"webm"), element(id::SEGMENT, &children.concat())].concat()
    }

    fn added(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.part.mkv");
        fs::write(&path, bytes).unwrap();
        (add_tags(&path, &[("NAME", "value"), ("OTHER", "")]), fs::read(&path).unwrap())
    }

    #[test]
    fn tags_are_added_to_those_at_the_end() {
        let (cluster, old) = (element(id::CLUSTER, b"frames"), element(id::TAG, b"old"));
        let (result, found) = added(&file(&[cluster.clone(), element(id::TAGS, &old)]));
        result.unwrap();
        let simple = |name: &[u8], value: &[u8]| {
            let language = [element(id::TAG_LANGUAGE, b"und"), element(id::TAG_DEFAULT, &[1])].concat();
            let name = element(id::TAG_NAME, name);
            element(id::SIMPLE_TAG, &[name, language, element(id::TAG_STRING, value)].concat())
        };
        let new = [element(id::TARGETS, b""), simple(b"NAME", b"value"), simple(b"OTHER", b"")].concat();
        let tags = element(id::TAGS, &[old, element(id::TAG, &new)].concat());
        assert_eq!(found, file(&[cluster, tags]));
    }

    #[test]
    fn other_files_are_not_changed() {
        let (cluster, tags) = (element(id::CLUSTER, b"frames"), element(id::TAGS, b""));
        let whole = file(&[cluster.clone(), tags.clone()]);
        let mut live = whole.clone();
        let size = whole.len() - cluster.len() - tags.len() - 7;
        live[size..size + 7].fill(0xff);
        let checked = element(id::TAGS, &element(id::CRC_32, b"1234"));
        let cases = [
            file(&[tags, cluster.clone()]),
            file(&[cluster.clone(), checked]),
            file(&[cluster]),
            file(&[]),
            [&whole[..], b"more"].concat(),
            live,
        ];
        for case in (0..whole.len()).map(|length| whole[..length].to_vec()).chain(cases) {
            let (result, found) = added(&case);
            assert!(result.is_err(), "{case:?}");
            assert_eq!(found, case);
        }
    }
}
