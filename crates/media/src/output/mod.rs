//! A running output.

mod publishing;

use super::buffers::{timed, timed_sound};
use super::collect::{Delays, PLAYLIST};
use super::monitor::{Halt, PipelineMonitor};
use super::pipeline::OutputPipeline;
use super::playable::is_playable;
use super::plugins::SoundEncoder;
use super::record_code::EncodedRecord;
use super::shared_frame::{PixelLayout, SharedFrame};
use super::sound::Sound;
use super::stopping::{stop, stop_within};
use super::target::Destination;
use super::{
    ClipFormat, Error, OutputOptions, OutputSpec, OutputTarget, Remainder, SigningKey, Tags, WrittenClip,
};
use bundle::Cancel;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::AppSrc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time that the muxer of a pipeline that has failed is given to close its file. It does not if it failed itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// The longest time to stop a pipeline that has failed or stalled.
const STOP_LIMIT: Duration = Duration::from_secs(5);

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
    /// Ends the waits of the collector.
    closing: Cancel,
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
        let OutputPipeline { pipeline, source, sound, layout, monitor, closing } =
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
            closing,
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

    /// Ends the clip early. The part file is kept if it can be played, and removed otherwise.
    pub fn interrupt(mut self) -> Remainder {
        self.close_early()
    }

    fn close_early(&mut self) -> Remainder {
        let frames = self.monitor.pushed();
        let ended = if frames == 0 || self.closed { Ok(()) } else { self.drain() };
        if let Err(Halt::Fault(_)) = ended {
            // The elements after the one that failed receive the end of the stream, and the muxer rewrites the index. A
            // file that is closed meanwhile could not be played.
            self.monitor.wait_for_close(CLOSE_LIMIT);
        }
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

    fn stop(&mut self, halt: Option<&Halt>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if halt.is_none() {
            return stop(&self.pipeline);
        }
        match stop_within(&self.pipeline, &self.closing, self.monitor.limit().min(STOP_LIMIT)) {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "a write of {} does not return; the file system may hang, and the write ends with the process",
                self.target.spec
            ),
            Err(error) => tracing::warn!(%error, "{} could not be stopped", self.target.spec),
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
mod tests;
