//! Pictures in an HTML page: uncompressed bitmaps as data URIs, so that the page is self-contained.

use ndarray::ArrayView3;

/// Maximum width of a picture.
const WIDEST: usize = 320;

/// Encodes a picture `[H,W,3]` in 0..1 as a data URI, subsampled to at most 320 pixels in width.
pub fn data_uri(picture: ArrayView3<'_, f32>) -> String {
    let step = picture.dim().1.div_ceil(WIDEST).max(1);
    let small = picture.slice(ndarray::s![..;step, ..;step, ..]);
    format!("data:image/bmp;base64,{}", base64(&bitmap(small)))
}

/// Encodes a 24-bit BMP: rows from bottom to top, blue first, each row padded to four bytes.
fn bitmap(picture: ArrayView3<'_, f32>) -> Vec<u8> {
    let (height, width, _) = picture.dim();
    let row = (3 * width).next_multiple_of(4);
    let size = 54 + row * height;
    let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(b"BM");
    for value in [size, 0, 54, 40, width, height] {
        bytes.extend(small(value));
    }
    bytes.extend([1, 0, 24, 0]);
    for value in [0, row * height, 2835, 2835, 0, 0] {
        bytes.extend(small(value));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
    let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    for line in picture.outer_iter().rev() {
        for pixel in line.outer_iter() {
            bytes.extend(pixel.iter().rev().map(|value| byte(*value)));
        }
        bytes.extend(std::iter::repeat_n(0, row - 3 * width));
    }
    bytes
}

/// Base64 with padding.
///
/// Source: RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= group.len() { char::from(DIGITS[index]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array3;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in pairs {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_bitmap_has_the_length_in_its_header_and_starts_with_the_bottom_row() {
        let mut picture = Array3::zeros((2, 3, 3));
        picture[[1, 0, 0]] = 1.0;
        let bytes = bitmap(picture.view());
        assert_eq!(bytes.len(), 54 + 2 * 12);
        assert_eq!(bytes[2..6], 78_u32.to_le_bytes());
        assert_eq!(bytes[54..57], [0, 0, 255]);
        assert!(data_uri(Array3::zeros((8, 1280, 3)).view()).len() < 320 * 3 * 4);
    }
}
