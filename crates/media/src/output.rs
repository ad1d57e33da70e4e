//! A running output.

use super::buffers::{timed, timed_sound};
use super::collect::{Delays, PLAYLIST};
use super::matroska;
use super::monitor::{Halt, PipelineMonitor};
use super::mp4;
use super::pipeline::OutputPipeline;
use super::playable::is_playable;
use super::plugins::SoundEncoder;
use super::record_code::{EncodedRecord, KEY};
use super::shared_frame::{PixelLayout, SharedFrame};
use super::sound::{RATE, Sound};
use super::target::Destination;
use super::xmp_box;
use super::{
    ClipFormat, Error, FileFormat, OutputOptions, OutputSpec, OutputTarget, Remainder, SigningKey, Tags,
    WrittenClip,
};
use bundle::part_file::PartFile;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use std::sync::Arc;
use std::time::Instant;

/// A running output.
///
/// Dropping it before [`Self::finish`] is the same as [`Self::interrupt`]: the frames so far are kept in the part file.
#[derive(Debug)]
pub struct Output {
    target: OutputTarget,
    format: ClipFormat,
    pipeline: gst::Pipeline,
    source: AppSrc,
    sound: Option<SoundTrack>,
    layout: PixelLayout,
    monitor: Arc<PipelineMonitor>,
    /// The XMP and the signing key of an mp4.
    tags: Tags,
    record: Option<EncodedRecord>,
    sign: Option<SigningKey>,
    closed: bool,
}

/// The audio of an output.
#[derive(Debug)]
struct SoundTrack {
    source: AppSrc,
    encoder: SoundEncoder,
    sound: Sound,
    /// Frames whose audio has been pushed.
    pushed: usize,
}

impl Output {
    /// Starts the pipeline of an output.
    ///
    /// # Errors
    /// Returns an error if a side is odd, if the record of the clip does not fit, if an element does not start, or if a
    /// file cannot be opened.
    pub fn start(target: OutputTarget, options: &OutputOptions) -> Result<Self, Error> {
        Self::with_stages(target, options, vec![])
    }

