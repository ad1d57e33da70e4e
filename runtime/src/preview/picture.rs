//! Previews as PNG files.

use super::previewer::{Preview, Sink};
use crate::Error;
use bundle::geometry::PixelSize;
use ndarray::{Array3, ArrayView3, Axis};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Writes each preview as a PNG of the clip's size, whole or not at all.
#[derive(Debug)]
pub struct PictureFiles {
    place: Place,
    size: PixelSize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// One file for each step.
    Folder(PathBuf),
    /// One file that always holds the newest.
    File(PathBuf),
}

impl PictureFiles {
    /// Previews go to the file `path` where its name ends in `.png`, else to a folder of that name, which is made.
    ///
    /// # Errors
    /// A folder that cannot be made, or a place that cannot be written to.
    pub fn create(path: &Path, size: PixelSize) -> Result<Self, Error> {
        if path == Path::new("-") {
            let why = "previews are files and never go to standard output".into();
            return Err(Error::PreviewFile { path: path.to_owned(), why });
        }
        let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        let place = if is_file { Place::File(path.to_owned()) } else { Place::Folder(path.to_owned()) };
        let files = Self { place, size };
        let unwritable =
            |source: std::io::Error| Error::PreviewFile { path: path.to_owned(), why: source.to_string() };
        if let Place::Folder(folder) = &files.place {
            std::fs::create_dir_all(folder).map_err(unwritable)?;
        }
        // Shows now what would otherwise be learnt after the first step.
        let probe = part_of(&files.path_of(0, 0));
        std::fs::write(&probe, []).and_then(|()| std::fs::remove_file(&probe)).map_err(unwritable)?;
        Ok(files)
    }

    fn path_of(&self, step: usize, steps: usize) -> PathBuf {
        match &self.place {
            Place::File(file) => file.clone(),
            Place::Folder(folder) => folder.join(format!("step-{step:03}-of-{steps:03}.png")),
        }
    }
}

impl Sink for PictureFiles {
    fn show(&mut self, preview: &Preview) -> Result<(), Error> {
        let path = self.path_of(preview.step, preview.steps);
        let wrong = |why: String| Error::PreviewFile { path: path.clone(), why };
        let pixels = resized(preview.frames.index_axis(Axis(0), 0), self.size);
        let about = format!("AI-generated preview: step {} of {}", preview.step, preview.steps);
        let file = encoded(&pixels, self.size, &about).map_err(|error| wrong(error.to_string()))?;
        // A preview is not worth a flush to disk; a reader sees the older one or this one.
        let part = part_of(&path);
        std::fs::write(&part, file)
            .and_then(|()| std::fs::rename(&part, &path))
            .map_err(|error| wrong(error.to_string()))
    }
}

/// `.NAME.part` beside a file: hidden from those that list the folder's pictures.
fn part_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

