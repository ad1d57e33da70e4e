//! The writer of one clip: its outputs, its post-processing and its live address. It prints nothing.

use super::live::{LivePublisher, LiveSink};
use super::output_report::OutputResult;
use super::post_process::{PostProcess, PostProcessSpec};
use super::{
    ClipFormat, Error, FailedOutput, Outcome, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder,
    SigningKey, Tags, WrittenClip, check_signing, check_sound, notes,
};
use bundle::Cancel;
use bundle::units::FrameRate;
use ndarray::{ArrayView4, Axis, Slice};
use std::time::{Duration, Instant};

/// The outputs of a clip and their settings.
#[derive(Debug, Clone)]
pub struct ClipSettings {
    /// The outputs.
    pub outputs: Vec<OutputSpec>,
    /// Captions, logo, chroma key, audio and another frame rate.
    pub post_process: PostProcessSpec,
    /// The key that mp4 files are signed with.
    pub sign: Option<SigningKey>,
    /// An output is stalled when its pipeline has work and makes no progress for this long.
    pub output_timeout: Duration,
}

impl ClipSettings {
    /// Outputs with the default timeout, without post-processing and signature.
    pub fn new(outputs: Vec<OutputSpec>) -> Self {
        let output_timeout = OutputOptions::DEFAULT_TIMEOUT;
        Self { outputs, post_process: PostProcessSpec::default(), sign: None, output_timeout }
    }
}

/// The writer of one clip. Its outputs are claimed when it is created and start with the first frames, so that the tags
/// can be changed until then ([`Self::set_tags`]).
///
/// Dropping it before [`Self::finish`] is the same as [`Self::interrupt`].
///
/// ```no_run
/// use bundle::{Cancel, units::Seed};
/// use media::{ClipFormat, ClipSettings, ClipWriter, Tags};
/// use ndarray::Array4;
///
/// let made = ClipFormat { size: "832x480".parse()?, rate: "16".parse()?, frames: Some(80) };
/// let settings = ClipSettings::new(vec!["cat.mp4".parse()?, "frames/".parse()?]);
/// let tags = Tags::new("A cat".to_owned(), "mini", Seed(42));
/// let mut clip = ClipWriter::claim(&settings, made, tags, &Cancel::new())?;
/// clip.push(Array4::zeros((81, 3, 480, 832)).view())?;
/// for failed in clip.newly_failed() {
///     eprintln!("{}: {}", failed.output, failed.error);
/// }
/// let outcome = clip.finish()?;
/// assert_eq!(outcome.frames, 80);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ClipWriter {
    targets: Vec<OutputTarget>,
    options: OutputOptions,
    post_process: PostProcess,
    /// The format of the frames that are pushed.
    made: ClipFormat,
    /// Started with the first frames.
    outputs: Option<Outputs>,
    live: Option<LivePublisher>,
    /// Frames that were pushed, without surplus frames.
    pushed: usize,
    /// Frames that were written after post-processing.
    written: usize,
    /// Failed outputs that [`Self::newly_failed`] has returned.
    reported: usize,
}

impl ClipWriter {
    /// Claims all outputs of a clip whose frames are pushed in the format `made`, and loads the files of
    /// post-processing. The note of `tags` is replaced by that of post-processing.
    ///
    /// # Errors
    /// Returns an error if an output cannot be written or is claimed by another run ([`OutputTarget::claim_all`]), if
    /// nothing can be signed with the key, if a file of post-processing cannot be used, or if there is audio and no
    /// output carries it.
    pub fn claim(
        settings: &ClipSettings,
        made: ClipFormat,
        tags: Tags,
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let targets = OutputTarget::claim_all(&settings.outputs)?;
        if let Some(keys) = &settings.sign {
            check_signing(&targets, keys)?;
        }
        let post_process = settings.post_process.open(made)?;
        if post_process.sound().is_some() {
            check_sound(&targets)?;
        }
        let options = OutputOptions {
            format: post_process.format(),
            tags: Tags { note: post_process.note().map(str::to_owned), ..tags },
            output_timeout: settings.output_timeout,
            sign: settings.sign.clone(),
            sound: post_process.sound().cloned(),
            cancel: cancel.clone(),
        };
        Ok(Self {
            targets,
            options,
            post_process,
            made,
            outputs: None,
            live: None,
            pushed: 0,
            written: 0,
            reported: 0,
        })
    }

