//! The index in front of the frames, where a browser finds it before the file is loaded and upload pages look for it.
//!
//! While frames come, nobody knows how large the index will be, so it lies behind them. Once the file is whole a copy in
//! the other order is made beside it, which is renamed over the final name: at every moment either the one or the other
//! is a whole file.

use super::boxes::{FileBox, find_all, number, outermost};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use tempfile::TempPath;

/// Most bytes of an index. An hour at 240 frames per second with sound takes some 15 million.
const LARGEST_INDEX: u64 = 1 << 28;

/// A copy of an mp4 in the same folder, flushed to disk, with its index and then `extra` boxes in front of its frames.
/// It is removed unless it is kept.
///
/// # Errors
/// What the system said; a file that is not `ftyp`, frames, `moov` in this order; offsets that no longer fit.
pub(crate) fn with_index_in_front(path: &Path, extra: &[u8]) -> io::Result<TempPath> {
    let mut file = File::open(path)?;
    let order = Order::of(&outermost(&mut file)?)?;
    let mut read = |found: FileBox| -> io::Result<Vec<u8>> {
        if found.size > LARGEST_INDEX {
            return Err(io::Error::other(format!("its index has {} bytes", found.size)));
        }
        let mut bytes = vec![];
        file.seek(SeekFrom::Start(found.start))?;
        (&file).take(found.size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let (kind, mut index) = (read(order.kind)?, read(order.index)?);
    let head = (kind.len() + index.len() + extra.len()) as u64;
    move_frames(&mut index, order.frames.start, head)?;

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut copy = tempfile::Builder::new().prefix(".rushes-front-").suffix(".mp4").tempfile_in(folder)?;
    copy.write_all(&[kind.as_slice(), &index, extra].concat())?;
    file.seek(SeekFrom::Start(order.frames.start))?;
    let length = order.frames.end - order.frames.start;
    // `File` to `File`: the kernel copies, or shares the blocks where the file system can.
    if io::copy(&mut (&file).take(length), copy.as_file_mut())? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    copy.as_file().set_permissions(file.metadata()?.permissions())?;
    copy.as_file().sync_all()?;
    Ok(copy.into_temp_path())
}

/// Where the parts of a file lie.
struct Order {
    kind: FileBox,
    /// From the first box of frames to the index.
    frames: Range<u64>,
    index: FileBox,
}

impl Order {
    fn of(boxes: &[FileBox]) -> io::Result<Self> {
        let only = |kind: &[u8; 4]| {
            let mut found = boxes.iter().filter(|found| found.kind == *kind);
            found.next().copied().filter(|_| found.next().is_none())
        };
        let frames = boxes.iter().find(|found| found.kind == *b"mdat");
        let found = (only(b"ftyp"), frames, only(b"moov"));
        match found {
            (Some(kind), Some(frames), Some(index))
                if kind.end() <= frames.start && frames.end() <= index.start =>
            {
                Ok(Self { kind, frames: frames.start..index.start, index })
            }
            _ => Err(io::Error::other("its boxes are not in the order ftyp, mdat, moov")),
        }
    }
}

/// Changes the offsets of an index whose frames begin at another place.
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
        moved.ok_or_else(|| io::Error::other("an offset of its index lies in front of its frames"))
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
    fn frames_are_found_where_they_lie_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.part.mp4");
        let kind = boxed(b"ftyp", b"isom0000");
        let before = [kind.clone(), boxed(b"free", b"")].concat();
        let frames = boxed(b"mdat", b"AAAABBBBCCCC");
        let start = before.len() as u64 + 8;
        let tables = |start: u64| [table(b"stco", &[start, start + 8]), table(b"co64", &[start + 4])];
        std::fs::write(&path, [before, frames.clone(), index(&tables(start))].concat()).unwrap();

        let extra = boxed(b"uuid", b"extra");
        let moved = with_index_in_front(&path, &extra).unwrap();
        assert_eq!(moved.parent(), path.parent());
        let start = (kind.len() + index(&tables(0)).len() + extra.len()) as u64 + 8;
        let expected = [kind, index(&tables(start)), extra, frames].concat();
        assert_eq!(std::fs::read(&moved).unwrap(), expected);
        assert_eq!(&expected[usize::try_from(start).unwrap()..][..4], b"AAAA");
        drop(moved);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "it goes unless it is kept");
    }

    #[test]
    fn other_files_are_refused_and_left_alone() {
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
            assert!(with_index_in_front(&path, &[]).is_err(), "{case:?}");
            assert_eq!(std::fs::read(&path).unwrap(), case.concat());
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
