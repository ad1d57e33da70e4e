//! One output while the frames are being made.

use super::collect::{Delays, PLAYLIST};
use super::feed::{Feed, Halt};
use super::mp4;
use super::pipeline::{OutputPipeline, timed, timed_sound};
use super::playable::is_playable;
use super::plugins::SoundEncoder;
use super::post_process::{RATE, Sound};
use super::shared_frame::{PixelLayout, SharedFrame};
use super::target::Place;
use super::xmp_box;
use super::{
    ClipFormat, Error, FileFormat, OutputSpec, OutputTarget, Remainder, SigningKey, Tags, WrittenClip,
};
use bundle::Cancel;
use bundle::part_file::PartFile;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all outputs of a run have in common.
#[derive(Debug, Clone)]
pub struct OutputOptions {
    /// What comes.
    pub format: ClipFormat,
    /// What the outputs say about themselves.
    pub tags: Tags,
    /// How long nothing may move in a pipeline that has work, before it counts as stalled.
    pub output_timeout: Duration,
    /// What mp4 files are signed with.
    pub sign: Option<SigningKey>,
    /// The sound of the clip, for outputs that carry it.
    pub sound: Option<Sound>,
    /// Stops waiting for outputs that do not go on.
    pub cancel: Cancel,
}

impl OutputOptions {
    /// How long an output may stand still if nothing else is said.
    pub const PATIENCE: Duration = Duration::from_secs(30);

    /// Options with the usual output_timeout.
    pub fn new(format: ClipFormat, tags: Tags, cancel: &Cancel) -> Self {
        Self { format, tags, output_timeout: Self::PATIENCE, sign: None, sound: None, cancel: cancel.clone() }
    }
}

/// An output that grows with the frames it is given.
///
/// Dropped before [`Self::finish`] it does what [`Self::interrupt`] does: what there is stays under the part's name.
#[derive(Debug)]
pub struct Output {
    target: OutputTarget,
    format: ClipFormat,
    pipeline: gst::Pipeline,
    source: AppSrc,
    sound: Option<SoundTrack>,
    layout: PixelLayout,
    feed: Arc<Feed>,
    /// What an mp4 says about itself beside its comment, and what it is signed with.
    tags: Tags,
    sign: Option<SigningKey>,
    closed: bool,
}

/// The sound on its way into an output.
#[derive(Debug)]
struct SoundTrack {
    source: AppSrc,
    encoder: SoundEncoder,
    sound: Sound,
    /// Frames whose sound has been given.
    given: usize,
}

impl Output {
    /// Starts the pipeline of an output.
    ///
    /// # Errors
    /// A size that is not even, an element that does not start, a file that cannot be opened.
    pub fn start(target: OutputTarget, options: &OutputOptions) -> Result<Self, Error> {
        Self::with_stages(target, options, vec![])
    }

