//! Memory that an operator needs while it runs, kept from one run to the next.
#![expect(unsafe_code, reason = "one block of memory seen as numbers of several kinds")]

/// Memory for what is in between. It grows to what the largest run needs and keeps it; operators that run one after
/// another share one.
#[derive(Debug, Default)]
pub struct Scratch {
    lines: Vec<Line>,
}

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers of which every pattern of bits is one.
///
/// # Safety
/// The type has no padding, no invalid patterns, and an alignment of at most 64.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: an integer.
unsafe impl Plain for u8 {}
// SAFETY: an integer.
unsafe impl Plain for i32 {}
// SAFETY: every pattern is a float.
unsafe impl Plain for f32 {}

impl Scratch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for regions of these lengths in bytes, each at the start of a line. What stands in it is anything.
    pub(super) fn regions<const N: usize>(&mut self, bytes: [usize; N]) -> [&mut [u8]; N] {
        let lines = bytes.map(|bytes| bytes.div_ceil(size_of::<Line>()));
        let total = lines.iter().sum();
        if self.lines.len() < total {
            // Not kept beside the new one.
            self.lines = Vec::new();
            self.lines.resize(total, Line([0; 64]));
        }
        let mut rest: &mut [Line] = &mut self.lines;
        let mut index = 0;
        bytes.map(|bytes| {
            let (region, after) = std::mem::take(&mut rest).split_at_mut(lines[index]);
            rest = after;
            index += 1;
            // SAFETY: a line is 64 bytes, and there are enough lines for that many.
            unsafe { std::slice::from_raw_parts_mut(region.as_mut_ptr().cast::<u8>(), bytes) }
        })
    }
}

/// A region as numbers of another kind.
pub(super) fn of<T: Plain>(region: &mut [u8]) -> &mut [T] {
    let (start, length) = (region.as_mut_ptr(), region.len() / size_of::<T>());
    debug_assert!(start.cast::<T>().is_aligned());
    // SAFETY: regions start at a cache line, and every pattern of bits is a number.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), length) }
}
