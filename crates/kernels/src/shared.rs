//! An output that many tasks write, each its own part.
#![expect(unsafe_code, reason = "disjoint parts of one slice on several threads")]

use std::marker::PhantomData;

/// A slice whose disjoint parts are written by different tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, whose users promise not to touch the same element at once.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), slice: PhantomData }
    }

    /// The `length` elements from `from`.
    ///
    /// # Safety
    /// While the part lives, nobody else has one that overlaps it.
    ///
    /// # Panics
    /// The part is not inside the slice.
    #[inline(always)]
    pub(crate) unsafe fn part(self, from: usize, length: usize) -> &'a mut [T] {
        assert!(from <= self.length && length <= self.length - from, "a part outside of its slice");
        // SAFETY: it is inside the slice, and the caller promises that it is alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), length) }
    }

    /// Where element `index` is or would be; not to be read or written through.
    #[inline(always)]
    pub(crate) fn address(self, index: usize) -> *const u8 {
        self.start.wrapping_add(index).cast::<u8>()
    }
}

/// Tasks of `size` rows each, the last one with what is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunks {
    pub(crate) rows: usize,
    pub(crate) size: usize,
}

impl Chunks {
    pub(crate) fn count(self) -> usize {
        self.rows.div_ceil(self.size)
    }

    pub(crate) fn range(self, index: usize) -> std::ops::Range<usize> {
        let from = index * self.size;
        from..self.rows.min(from + self.size)
    }
}
