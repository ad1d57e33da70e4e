//! Tensors that are not stored row by row: the elements of a matrix column by column, or convolutions with channels last.
//!
//! The stride of an axis is the distance of two neighbours along it, in elements.

/// Returns true if elements follow one another in the order of their indices. Strides of extents of 1 have no effect,
/// and neither have those of a tensor without elements.
pub(super) fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    shape.contains(&0) || is_dense(shape.iter().copied().zip(strides.iter().copied()))
}

/// Returns true if elements follow one another without gaps in the order of some order of the axes.
pub(super) fn is_permuted(shape: &[usize], strides: &[usize]) -> bool {
    let mut axes: Vec<(usize, usize)> = shape.iter().copied().zip(strides.iter().copied()).collect();
    axes.sort_by_key(|(_, stride)| std::cmp::Reverse(*stride));
    is_dense(axes.into_iter())
}

/// Whether extents and strides, from the slowest axis to the fastest, have no gaps.
fn is_dense(axes: impl DoubleEndedIterator<Item = (usize, usize)>) -> bool {
    let mut expected = 1_usize;
    axes.rev().filter(|(extent, _)| *extent != 1).all(|(extent, stride)| {
        let fits = stride == expected;
        expected = expected.saturating_mul(extent);
        fits
    })
}

/// Copies elements of `each` bytes from their stored order to the order of their indices, from element `start` on. All
/// elements are inside `stored`, and `elements` has whole ones.
pub(super) fn gather(
    (shape, strides): (&[usize], &[usize]),
    stored: &[u8],
    each: usize,
    start: usize,
    elements: &mut [u8],
) {
    for (index, element) in (start..).zip(elements.chunks_exact_mut(each)) {
        let (mut rest, mut place) = (index, 0);
        for (extent, stride) in shape.iter().zip(strides).rev() {
            place += rest % extent * stride;
            rest /= extent;
        }
        element.copy_from_slice(&stored[place * each..(place + 1) * each]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, IxDyn};
    use proptest::prelude::*;

    #[test]
    fn gaps_and_repetitions_are_no_permutation() {
        for (shape, strides, row_major, permuted) in [
            (&[2, 3][..], &[3, 1][..], true, true),
            (&[2, 3], &[1, 2], false, true),
            (&[2, 3], &[4, 1], false, false),
            (&[2, 3], &[0, 1], false, false),
            (&[2, 3], &[1, 1], false, false),
            (&[1, 3, 1], &[7, 1, 0], true, true),
            (&[2, 0], &[9, 9], true, false),
            (&[], &[], true, true),
            (&[2, 3, 4], &[12, 1, 3], false, true),
        ] {
            assert_eq!(is_row_major(shape, strides), row_major, "{shape:?} {strides:?}");
            assert_eq!(is_permuted(shape, strides), permuted, "{shape:?} {strides:?}");
        }
    }

    proptest! {
        #[test]
        fn gathered_elements_are_those_of_ndarray(
            extents in proptest::collection::vec(1_usize..5, 1..5), order in any::<u64>(), start in 0_usize..20,
        ) {
            let mut axes: Vec<usize> = (0..extents.len()).collect();
            axes.sort_by_key(|axis| order.rotate_left(7 * u32::try_from(*axis).unwrap()).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let stored: Vec<u16> = (0..extents.iter().product::<usize>()).map(|i| u16::try_from(i).unwrap()).collect();
            let whole = Array::from_shape_vec(IxDyn(&extents), stored.clone()).unwrap();
            let turned = whole.view().permuted_axes(IxDyn(&axes));
            let strides: Vec<usize> = turned.strides().iter().map(|stride| usize::try_from(*stride).unwrap()).collect();
            prop_assert!(is_permuted(turned.shape(), &strides));
            let bytes: Vec<u8> = stored.iter().flat_map(|value| value.to_le_bytes()).collect();
            let start = start.min(stored.len());
            let mut found = vec![0; 2 * (stored.len() - start)];
            gather((turned.shape(), &strides), &bytes, 2, start, &mut found);
            let expected: Vec<u8> = turned.iter().skip(start).flat_map(|value| value.to_le_bytes()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