    /// [`Self::start`] with further elements before the encoder, which keep the pixel layout.
    fn with_stages(
        target: OutputTarget,
        options: &OutputOptions,
        stages: Vec<gst::Element>,
    ) -> Result<Self, Error> {
        let format = options.format;
        if !(format.size.width.is_multiple_of(2) && format.size.height.is_multiple_of(2)) {
            return Err(Error::OddSize { size: format.size });
        }
        let record = options.tags.encoded_record()?;
        let OutputPipeline { pipeline, source, sound, layout, monitor } =
            OutputPipeline::build(&target, options, stages)?;
        let sound = sound.zip(options.sound.clone());
        let sound = sound.map(|((source, encoder), sound)| SoundTrack { source, encoder, sound, pushed: 0 });
        let (tags, sign) = (options.tags.clone(), options.sign.clone());
        let output = Self {
            target,
            format,
            pipeline,
            source,
            sound,
            layout,
            monitor,
            tags,
            record,
            sign,
            closed: false,
        };
        match output.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(output),
            Err(_) => Err(output.error(output.monitor.wait_for_fault())),
        }
    }

    /// Pushes a frame. Waits while the queue before the encoder is full. Frames beyond the length of the clip are
    /// ignored.
    ///
    /// # Errors
    /// Returns an error if the frame has another size, if the pipeline failed (full disk, encoder error, disconnected
    /// reader) or stalled, or if the run was cancelled during the wait.
    pub fn push(&mut self, frame: &SharedFrame) -> Result<(), Error> {
        let shape = |size: bundle::geometry::PixelSize| [3, size.height, size.width];
        if frame.size() != self.format.size {
            return Err(Error::Shape { expected: shape(self.format.size), found: shape(frame.size()) });
        }
        let number = self.monitor.pushed();
        if self.format.frames.is_some_and(|frames| number >= frames) {
            return Ok(());
        }
        let Some(picture) = frame.buffer(self.layout) else {
            let why = "the frame has only I420 samples, and this output needs RGB".into();
            let (output, element) = (self.target.spec.to_string(), "appsrc".into());
            return Err(Error::Pipeline { output, element, why });
        };
        self.push_sound(number);
        self.monitor.wait_for_room().map_err(|halt| self.error(halt))?;
        let buffer = timed(picture, number, self.format.rate);
        match self.source.push_buffer(buffer) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.error(self.monitor.wait_for_fault())),
        }
    }

    /// Pushes the audio up to half a second after a frame. Audio encoders delay samples, and the muxer would wait for
    /// them.
    fn push_sound(&mut self, number: usize) {
        let lead = self.format.rate.nominal().div_ceil(2) as usize;
        if let Some(track) = &mut self.sound {
            for number in track.pushed..=number + lead {
                let (samples, start) = track.sound.frame_samples(number);
                // The error of a failed pipeline is returned for the frame.
                if !samples.is_empty() && track.source.push_buffer(timed_sound(samples, start)).is_err() {
                    break;
                }
            }
            track.pushed = track.pushed.max(number + lead + 1);
        }
    }

    /// The output as the user named it.
    pub fn spec(&self) -> &OutputSpec {
        self.target.spec()
    }

    /// Frames pushed so far.
    pub fn frames(&self) -> usize {
        self.monitor.pushed()
    }

    /// The time when the encoder returned the first frame.
    pub fn first_encoded(&self) -> Option<Instant> {
        self.monitor.first_encoded()
    }

    /// Ends the stream without waiting for queued frames, so that several outputs finish concurrently.
    pub fn end(&self) {
        // `finish` returns the error.
        let _ = self.source.end_of_stream();
        self.end_sound();
    }

    /// Encodes the queued frames, closes the output and publishes it under its name.
    ///
    /// # Errors
    /// Returns an error if frames are missing, if the pipeline failed or stalled, or if the file cannot be renamed,
    /// each with the remainder.
    pub fn finish(mut self) -> Result<WrittenClip, Box<(Error, Remainder)>> {
        self.complete().map_err(|error| Box::new((error, self.close_early())))
    }

    fn complete(&mut self) -> Result<WrittenClip, Error> {
        let pushed = self.monitor.pushed();
        let expected = self.format.frames.unwrap_or(pushed);
        if pushed < expected {
            return Err(Error::FramesMissing { expected, found: pushed });
        }
        self.drain().map_err(|halt| self.error(halt))?;
        self.stop(None);
        let found = self.monitor.encoded();
        if found != expected {
            return Err(Error::FramesMissing { expected, found });
        }
        let bytes = match &self.target.destination {
            Destination::File(file) if self.is_mp4() => Some(self.publish_mp4(file)?),
            Destination::File(file) => {
                self.add_record(file)?;
                file.publish().map(|()| Some(file.bytes()))?
            }
            Destination::Folder(folder) => folder.publish().map(|()| Some(folder.bytes()))?,
            Destination::Playlist(folder) => Some(folder.bytes()),
            Destination::Pipe { .. } | Destination::Listener(_) | Destination::Remote => None,
        };
        let delays = Delays::for_output(&self.target.spec, self.format);
        let frames = delays.map_or(found, |delays| delays.shown(found));
        Ok(WrittenClip { output: self.target.spec.clone(), frames, bytes })
    }

    fn is_mp4(&self) -> bool {
        matches!(self.target.spec, OutputSpec::File { format: FileFormat::Mp4, .. })
    }

    /// Adds the record to a closed mkv or webm. The collectors of other formats have already written it.
    fn add_record(&self, file: &PartFile) -> Result<(), Error> {
        let is_matroska =
            matches!(self.target.spec, OutputSpec::File { format: FileFormat::Mkv | FileFormat::WebM, .. });
        let Some(record) = self.record.as_ref().filter(|_| is_matroska) else { return Ok(()) };
        file.ensure_ours()?;
        // A copy as mp4 keeps the synopsis, and drops tags that mp4 does not know.
        let tags = [(KEY, record.as_str()), ("SYNOPSIS", &record.labelled())];
        if let Err(error) = matroska::add_tags(file.part(), &tags) {
            tracing::warn!(%error, "{} does not contain the record that repeats it", self.target.spec);
        }
        Ok(())
    }

    /// Adds XMP and the record, moves the index before the frames, signs the file and publishes it. Returns its bytes.
    fn publish_mp4(&self, file: &PartFile) -> Result<u64, Error> {
        file.ensure_ours()?;
        self.align_sound(file);
        let xmp = xmp_box::xmp_box(&self.tags.xmp()).unwrap_or_default();
        let record = self.record.as_ref().map(EncodedRecord::labelled);
        let copy = match mp4::with_index_first(file.part(), &xmp, record.as_deref()) {
            Ok(copy) => Some(copy),
            Err(error) => {
                tracing::warn!(%error, "{} keeps its index after its frames", self.target.spec);
                if let Err(error) = xmp_box::append(file.part(), &xmp) {
                    // The comment contains the same information.
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

    /// Ends the clip early. The part file is kept if it can be played, and removed otherwise.
    pub fn interrupt(mut self) -> Remainder {
        self.close_early()
    }

    fn close_early(&mut self) -> Remainder {
        let frames = self.monitor.pushed();
        let ended = if frames == 0 || self.closed { Ok(()) } else { self.drain() };
        self.stop(ended.as_ref().err());
        let whole = ended.is_ok() && frames > 0;
        let frames = if whole { frames } else { self.monitor.encoded() };
        let part = match &self.target.destination {
            Destination::File(file) => {
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
            Destination::Folder(folder) if frames > 0 => folder.part().to_owned(),
            Destination::Playlist(folder) if folder.path().join(PLAYLIST).exists() => {
                folder.path().join(PLAYLIST)
            }
            Destination::Pipe { .. } | Destination::Listener(_) | Destination::Remote if frames > 0 => {
                return Remainder::Sent { to: self.target.spec.clone(), frames };
            }
            _ => return Remainder::Nothing,
        };
        if whole { Remainder::Whole { part, frames } } else { Remainder::UpTo { part, frames } }
    }

    /// Ends the stream and waits until all frames are written.
    fn drain(&self) -> Result<(), Halt> {
        self.end_sound();
        match self.source.end_of_stream() {
            Ok(_) => self.monitor.wait_for_end(),
            Err(_) => Err(self.monitor.wait_for_fault()),
        }
    }

    fn end_sound(&self) {
        if let Some(track) = &self.sound {
            let (silence, start) = track.sound.silence_after(track.pushed, track.encoder.delay);
            // The error is returned at the end of the frames.
            if !silence.is_empty() && track.source.push_buffer(timed_sound(silence, start)).is_err() {
                tracing::debug!("the audio stream had already ended");
            }
            let _ = track.source.end_of_stream();
        }
    }

    /// Corrects the encoder delay of the audio in a closed mp4.
    fn align_sound(&self, file: &PartFile) {
        let delay = self.sound.as_ref().map_or(0, |track| track.encoder.delay);
        if delay == 0 || !self.is_mp4() {
            return;
        }
        if let Err(error) = mp4::align(file.part(), delay) {
            tracing::warn!(%error, "the audio is {} ms late", delay * 1000 / RATE);
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
            // A thread of the pipeline may be blocked in a write, and stopping would wait for it.
            std::thread::spawn(stop);
        } else {
            stop();
        }
    }

    fn error(&self, halt: Halt) -> Error {
        let output = self.target.spec.to_string();
        match halt {
            Halt::Cancelled => Error::Cancelled,
            Halt::Stalled => Error::Stalled { output, limit: self.monitor.limit() },
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
    use bundle::{Cancel, Diagnose, ErrorClass};
    use ndarray::Array3;
    use std::path::{Path, PathBuf};
    use std::time::Duration;
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
        let error = push(&mut output, FRAMES).unwrap_err();
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
}
