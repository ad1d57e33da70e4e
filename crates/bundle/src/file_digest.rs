//! Digests of files: one over every byte, and one over a few places, which is cheap enough for every opening.

use crate::units::ByteCount;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes that are hashed as one.
pub const PIECE: usize = 1 << 20;

/// What a file of a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Its length.
    pub bytes: ByteCount,
    /// BLAKE3 over its length and the bytes at [`sampled_places`], 64 hexadecimal digits.
    pub sampled: String,
    /// Over every byte, as of [`of_pieces`]; none where not every byte was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<String>,
}

/// Files up to this length are sampled whole.
const SMALL: u64 = 128 << 10;
/// Bytes of the beginning that are always read: headers.
const HEAD: u64 = 16 << 10;
/// Bytes of every other place.
const BLOCK: u64 = 4 << 10;
/// Places between beginning and end.
const PLACES: u64 = 16;

/// Where a file of this length is read for its sampled digest: the beginning, the end, and one block somewhere in each
/// sixteenth of what is between them. At most 128 KiB, and the same places every time.
pub fn sampled_places(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= SMALL {
        return std::iter::once(0..bytes).filter(|whole| !whole.is_empty()).collect();
    }
    let between = HEAD..bytes - BLOCK;
    let part = (between.end - between.start) / PLACES;
    let somewhere = |index: u64| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes()).update(&index.to_le_bytes());
        let mut eight = [0; 8];
        hasher.finalize_xof().fill(&mut eight);
        let start = between.start + index * part + u64::from_le_bytes(eight) % (part - BLOCK + 1);
        start..start + BLOCK
    };
    let middle = (0..PLACES).map(somewhere);
    std::iter::once(0..HEAD).chain(middle).chain(std::iter::once(bytes - BLOCK..bytes)).collect()
}

/// The sampled digest of an open file of this length.
///
/// # Errors
/// A file that cannot be read, or ends before `bytes`.
pub fn sampled(file: &File, bytes: u64) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes.to_le_bytes());
    let mut buffer = Vec::new();
    for place in sampled_places(bytes) {
        // No place is longer than a small file.
        buffer.resize(usize::try_from(place.end - place.start).unwrap_or_default(), 0);
        file.read_exact_at(&mut buffer, place.start)?;
        hasher.update(&buffer);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Cuts consecutive parts of a file into pieces of at most [`PIECE`] bytes; no piece lies in two parts.
pub fn pieces(parts: impl IntoIterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    parts.into_iter().flat_map(|part| {
        let end = part.end;
        part.step_by(PIECE).map(move |start| start..end.min(start + PIECE as u64))
    })
}

/// The digest over every byte of a file: BLAKE3 over the BLAKE3 hash of each of its [`pieces`], in the order of the file.
///
/// The parts of a safetensors file are its header, with the length before it, and each tensor; of any other file there
/// is one part.
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
    fn small_files_are_sampled_whole_and_large_ones_in_few_places() {
        assert!(sampled_places(0).is_empty());
        assert_eq!(sampled_places(1), Vec::from_iter(std::iter::once(0..1)));
        assert_eq!(sampled_places(SMALL), Vec::from_iter(std::iter::once(0..SMALL)));
        let places = sampled_places(10_000_000_000);
        assert_eq!(places.len() as u64, PLACES + 2);
        assert_eq!(places, sampled_places(10_000_000_000));
        assert!(places.iter().map(|place| place.end - place.start).sum::<u64>() <= SMALL);
        assert_ne!(places[3], sampled_places(10_000_000_001)[3]);
    }

    #[test]
    fn a_change_where_it_is_sampled_is_seen_and_a_short_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 5 * PIECE as u64 + 7;
        file.set_len(bytes).unwrap();
        let zeros = sampled(&file, bytes).unwrap();
        assert_eq!(sampled(&file, bytes).unwrap(), zeros);
        for place in sampled_places(bytes) {
            file.write_all_at(&[1], place.end - 1).unwrap();
            assert_ne!(sampled(&file, bytes).unwrap(), zeros, "{place:?}");
            file.write_all_at(&[0], place.end - 1).unwrap();
        }
        assert_eq!(sampled(&file, bytes + 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn no_piece_lies_in_two_parts() {
        let piece = PIECE as u64;
        let cut: Vec<_> =
            pieces([0..10, 10..10, 10..10 + 2 * piece, 10 + 2 * piece..11 + 2 * piece]).collect();
        assert_eq!(cut, [0..10, 10..10 + piece, 10 + piece..10 + 2 * piece, 10 + 2 * piece..11 + 2 * piece]);
    }

    proptest! {
        #[test]
        fn places_lie_inside_the_file_and_do_not_overlap(bytes in 0_u64..1 << 50) {
            let places = sampled_places(bytes);
            prop_assert!(places.iter().all(|place| place.start < place.end && place.end <= bytes));
            prop_assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
