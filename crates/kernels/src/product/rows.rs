//! Rows of activations for the products: padded to whole steps, and to whole cache lines for tiles.
#![expect(unsafe_code, reason = "numbers are copied as bytes")]

use crate::packing::STEP;
use crate::simd::tiles::DEPTH;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; DEPTH]);

/// Rows of whole steps; borrowed if the layout already matches, copied otherwise.
pub(super) struct Rows {
    start: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    /// The copy, with zeros at the end of each row.
    _copied: Vec<Line>,
}

impl Rows {
    /// Creates rows of `width` numbers. For tiles a step is 64 bytes aligned to a cache line: rows that straddle two
    /// lines halve the throughput.
    pub(super) fn new<T: Copy>(x: &[T], width: usize, for_tiles: bool) -> Self {
        let bytes = width * size_of::<T>();
        let stride = bytes.next_multiple_of(if for_tiles { DEPTH } else { STEP });
        let start = x.as_ptr().cast::<u8>();
        if bytes == stride && (!for_tiles || start.addr().is_multiple_of(DEPTH)) {
            return Self { start, stride, _copied: Vec::new() };
        }
        let rows = x.len().checked_div(width).unwrap_or(0);
        let mut copied = vec![Line([0; DEPTH]); (rows * stride).div_ceil(DEPTH)];
        let to = copied.as_mut_ptr().cast::<u8>();
        for row in 0..rows {
            // SAFETY: `x` has whole rows, and `copied` has room for the same number of rows of `stride` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(start.add(row * bytes), to.add(row * stride), bytes);
            }
        }
        Self { start: copied.as_ptr().cast(), stride, _copied: copied }
    }

    /// Returns the first byte of the first row.
    pub(super) fn start(&self) -> *const u8 {
        self.start
    }

    /// Bytes from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }
}
