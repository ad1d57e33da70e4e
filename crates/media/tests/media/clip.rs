//! Clips that the tests write.

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use media::{ClipFormat, OutputOptions, OutputSpec, OutputTarget, Outputs, SharedFrame, Tags, WrittenClip};
use ndarray::Array3;
use std::path::Path;

pub(crate) fn format(size: &str, frames_per_second: u32, frames: impl Into<Option<usize>>) -> ClipFormat {
    let rate = FrameRate::try_new(frames_per_second).unwrap();
    ClipFormat { size: size.parse().unwrap(), rate, frames: frames.into() }
}

pub(crate) fn options(format: ClipFormat) -> OutputOptions {
    OutputOptions::new(format, Tags::new("a clip".to_owned(), "mini", Seed(7)), &Cancel::new())
}

/// Claims outputs in a folder. `hls:` may precede a name.
pub(crate) fn claim(folder: &Path, names: &[&str]) -> Vec<OutputTarget> {
    let spec = |name: &&str| -> OutputSpec {
        let spec = match name.strip_prefix("hls:") {
            Some(name) => format!("hls:{}", folder.join(name).display()),
            None => folder.join(name).display().to_string(),
        };
        spec.parse().unwrap()
    };
    OutputTarget::claim_all(&names.iter().map(spec).collect::<Vec<_>>()).unwrap()
}

/// Finishes outputs, none of which may have failed.
pub(crate) fn finish(outputs: Outputs) -> Vec<WrittenClip> {
    let outcome = outputs.finish();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    outcome.written
}

/// Frame `number` of a clip in which a bar moves.
pub(crate) fn moving_bar(format: ClipFormat, number: usize) -> SharedFrame {
    let colour = |(c, y, x)| if (x + number) % 32 < 8 { 0.7 } else { (y + 40 * c) as f32 / 200.0 - 0.5 };
    SharedFrame::new(Array3::from_shape_fn((3, format.size.height, format.size.width), colour)).unwrap()
}

/// The sorted names in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
