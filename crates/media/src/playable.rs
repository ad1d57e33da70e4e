//! Whether a file that was cut short can be played.

use super::FileFormat;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Whether there is anything to be seen in a file that may have been cut short.
pub(super) fn is_playable(path: &Path, format: FileFormat) -> bool {
    let found = match format {
        FileFormat::Mp4 => has_index(path),
        FileFormat::Mkv | FileFormat::WebM => has_cluster(path),
        // Their writers are ours, and write whole frames after a head.
        FileFormat::Gif | FileFormat::WebP | FileFormat::Y4m => path.metadata().map(|found| found.len() > 0),
    };
    found.unwrap_or(false)
}

/// Whether a Matroska file goes beyond its head, to the first cluster of frames.
fn has_cluster(path: &Path) -> io::Result<bool> {
    const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
    let mut head = Vec::new();
    File::open(path)?.take(1 << 16).read_to_end(&mut head)?;
    let at = head.windows(4).position(|bytes| bytes == CLUSTER);
    Ok(at.is_some_and(|at| head.len() > at + 64))
}

/// Whether the file holds a whole `moov` box, without which nothing in it can be played.
fn has_index(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut at = 0;
    loop {
        let mut header = [0; 16];
        file.seek(SeekFrom::Start(at))?;
        let read = file.by_ref().take(16).read(&mut header)?;
        let [s0, s1, s2, s3, k0, k1, k2, k3, large @ ..] = header;
        let size = match u32::from_be_bytes([s0, s1, s2, s3]) {
            1 => u64::from_be_bytes(large),
            size => size.into(),
        };
        let end = at.saturating_add(size);
        if read < 8 || size < 8 || end > length {
            return Ok(false);
        }
        if [k0, k1, k2, k3] == *b"moov" {
            return Ok(true);
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_boxes(boxes: &[(&[u8; 4], u32, usize)]) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.part.mp4");
        let bytes: Vec<u8> = boxes
            .iter()
            .flat_map(|(kind, size, content)| {
                [&size.to_be_bytes()[..], &kind[..], &vec![0; *content]].concat()
            })
            .collect();
        std::fs::write(&path, bytes).unwrap();
        has_index(&path).unwrap()
    }

    #[test]
    fn only_a_whole_index_counts() {
        assert!(of_boxes(&[(b"ftyp", 16, 8), (b"mdat", 12, 4), (b"moov", 20, 12)]));
        assert!(!of_boxes(&[(b"ftyp", 16, 8), (b"mdat", 12, 4), (b"moov", 20, 11)]));
        assert!(!of_boxes(&[(b"ftyp", 16, 8), (b"mdat", 4096, 4)]));
        assert!(!of_boxes(&[]));
    }

    #[test]
    fn sizes_that_lead_nowhere_end_the_search() {
        assert!(!of_boxes(&[(b"free", 0, 8), (b"moov", 8, 0)]));
        assert!(!of_boxes(&[(b"free", 7, 8), (b"moov", 8, 0)]));
        assert!(!of_boxes(&[(b"mdat", 1, 0), (b"\xff\xff\xff\xff", u32::MAX, 0), (b"moov", 8, 0)]));
    }
}
