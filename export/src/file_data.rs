//! The parts of a file that hold data. The others are holes: they read as zeros and take no disk space.

use bundle::file_digest::PIECE;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::sync::LazyLock;

/// Zeros that are hashed at a time.
static ZEROS: [u8; 1 << 17] = [0; 1 << 17];

/// The ranges of a file that hold data, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataRanges(Vec<Range<u64>>);

impl DataRanges {
    /// Asks the file system for the data of a file of `bytes` bytes. Where it does not know, the whole file is data.
    ///
    /// The cursor of the file moves; reads at given positions do not depend on it.
    pub(crate) fn of(file: &File, bytes: u64) -> Self {
        let known = Self::known(file, bytes);
        // Everything past the end of a truncated file would be a hole.
        let is_whole = file.metadata().is_ok_and(|found| found.len() >= bytes);
        known.filter(|_| is_whole).unwrap_or_else(|| Self(std::iter::once(0..bytes).collect()))
    }

    /// Returns none if the file system does not report holes.
    fn known(file: &File, bytes: u64) -> Option<Self> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < bytes {
            let begin = match seek(file, SeekFrom::Data(at)) {
                Ok(begin) => begin,
                // There is no data behind `at`.
                Err(Errno::NXIO) => break,
                Err(_) => return None,
            };
            let end = seek(file, SeekFrom::Hole(begin)).ok().filter(|end| *end > begin)?.min(bytes);
            ranges.push(begin..end);
            at = end;
        }
        Some(Self(ranges))
    }

    /// Returns true if a range that is not empty holds no data.
    pub(crate) fn is_hole(&self, range: &Range<u64>) -> bool {
        let before = self.0.partition_point(|data| data.end <= range.start);
        self.0.get(before).is_none_or(|data| data.start >= range.end)
    }

    /// Returns the parts of a range that hold data, in order.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.0.partition_point(|data| data.end <= range.start);
        let data = self.0.iter().skip(before).take_while(move |data| data.start < range.end);
        data.map(move |data| data.start.max(range.start)..data.end.min(range.end))
    }
}

/// Adds zeros to a hash.
pub(crate) fn hash_zeros(hasher: &mut blake3::Hasher, count: usize) {
    let mut left = count;
    while left > 0 {
        let block = left.min(ZEROS.len());
        hasher.update(&ZEROS[..block]);
        left -= block;
    }
}

/// Returns the hash of `count` zeros. That of a whole [`PIECE`], of which a hole has many, is computed once.
pub(crate) fn hash_of_zeros(count: usize) -> blake3::Hash {
    static OF_A_PIECE: LazyLock<blake3::Hash> = LazyLock::new(|| computed(PIECE));
    fn computed(count: usize) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hash_zeros(&mut hasher, count);
        hasher.finalize()
    }
    if count == PIECE { *OF_A_PIECE } else { computed(count) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    /// Larger than the blocks of any usual file system.
    const FAR: u64 = 1 << 20;

    /// Whether the file system of temporary files reports holes.
    fn has_holes() -> bool {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FAR).unwrap();
        let found = DataRanges::of(&file, FAR).is_hole(&(0..FAR));
        if !found {
            eprintln!("skipped in part: temporary files have no holes here");
        }
        found
    }

    #[test]
    fn holes_are_found_between_data() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 5 * FAR + 7;
        file.set_len(bytes).unwrap();
        for at in [2 * FAR, 4 * FAR + 1] {
            file.write_all_at(&[1], at).unwrap();
        }
        let data = DataRanges::of(&file, bytes);
        for at in [2 * FAR, 4 * FAR + 1] {
            assert!(!data.is_hole(&(at..at + 1)) && !data.is_hole(&(at - 1..at + 2)), "{data:?}");
        }
        assert!(!data.is_hole(&(0..bytes)));
        if has_holes() {
            for hole in [0..FAR, 3 * FAR..4 * FAR, 5 * FAR..bytes] {
                assert!(data.is_hole(&hole), "{hole:?} {data:?}");
            }
        }
    }

    #[test]
    fn a_file_that_was_truncated_or_that_cannot_be_asked_is_all_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FAR).unwrap();
        assert!(!DataRanges::of(&file, 2 * FAR).is_hole(&(FAR..2 * FAR)));
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(DataRanges::known(&pipe, 10), None);
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(DataRanges::known(&empty, 0), Some(DataRanges(Vec::new())));
    }

    #[test]
    fn the_hash_of_zeros_is_that_of_bytes() {
        for count in [0, 1, 31, ZEROS.len(), ZEROS.len() + 1, PIECE - 1, PIECE, PIECE + 1] {
            assert_eq!(hash_of_zeros(count), blake3::hash(&vec![0; count]), "{count}");
        }
    }

    proptest! {
        #[test]
        fn a_range_is_a_hole_if_none_of_its_bytes_is_data(
            lengths in proptest::collection::vec(1_u64..5, 0..8), start in 0_u64..40, length in 1_u64..10,
        ) {
            // Holes and data alternate.
            let mut at = 0;
            let mut ranges = Vec::new();
            for (index, length) in lengths.into_iter().enumerate() {
                if index % 2 == 1 {
                    ranges.push(at..at + length);
                }
                at += length;
            }
            let data = DataRanges(ranges.clone());
            let range = start..start + length;
            let holds_data = range.clone().any(|byte| ranges.iter().any(|data| data.contains(&byte)));
            prop_assert_eq!(data.is_hole(&range), !holds_data);
            let within: Vec<u64> = data.within(range.clone()).flatten().collect();
            let expected = range.filter(|byte| ranges.iter().any(|data| data.contains(byte)));
            prop_assert_eq!(within, expected.collect::<Vec<_>>());
        }
    }
}
