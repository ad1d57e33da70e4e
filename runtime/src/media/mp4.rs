//! Writing an mp4 while the frames are being made.

use super::feed::{Feed, Halt};
use super::frames::I420Layout;
use super::mp4_index::has_index;
use super::part_file::PartFile;
use super::pipeline::{Mp4Pipeline, timed};
use super::{ClipFormat, Error, Kept, OutputTarget, Tags, WrittenClip};
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use ndarray::{ArrayView4, Axis};
use std::sync::Arc;
use std::time::Duration;

/// How long nothing may move in a pipeline that has work, before it counts as stalled.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// An mp4 that grows with the frames it is given.
///
/// Dropped before [`Self::finish`] it does what [`Self::interrupt`] does: what there is stays under the part's name.
#[derive(Debug)]
pub struct Mp4Writer {
    pipeline: gst::Pipeline,
    source: AppSrc,
    feed: Arc<Feed>,
    file: Arc<PartFile>,
    format: ClipFormat,
    layout: I420Layout,
    closed: bool,
}

impl Mp4Writer {
    /// Starts the pipeline of a clip.
    ///
    /// # Errors
    /// A size that is not even, an element that does not start, a file that cannot be opened.
    pub fn create(target: &OutputTarget, format: ClipFormat, tags: &Tags) -> Result<Self, Error> {
        Self::with_stages(target, format, tags, STALL_LIMIT, vec![])
    }

    /// [`Self::create`] with elements between the frames and the encoder, which take and give I420.
    fn with_stages(
        target: &OutputTarget,
        format: ClipFormat,
        tags: &Tags,
        stall_limit: Duration,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let layout = I420Layout::new(format.size.width, format.size.height)
            .ok_or(Error::OddSize { size: format.size })?;
        let Mp4Pipeline { pipeline, source, feed } =
            Mp4Pipeline::build(target, format, tags, stall_limit, stages)?;
        let file = Arc::clone(&target.file);
        let writer = Self { pipeline, source, feed, file, format, layout, closed: false };
        match writer.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(writer),
            Err(_) => Err(writer.error(writer.feed.wait_for_fault())),
        }
    }

    /// Adds frames `[N,3,H,W]` in -1..1. Waits while the encoder has enough to do. Frames beyond the clip's number are
    /// left out: a model makes `4n + 1` of them, whatever was asked for.
    ///
    /// # Errors
    /// Frames of another size; the pipeline failed (no room left on the disk, an encoder that gave up) or stalled.
    pub fn write(&mut self, frames: ArrayView4<'_, f32>) -> Result<(), Error> {
        let size = self.format.size;
        let (_, colours, height, width) = frames.dim();
        let (expected, found) = ([3, size.height, size.width], [colours, height, width]);
        if expected != found {
            return Err(Error::Shape { expected, found });
        }
        let wanted = self.format.frames - self.feed.pushed().min(self.format.frames);
        for frame in frames.axis_iter(Axis(0)).take(wanted) {
            let picture = self.layout.convert(frame);
            let number = self.feed.pushed();
            self.feed.wait_for_room().map_err(|halt| self.error(halt))?;
            let buffer = timed(picture, number, self.format.rate);
            if self.source.push_buffer(buffer).is_err() {
                return Err(self.error(self.feed.wait_for_fault()));
            }
        }
        Ok(())
    }

    /// Frames that have been added so far.
    pub fn frames(&self) -> usize {
        self.feed.pushed()
    }

    /// Encodes what waits, closes the file and gives it its name.
    ///
    /// # Errors
    /// Fewer frames than the clip's number, a pipeline that failed or stalled, a file that cannot be renamed. The part
    /// stays where it can be played.
    pub fn finish(mut self) -> Result<WrittenClip, Error> {
        let expected = self.format.frames;
        if self.feed.pushed() < expected {
            return Err(Error::FramesMissing { expected, found: self.feed.pushed() });
        }
        self.drain().map_err(|halt| self.error(halt))?;
        self.stop(None);
        let found = self.feed.encoded();
        if found != expected {
            return Err(Error::FramesMissing { expected, found });
        }
        self.file.publish()?;
        Ok(WrittenClip { path: self.file.path().to_owned(), frames: found, bytes: self.file.bytes() })
    }

    /// Ends the clip here. What there is stays under the part's name if it can be played, otherwise it goes.
    pub fn interrupt(mut self) -> Kept {
        self.close_early()
    }

    fn close_early(&mut self) -> Kept {
        let frames = self.feed.pushed();
        let part = self.file.part().to_owned();
        let ended = if frames == 0 { Ok(()) } else { self.drain() };
        self.stop(ended.as_ref().err());
        if frames == 0 || !has_index(&part).unwrap_or(false) {
            self.file.discard();
            Kept::Nothing
        } else if ended.is_ok() {
            Kept::Whole { part, frames }
        } else {
            Kept::UpTo { part, frames: self.feed.encoded() }
        }
    }

    /// Says that no more frames come, and waits until all are in the file.
    fn drain(&self) -> Result<(), Halt> {
        match self.source.end_of_stream() {
            Ok(_) => self.feed.wait_for_end(),
            Err(_) => Err(self.feed.wait_for_fault()),
        }
    }

    fn stop(&mut self, halt: Option<&Halt>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let pipeline = self.pipeline.clone();
        let stop = move || {
            if pipeline.set_state(gst::State::Null).is_err() {
                tracing::warn!("the video pipeline could not be stopped");
            }
        };
        if halt == Some(&Halt::Stalled) {
            // A thread of the pipeline may sit in a write for ever, and stopping waits for it.
            std::thread::spawn(stop);
        } else {
            stop();
        }
    }

    fn error(&self, halt: Halt) -> Error {
        let part = self.file.part().to_owned();
        match halt {
            Halt::Stalled => Error::Stalled { part, limit: self.feed.limit() },
            Halt::Fault(fault) if fault.disk_full => Error::DiskFull { part },
            Halt::Fault(fault) => Error::Pipeline { element: fault.element, why: fault.why },
        }
    }
}

