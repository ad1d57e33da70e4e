//! Decoding of uploaded pictures: PNG, JPEG and WebP, within limits, to pixels that are stored as WebP without loss:
//! upright, and without anything else.

use super::content::{Content, Decoded};
use crate::fault::Fault;
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;

/// The format of a picture that is read.
pub(super) fn format(sent: &[u8]) -> Option<ImageFormat> {
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    image::guess_format(sent).ok().filter(|format| known.contains(format))
}

/// Decodes a file of a format. Of an animation, the first picture is taken.
///
/// # Errors
/// It is damaged, or a side is longer than `side` pixels.
pub(super) fn decoded(content: &[u8], format: ImageFormat, side: u32) -> Result<Decoded, Fault> {
    let damaged =
        |error: image::ImageError| Fault::parameter("file", format!("the picture cannot be read: {error}"));
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(side), Some(side));
    // Eight bytes a pixel, as the largest format has.
    limits.max_alloc = Some(u64::from(side) * u64::from(side) * 8);
    let mut reader = ImageReader::with_format(Cursor::new(content), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| match error {
        image::ImageError::Limits(_) => {
            Fault::parameter("file", format!("a picture has at most {side} pixels a side"))
        }
        error => damaged(error),
    })?;
    let (width, height) = decoder.dimensions();
    if width > side || height > side {
        let message = format!("the picture is {width}x{height}, and may have {side} pixels a side");
        return Err(Fault::parameter("file", message));
    }
    // A damaged note of the orientation is none.
    let orientation = decoder.orientation().unwrap_or(image::metadata::Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    let pixels = picture.into_rgba8();
    let (width, height) = pixels.dimensions();
    let mut webp = Vec::new();
    let encoder = WebPEncoder::new_lossless(&mut webp);
    encoder.write_image(pixels.as_raw(), width, height, ExtendedColorType::Rgba8).map_err(Fault::internal)?;
    Ok(Decoded { file: webp, content: Content::Picture { width, height } })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use axum::http::StatusCode;
    use image::{Rgba, RgbaImage};

    fn decoded(sent: &[u8], side: u32) -> Result<Decoded, Fault> {
        super::decoded(sent, format(sent).unwrap(), side)
    }

    fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let picture = RgbaImage::from_fn(width, height, |x, y| Rgba([x as u8, y as u8, 7, 255]));
        let mut file = Cursor::new(Vec::new());
        let picture = DynamicImage::from(picture);
        // JPEG has no transparency.
        let written = match format {
            ImageFormat::Jpeg => DynamicImage::from(picture.into_rgb8()).write_to(&mut file, format),
            _ => picture.write_to(&mut file, format),
        };
        written.unwrap();
        file.into_inner()
    }

    /// A picture as PNG.
    pub(in super::super) fn png(width: u32, height: u32) -> Vec<u8> {
        encoded(width, height, ImageFormat::Png)
    }

    #[test]
    fn pixels_are_kept_and_nothing_else() {
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Jpeg] {
            let found = decoded(&encoded(20, 10, format), 64).unwrap();
            assert_eq!(found.content, Content::Picture { width: 20, height: 10 }, "{format:?}");
            let stored = image::load_from_memory(&found.file).unwrap().into_rgba8();
            assert_eq!(stored.dimensions(), (20, 10));
            if format != ImageFormat::Jpeg {
                assert_eq!(stored.get_pixel(3, 5).0, [3, 5, 7, 255], "{format:?}");
            }
        }
    }

    #[test]
    fn large_and_damaged_pictures_are_refused() {
        assert!(decoded(&png(64, 64), 64).is_ok());
        for content in [png(65, 1), png(1, 65)] {
            assert!(decoded(&content, 64).unwrap_err().message.contains("64 pixels a side"));
        }
        let whole = png(32, 32);
        for cut in [9, 20, 40, whole.len() / 2] {
            assert_eq!(decoded(&whole[..cut], 64).unwrap_err().status, StatusCode::BAD_REQUEST, "{cut}");
        }
        // A header that claims 2^31 pixels a side.
        let mut bomb = whole.clone();
        bomb[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
        assert_eq!(decoded(&bomb, 8192).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
