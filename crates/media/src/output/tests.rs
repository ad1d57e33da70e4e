//! Outputs that finish, end early, fail and stall.

use super::*;
use crate::FileFormat;
use bundle::units::{FrameRate, Seed};
use bundle::{Cancel, Diagnose, ErrorClass};
use ndarray::Array3;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const FRAMES: usize = 60;

/// A folder, an output of 60 frames of 32x16 at 16 fps, and the path of its part file.
fn output(limit: Duration, stages: Vec<gst::Element>) -> (TempDir, Output, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let spec = OutputSpec::File { path: folder.path().join("clip.mp4"), format: FileFormat::Mp4 };
    let target = OutputTarget::claim(&spec).unwrap();
    let format = ClipFormat {
        size: "32x16".parse().unwrap(),
        rate: FrameRate::try_new(16).unwrap(),
        frames: Some(FRAMES),
    };
    let tags = Tags::new(None, "mini", Seed(1));
    let options = OutputOptions { output_timeout: limit, ..OutputOptions::new(format, tags, &Cancel::new()) };
    let part = target.part().unwrap().to_owned();
    let output = Output::with_stages(target, &options, stages).unwrap();
    (folder, output, part)
}

fn push(output: &mut Output, count: usize) -> Result<(), Error> {
    (0..count).try_for_each(|n| output.push(&frame(n)))
}

fn frame(number: usize) -> SharedFrame {
    let colour = |(c, y, x)| ((number + c + y + x) % 8) as f32 / 4.0 - 1.0;
    SharedFrame::new(Array3::from_shape_fn((3, 16, 32), colour)).unwrap()
}

fn identity() -> gst::Element {
    gst::init().unwrap();
    gst::ElementFactory::make("identity").name("stage").build().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until the encoder has written fragments: an element that fails ends the frames that are still queued.
fn wait_until_playable(part: &Path) {
    let end = Instant::now() + OutputOptions::DEFAULT_TIMEOUT;
    while !is_playable(part, FileFormat::Mp4) {
        assert!(Instant::now() < end, "no fragment was written");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_finished_clip_is_renamed() {
    let (folder, mut output, part) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    for chunk in [1, 4, 60] {
        push(&mut output, chunk).unwrap();
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
    }
    assert_eq!(output.frames(), FRAMES, "frames beyond the clip are ignored");
    let clip = output.finish().unwrap();
    assert_eq!(clip.frames, FRAMES);
    assert_eq!(clip.bytes, Some(std::fs::metadata(folder.path().join("clip.mp4")).unwrap().len()));
    assert!(!part.exists());
}

#[test]
fn an_incomplete_clip_is_not_renamed() {
    let (folder, mut output, part) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    push(&mut output, 5).unwrap();
    let (error, remainder) = *output.finish().unwrap_err();
    assert!(matches!(error, Error::FramesMissing { expected: FRAMES, found: 5 }), "{error}");
    assert_eq!(remainder, Remainder::Whole { part: part.clone(), frames: 5 });
    assert_eq!(names(folder.path()), ["clip.part.mp4"]);
    assert!(is_playable(&part, FileFormat::Mp4));
}

#[test]
fn an_interrupted_clip_keeps_its_frames_in_the_part_file() {
    let (folder, mut output, part) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    push(&mut output, 7).unwrap();
    assert_eq!(output.interrupt(), Remainder::Whole { part: part.clone(), frames: 7 });
    assert_eq!(names(folder.path()), ["clip.part.mp4"]);
    assert!(is_playable(&part, FileFormat::Mp4));
}

#[test]
fn the_part_file_of_a_clip_without_frames_is_removed() {
    let (folder, output, _) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    assert_eq!(output.interrupt(), Remainder::Nothing);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn frames_of_another_size_are_refused() {
    let (_folder, mut output, _) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    let small = SharedFrame::new(Array3::zeros((3, 16, 16))).unwrap();
    let error = output.push(&small).unwrap_err();
    assert_eq!(error.report().why, "expected [3, 16, 32] per frame, found [3, 16, 16]");
}

#[test]
fn a_failed_element_ends_the_clip_with_its_error() {
    let stage = identity();
    stage.set_property("error-after", 38);
    let (folder, mut output, part) = output(OutputOptions::DEFAULT_TIMEOUT, vec![stage]);
    push(&mut output, 37).unwrap();
    wait_until_playable(&part);
    let error = (37..FRAMES).try_for_each(|n| output.push(&frame(n))).unwrap_err();
    assert!(matches!(&error, Error::Pipeline { element, .. } if element == "stage"), "{error}");
    assert_eq!(error.report().class, ErrorClass::Failed);
    let Remainder::UpTo { part: remainder, frames } = output.interrupt() else {
        panic!("the part file contains fragments")
    };
    assert_eq!(remainder, part);
    assert!((8..38).contains(&frames), "{frames} frames");
    assert_eq!(names(folder.path()), ["clip.part.mp4"]);
}

#[test]
fn a_full_disk_is_reported() {
    let (_folder, output, _) = output(OutputOptions::DEFAULT_TIMEOUT, vec![]);
    let full =
        gst::message::Error::builder(gst::ResourceError::NoSpaceLeft, "No space left on the resource.");
    output.pipeline.post_message(full.build()).unwrap();
    let error = output.error(output.monitor.wait_for_fault());
    assert!(matches!(&error, Error::DiskFull { .. }), "{error}");
}

#[test]
fn a_stalled_pipeline_is_an_error() {
    let stage = identity();
    let block = gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER;
    stage.static_pad("src").unwrap().add_probe(block, |_, _| gst::PadProbeReturn::Ok);
    let limit = Duration::from_millis(50);
    let (folder, mut output, _) = output(limit, vec![stage]);
    let error = push(&mut output, FRAMES).unwrap_err();
    assert!(matches!(&error, Error::Stalled { limit: named, .. } if *named == limit), "{error}");
    assert_eq!(output.interrupt(), Remainder::Nothing);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}
