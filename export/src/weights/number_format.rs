//! Number formats of stored weights: conversion with a single rounding, and the search for NaN and infinity.
//!
//! All functions work on little-endian bytes of any alignment, because tensors may be unaligned in their files.

use bundle::dtype::ElementType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Returns the position of the first element that is NaN or infinite; none for number formats that have neither.
///
/// `bytes` has whole elements.
pub fn first_non_finite(element: ElementType, bytes: &[u8]) -> Option<usize> {
    match element {
        ElementType::F32 => first_with_exponent_full::<4>(bytes, |bytes| {
            const EXPONENT: u32 = 0x7f80_0000;
            u32::from_le_bytes(bytes) & EXPONENT == EXPONENT
        }),
        ElementType::F16 => first_with_exponent_full::<2>(bytes, |bytes| {
            const EXPONENT: u16 = 0x7c00;
            u16::from_le_bytes(bytes) & EXPONENT == EXPONENT
        }),
        ElementType::Bf16 => first_with_exponent_full::<2>(bytes, |bytes| {
            const EXPONENT: u16 = 0x7f80;
            u16::from_le_bytes(bytes) & EXPONENT == EXPONENT
        }),
        _ => None,
    }
}

fn first_with_exponent_full<const N: usize>(bytes: &[u8], full: impl Fn([u8; N]) -> bool) -> Option<usize> {
    let elements = bytes.as_chunks::<N>().0;
    // Without an early exit the loop is vectorised. The position is searched only if there is one.
    let any = elements.iter().fold(false, |any, element| any | full(*element));
    any.then(|| elements.iter().position(|element| full(*element))).flatten()
}

/// Returns a floating-point element as f32, exactly; none past the end or for other number formats.
pub fn element_at(element: ElementType, bytes: &[u8], index: usize) -> Option<f32> {
    let two = || bytes.as_chunks::<2>().0.get(index).copied();
    match element {
        ElementType::F32 => bytes.as_chunks::<4>().0.get(index).map(|bytes| f32::from_le_bytes(*bytes)),
        ElementType::F16 => two().map(|bytes| f16::from_le_bytes(bytes).to_f32()),
        ElementType::Bf16 => two().map(|bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => None,
    }
}

/// Widens stored elements to f32, exactly. Does nothing for other number formats.
///
/// `values` has as many elements as `bytes`.
pub fn widen(element: ElementType, bytes: &[u8], values: &mut [f32]) {
    match element {
        ElementType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        ElementType::F16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        ElementType::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        _ => {}
    }
}

/// Narrows f32 values to the bytes of a floating-point format, rounded to the nearest, ties to even. Values that are
/// too large become infinite.
///
/// `bytes` has the size of `values` in the new format.
pub fn narrow(element: ElementType, values: &[f32], bytes: &mut [u8]) {
    match element {
        ElementType::F32 => {
            for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        ElementType::F16 => {
            let mut halves = [f16::ZERO; 64];
            for (bytes, values) in bytes.chunks_mut(128).zip(values.chunks(64)) {
                let halves = &mut halves[..values.len()];
                halves.convert_from_f32_slice(values);
                for (bytes, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                    *bytes = half.to_le_bytes();
                }
            }
        }
        ElementType::Bf16 => {
            for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = bf16_bits(*value).to_le_bytes();
            }
        }
        _ => {}
    }
}

/// Returns the upper half of an f32 after rounding to the nearest, ties to even; NaN stays NaN. Branch-free.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    let chosen = if value.is_nan() { quiet } else { rounded };
    (chosen >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn converted(values: &[f32], to: ElementType) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * to.bytes()];
        narrow(to, values, &mut bytes);
        bytes
    }

    fn same(found: f32, reference: f32) -> bool {
        found.to_bits() == reference.to_bits() || (found.is_nan() && reference.is_nan())
    }

    #[test]
    fn every_16_bit_float_survives_widening_and_narrowing() {
        for element in [ElementType::F16, ElementType::Bf16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let mut values = vec![0.0; 65_536];
            widen(element, &bytes, &mut values);
            let back = converted(&values, element);
            for (bits, value) in (0..=u16::MAX).zip(values) {
                let reference = match element {
                    ElementType::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                };
                assert!(same(value, reference), "{element} {bits:#x}: {value} {reference}");
                assert_eq!(element_at(element, &bytes, bits.into()).map(f32::is_nan), Some(value.is_nan()));
                let start = 2 * usize::from(bits);
                assert!(value.is_nan() || back[start..start + 2] == bits.to_le_bytes());
                let found = first_non_finite(element, &bits.to_le_bytes());
                assert_eq!(found.is_some(), !value.is_finite(), "{element} {bits:#x}");
            }
        }
    }

    #[test]
    fn ties_round_to_even_and_large_values_become_infinite() {
        let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, -f32::MAX];
        let expected = [1.0, 1.0 + 4.0 / 256.0, f32::INFINITY, f32::NEG_INFINITY];
        let mut back = [0.0; 4];
        widen(ElementType::Bf16, &converted(&values, ElementType::Bf16), &mut back);
        assert_eq!(back, expected);
        let mut back = [0.0; 3];
        widen(ElementType::F16, &converted(&[65_519.0, 65_520.0, 1e-9], ElementType::F16), &mut back);
        assert_eq!(back, [65_504.0, f32::INFINITY, 0.0]);
    }

    #[test]
    fn the_first_non_finite_element_is_found_at_any_position() {
        for position in [0, 1, 15, 16, 99] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![-f32::MAX; 100];
                values[position..].fill(bad);
                let mut bytes = vec![0];
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                assert_eq!(first_non_finite(ElementType::F32, &bytes[1..]), Some(position));
            }
        }
        assert_eq!(first_non_finite(ElementType::U8, &[0xff; 8]), None);
    }

    proptest! {
        #[test]
        fn narrowing_equals_the_half_crate(bits in proptest::collection::vec(any::<u32>(), 0..200)) {
            let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let narrow = |element| {
                let mut back = vec![0.0; values.len()];
                widen(element, &converted(&values, element), &mut back);
                back
            };
            for (i, value) in values.iter().enumerate() {
                prop_assert!(same(narrow(ElementType::F16)[i], f16::from_f32(*value).to_f32()), "f16 {value:e}");
                prop_assert!(same(narrow(ElementType::Bf16)[i], bf16::from_f32(*value).to_f32()), "bf16 {value:e}");
                prop_assert!(same(narrow(ElementType::F32)[i], *value));
            }
        }
    }
}
