//! Previews as PNG files.

use crate::{Error, make_locked};
use bundle::Diagnose;
use bundle::geometry::PixelSize;
use bundle::lock::{Locked, Refusal};
use bundle::output_path::resolved;
use bundle::part_file::PartFile;
use ndarray::{Array3, ArrayView3};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the comment of each preview begins.
const COMMENT: &str = "AI-generated preview";
/// Bytes of a picture within which its comment begins.
const HEAD: u64 = 256;

/// Writes each preview as a PNG of the clip's size, whole or not at all. While it lives no other run can take the same file
/// or folder.
#[derive(Debug, Clone)]
pub struct PictureFiles {
    place: Arc<Place>,
    size: PixelSize,
}

#[derive(Debug)]
enum Place {
    /// One file for each step.
    Folder { folder: PathBuf, _lock: Locked },
    /// One file that always holds the newest. Its part stays empty.
    File(PartFile),
}

impl PictureFiles {
    /// Previews go to the file `path` where its name ends in `.png`, else to a folder of that name, which is made.
    ///
    /// # Errors
    /// A folder that cannot be made, a place that cannot be written to or that another run has, a folder in which other
    /// pictures have the names of previews.
    pub fn create(path: &Path, size: PixelSize) -> Result<Self, Error> {
        if path == Path::new("-") {
            let why = "previews are files and never go to standard output".into();
            return Err(Error::PreviewFile { path: path.to_owned(), why });
        }
        let is_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
        let place = if is_file { Self::file(path) } else { Self::folder(path) };
        place
            .map(|place| Self { place: Arc::new(place), size })
            .map_err(|why| Error::PreviewFile { path: path.to_owned(), why })
    }

    /// [`Self::create`] for a file that nobody asked for by its name.
    ///
    /// # Errors
    /// Those of [`Self::create`], and a file of this name that is no preview.
    pub fn create_unasked(path: &Path, size: PixelSize) -> Result<Self, Error> {
        if path.symlink_metadata().is_ok() && !is_preview(path) {
            let why = "a file of this name is there and is no preview; name one with --preview-out".into();
            return Err(Error::PreviewFile { path: path.to_owned(), why });
        }
        Self::create(path, size)
    }

    fn file(path: &Path) -> Result<Place, String> {
        // Nothing is ever written into the part.
        PartFile::create(path, |_| false).map(Place::File).map_err(|error| error.report().why)
    }

    fn folder(path: &Path) -> Result<Place, String> {
        let said = |error: std::io::Error| error.to_string();
        let folder = resolved(path).map_err(said)?;
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(said)?;
        }
        let (lock, _) = make_locked(&folder).map_err(|refusal| match refusal {
            Refusal::Busy => "another run or output is writing to it".to_owned(),
            Refusal::Foreign(why) => format!("what has this name {why}"),
            Refusal::Io(error) => error.to_string(),
        })?;
        // Shows now what would otherwise be learnt after the first step.
        tempfile::tempfile_in(&folder).map_err(said)?;
        for entry in std::fs::read_dir(&folder).map_err(said)? {
            let entry = entry.map_err(said)?;
            if entry.file_name().to_str().is_some_and(is_name_of_step) && !is_preview(&entry.path()) {
                return Err(format!("{} in it is no preview", entry.file_name().display()));
            }
        }
        Ok(Place::Folder { folder, _lock: lock })
    }

    fn path_of(&self, step: usize, steps: usize) -> PathBuf {
        match &*self.place {
            Place::File(file) => file.path().to_owned(),
            Place::Folder { folder, .. } => folder.join(format!("step-{step:03}-of-{steps:03}.png")),
        }
    }

    /// Writes the frame `[3,h,w]` in -1..1 that shows step `step` of `steps`, counted from 1.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, step: usize, steps: usize, frame: ArrayView3<'_, f32>) -> Result<(), Error> {
        let path = self.path_of(step, steps);
        let wrong = |why: String| Error::PreviewFile { path: path.clone(), why };
        let pixels = resized(frame, self.size);
        let about = format!("{COMMENT}: step {step} of {steps}");
        let file = encoded(&pixels, self.size, &about).map_err(|error| wrong(error.to_string()))?;
        // A preview is not worth a flush to disk; a reader sees the older one or this one.
        write_in_place(&path, &file).map_err(|error| wrong(error.to_string()))
    }
}

