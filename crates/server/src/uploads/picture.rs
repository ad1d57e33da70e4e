//! Decoding of uploads: PNG, JPEG and WebP, within limits, to pixels that are stored as WebP without loss.

use crate::fault::Fault;
use axum::http::StatusCode;
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;

/// A decoded upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Its pixels as a WebP file without loss, upright, and without anything else.
    pub(super) webp: Vec<u8>,
    /// Its width in pixels.
    pub(super) width: u32,
    /// Its height in pixels.
    pub(super) height: u32,
}

/// Decodes a file. Of an animation, the first picture is taken.
///
/// # Errors
/// It is no PNG, JPEG or WebP file, it is damaged, or a side is longer than `side` pixels.
pub(super) fn decoded(content: &[u8], side: u32) -> Result<Decoded, Fault> {
    let format = match image::guess_format(content) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
        _ => return Err(other_format(content)),
    };
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
    Ok(Decoded { webp, width, height })
}

/// The refusal of a file in another format, by its name where it is known.
fn other_format(content: &[u8]) -> Fault {
    let message = match content {
        _ if is_video(content) => "videos cannot be uploaded: no model of this server reads them",
        _ if is_sound(content) => "sounds cannot be uploaded: this server adds none to clips",
        [] => "the file is empty",
        _ => "the file is no picture that this server reads: upload PNG, JPEG or WebP",
    };
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).about("file")
}

fn is_video(content: &[u8]) -> bool {
    match content {
        // MP4, MOV and their like, but not pictures in the same container.
        [_, _, _, _, b'f', b't', b'y', b'p', a, b, c, d, ..] => {
            ![*b"heic", *b"avif", *b"mif1", *b"M4A "].contains(&[*a, *b, *c, *d])
        }
        // Matroska and WebM, AVI, MPEG, FLV, GIF.
        [0x1A, 0x45, 0xDF, 0xA3, ..]
        | [0, 0, 1, 0xBA | 0xB3, ..]
        | [b'F', b'L', b'V', ..]
        | [b'G', b'I', b'F', b'8', ..] => true,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => true,
        // MPEG transport stream.
        [0x47, ..] => content.get(188) == Some(&0x47),
        _ => false,
    }
}

fn is_sound(content: &[u8]) -> bool {
    matches!(
        content,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..]
            | [b'I', b'D', b'3', ..]
            | [0xFF, 0xFB | 0xF3 | 0xF2 | 0xF1 | 0xF9, ..]
            | [b'f', b'L', b'a', b'C', ..]
            | [b'O', b'g', b'g', b'S', ..]
            | [_, _, _, _, b'f', b't', b'y', b'p', b'M', b'4', b'A', b' ', ..]
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use image::{Rgba, RgbaImage};

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
            assert_eq!((found.width, found.height), (20, 10), "{format:?}");
            let stored = image::load_from_memory(&found.webp).unwrap().into_rgba8();
            assert_eq!(stored.dimensions(), (20, 10));
            if format != ImageFormat::Jpeg {
                assert_eq!(stored.get_pixel(3, 5).0, [3, 5, 7, 255], "{format:?}");
            }
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let code = |content: &[u8]| decoded(content, 64).unwrap_err();
        for (content, word) in [
            (&b"\0\0\0\x18ftypmp42"[..], "videos"),
            (b"\x1A\x45\xDF\xA3 webm", "videos"),
            (b"RIFF....AVI LIST", "videos"),
            (b"GIF89a..", "videos"),
            (b"RIFF....WAVEfmt ", "sounds"),
            (b"ID3\x04", "sounds"),
            (b"\0\0\0\x18ftypM4A ", "sounds"),
            (b"", "empty"),
            (b"<svg/>", "no picture"),
            (b"%PDF-1.7", "no picture"),
        ] {
            let fault = code(content);
            assert_eq!(fault.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
            assert!(fault.message.contains(word), "{}", fault.message);
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
