//! The thumbnail and the sheet of a clip: small pictures of its frames, kept beside its file.

use bundle::atomic;
use bundle::geometry::PixelSize;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use media::preview_files::resized_colours;
use ndarray::{Array3, ArrayView3};
use std::path::{Path, PathBuf};

/// The longest side of the thumbnail, in pixels.
const THUMBNAIL: usize = 512;
/// The longest side of a picture of the sheet.
const TILE: usize = 256;
/// The most pictures of the sheet, in rows of so many.
const MOST: usize = 16;
const COLUMNS: usize = 4;
/// The quality of JPEG and WebP, of 100.
const QUALITY: u8 = 85;

/// The small pictures of a clip that is being decoded.
#[derive(Debug)]
pub(super) struct Tiles {
    /// The numbers of the frames on the sheet.
    wanted: Vec<usize>,
    tiles: Vec<Array3<f32>>,
    /// The frame in the middle.
    thumbnail: Option<Array3<f32>>,
    middle: usize,
}

/// The thumbnail of a clip.
pub(crate) fn thumbnail(clips: &Path, id: &str) -> PathBuf {
    clips.join(format!("{id}.thumbnail.webp"))
}

/// The sheet of a clip.
pub(crate) fn sheet(clips: &Path, id: &str) -> PathBuf {
    clips.join(format!("{id}.spritesheet.jpg"))
}

impl Tiles {
    /// Those of a clip with this many frames.
    pub(super) fn new(frames: usize) -> Self {
        let count = frames.clamp(1, MOST);
        let wanted = (0..count).map(|tile| tile * frames / count).collect();
        Self { wanted, tiles: Vec::new(), thumbnail: None, middle: frames / 2 }
    }

    /// Takes a frame `[3,H,W]` in -1..1.
    pub(super) fn add(&mut self, number: usize, frame: ArrayView3<'_, f32>) {
        if self.wanted.contains(&number) {
            self.tiles.extend(small(frame, TILE));
        }
        if number == self.middle {
            self.thumbnail = small(frame, THUMBNAIL);
        }
    }

    /// Writes the pictures.
    ///
    /// # Errors
    /// A picture cannot be encoded, or a file cannot be written.
    pub(super) fn write(&self, clips: &Path, id: &str) -> Result<(), bundle::Error> {
        if let Some(picture) = &self.thumbnail {
            let (pixels, size) = pixels(picture.view());
            let encoder = webp::Encoder::from_rgb(&pixels, side(size.width), side(size.height));
            atomic::write_atomic(&thumbnail(clips, id), &encoder.encode(f32::from(QUALITY)))?;
        }
        let path = sheet(clips, id);
        let Some(drawn) = self.sheet() else { return Ok(()) };
        let (pixels, size) = pixels(drawn.view());
        let mut file = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut file, QUALITY);
        encoder
            .write_image(&pixels, side(size.width), side(size.height), ExtendedColorType::Rgb8)
            .map_err(|error| bundle::Error::file("write", &path)(std::io::Error::other(error)))?;
        atomic::write_atomic(&path, &file)
    }

    /// The tiles in rows.
    fn sheet(&self) -> Option<Array3<f32>> {
        let (_, height, width) = self.tiles.first()?.dim();
        let columns = self.tiles.len().min(COLUMNS);
        let rows = self.tiles.len().div_ceil(columns);
        let mut sheet = Array3::from_elem((3, rows * height, columns * width), -1.0);
        for (index, tile) in self.tiles.iter().enumerate() {
            let (top, left) = (index / columns * height, index % columns * width);
            sheet.slice_mut(ndarray::s![.., top..top + height, left..left + width]).assign(tile);
        }
        Some(sheet)
    }
}

/// A frame whose longer side has at most so many pixels.
pub(crate) fn small(frame: ArrayView3<'_, f32>, longest: usize) -> Option<Array3<f32>> {
    let (_, height, width) = frame.dim();
    let larger = height.max(width);
    let scaled = |side: usize| if larger <= longest { side } else { (side * longest / larger).max(1) };
    resized_colours(frame, PixelSize { width: scaled(width), height: scaled(height) }).ok()
}

/// The bytes of a picture, and its size.
pub(super) fn pixels(picture: ArrayView3<'_, f32>) -> (Vec<u8>, PixelSize) {
    let (_, height, width) = picture.dim();
    let values = picture.permuted_axes([1, 2, 0]);
    (values.iter().copied().map(byte).collect(), PixelSize { width, height })
}

/// Maps -1..1 to the nearest byte.
fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    let byte = (value * 127.5 + 128.0) as u8;
    byte
}

pub(super) fn side(side: usize) -> u32 {
    u32::try_from(side).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_gets_a_thumbnail_and_a_sheet_of_its_frames() {
        let folder = tempfile::tempdir().unwrap();
        let mut tiles = Tiles::new(33);
        for number in 0..33 {
            tiles.add(number, Array3::from_elem((3, 300, 600), number as f32 / 16.0 - 1.0).view());
        }
        tiles.write(folder.path(), "video_1").unwrap();
        let sheet = image::open(sheet(folder.path(), "video_1")).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (4 * 256, 4 * 128));
        let bytes = std::fs::read(thumbnail(folder.path(), "video_1")).unwrap();
        let thumbnail = webp::Decoder::new(&bytes).decode().unwrap();
        assert_eq!((thumbnail.width(), thumbnail.height()), (512, 256));
        // Later frames are brighter.
        assert!(sheet.get_pixel(10, 10).0[0] < 10 && sheet.get_pixel(1000, 500).0[0] > 200);
        let few: Vec<usize> = Tiles::new(3).wanted;
        assert_eq!(few, [0, 1, 2]);
    }
}
