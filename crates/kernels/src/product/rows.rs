//! Rows of activations for the products: padded to whole steps, and to whole cache lines for tiles.
#![expect(unsafe_code, reason = "numbers are copied as bytes")]

use crate::packing::STEP;
use crate::simd::tiles::DEPTH;
use crate::size::{SizeError, padded, product};

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; DEPTH]);

/// Rows of whole steps; borrowed if the layout already matches, copied otherwise.
pub(super) struct Rows {
    start: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    /// The copy, with zeros at the end of each row.
    copied: Vec<Line>,
}

impl Rows {
    /// Creates rows of `width` numbers. For tiles a step is 64 bytes aligned to a cache line: rows that straddle two
    /// lines halve the throughput. `x` is borrowed by the result, although no lifetime says so.
    ///
    /// # Errors
    /// Returns an error if no memory could hold the padded rows.
    pub(super) fn new<T: Copy>(x: &[T], width: usize, for_tiles: bool) -> Result<Self, SizeError> {
        const WHAT: &str = "padded activations";
        let bytes = product(WHAT, &[width, size_of::<T>()])?;
        let step = if for_tiles { DEPTH } else { STEP };
        let stride = if bytes == 0 { 0 } else { padded(WHAT, bytes, step)? };
        let start = x.as_ptr().cast::<u8>();
        if bytes == stride && (!for_tiles || start.addr().is_multiple_of(DEPTH)) {
            return Ok(Self { start, stride, copied: Vec::new() });
        }
        let rows = x.len().checked_div(width).unwrap_or(0);
        let mut copied = vec![Line([0; DEPTH]); product(WHAT, &[rows, stride])?.div_ceil(DEPTH)];
        let to = copied.as_mut_ptr().cast::<u8>();
        for row in 0..rows {
            // SAFETY: `rows` is the number of whole rows of `bytes` bytes in `x`, and `copied` has at least
            // `rows × stride` bytes, computed without overflow; `bytes` is at most `stride`.
            unsafe {
                std::ptr::copy_nonoverlapping(start.add(row * bytes), to.add(row * stride), bytes);
            }
        }
        Ok(Self { start: copied.as_ptr().cast(), stride, copied })
    }

    /// Returns the first byte of the first row.
    pub(super) fn start(&self) -> *const u8 {
        self.start
    }

    /// Bytes from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }
    /// Returns the copy, which has to be kept as long as the rows are read. It is empty if they are borrowed.
    pub(super) fn into_copy(self) -> Vec<Line> {
        self.copied
    }
}
