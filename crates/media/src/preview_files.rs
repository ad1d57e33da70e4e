//! Previews as PNG files.

use crate::{Error, make_locked};
use bundle::Diagnose;
use bundle::geometry::PixelSize;
use bundle::lock::{Locked, Refusal};
use bundle::output_path::resolved;
use bundle::part_file::PartFile;
use ndarray::{Array3, ArrayView3};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The start of the PNG comment of every preview.
const COMMENT: &str = "AI-generated preview";
/// The comment of a preview is within the first bytes of the file.
const HEAD_BYTES: u64 = 256;

/// Writes each preview as a PNG of the size of the clip. Files are replaced atomically. Until it is dropped no other
/// run can claim the same file or folder.
#[derive(Debug, Clone)]
pub struct PreviewFiles {
    location: Arc<Location>,
    size: PixelSize,
}

#[derive(Debug)]
enum Location {
    /// A folder with one file for each step.
    Folder { folder: PathBuf, _lock: Locked },
    /// One file with the newest preview. The part file is only a lock and is always empty.
    File(PartFile),
}

impl PreviewFiles {
    /// Writes previews to the file `path` if it ends in `.png`, otherwise to a folder `path`, which is created.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created, if the file or folder cannot be written or is locked by
    /// another run, or if other pictures in the folder have the names of previews.
    pub fn create(path: &Path, size: PixelSize) -> Result<Self, Error> {
        if path == Path::new("-") {
            let why = "previews are never written to standard output".into();
            return Err(Error::PreviewFile { path: path.to_owned(), why });
        }
        let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        let location = if is_file { Self::file(path) } else { Self::folder(path) };
        location
            .map(|location| Self { location: Arc::new(location), size })
            .map_err(|why| Error::PreviewFile { path: path.to_owned(), why })
    }

    /// Like [`Self::create`], for a default path: another file with that name is not replaced.
    ///
    /// # Errors
    /// The errors of [`Self::create`]. Returns an error if a file with this name exists and is not a preview.
    pub fn create_default(path: &Path, size: PixelSize) -> Result<Self, Error> {
        if path.symlink_metadata().is_ok() && !is_preview(path) {
            let why = "the file exists and is not a preview".into();
            return Err(Error::PreviewFile { path: path.to_owned(), why });
        }
        Self::create(path, size)
    }

    fn file(path: &Path) -> Result<Location, String> {
        // Nothing is written to the part file, so any content belongs to another program.
        PartFile::create(path, |_| false).map(Location::File).map_err(|error| error.report().why)
    }

    fn folder(path: &Path) -> Result<Location, String> {
        let text = |error: std::io::Error| error.to_string();
        let folder = resolved(path).map_err(text)?;
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(text)?;
        }
        let (lock, _) = make_locked(&folder).map_err(|refusal| match refusal {
            Refusal::Busy => "another run or output is writing to it".to_owned(),
            Refusal::Foreign(why) => format!("it {why}"),
            Refusal::Io(error) => error.to_string(),
        })?;
        // Fails now instead of after the first step.
        tempfile::tempfile_in(&folder).map_err(text)?;
        for entry in std::fs::read_dir(&folder).map_err(text)? {
            let entry = entry.map_err(text)?;
            if entry.file_name().to_str().is_some_and(is_name_of_step) && !is_preview(&entry.path()) {
                return Err(format!("{} in it is not a preview", entry.file_name().display()));
            }
        }
        Ok(Location::Folder { folder, _lock: lock })
    }

    fn path_of(&self, step: usize, steps: usize) -> PathBuf {
        match &*self.location {
            Location::File(file) => file.path().to_owned(),
            Location::Folder { folder, .. } => folder.join(format!("step-{step:03}-of-{steps:03}.png")),
        }
    }

    /// Writes the preview `[3,h,w]` in -1..1 of step `step` of `steps`, counted from 1.
    ///
    /// # Errors
    /// Returns an error if the frame is not `[3,h,w]`, or if the file cannot be written.
    pub fn write(&self, step: usize, steps: usize, frame: ArrayView3<'_, f32>) -> Result<(), Error> {
        let path = self.path_of(step, steps);
        let failed = |why: String| Error::PreviewFile { path: path.clone(), why };
        let pixels = resized(frame, self.size)?;
        let about = format!("{COMMENT}: step {step} of {steps}");
        let file = encoded(&pixels, self.size, &about, &[]).map_err(|error| failed(error.to_string()))?;
        replace(&path, &file).map_err(|error| failed(error.to_string()))
    }
}