/// A picture as PNG. Compressed for speed: previews are looked at once.
fn encoded(pixels: &[u8], size: PixelSize, about: &str) -> Result<Vec<u8>, png::EncodingError> {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side(size.width), side(size.height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.add_text_chunk("Comment".into(), about.into())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

/// A frame `[3,h,w]` in -1..1 as 8-bit RGB of another size.
pub fn resized(frame: ArrayView3<'_, f32>, size: PixelSize) -> Vec<u8> {
    let colours = resized_colours(frame, size);
    colours.permuted_axes([1, 2, 0]).iter().copied().map(byte).collect()
}

/// A frame `[3,h,w]` in another size, `[3,H,W]`: bilinear, pixel centres on pixel centres.
pub fn resized_colours(frame: ArrayView3<'_, f32>, size: PixelSize) -> Array3<f32> {
    let (_, height, width) = frame.dim();
    if (width, height) == (size.width, size.height) {
        return frame.to_owned();
    }
    let (rows, columns) = (taps(height, size.height), taps(width, size.width));
    let mut resized = Array3::zeros((3, size.height, size.width));
    // Along height first, one row at a time, so that only two rows are looked at.
    let mut row = vec![0.0_f32; width];
    for (from, mut into) in frame.outer_iter().zip(resized.outer_iter_mut()) {
        for (tap, mut into) in rows.iter().zip(into.outer_iter_mut()) {
            for ((mixed, low), high) in row.iter_mut().zip(from.row(tap.low)).zip(from.row(tap.high)) {
                *mixed = tap.mix(*low, *high);
            }
            for (into, tap) in into.iter_mut().zip(&columns) {
                *into = tap.mix(row[tap.low], row[tap.high]);
            }
        }
    }
    resized
}

/// Two neighbours and the weight of the second.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

impl Tap {
    fn mix(&self, low: f32, high: f32) -> f32 {
        low + self.weight * (high - low)
    }
}

fn taps(from: usize, to: usize) -> Vec<Tap> {
    #[expect(clippy::cast_precision_loss, reason = "sides far below 2^24")]
    let (scale, last) = (from as f32 / to as f32, (from - 1) as f32);
    (0..to)
        .map(|index| {
            #[expect(clippy::cast_precision_loss, reason = "sides far below 2^24")]
            let place = ((index as f32 + 0.5) * scale - 0.5).clamp(0.0, last);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to from - 1")]
            let low = place as usize;
            #[expect(clippy::cast_precision_loss, reason = "sides far below 2^24")]
            let weight = place - low as f32;
            Tap { low, high: (low + 1).min(from - 1), weight }
        })
        .collect()
}

/// The nearest of 256 steps from -1 to 1; what is no number becomes 0.
fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    let byte = (value * 127.5 + 128.0) as u8;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    const SIZE: PixelSize = PixelSize { width: 4, height: 2 };

    fn preview(step: usize, value: f32) -> Preview {
        let frames = Array4::from_elem((1, 3, 1, 2), value);
        Preview { step, steps: 20, frames, latent_frames: 1 }
    }

    fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_gets_a_file_for_each_step() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("previews");
        let mut files = PictureFiles::create(&place, SIZE).unwrap();
        files.show(&preview(3, -1.0)).unwrap();
        files.show(&preview(20, 1.0)).unwrap();
        assert_eq!(names(&place), ["step-003-of-020.png", "step-020-of-020.png"]);
        assert_eq!(pixels(&place.join("step-020-of-020.png")), (4, 2, vec![255; 24]));
    }

    #[test]
    fn a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("now.PNG");
        let mut files = PictureFiles::create(&path, SIZE).unwrap();
        assert!(names(folder.path()).is_empty());
        files.show(&preview(1, 1.0)).unwrap();
        files.show(&preview(2, -1.0)).unwrap();
        assert_eq!(names(folder.path()), ["now.PNG"]);
        assert_eq!(pixels(&path).2, vec![0; 24]);
    }

    #[test]
    fn what_cannot_be_written_is_refused_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("taken"), "a file").unwrap();
        for path in ["taken", "taken/previews", "no/such/now.png"] {
            let error = PictureFiles::create(&folder.path().join(path), SIZE).unwrap_err();
            assert!(matches!(error, Error::PreviewFile { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn resizing_keeps_levels_and_is_exact_at_the_same_size() {
        let ramp = Array3::from_shape_fn((3, 1, 2), |(_, _, x)| x as f32 * 2.0 - 1.0);
        let row: Vec<u8> = resized(ramp.view(), SIZE).chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(row, [0, 64, 191, 255, 0, 64, 191, 255]);
        let same = resized(ramp.view(), PixelSize { width: 2, height: 1 });
        assert_eq!(same, [0, 0, 0, 255, 255, 255]);
        let beyond = Array3::from_shape_fn((3, 1, 1), |(c, _, _)| [7.0, -7.0, f32::NAN][c]);
        assert_eq!(resized(beyond.view(), PixelSize { width: 1, height: 1 }), [255, 0, 0]);
    }
}