    /// Notes for the user: differences between outputs and the clip, streams without the AI mark, captions that were
    /// shrunk or are not shown, a background that is too short.
    pub fn notes(&self) -> Vec<String> {
        let mut all = notes(&self.targets, self.format());
        let outputs = self.targets.iter().map(OutputTarget::spec);
        all.extend(outputs.filter(|_| self.options.tags.mark).filter_map(note_of_mark));
        all.extend_from_slice(self.post_process.notes());
        all
    }

    /// The note for a live address that does not carry the AI mark.
    pub fn note_of_live(&self, address: &OutputSpec) -> Option<String> {
        if self.options.tags.mark { note_of_mark(address) } else { None }
    }

    /// The format of the clip in its outputs. Another rate changes the number of frames.
    pub fn format(&self) -> ClipFormat {
        self.options.format
    }

    /// The tags of the outputs.
    pub fn tags(&self) -> &Tags {
        &self.options.tags
    }

    /// Replaces the tags of the outputs, but not those of the live address. The note is replaced by that of
    /// post-processing. Returns false, and changes nothing, if the outputs have started.
    #[must_use = "the tags are not written if the outputs have started"]
    pub fn set_tags(&mut self, tags: Tags) -> bool {
        if self.outputs.is_some() {
            return false;
        }
        self.options.tags = Tags { note: self.post_process.note().map(str::to_owned), ..tags };
        true
    }

    /// Starts the live address. It shows `noise [C,T,h,w]` until the first preview. `stride` is the number of frames
    /// that the model makes per latent frame after the first. Returns the sink of the previews.
    ///
    /// # Errors
    /// Returns an error if the output does not start.
    pub fn start_live(
        &mut self,
        target: OutputTarget,
        noise: ArrayView4<'_, f32>,
        stride: usize,
    ) -> Result<LiveSink, Error> {
        let format = self.format();
        let stride = frames_at_rate(stride, self.made.rate, format.rate);
        let live = LivePublisher::start(target, &self.options, format, noise, stride)?;
        let sink = live.sink();
        self.live = Some(live);
        Ok(sink)
    }

    /// Processes and writes frames `[N,3,H,W]` in -1..1. Frames beyond the length of the clip are ignored: a decoder
    /// makes `4n + 1` frames, which may be more than the clip has. The first frames start the outputs.
    ///
    /// # Errors
    /// Returns an error if the frames have another shape, if a background cannot be read, if the run was cancelled, or
    /// if all outputs have failed. An output that fails alone is returned by [`Self::newly_failed`].
    pub fn push(&mut self, frames: ArrayView4<'_, f32>) -> Result<(), Error> {
        let (count, channels, height, width) = frames.dim();
        let (expected, found) = ([3, self.made.size.height, self.made.size.width], [channels, height, width]);
        if found != expected {
            return Err(Error::Shape { expected, found });
        }
        let outputs = match &mut self.outputs {
            Some(outputs) => outputs,
            None => self.outputs.insert(Outputs::start(&self.targets, &self.options)?),
        };
        let wanted = self.made.frames.map_or(count, |frames| count.min(frames.saturating_sub(self.pushed)));
        for frame in frames.slice_axis(Axis(0), Slice::from(..wanted)).outer_iter() {
            let processed = self.post_process.push(frame.to_owned())?;
            if let Some(live) = &self.live {
                live.add_frames(&processed)?;
            }
            self.pushed += 1;
            self.written += processed.len();
            outputs.write_all(processed)?;
        }
        Ok(())
    }

    /// Frames that were pushed, without surplus frames.
    pub fn pushed(&self) -> usize {
        self.pushed
    }