/// Writes a file under a name of its own, hidden from those that list pictures, and then gives it this one.
fn write_in_place(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".preview-")
        .suffix(".part")
        // What a file has that is simply created.
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(content)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Whether a name is `step-NNN-of-NNN.png`.
fn is_name_of_step(name: &str) -> bool {
    let numbers = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".png"));
    let is_number = |text: &str| text.len() >= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers
        .and_then(|numbers| numbers.split_once("-of-"))
        .is_some_and(|(step, steps)| is_number(step) && is_number(steps))
}

/// Whether a file is a picture that says of itself that it is a preview.
fn is_preview(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    is_file
        && read.is_ok()
        && head.starts_with(b"\x89PNG")
        && head.windows(COMMENT.len()).any(|bytes| bytes == COMMENT.as_bytes())
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
        let place = folder.path().join("previews");
        let files = PictureFiles::create(&place, SIZE).unwrap();
        files.write(3, 20, frame(-1.0).view()).unwrap();
        files.write(20, 20, frame(1.0).view()).unwrap();
        assert_eq!(names(&place), ["step-003-of-020.png", "step-020-of-020.png"]);
        assert_eq!(pixels(&place.join("step-020-of-020.png")), (4, 2, vec![255; 24]));
    }

    #[test]
    fn a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("now.PNG");
        let files = PictureFiles::create(&path, SIZE).unwrap();
        files.write(1, 20, frame(1.0).view()).unwrap();
        files.write(2, 20, frame(-1.0).view()).unwrap();
        assert_eq!(names(folder.path()), ["now.PNG", "now.part.PNG"]);
        drop(files);
        assert_eq!(names(folder.path()), ["now.PNG"]);
        assert_eq!(pixels(&path).2, vec![0; 24]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o400, 0o400);
    }

    #[test]
    fn a_second_run_is_refused_and_takes_nothing_from_the_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["now.png", "previews"] {
            let path = folder.path().join(name);
            let first = PictureFiles::create(&path, SIZE).unwrap();
            for _ in 0..2 {
                let error = PictureFiles::create(&path, SIZE).unwrap_err().to_string();
                assert!(error.contains("another run"), "{error}");
            }
            first.write(1, 20, frame(1.0).view()).unwrap();
            drop(first);
            PictureFiles::create(&path, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        }
        assert_eq!(names(folder.path()), ["now.png", "previews"]);
        assert_eq!(names(&folder.path().join("previews")), ["step-001-of-020.png"]);
    }

    #[test]
    fn pictures_that_are_no_previews_are_not_replaced_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let (place, file) = (folder.path().join("previews"), folder.path().join("preview.png"));
        PictureFiles::create(&place, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        PictureFiles::create_unasked(&file, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        drop(PictureFiles::create_unasked(&file, SIZE).unwrap());
        for name in ["holiday.png", "step-one.png", "step-1-of-2.png"] {
            std::fs::write(place.join(name), "mine").unwrap();
        }
        drop(PictureFiles::create(&place, SIZE).unwrap());
        let taken = place.join("step-002-of-020.png");
        std::fs::write(&taken, "mine").unwrap();
        let error = PictureFiles::create(&place, SIZE).unwrap_err().to_string();
        assert!(error.contains("step-002-of-020.png in it is no preview"), "{error}");
        std::fs::remove_file(&taken).unwrap();
        std::os::unix::fs::symlink("step-001-of-020.png", &taken).unwrap();
        PictureFiles::create(&place, SIZE).unwrap_err();
        std::fs::write(&file, "mine").unwrap();
        let error = PictureFiles::create_unasked(&file, SIZE).unwrap_err().to_string();
        assert!(error.contains("is no preview"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        PictureFiles::create(&file, SIZE).unwrap().write(1, 20, frame(1.0).view()).unwrap();
        assert!(is_preview(&file));
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
