//! Single pictures as PNG files.

use crate::Error;
use crate::frames::check_shape;
use crate::preview_files::byte;
use bundle::atomic;
use bundle::geometry::PixelSize;
use ndarray::{Array3, ArrayView3};
use std::io::Cursor;
use std::path::Path;

/// The PNG comment.
const COMMENT: &str = "AI-generated picture";

/// Writes a picture `[3,H,W]` in -1..1 as a PNG, which replaces the file when it is complete. Its comment marks it as
/// AI-generated.
///
/// # Errors
/// Returns an error if the picture has not three channels, or if the file cannot be written.
pub fn write(path: &Path, picture: ArrayView3<'_, f32>) -> Result<(), Error> {
    let (_, height, width) = picture.dim();
    check_shape(picture, [3, height, width])?;
    let pixels: Vec<u8> = picture.permuted_axes([1, 2, 0]).iter().copied().map(byte).collect();
    let file = encoded(&pixels, PixelSize { width, height })
        .map_err(|error| Error::PreviewFile { path: path.to_owned(), why: error.to_string() })?;
    Ok(atomic::write_atomic(path, &file)?)
}

fn encoded(pixels: &[u8], size: PixelSize) -> Result<Vec<u8>, png::EncodingError> {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side(size.width), side(size.height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk("Comment".into(), COMMENT.into())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

/// Reads a picture that [`write()`] has written, as `[3,H,W]` in -1..1.
///
/// # Errors
/// Returns an error if the file cannot be read, or is not such a picture.
pub fn read(path: &Path) -> Result<Array3<f32>, Error> {
    let bytes = std::fs::read(path).map_err(bundle::Error::file("read", path))?;
    let wrong = |why: String| Error::PreviewFile { path: path.to_owned(), why };
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_limits(png::Limits { bytes: 4 * PixelSize::MAX_SIDE * PixelSize::MAX_SIDE });
    let mut reader = decoder.read_info().map_err(|error| wrong(error.to_string()))?;
    let (colour, depth) = reader.output_color_type();
    if (colour, depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return Err(wrong("it is not a picture with 8 bits for each of red, green and blue".into()));
    }
    let mut pixels = vec![0; reader.output_buffer_size().unwrap_or(0)];
    let info = reader.next_frame(&mut pixels).map_err(|error| wrong(error.to_string()))?;
    pixels.truncate(info.buffer_size());
    let side = |side: u32| usize::try_from(side).unwrap_or(usize::MAX);
    let values: Vec<f32> = pixels.iter().map(|byte| (f32::from(*byte) - 128.0) / 127.5).collect();
    let picture = Array3::from_shape_vec((side(info.height), side(info.width), 3), values)
        .map_err(|error| wrong(error.to_string()))?;
    Ok(picture.permuted_axes([2, 0, 1]).as_standard_layout().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_read_back_and_keeps_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("take.png");
        let picture = Array3::from_shape_fn((3, 2, 5), |(c, y, x)| (c + y + x) as f32 / 5.0 - 1.0);
        write(&path, picture.view()).unwrap();
        let read_back = read(&path).unwrap();
        assert_eq!(read_back.dim(), picture.dim());
        let first = std::fs::read(&path).unwrap();
        write(&path, read_back.view()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        std::fs::write(&path, &first[..first.len() / 2]).unwrap();
        assert!(read(&path).is_err());
    }
}