    /// The outputs that have failed since the last call. The other outputs continue.
    pub fn newly_failed(&mut self) -> &[FailedOutput] {
        let failed = self.outputs.as_ref().map_or(&[][..], Outputs::failed);
        let first = std::mem::replace(&mut self.reported, failed.len());
        &failed[first..]
    }

    /// Writes the remaining frames, closes all outputs and publishes them under their names.
    ///
    /// # Errors
    /// Returns an error if frames of the clip were not pushed, if the run was cancelled, or if all outputs have failed
    /// before the last frame. The frames so far are kept then, as in [`Self::interrupt`].
    pub fn finish(mut self) -> Result<ClipOutcome, Error> {
        let expected = self.made.frames.unwrap_or(1);
        let mut outputs = match self.outputs.take() {
            // Another rate may repeat the last frame up to the end, which would hide that frames are missing.
            Some(outputs) if self.pushed >= expected => outputs,
            _ => return Err(Error::FramesMissing { expected, found: self.pushed }),
        };
        let last = self.post_process.finish();
        if let Some(live) = &self.live {
            live.add_frames(&last)?;
        }
        let frames = self.written + last.len();
        outputs.write_all(last)?;
        let first_encoded = outputs.first_encoded();
        let Outcome { written, failed } = outputs.finish();
        Ok(ClipOutcome { written, failed, frames, first_encoded, live: self.live.take() })
    }

    /// Ends the clip and the live address early. Returns the remainder of each output that has started.
    pub fn interrupt(mut self) -> Vec<(OutputSpec, Remainder)> {
        // The caller reports the error that ended the clip.
        let _ = self.live.take().map(LivePublisher::stop);
        self.outputs.take().map_or(vec![], Outputs::interrupt)
    }
}

/// The result of a clip.
#[derive(Debug)]
pub struct ClipOutcome {
    /// Complete outputs.
    pub written: Vec<WrittenClip>,
    /// Failed outputs.
    pub failed: Vec<FailedOutput>,
    /// The length of the clip after post-processing.
    pub frames: usize,
    /// The time when the first encoder returned its first frame.
    pub first_encoded: Option<Instant>,
    /// The live address. It shows the complete clip until it is stopped or dropped.
    pub live: Option<LivePublisher>,
}

impl ClipOutcome {
    /// The results of all outputs as data, complete ones first.
    pub fn results(&self) -> Vec<OutputResult> {
        let written = self.written.iter().map(|clip| OutputResult::Written(clip.into()));
        let failed = self.failed.iter().map(|failed| OutputResult::Failed(failed.into()));
        written.chain(failed).collect()
    }

    /// Bytes of the first complete output.
    pub fn bytes(&self) -> Option<u64> {
        self.written.first()?.bytes
    }