/// Replaces a file atomically, without a flush to disk, which a preview is not worth.
fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut part = bundle::atomic::create_part(path)?;
    part.write_all(content)?;
    part.persist(path).map(drop).map_err(|error| error.error)
}

/// Returns true if a name is `step-NNN-of-NNN.png`.
fn is_name_of_step(name: &str) -> bool {
    let numbers = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".png"));
    let is_number = |text: &str| text.len() >= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once("-of-"))
        .is_some_and(|(step, steps)| is_number(step) && is_number(steps))
}

/// Returns true if a file is a PNG with the comment of a preview.
fn is_preview(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
    is_file
        && read.is_ok()
        && head.starts_with(b"\x89PNG")
        && head.windows(COMMENT.len()).any(|bytes| bytes == COMMENT.as_bytes())
}

/// Encodes a PNG with fast compression. `about` is its comment, and `texts` are further keywords and texts.
pub(crate) fn encoded(
    pixels: &[u8],
    size: PixelSize,
    about: &str,
    texts: &[(&str, &str)],
) -> Result<Vec<u8>, png::EncodingError> {
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side(size.width), side(size.height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    encoder.add_text_chunk("Comment".into(), about.into())?;
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).into(), (*text).into())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

/// Resizes a frame `[3,h,w]` in -1..1 and converts it to 8-bit RGB.
///
/// # Errors
/// The errors of [`resized_colours`].
pub fn resized(frame: ArrayView3<'_, f32>, size: PixelSize) -> Result<Vec<u8>, Error> {
    let colours = resized_colours(frame, size)?;
    Ok(colours.permuted_axes([1, 2, 0]).iter().copied().map(byte).collect())
}

/// Resizes a frame `[3,h,w]` to `[3,H,W]`: bilinear, with aligned pixel centres.
///
/// # Errors
/// Returns an error if the frame has not three channels or no pixels, or if no memory could hold the result.
pub fn resized_colours(frame: ArrayView3<'_, f32>, size: PixelSize) -> Result<Array3<f32>, Error> {
    let (channels, height, width) = frame.dim();
    let fits = size.width <= PixelSize::MAX_SIDE && size.height <= PixelSize::MAX_SIDE;
    if channels != 3 || height == 0 || width == 0 || !fits {
        let (expected, found) = ([3, size.height, size.width], [channels, height, width]);
        return Err(Error::Shape { expected, found });
    }
    if (width, height) == (size.width, size.height) {
        return Ok(frame.to_owned());
    }
    let (rows, columns) = (taps(height, size.height), taps(width, size.width));
    let mut resized = Array3::zeros((3, size.height, size.width));
    // Vertically first, one row at a time, so that only two rows are read.
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
    Ok(resized)
}

/// Two neighbouring samples and the weight of the second.
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
            let position = ((index as f32 + 0.5) * scale - 0.5).clamp(0.0, last);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to from - 1")]
            let low = position as usize;
            #[expect(clippy::cast_precision_loss, reason = "sides far below 2^24")]
            let weight = position - low as f32;
            Tap { low, high: (low + 1).min(from - 1), weight }
        })
        .collect()
}