    /// [`Self::start`] with elements between the frames and the encoder, which take and give one layout.
    fn with_stages(
        target: OutputTarget,
        options: &OutputOptions,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let format = options.format;
        if !(format.size.width.is_multiple_of(2) && format.size.height.is_multiple_of(2)) {
            return Err(Error::OddSize { size: format.size });
        }
        let OutputPipeline { pipeline, source, sound, layout, feed } =
            OutputPipeline::build(&target, options, stages)?;
        let sound = sound.zip(options.sound.clone());
        let sound = sound.map(|((source, encoder), sound)| SoundTrack { source, encoder, sound, given: 0 });
        let (tags, sign) = (options.tags.clone(), options.sign.clone());
        let output =
            Self { target, format, pipeline, source, sound, layout, feed, tags, sign, closed: false };
        match output.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(output),
            Err(_) => Err(output.error(output.feed.wait_for_fault())),
        }
    }

    /// Adds a frame. Waits while the encoder has enough to do. A frame beyond the clip's number is left out.
    ///
    /// # Errors
    /// A frame of another size; the pipeline failed (no room left on the disk, an encoder that gave up, a reader that
    /// left) or stalled; the run was cancelled while it waited.
    pub fn push(&mut self, frame: &SharedFrame) -> Result<(), Error> {
        let shape = |size: bundle::geometry::PixelSize| [3, size.height, size.width];
        if frame.size() != self.format.size {
            return Err(Error::Shape { expected: shape(self.format.size), found: shape(frame.size()) });
        }
        let number = self.feed.pushed();
        if self.format.frames.is_some_and(|frames| number >= frames) {
            return Ok(());
        }
        let Some(picture) = frame.buffer(self.layout) else {
            let why = "a frame for video alone goes to no output of pictures".into();
            let (output, element) = (self.target.spec.to_string(), "appsrc".into());
            return Err(Error::Pipeline { output, element, why });
        };
        self.push_sound(number);
        self.feed.wait_for_room().map_err(|halt| self.error(halt))?;
        let buffer = timed(picture, number, self.format.rate);
        match self.source.push_buffer(buffer) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.error(self.feed.wait_for_fault())),
        }
    }

    /// Gives the sound up to half a second after a frame: encoders of sound hold some back, and the muxer would wait.
    fn push_sound(&mut self, number: usize) {
        let lead = self.format.rate.nominal().div_ceil(2) as usize;
        if let Some(track) = &mut self.sound {
            for number in track.given..=number + lead {
                let (samples, start) = track.sound.of_frame(number);
                // A pipeline that failed says so where the frame goes in.
                if !samples.is_empty() && track.source.push_buffer(timed_sound(samples, start)).is_err() {
                    break;
                }
            }
            track.given = track.given.max(number + lead + 1);
        }
    }

    /// What it writes to.
    pub fn spec(&self) -> &OutputSpec {
        self.target.spec()
    }

    /// Frames that have been added so far.
    pub fn frames(&self) -> usize {
        self.feed.pushed()
    }

    /// When its first frame had come out of the encoder.
    pub fn first_encoded(&self) -> Option<Instant> {
        self.feed.first_encoded()
    }

    /// Says that no more frames come, without waiting for what is still under way: several outputs then finish at once.
    pub fn end(&self) {
        // What keeps it from ending is found by `finish`.
        let _ = self.source.end_of_stream();
        self.end_sound();
    }

    /// Encodes what waits, closes the output and gives it its name.
    ///
    /// # Errors
    /// Fewer frames than the clip's number, a pipeline that failed or stalled, a file that cannot be renamed, each with
    /// what is left.
    pub fn finish(mut self) -> Result<WrittenClip, Box<(Error, Remainder)>> {
        self.complete().map_err(|error| Box::new((error, self.close_early())))
    }

    fn complete(&mut self) -> Result<WrittenClip, Error> {
        let pushed = self.feed.pushed();
        let expected = self.format.frames.unwrap_or(pushed);
        if pushed < expected {
            return Err(Error::FramesMissing { expected, found: pushed });
        }
        self.drain().map_err(|halt| self.error(halt))?;
        self.stop(None);
        let found = self.feed.encoded();
        if found != expected {
            return Err(Error::FramesMissing { expected, found });
        }
        let bytes = match &self.target.place {
            Place::File(file) if self.is_mp4() => Some(self.publish_mp4(file)?),
            Place::File(file) => file.publish().map(|()| Some(file.bytes()))?,
            Place::Folder(folder) => folder.publish().map(|()| Some(folder.bytes()))?,
            Place::Playlist(folder) => Some(folder.bytes()),
            Place::Pipe { .. } | Place::Listener(_) | Place::Elsewhere => None,
        };
        let delays = Delays::of_output(&self.target.spec, self.format);
        let frames = delays.map_or(found, |delays| delays.shown(found));
        Ok(WrittenClip { output: self.target.spec.clone(), frames, bytes })
    }

    fn is_mp4(&self) -> bool {
        matches!(self.target.spec, OutputSpec::File { format: FileFormat::Mp4, .. })
    }

    /// Adds what GStreamer does not write, puts the index in front, and gives the file its name; its bytes.
    fn publish_mp4(&self, file: &PartFile) -> Result<u64, Error> {
        file.ensure_ours()?;
        self.align_sound(file);
        let xmp = xmp_box::xmp_box(&self.tags.xmp()).unwrap_or_default();
        let copy = match mp4::with_index_in_front(file.part(), &xmp) {
            Ok(copy) => Some(copy),
            Err(error) => {
                tracing::warn!(%error, "{} keeps its index behind its frames", self.target.spec);
                if let Err(error) = xmp_box::append(file.part(), &xmp) {
                    // The comment has said the same already.
                    tracing::warn!(%error, "the clip has no XMP");
                }
                None
            }
        };
        match (&self.sign, copy) {
            (None, None) => {
                file.publish()?;
                Ok(file.bytes())
            }
            (None, Some(copy)) => Ok(file.publish_instead(copy)?),
            (Some(keys), copy) => {
                let signed = keys.sign(copy.as_deref().unwrap_or(file.part()), &self.tags)?;
                Ok(file.publish_instead(signed)?)
            }
        }
    }

    /// Ends the clip here. What there is stays under the part's name if it can be played, otherwise it goes.
    pub fn interrupt(mut self) -> Remainder {
        self.close_early()
    }

    fn close_early(&mut self) -> Remainder {
        let frames = self.feed.pushed();
        let ended = if frames == 0 || self.closed { Ok(()) } else { self.drain() };
        self.stop(ended.as_ref().err());
        let whole = ended.is_ok() && frames > 0;
        let frames = if whole { frames } else { self.feed.encoded() };
        let part = match &self.target.place {
            Place::File(file) => {
                let OutputSpec::File { format, .. } = self.target.spec else { return Remainder::Nothing };
                if frames == 0 || !is_playable(file.part(), format) {
                    file.discard();
                    return Remainder::Nothing;
                }
                if whole {
                    self.align_sound(file);
                }
                file.part().to_owned()
            }
            Place::Folder(folder) if frames > 0 => folder.part().to_owned(),
            Place::Playlist(folder) if folder.path().join(PLAYLIST).exists() => folder.path().join(PLAYLIST),
            Place::Pipe { .. } | Place::Listener(_) | Place::Elsewhere if frames > 0 => {
                return Remainder::Sent { to: self.target.spec.clone(), frames };
            }
            _ => return Remainder::Nothing,
        };
        if whole { Remainder::Whole { part, frames } } else { Remainder::UpTo { part, frames } }
    }

    /// Says that no more frames come, and waits until all are in the file.
    fn drain(&self) -> Result<(), Halt> {
        self.end_sound();
        match self.source.end_of_stream() {
            Ok(_) => self.feed.wait_for_end(),
            Err(_) => Err(self.feed.wait_for_fault()),
        }
    }

    fn end_sound(&self) {
        if let Some(track) = &self.sound {
            let (silence, start) = track.sound.silence_after(track.given, track.encoder.delay);
            // What keeps it from ending is found where the frames end.
            if !silence.is_empty() && track.source.push_buffer(timed_sound(silence, start)).is_err() {
                tracing::debug!("the sound had ended already");
            }
            let _ = track.source.end_of_stream();
        }
    }

    /// Puts the sound of a closed file in time with its pictures, where its muxer did not.
    fn align_sound(&self, file: &PartFile) {
        let delay = self.sound.as_ref().map_or(0, |track| track.encoder.delay);
        if delay == 0 || !self.is_mp4() {
            return;
        }
        if let Err(error) = mp4::align(file.part(), delay) {
            tracing::warn!(%error, "the sound comes {} ms after the pictures", delay * 1000 / RATE);
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
        let output = self.target.spec.to_string();
        match halt {
            Halt::Cancelled => Error::Cancelled,
            Halt::Stalled => Error::Stalled { output, limit: self.feed.limit() },
            Halt::Fault(fault) if fault.disk_full => Error::DiskFull { output },
            Halt::Fault(fault) => Error::Pipeline { output, element: fault.element, why: fault.why },
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.closed {
            self.close_early();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileFormat;
    use bundle::units::{FrameRate, Seed};
    use bundle::{Diagnose, ErrorClass};
    use ndarray::Array3;
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    const FRAMES: usize = 60;

    /// A folder, an output of 60 frames of 32x16 at 16 per second, and the name of its part.
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
        let options =
            OutputOptions { output_timeout: limit, ..OutputOptions::new(format, tags, &Cancel::new()) };
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

    #[test]
    fn a_clip_gets_its_name_when_it_is_finished() {
        let (folder, mut output, part) = output(OutputOptions::PATIENCE, vec![]);
        for chunk in [1, 4, 60] {
            push(&mut output, chunk).unwrap();
            assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        }
        assert_eq!(output.frames(), FRAMES, "frames beyond the clip are left out");
        let clip = output.finish().unwrap();
        assert_eq!(clip.frames, FRAMES);
        assert_eq!(clip.bytes, Some(std::fs::metadata(folder.path().join("clip.mp4")).unwrap().len()));
        assert!(!part.exists());
    }

    #[test]
    fn a_clip_that_is_not_whole_never_gets_its_name() {
        let (folder, mut output, part) = output(OutputOptions::PATIENCE, vec![]);
        push(&mut output, 5).unwrap();
        let (error, kept) = *output.finish().unwrap_err();
        assert!(matches!(error, Error::FramesMissing { expected: FRAMES, found: 5 }), "{error}");
        assert_eq!(kept, Remainder::Whole { part: part.clone(), frames: 5 });
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        assert!(is_playable(&part, FileFormat::Mp4));
    }

    #[test]
    fn an_interrupted_clip_keeps_its_frames_in_the_part() {
        let (folder, mut output, part) = output(OutputOptions::PATIENCE, vec![]);
        push(&mut output, 7).unwrap();
        assert_eq!(output.interrupt(), Remainder::Whole { part: part.clone(), frames: 7 });
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
        assert!(is_playable(&part, FileFormat::Mp4));
    }

    #[test]
    fn nothing_is_kept_of_a_clip_without_frames() {
        let (folder, output, _) = output(OutputOptions::PATIENCE, vec![]);
        assert_eq!(output.interrupt(), Remainder::Nothing);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[test]
    fn frames_of_another_size_are_refused() {
        let (_folder, mut output, _) = output(OutputOptions::PATIENCE, vec![]);
        let small = SharedFrame::new(Array3::zeros((3, 16, 16))).unwrap();
        let error = output.push(&small).unwrap_err();
        assert_eq!(error.report().why, "expected [3, 16, 32] per frame, found [3, 16, 16]");
    }

    #[test]
    fn an_element_that_fails_ends_the_clip_with_its_error() {
        let stage = identity();
        stage.set_property("error-after", 38);
        let (folder, mut output, part) = output(OutputOptions::PATIENCE, vec![stage]);
        let error = push(&mut output, FRAMES).unwrap_err();
        assert!(matches!(&error, Error::Pipeline { element, .. } if element == "stage"), "{error}");
        assert_eq!(error.report().class, ErrorClass::Failed);
        let Remainder::UpTo { part: kept, frames } = output.interrupt() else {
            panic!("fragments lie in the part")
        };
        assert_eq!(kept, part);
        assert!((8..38).contains(&frames), "{frames} frames");
        assert_eq!(names(folder.path()), ["clip.part.mp4"]);
    }

    #[test]
    fn a_full_disk_is_named() {
        let (_folder, output, _) = output(OutputOptions::PATIENCE, vec![]);
        let full =
            gst::message::Error::builder(gst::ResourceError::NoSpaceLeft, "No space left on the resource.");
        output.pipeline.post_message(full.build()).unwrap();
        let error = output.error(output.feed.wait_for_fault());
        assert!(matches!(&error, Error::DiskFull { .. }), "{error}");
    }

    #[test]
    fn a_pipeline_in_which_nothing_moves_is_an_error_and_no_hang() {
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
}
