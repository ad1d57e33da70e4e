//! Digests of files: one over every byte, and one over a sample that is cheap enough to check on every opening.

use crate::units::ByteCount;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes that are hashed as one piece.
pub const PIECE: usize = 1 << 20;

/// Length and digests of a file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Its length.
    pub bytes: ByteCount,
    /// BLAKE3 over its length and the bytes in [`sampled_ranges`], 64 hexadecimal digits.
    pub sampled: String,
    /// Digest over every byte, see [`of_pieces`]; none if not every byte was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// Files up to this length are sampled whole.
const SMALL: u64 = 128 << 10;
/// Bytes at the beginning that are always read: headers.
const HEAD: u64 = 16 << 10;
/// Bytes of every other sampled range.
const BLOCK: u64 = 4 << 10;
/// Sampled ranges between beginning and end.
const RANGES: u64 = 16;

/// Returns the ranges that the sampled digest of a file of this length reads: the beginning, the end, and one block in
/// each sixteenth of the rest. At most 128 KiB. The ranges depend on the length alone.
pub fn sampled_ranges(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= SMALL {
        return std::iter::once(0..bytes).filter(|whole| !whole.is_empty()).collect();
    }
    let between = HEAD..bytes - BLOCK;
    let part = (between.end - between.start) / RANGES;
    let block_in_part = |index: u64| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes()).update(&index.to_le_bytes());
        let mut eight = [0; 8];
        hasher.finalize_xof().fill(&mut eight);
        let start = between.start + index * part + u64::from_le_bytes(eight) % (part - BLOCK + 1);
        start..start + BLOCK
    };
    let middle = (0..RANGES).map(block_in_part);
    std::iter::once(0..HEAD).chain(middle).chain(std::iter::once(bytes - BLOCK..bytes)).collect()
}

/// Returns the sampled digest of an open file of this length.
///
/// # Errors
/// I/O errors, and a file that ends before `bytes`.
pub fn sampled(file: &File, bytes: u64) -> io::Result<String> {
    sampled_with(bytes, |start, buffer| file.read_exact_at(buffer, start))
}

/// Returns the sampled digest of data of this length, whose bytes from a position on `read` returns: those of a file,
/// or of one tensor in it.
///
/// # Errors
/// Those of `read`.
pub fn sampled_with<E>(
    bytes: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<String, E> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    let mut buffer = Vec::new();
    for range in sampled_ranges(bytes) {
        // No range is longer than a small file.
        buffer.resize(usize::try_from(range.end - range.start).unwrap_or_default(), 0);
        read(range.start, &mut buffer)?;
        hasher.update(&buffer);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Cuts consecutive parts of a file into pieces of at most [`PIECE`] bytes. No piece spans two parts.
pub fn pieces(parts: impl IntoIterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    parts.into_iter().flat_map(|part| {
        let end = part.end;
        part.step_by(PIECE).map(move |start| start..end.min(start + PIECE as u64))
    })
}

/// Returns the digest over every byte of a file: BLAKE3 over the BLAKE3 hashes of its [`pieces`], in file order.
///
/// The parts of a weight file are each tensor and what is before, between and behind them, such as the header of a
/// safetensors file, with its length field, and the headers of a PyTorch file. Any other file is one part.
pub fn of_pieces<'a>(hashes: impl IntoIterator<Item = &'a blake3::Hash>) -> String {
    let mut hasher = blake3::Hasher::new();
    for hash in hashes {
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_files_are_sampled_whole_and_large_ones_in_a_few_ranges() {
        assert!(sampled_ranges(0).is_empty());
        assert_eq!(sampled_ranges(1), Vec::from_iter(std::iter::once(0..1)));
        assert_eq!(sampled_ranges(SMALL), Vec::from_iter(std::iter::once(0..SMALL)));
        let ranges = sampled_ranges(10_000_000_000);
        assert_eq!(ranges.len() as u64, RANGES + 2);
        assert_eq!(ranges, sampled_ranges(10_000_000_000));
        assert!(ranges.iter().map(|range| range.end - range.start).sum::<u64>() <= SMALL);
        assert_ne!(ranges[3], sampled_ranges(10_000_000_001)[3]);
    }

    #[test]
    fn a_change_in_a_sampled_range_changes_the_digest_and_a_short_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 5 * PIECE as u64 + 7;
        file.set_len(bytes).unwrap();
        let zeros = sampled(&file, bytes).unwrap();
        assert_eq!(sampled(&file, bytes).unwrap(), zeros);
        for range in sampled_ranges(bytes) {
            file.write_all_at(&[1], range.end - 1).unwrap();
            assert_ne!(sampled(&file, bytes).unwrap(), zeros, "{range:?}");
            file.write_all_at(&[0], range.end - 1).unwrap();
        }
        assert_eq!(sampled(&file, bytes + 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn no_piece_spans_two_parts() {
        let piece = PIECE as u64;
        let cut: Vec<_> =
            pieces([0..10, 10..10, 10..10 + 2 * piece, 10 + 2 * piece..11 + 2 * piece]).collect();
        assert_eq!(cut, [0..10, 10..10 + piece, 10 + piece..10 + 2 * piece, 10 + 2 * piece..11 + 2 * piece]);
    }

    proptest! {
        #[test]
        fn sampled_ranges_are_inside_the_file_and_do_not_overlap(bytes in 0_u64..1 << 50) {
            let ranges = sampled_ranges(bytes);
            prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= bytes));
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