/// Maps -1..1 to the nearest byte. NaN becomes 0.
pub(crate) fn byte(value: f32) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    let byte = (value * 127.5 + 128.0) as u8;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SIZE: PixelSize = PixelSize { width: 4, height: 2 };

    fn frame(value: f32) -> Array3<f32> {
        Array3::from_elem((3, 1, 2), value)
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
        let previews = folder.path().join("previews");
        let files = PreviewFiles::create(&previews, SIZE).unwrap();
        files.write(3, 20, frame(-1.0).view()).unwrap();
        files.write(20, 20, frame(1.0).view()).unwrap();
        assert_eq!(names(&previews), ["step-003-of-020.png", "step-020-of-020.png"]);
        assert_eq!(pixels(&previews.join("step-020-of-020.png")), (4, 2, vec![255; 24]));
    }

    #[test]
    fn a_file_is_replaced_by_each_preview() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("now.PNG");
        let files = PreviewFiles::create(&path, SIZE).unwrap();
        files.write(1, 20, frame(1.0).view()).unwrap();
        files.write(2, 20, frame(-1.0).view()).unwrap();
        assert_eq!(names(folder.path()), ["now.PNG", "now.part.PNG"]);
        drop(files);
        assert_eq!(names(folder.path()), ["now.PNG"]);
        assert_eq!(pixels(&path).2, vec![0; 24]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o400, 0o400);
    }

    #[test]
    fn a_second_run_is_refused_and_does_not_change_the_files_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["now.png", "previews"] {
            let path = folder.path().join(name);
            let first = PreviewFiles::create(&path, SIZE).unwrap();
            for _ in 0..2 {
                let error = PreviewFiles::create(&path, SIZE).unwrap_err().to_string();
                assert!(error.contains("another run"), "{error}");
            }
            first.write(1, 20, frame(1.0).view()).unwrap();
            drop(first);
            PreviewFiles::create(&path, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        }
        assert_eq!(names(folder.path()), ["now.png", "previews"]);
        assert_eq!(names(&folder.path().join("previews")), ["step-001-of-020.png"]);
    }

    #[test]
    fn other_pictures_are_not_replaced_by_default() {
        let folder = tempfile::tempdir().unwrap();
        let (previews, file) = (folder.path().join("previews"), folder.path().join("preview.png"));
        PreviewFiles::create(&previews, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        PreviewFiles::create_default(&file, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        drop(PreviewFiles::create_default(&file, SIZE).unwrap());
        for name in ["holiday.png", "step-one.png", "step-1-of-2.png"] {
            std::fs::write(previews.join(name), "mine").unwrap();
        }
        drop(PreviewFiles::create(&previews, SIZE).unwrap());
        let taken = previews.join("step-002-of-020.png");
        std::fs::write(&taken, "mine").unwrap();
        let error = PreviewFiles::create(&previews, SIZE).unwrap_err().to_string();
        assert!(error.contains("step-002-of-020.png in it is not a preview"), "{error}");
        std::fs::remove_file(&taken).unwrap();
        std::os::unix::fs::symlink("step-001-of-020.png", &taken).unwrap();
        PreviewFiles::create(&previews, SIZE).unwrap_err();
        std::fs::write(&file, "mine").unwrap();
        let error = PreviewFiles::create_default(&file, SIZE).unwrap_err().to_string();
        assert!(error.contains("is not a preview"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        PreviewFiles::create(&file, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        assert!(is_preview(&file));
    }

    #[test]
    fn unwritable_paths_are_refused_before_the_run() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("taken"), "a file").unwrap();
        for path in ["taken", "taken/previews", "no/such/now.png"] {
            let error = PreviewFiles::create(&folder.path().join(path), SIZE).unwrap_err();
            assert!(matches!(error, Error::PreviewFile { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn resizing_keeps_levels_and_does_nothing_at_the_same_size() {
        let ramp = Array3::from_shape_fn((3, 1, 2), |(_, _, x)| x as f32 * 2.0 - 1.0);
        let row: Vec<u8> = resized(ramp.view(), SIZE).unwrap().chunks(3).map(|pixel| pixel[0]).collect();
        assert_eq!(row, [0, 64, 191, 255, 0, 64, 191, 255]);
        let same = resized(ramp.view(), PixelSize { width: 2, height: 1 }).unwrap();
        assert_eq!(same, [0, 0, 0, 255, 255, 255]);
        let beyond = Array3::from_shape_fn((3, 1, 1), |(c, _, _)| [7.0, -7.0, f32::NAN][c]);
        assert_eq!(resized(beyond.view(), PixelSize { width: 1, height: 1 }).unwrap(), [255, 0, 0]);
    }

    #[test]
    fn frames_without_pixels_or_with_other_channels_are_errors() {
        for shape in [(3, 0, 2), (3, 2, 0), (0, 2, 2), (1, 1, 2), (4, 2, 4)] {
            let refused = resized(Array3::zeros(shape).view(), SIZE);
            assert!(matches!(refused, Err(Error::Shape { expected: [3, 2, 4], .. })), "{shape:?}");
        }
        let huge = PixelSize { width: usize::MAX, height: 2 };
        assert!(matches!(resized(frame(0.0).view(), huge), Err(Error::Shape { .. })));
    }
}
