//! Hashes of the pieces of a file, computed while its bytes are read or written for another purpose.

use crate::file_data::{hash_of_zeros, hash_zeros};
use bundle::file_digest::PIECE;
use std::collections::HashMap;
use std::ops::Range;

/// What was found in a piece of a weight file.
#[derive(Debug, Clone)]
pub(crate) struct PieceResult {
    /// Hash of its bytes.
    pub(crate) hash: blake3::Hash,
    /// Position in the tensor of the first element that is not finite.
    pub(crate) bad: Option<usize>,
}

/// Pieces of the files of a component that were read, by the number of the file and the range in it.
#[derive(Debug, Default)]
pub struct ReadPieces(HashMap<(usize, Range<u64>), PieceResult>);

impl ReadPieces {
    /// Returns what was found in a piece.
    pub(crate) fn get(&self, file: usize, range: &Range<u64>) -> Option<&PieceResult> {
        self.0.get(&(file, range.clone()))
    }

    /// Adds the pieces of consecutive bytes that begin at `start`.
    pub(crate) fn extend(&mut self, file: usize, start: u64, pieces: impl IntoIterator<Item = Found>) {
        let mut at = start;
        for Found { length, result } in pieces {
            let end = at + length as u64;
            self.0.insert((file, at..end), result);
            at = end;
        }
    }
}

/// A piece and its length.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) length: usize,
    pub(crate) result: PieceResult,
}

/// Hashes consecutive bytes in pieces of [`PIECE`] bytes; the last one may be shorter.
#[derive(Debug, Default)]
pub(crate) struct PieceHasher {
    hasher: blake3::Hasher,
    /// Bytes of the current piece.
    filled: usize,
    /// True if all of them are zeros of holes, which `hasher` has not seen.
    only_zeros: bool,
    bad: Option<usize>,
    done: Vec<Found>,
}

impl PieceHasher {
    /// Adds bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.filled));
            if self.only_zeros {
                hash_zeros(&mut self.hasher, self.filled);
                self.only_zeros = false;
            }
            self.hasher.update(now);
            self.filled += now.len();
            self.close(PIECE);
            bytes = later;
        }
    }

    /// Adds the zeros of a hole.
    pub(crate) fn zeros(&mut self, mut count: usize) {
        while count > 0 {
            let now = count.min(PIECE - self.filled);
            self.only_zeros |= self.filled == 0;
            if !self.only_zeros {
                hash_zeros(&mut self.hasher, now);
            }
            self.filled += now;
            self.close(PIECE);
            count -= now;
        }
    }

    /// Marks the piece that the next byte belongs to: an element of it is not finite. The first mark counts.
    pub(crate) fn mark_bad(&mut self, element: usize) {
        self.bad.get_or_insert(element);
    }

    /// Returns true if an element of these bytes is not finite.
    pub(crate) fn has_bad(&self) -> bool {
        self.bad.is_some() || self.done.iter().any(|found| found.result.bad.is_some())
    }

    /// Returns the pieces, and begins anew.
    pub(crate) fn finish(&mut self) -> Vec<Found> {
        self.close(1);
        std::mem::take(&mut self.done)
    }

    /// Ends the current piece if it has at least so many bytes.
    fn close(&mut self, least: usize) {
        if self.filled < least {
            return;
        }
        let hash = if self.only_zeros { hash_of_zeros(self.filled) } else { self.hasher.finalize() };
        let result = PieceResult { hash, bad: self.bad.take() };
        self.done.push(Found { length: self.filled, result });
        self.hasher.reset();
        self.filled = 0;
        self.only_zeros = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_do_not_depend_on_how_bytes_arrive(
            parts in proptest::collection::vec((any::<bool>(), 0..PIECE), 0..6),
        ) {
            let mut hasher = PieceHasher::default();
            let mut all = Vec::new();
            for (is_hole, length) in parts {
                if is_hole {
                    hasher.zeros(length);
                    all.resize(all.len() + length, 0);
                } else {
                    let bytes: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
                    hasher.update(&bytes);
                    all.extend(bytes);
                }
            }
            let found: Vec<_> =
                hasher.finish().into_iter().map(|found| (found.length, found.result.hash)).collect();
            let expected: Vec<_> =
                all.chunks(PIECE).map(|piece| (piece.len(), blake3::hash(piece))).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(hasher.finish().is_empty());
        }
    }

    #[test]
    fn a_bad_element_belongs_to_the_piece_of_the_next_byte() {
        let mut hasher = PieceHasher::default();
        hasher.zeros(PIECE);
        hasher.mark_bad(7);
        hasher.mark_bad(9);
        hasher.update(&[1; 100]);
        let bad: Vec<_> = hasher.finish().into_iter().map(|found| found.result.bad).collect();
        assert_eq!(bad, [None, Some(7)]);
    }
}
