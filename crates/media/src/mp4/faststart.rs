//! Moves the index of an mp4 before its frames ("fast start"), so that a browser can play it before it is fully loaded.
//!
//! The size of the index is unknown until the end, so the muxer writes it after the frames. The complete file is copied
//! in the other order to a part file, which then replaces the output: at every moment one of them is complete.

use super::boxes::{FileBox, find_all, number, top_level};
use super::tag_list::add_long_description;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use tempfile::TempPath;

/// The most bytes of an index. An hour at 240 frames per second with audio needs about 15 million.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// Copies an mp4 to a temporary file in the same folder, with its index and then the `extra` boxes before its frames.
/// `long_description` is added to the tags, if the index has any. The copy is flushed to disk.
///
/// # Errors
/// I/O errors. Returns an error if the boxes are not `ftyp`, frames, `moov` in this order, or if an offset does not
/// fit.
pub(crate) fn with_index_first(
    path: &Path,
    extra: &[u8],
    long_description: Option<&str>,
) -> io::Result<TempPath> {
    let mut file = File::open(path)?;
    let order = Order::from_boxes(&top_level(&mut file)?)?;
    let mut read = |found: FileBox| -> io::Result<Vec<u8>> {
        if found.size > MAX_INDEX_BYTES {
            return Err(io::Error::other(format!("its index has {} bytes", found.size)));
        }
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(found.start))?;
        (&file).take(found.size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (ftyp, mut index) = (read(order.ftyp)?, read(order.index)?);
    if let Some(text) = long_description
        && let Err(error) = add_long_description(&mut index, text)
    {
        tracing::warn!(%error, "copies of the clip lose its record");
    }
    let head = (ftyp.len() + index.len() + extra.len()) as u64;
    move_frames(&mut index, order.frames.start, head)?;

    let mut copy = bundle::atomic::create_part(path)?;
    copy.write_all(&[ftyp.as_slice(), &index, extra].concat())?;
    file.seek(SeekFrom::Start(order.frames.start))?;
    let length = order.frames.end - order.frames.start;
    // From `File` to `File`, so that the kernel copies, or shares the blocks if the file system supports it.
    if io::copy(&mut (&file).take(length), copy.as_file_mut())? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    copy.as_file().set_permissions(file.metadata()?.permissions())?;
    copy.as_file().sync_all()?;
    Ok(copy.into_temp_path())
}

/// The parts of a file.
struct Order {
    ftyp: FileBox,
    /// From the first box of frames to the index.
    frames: Range<u64>,
    index: FileBox,
}

impl Order {
    fn from_boxes(boxes: &[FileBox]) -> io::Result<Self> {
        let only = |kind: &[u8; 4]| {
            let mut found = boxes.iter().filter(|found| found.kind == *kind);
            found.next().copied().filter(|_| found.next().is_none())
        };
        let frames = boxes.iter().find(|found| found.kind == *b"mdat");
        let found = (only(b"ftyp"), frames, only(b"moov"));
        match found {
            (Some(ftyp), Some(frames), Some(index))
                if ftyp.end() <= frames.start && frames.end() <= index.start =>
            {
                Ok(Self { ftyp, frames: frames.start..index.start, index })
            }
            _ => Err(io::Error::other("its boxes are not in the order ftyp, mdat, moov")),
        }
    }
}

/// Updates the offsets of an index whose frames are moved.
fn move_frames(index: &mut [u8], from: u64, to: u64) -> io::Result<()> {
    let area = 0..index.len();
    let tables = |index: &[u8], kind: &[u8; 4]| {
        let path = [b"moov", b"trak", b"mdia", b"minf", b"stbl", kind];
        let tables = find_all(index, area.clone(), &path).into_iter();
        // After version and flags, the number of entries.
        let entries = tables.map(|table| (table.start + 8..table.end, number(index, table.start + 4)));
        entries.filter_map(|(area, count)| Some((area, usize::try_from(count?).ok()?))).collect::<Vec<_>>()
    };
    let moved = |offset: u64| {
        let moved = offset.checked_sub(from).and_then(|offset| offset.checked_add(to));
        moved.ok_or_else(|| io::Error::other("an offset of its index is before its frames"))
    };
    for (area, count) in tables(index, b"stco") {
        let entries = index.get_mut(area).unwrap_or_default();
        for entry in entries.as_chunks_mut::<4>().0.iter_mut().take(count) {
            let offset = moved(u32::from_be_bytes(*entry).into())?;
            // Beyond 4 GB the table would have to grow.
            *entry = u32::try_from(offset).map_err(io::Error::other)?.to_be_bytes();
        }
    }
    for (area, count) in tables(index, b"co64") {
        let entries = index.get_mut(area).unwrap_or_default();
        for entry in entries.as_chunks_mut::<8>().0.iter_mut().take(count) {
            *entry = moved(u64::from_be_bytes(*entry))?.to_be_bytes();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::boxes::tests::boxed;
    use super::*;

    fn table(kind: &[u8; 4], offsets: &[u64]) -> Vec<u8> {
        let count = u32::try_from(offsets.len()).unwrap().to_be_bytes();
        let long = kind == b"co64";
        let entries = offsets.iter().flat_map(|offset| {
            let bytes = offset.to_be_bytes();
            if long { bytes.to_vec() } else { bytes[4..].to_vec() }
        });
        boxed(kind, &[&[0; 4][..], &count, &entries.collect::<Vec<_>>()].concat())
    }

    fn index(tables: &[Vec<u8>]) -> Vec<u8> {
        let track =
            |table: &Vec<u8>| boxed(b"trak", &boxed(b"mdia", &boxed(b"minf", &boxed(b"stbl", table))));
        boxed(b"moov", &tables.iter().map(track).collect::<Vec<_>>().concat())
    }

    #[test]
    fn offsets_point_to_the_moved_frames() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.part.mp4");
        let kind = boxed(b"ftyp", b"isom0000");
        let before = [kind.clone(), boxed(b"free", b"")].concat();
        let frames = boxed(b"mdat", b"AAAABBBBCCCC");
        let start = before.len() as u64 + 8;
        let tables = |start: u64| [table(b"stco", &[start, start + 8]), table(b"co64", &[start + 4])];
        std::fs::write(&path, [before, frames.clone(), index(&tables(start))].concat()).unwrap();

        let extra = boxed(b"uuid", b"extra");
        let moved = with_index_first(&path, &extra, None).unwrap();
        assert_eq!(moved.parent(), path.parent());
        let start = (kind.len() + index(&tables(0)).len() + extra.len()) as u64 + 8;
        let expected = [kind, index(&tables(start)), extra, frames].concat();
        assert_eq!(std::fs::read(&moved).unwrap(), expected);
        assert_eq!(&expected[usize::try_from(start).unwrap()..][..4], b"AAAA");
        drop(moved);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the copy is removed unless it is kept"
        );
    }

    #[test]
    fn other_files_are_refused_and_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.part.mp4");
        let (kind, frames) = (boxed(b"ftyp", b"isom"), boxed(b"mdat", b"AAAA"));
        let behind = index(&[table(b"stco", &[20])]);
        let cases = [
            vec![kind.clone(), behind.clone(), frames.clone()],
            vec![kind.clone(), frames.clone()],
            vec![frames.clone(), behind.clone()],
            vec![kind.clone(), frames.clone(), behind.clone(), behind.clone()],
            vec![kind.clone(), frames.clone(), behind[..20].to_vec()],
            vec![kind.clone(), frames.clone(), index(&[table(b"stco", &[3])])],
            vec![],
        ];
        for case in cases {
            std::fs::write(&path, case.concat()).unwrap();
            assert!(with_index_first(&path, &[], None).is_err(), "{case:?}");
            assert_eq!(std::fs::read(&path).unwrap(), case.concat());
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
