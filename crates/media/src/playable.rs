//! Detection of truncated files that can be played.

use super::FileFormat;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Returns true if a file that may be truncated contains at least one frame.
pub(super) fn is_playable(path: &Path, format: FileFormat) -> bool {
    let found = match format {
        FileFormat::Mp4 => has_index(path),
        FileFormat::Mkv | FileFormat::WebM => has_cluster(path),
        // The collectors write a header and then complete frames.
        FileFormat::Gif | FileFormat::WebP | FileFormat::Y4m => path.metadata().map(|found| found.len() > 0),
    };
    found.unwrap_or(false)
}

/// Returns true if a Matroska file contains a cluster of frames.
fn has_cluster(path: &Path) -> io::Result<bool> {
    const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
    let mut head = Vec::new();
    File::open(path)?.take(1 << 16).read_to_end(&mut head)?;
    let at = head.windows(4).position(|bytes| bytes == CLUSTER);
    Ok(at.is_some_and(|at| head.len() > at + 64))
}

/// Returns true if an mp4 contains a complete `moov` box, without which it cannot be played.
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

    fn has_index_in(boxes: &[(&[u8; 4], u32, usize)]) -> bool {
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
    fn only_a_complete_index_counts() {
        assert!(has_index_in(&[(b"ftyp", 16, 8), (b"mdat", 12, 4), (b"moov", 20, 12)]));
        assert!(!has_index_in(&[(b"ftyp", 16, 8), (b"mdat", 12, 4), (b"moov", 20, 11)]));
        assert!(!has_index_in(&[(b"ftyp", 16, 8), (b"mdat", 4096, 4)]));
        assert!(!has_index_in(&[]));
    }

    #[test]
    fn invalid_sizes_end_the_search() {
        assert!(!has_index_in(&[(b"free", 0, 8), (b"moov", 8, 0)]));
        assert!(!has_index_in(&[(b"free", 7, 8), (b"moov", 8, 0)]));
        assert!(!has_index_in(&[(b"mdat", 1, 0), (b"\xff\xff\xff\xff", u32::MAX, 0), (b"moov", 8, 0)]));
    }
}