    /// The names of the complete outputs, separated by commas. `None` if there are none.
    pub fn names(&self) -> Option<String> {
        let names: Vec<String> = self.written.iter().map(|clip| clip.output.to_string()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// The error of the first failed output, with the names of the complete ones. `None` if no output failed.
    pub fn error(&self) -> Option<Error> {
        self.failed.first().map(|first| Error::OutputsFailed {
            first: first.error.clone(),
            remainder: first.remainder.clone(),
            complete: self.names(),
        })
    }
}

/// A note for the user if an output does not carry the AI mark although its viewers may take the clip for a recording.
fn note_of_mark(output: &OutputSpec) -> Option<String> {
    let note =
        || format!("{output} does not carry the AI mark; say where you publish it that it is AI-generated");
    output.loses_mark().then(note)
}

/// The number of frames at rate `to` that are shown as long as `frames` at rate `from`, rounded up.
fn frames_at_rate(frames: usize, from: FrameRate, to: FrameRate) -> usize {
    let ((from, from_seconds), (to, to_seconds)) = (from.fraction(), to.fraction());
    let converted = (frames as u128)
        .saturating_mul(u128::from(to) * u128::from(from_seconds))
        .div_ceil(u128::from(from) * u128::from(to_seconds));
    usize::try_from(converted).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::post_process::Interpolation;
    use bundle::units::Seed;
    use ndarray::Array4;
    use std::path::Path;

    fn made(frames: usize) -> ClipFormat {
        ClipFormat { size: "32x16".parse().unwrap(), rate: "16".parse().unwrap(), frames: Some(frames) }
    }

    fn tags(model: &str) -> Tags {
        Tags::new(None, model, Seed(1))
    }

    fn settings(folder: &Path, names: &[&str]) -> ClipSettings {
        let spec = |name: &&str| folder.join(name).to_str().unwrap().parse().unwrap();
        ClipSettings::new(names.iter().map(spec).collect())
    }

    fn claim(settings: &ClipSettings, frames: usize) -> ClipWriter {
        ClipWriter::claim(settings, made(frames), tags("first"), &Cancel::new()).unwrap()
    }

    fn frames(count: usize) -> Array4<f32> {
        Array4::from_shape_fn((count, 3, 16, 32), |(n, c, y, x)| ((n + c + y + x) % 8) as f32 / 4.0 - 1.0)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Frames in a y4m.
    fn count(path: &Path) -> usize {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(6).filter(|bytes| bytes == b"FRAME\n").count()
    }

    #[test]
    fn surplus_frames_are_trimmed_and_every_output_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut clip = claim(&settings(folder.path(), &["a.y4m", "frames/"]), 4);
        assert_eq!(names(folder.path()).len(), 2, "both outputs are claimed");
        clip.push(frames(1).view()).unwrap();
        clip.push(frames(4).view()).unwrap();
        clip.push(frames(4).view()).unwrap();
        assert_eq!(clip.pushed(), 4);
        assert!(clip.newly_failed().is_empty());
        let outcome = clip.finish().unwrap();
        assert_eq!((outcome.frames, count(&folder.path().join("a.y4m"))), (4, 4));
        assert_eq!(names(&folder.path().join("frames")).len(), 4);
        assert!(outcome.error().is_none());
        assert_eq!(outcome.bytes(), Some(folder.path().join("a.y4m").metadata().unwrap().len()));
        assert_eq!(outcome.results().len(), 2);
    }

    #[test]
    fn the_tags_can_be_replaced_until_the_first_frame() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path(), &["a.gif"]);
        settings.post_process.rate = Some(("24".parse().unwrap(), Interpolation::Repeat));
        let mut clip = claim(&settings, 4);
        assert_eq!(clip.format().frames, Some(6));
        assert!(clip.set_tags(tags("second")));
        assert!(clip.tags().note.as_ref().unwrap().starts_with("24 fps"), "{:?}", clip.tags());
        clip.push(frames(4).view()).unwrap();
        assert!(!clip.set_tags(tags("third")));
        assert_eq!(clip.finish().unwrap().frames, 6);
        let file = std::fs::read(folder.path().join("a.gif")).unwrap();
        let contains = |text: &str| file.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        assert!(contains("model second") && contains("24 fps"));
        assert!(!contains("first") && !contains("third"));
    }

