//! The rows of a matrix that a block of its elements touches.

use std::ops::Range;

/// A part of a row in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The row.
    pub(super) row: usize,
    /// Its columns.
    pub(super) columns: Range<usize>,
    /// Their positions in the block.
    pub(super) block: Range<usize>,
}

/// Returns the rows of a matrix with `columns` columns that the `count` elements from `start` on touch, in order.
/// Returns nothing for a matrix without columns.
pub(super) fn row_segments(columns: usize, start: usize, count: usize) -> impl Iterator<Item = Segment> {
    let mut done = if columns == 0 { count } else { 0 };
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let (row, column) = ((start + done) / columns, (start + done) % columns);
        let length = (columns - column).min(count - done);
        let segment = Segment { row, columns: column..column + length, block: done..done + length };
        done += length;
        Some(segment)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_cut_at_the_ends_of_rows() {
        let segment = |row, columns, block| Segment { row, columns, block };
        let found: Vec<_> = row_segments(4, 6, 9).collect();
        assert_eq!(found, [segment(1, 2..4, 0..2), segment(2, 0..4, 2..6), segment(3, 0..3, 6..9)]);
        assert_eq!(row_segments(4, 4, 2).collect::<Vec<_>>(), [segment(1, 0..2, 0..2)]);
        assert_eq!(row_segments(4, 8, 0).count() + row_segments(0, 0, 3).count(), 0);
    }
}
