//! Checks of extents and lengths.
//!
//! The kernels read and write through raw pointers, so every extent that comes from a caller is checked before it is
//! multiplied. A product of extents is at most [`LARGEST`]; no slice is longer, so sums and products with small factors
//! of a length that matched a slice do not wrap either.

/// The largest size of an allocation in bytes.
const LARGEST: usize = isize::MAX.cast_unsigned();

/// Extents or lengths that do not match, or that the kernels do not support.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// An operand does not have the number of elements that the extents require.
    #[error("`{what}` has {found} elements; expected {expected}")]
    Length {
        /// The operand.
        what: &'static str,
        /// The expected number of elements.
        expected: usize,
        /// The actual number of elements.
        found: usize,
    },
    /// An extent is not supported.
    #[error("the {what} is {found}; expected {expected}")]
    Extent {
        /// The extent.
        what: &'static str,
        /// The supported values.
        expected: &'static str,
        /// The actual value.
        found: usize,
    },
    /// The product of some extents exceeds the size of the address space.
    #[error("the extents of `{what}` are too large: no memory could hold it")]
    TooLarge {
        /// What has these extents.
        what: &'static str,
    },
}

impl SizeError {
    /// The operand or extent.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Length { what, .. } | Self::Extent { what, .. } | Self::TooLarge { what } => what,
        }
    }
}

/// Checks the number of elements of an operand.
pub(crate) fn check(what: &'static str, found: usize, expected: usize) -> Result<(), SizeError> {
    if found == expected { Ok(()) } else { Err(SizeError::Length { what, expected, found }) }
}

/// Checks an extent against a condition that `expected` describes.
pub(crate) fn check_extent(
    what: &'static str,
    found: usize,
    expected: &'static str,
    is_supported: bool,
) -> Result<(), SizeError> {
    if is_supported { Ok(()) } else { Err(SizeError::Extent { what, expected, found }) }
}

/// Returns the product of extents. Extents of zero count as one in the check, so that the result does not depend on
/// their order.
pub(crate) fn product(what: &'static str, extents: &[usize]) -> Result<usize, SizeError> {
    let product = extents.iter().try_fold(1_usize, |product, extent| product.checked_mul((*extent).max(1)));
    match product {
        Some(product) if product <= LARGEST => Ok(if extents.contains(&0) { 0 } else { product }),
        _ => Err(SizeError::TooLarge { what }),
    }
}

/// Returns an extent, rounded up to a multiple of `multiple`; at least one multiple.
pub(crate) fn padded(what: &'static str, extent: usize, multiple: usize) -> Result<usize, SizeError> {
    extent.max(1).checked_next_multiple_of(multiple).ok_or(SizeError::TooLarge { what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOO_LARGE: Result<usize, SizeError> = Err(SizeError::TooLarge { what: "x" });

    #[test]
    fn products_that_wrap_are_errors_in_any_order() {
        for extents in
            [[1 << 62, 4], [1 << 63, 2], [usize::MAX, usize::MAX], [1 << 32, 1 << 32], [1, 1 << 63]]
        {
            let [a, b] = extents;
            assert_eq!(product("x", &[a, b]), TOO_LARGE);
            assert_eq!(product("x", &[b, a, 0]), TOO_LARGE);
            assert_eq!(product("x", &[0, a, b]), TOO_LARGE);
        }
        assert_eq!(product("x", &[0, usize::MAX / 4]), Ok(0));
        assert_eq!(product("x", &[1, LARGEST]), Ok(LARGEST));
        assert_eq!(product("x", &[]), Ok(1));
        assert_eq!(padded("x", usize::MAX - 3, 16), TOO_LARGE);
        assert_eq!(padded("x", 0, 16), Ok(16));
    }

    proptest! {
        #[test]
        fn a_product_is_exact_or_an_error(extents in proptest::collection::vec(any::<usize>(), 0..4), shift in 0..64_u32) {
            let extents: Vec<usize> = extents.iter().map(|extent| extent >> shift).collect();
            let exact = extents.iter().try_fold(1_u128, |product, extent| product.checked_mul(*extent as u128));
            match product("x", &extents) {
                Ok(found) => prop_assert_eq!(Some(found as u128), exact),
                Err(_) => {
                    let nonzero = extents.iter().try_fold(1_u128, |product, extent| {
                        product.checked_mul((*extent).max(1) as u128)
                    });
                    prop_assert!(nonzero.is_none_or(|product| product > LARGEST as u128));
                }
            }
        }
    }
}