    #[test]
    fn a_clip_without_its_last_frames_is_not_published() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(folder.path(), &["a.y4m"]);
        // The last frame would be repeated up to the end.
        settings.post_process.rate = Some(("24".parse().unwrap(), Interpolation::Repeat));
        for pushed in [0, 3] {
            let mut clip = claim(&settings, 4);
            if pushed > 0 {
                clip.push(frames(pushed).view()).unwrap();
            }
            let error = clip.finish().unwrap_err();
            let Error::FramesMissing { expected: 4, found } = error else { panic!("{error}") };
            assert_eq!(found, pushed);
        }
        assert_eq!(names(folder.path()), ["a.part.y4m"]);
    }

    #[test]
    fn an_interrupted_clip_returns_the_frames_that_were_kept() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), &["a.y4m"]);
        assert!(claim(&settings, 9).interrupt().is_empty());
        let mut clip = claim(&settings, 9);
        clip.push(frames(5).view()).unwrap();
        let kept = clip.interrupt();
        let part = folder.path().join("a.part.y4m");
        assert_eq!(kept[0].1, Remainder::Whole { part: part.clone(), frames: 5 });
        assert_eq!(count(&part), 5);
    }

    #[test]
    fn an_output_that_fails_is_returned_once_and_the_others_continue() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("gone")).unwrap();
        let mut clip = claim(&settings(folder.path(), &["gone/a.mkv", "b.y4m"]), 4);
        // The part cannot be opened when the outputs start.
        std::fs::remove_dir_all(folder.path().join("gone")).unwrap();
        clip.push(frames(4).view()).unwrap();
        let failed: Vec<_> = clip.newly_failed().iter().map(|failed| failed.output.clone()).collect();
        assert_eq!(failed, [folder.path().join("gone/a.mkv").to_str().unwrap().parse().unwrap()]);
        assert!(clip.newly_failed().is_empty());
        let outcome = clip.finish().unwrap();
        assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1));
        let error = outcome.error().unwrap();
        assert!(matches!(&error, Error::OutputsFailed { complete: Some(_), .. }), "{error}");
        assert_eq!(count(&folder.path().join("b.y4m")), 4);
    }

    #[test]
    fn a_dropped_writer_ends_its_live_address() {
        let folder = tempfile::tempdir().unwrap();
        let live: OutputSpec = format!("hls:{}", folder.path().join("live").display()).parse().unwrap();
        let mut clip = claim(&settings(folder.path(), &["a.y4m"]), 4);
        let target = OutputTarget::claim(&live).unwrap();
        let previews = clip.start_live(target, Array4::zeros((4, 1, 2, 4)).view(), 4).unwrap();
        previews.show(frames(1).view(), 1).unwrap();
        clip.push(frames(2).view()).unwrap();
        assert!(OutputTarget::claim(&live).is_err(), "the address is in use");
        drop(clip);
        // The thread of the address releases its folder when it ends.
        let mut pauses = (0..3000).map(|_| std::thread::sleep(Duration::from_millis(10)));
        assert!(pauses.any(|()| OutputTarget::claim(&live).is_ok()), "the address has not ended");
    }

    #[test]
    fn streams_without_the_mark_are_named_in_a_note() {
        let note = |spec: &str| note_of_mark(&spec.parse().unwrap());
        for stream in ["rtmp://127.0.0.1/live/a", "whip:http://127.0.0.1/a"] {
            let note = note(stream).unwrap();
            assert!(note.contains("127.0.0.1") && note.contains("AI mark"), "{note}");
        }
        for other in ["a.mp4", "a.y4m", "-", "frames/", "hls:live", "rtsp://127.0.0.1/a", "window"] {
            assert_eq!(note(other), None, "{other}");
        }
    }

    #[test]
    fn frames_of_another_shape_are_refused_before_post_processing() {
        let folder = tempfile::tempdir().unwrap();
        let mut clip = claim(&settings(folder.path(), &["a.y4m"]), 4);
        for shape in [(1, 4, 16, 32), (1, 3, 8, 32), (1, 3, 16, 30)] {
            let error = clip.push(Array4::zeros(shape).view()).unwrap_err();
            assert!(matches!(error, Error::Shape { expected: [3, 16, 32], .. }), "{error}");
        }
        assert_eq!(clip.pushed(), 0);
    }

    #[test]
    fn the_frames_of_a_latent_frame_follow_the_rate() {
        let frames = |from: &str, to: &str| frames_at_rate(4, from.parse().unwrap(), to.parse().unwrap());
        assert_eq!((frames("16", "16"), frames("16", "24"), frames("24", "16")), (4, 6, 3));
        assert_eq!(frames("24", "30000/1001"), 5, "4.995 frames");
        assert_eq!(frames_at_rate(usize::MAX, "1".parse().unwrap(), "2".parse().unwrap()), usize::MAX);
    }

    #[test]
    fn a_writer_can_move_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<ClipWriter>();
        is_send::<ClipOutcome>();
    }
}