impl Drop for Mp4Writer {
    fn drop(&mut self) {
        if !self.closed {
            self.close_early();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::check_output;
    use bundle::units::{FrameRate, Seed};
    use bundle::{Diagnose, ErrorClass};
    use ndarray::Array4;
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    const FRAMES: usize = 60;

    /// A folder, a writer of 60 frames of 32x16 at 16 per second, and the name of its part.
    fn writer(limit: Duration, stages: Vec<gst::Element>) -> (TempDir, Mp4Writer, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let target = check_output(&folder.path().join("clip.mp4")).unwrap();
        let format = ClipFormat {
            size: "32x16".parse().unwrap(),
            rate: FrameRate::try_new(16).unwrap(),
            frames: FRAMES,
        };
        let tags = Tags { title: None, model: "mini".into(), seed: Seed(1) };
        let writer = Mp4Writer::with_stages(&target, format, &tags, limit, stages).unwrap();
        let part = target.part().to_owned();
        (folder, writer, part)
    }

    fn frames(count: usize) -> Array4<f32> {
        Array4::from_shape_fn((count, 3, 16, 32), |(n, c, y, x)| ((n + c + y + x) % 8) as f32 / 4.0 - 1.0)
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

    #[test]
    fn a_clip_gets_its_name_when_it_is_finished() {
        let (folder, mut writer, part) = writer(STALL_LIMIT, vec![]);
        for chunk in [1, 4, 60] {
            writer.write(frames(chunk).view()).unwrap();
            assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        }
        assert_eq!(writer.frames(), FRAMES, "frames beyond the clip are left out");
        let clip = writer.finish().unwrap();
        assert_eq!((clip.frames, clip.path), (FRAMES, folder.path().join("clip.mp4")));
        assert_eq!(clip.bytes, std::fs::metadata(folder.path().join("clip.mp4")).unwrap().len());
        assert!(!part.exists());
    }

    #[test]
    fn a_clip_that_is_not_whole_never_gets_its_name() {
        let (folder, mut writer, part) = writer(STALL_LIMIT, vec![]);
        writer.write(frames(5).view()).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(error, Error::FramesMissing { expected: FRAMES, found: 5 }), "{error}");
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        assert!(has_index(&part).unwrap());
    }

    #[test]
    fn an_interrupted_clip_keeps_its_frames_in_the_part() {
        let (folder, mut writer, part) = writer(STALL_LIMIT, vec![]);
        writer.write(frames(7).view()).unwrap();
        assert_eq!(writer.interrupt(), Kept::Whole { part: part.clone(), frames: 7 });
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        assert!(has_index(&part).unwrap());
    }

    #[test]
    fn nothing_is_kept_of_a_clip_without_frames() {
        let (folder, writer, _) = writer(STALL_LIMIT, vec![]);
        assert_eq!(writer.interrupt(), Kept::Nothing);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn frames_of_another_size_are_refused() {
        let (_folder, mut writer, _) = writer(STALL_LIMIT, vec![]);
        let error = writer.write(Array4::zeros((1, 3, 16, 16)).view()).unwrap_err();
        assert_eq!(error.report().why, "expected [3, 16, 32] per frame, found [3, 16, 16]");
    }

    #[test]
    fn an_element_that_fails_ends_the_clip_with_its_error() {
        let stage = identity();
        stage.set_property("error-after", 38);
        let (folder, mut writer, part) = writer(STALL_LIMIT, vec![stage]);
        let error = writer.write(frames(FRAMES).view()).unwrap_err();
        assert!(matches!(&error, Error::Pipeline { element, .. } if element == "stage"), "{error}");
        assert_eq!(error.report().class, ErrorClass::Failed);
        let Kept::UpTo { part: kept, frames } = writer.interrupt() else {
            panic!("fragments lie in the part")
        };
        assert_eq!(kept, part);
        assert!((8..38).contains(&frames), "{frames} frames");
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
    }

    #[test]
    fn a_full_disk_is_named() {
        let (_folder, writer, part) = writer(STALL_LIMIT, vec![]);
        let full =
            gst::message::Error::builder(gst::ResourceError::NoSpaceLeft, "No space left on the resource.");
        writer.pipeline.post_message(full.build()).unwrap();
        let error = writer.error(writer.feed.wait_for_fault());
        assert!(matches!(&error, Error::DiskFull { part: named } if *named == part), "{error}");
    }

    #[test]
    fn a_pipeline_in_which_nothing_moves_is_an_error_and_no_hang() {
        let stage = identity();
        let block = gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER;
        stage.static_pad("src").unwrap().add_probe(block, |_, _| gst::PadProbeReturn::Ok);
        let limit = Duration::from_millis(50);
        let (folder, mut writer, part) = writer(limit, vec![stage]);
        let error = writer.write(frames(FRAMES).view()).unwrap_err();
        assert!(matches!(&error, Error::Stalled { part: named, .. } if *named == part), "{error}");
        assert_eq!(writer.interrupt(), Kept::Nothing);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
