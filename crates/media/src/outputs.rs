//! All outputs of one run. Each frame is converted once and pushed to every output that has not failed.

use super::{Error, Output, OutputOptions, OutputSpec, OutputTarget, Remainder, SharedFrame, WrittenClip};
use bundle::geometry::PixelSize;
use ndarray::{Array3, ArrayView4};
use std::sync::Arc;
use std::time::Instant;

/// An output that failed before the end of the clip.
#[derive(Debug)]
pub struct FailedOutput {
    /// The output.
    pub output: OutputSpec,
    /// The error.
    pub error: Arc<Error>,
    /// The frames that were kept.
    pub remainder: Remainder,
}

/// The results of all outputs.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Complete outputs.
    pub written: Vec<WrittenClip>,
    /// Failed outputs.
    pub failed: Vec<FailedOutput>,
}

/// The outputs of a run. One that fails is closed and does not affect the others.
///
/// ```no_run
/// use bundle::{Cancel, units::Seed};
/// use media::{ClipFormat, OutputOptions, OutputTarget, Outputs, Tags};
/// use ndarray::Array4;
///
/// let format = ClipFormat { size: "832x480".parse()?, rate: "16".parse()?, frames: Some(81) };
/// let tags = Tags::new("A cat".to_owned(), "mini", Seed(42));
/// let targets = OutputTarget::claim_all(&["cat.mp4".parse()?, "hls:live".parse()?])?;
/// let mut outputs = Outputs::start(&targets, &OutputOptions::new(format, tags, &Cancel::new()))?;
/// outputs.write(Array4::zeros((81, 3, 480, 832)).view())?;
/// let outcome = outputs.finish();
/// assert!(outcome.failed.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Outputs {
    running: Vec<Output>,
    failed: Vec<FailedOutput>,
    /// Frames until the end of the clip. `None` for an endless stream.
    missing: Option<usize>,
    first_encoded: Option<Instant>,
}

impl Outputs {
    /// Starts all outputs of a run.
    ///
    /// # Errors
    /// Returns the first error if no output can be started.
    pub fn start(targets: &[OutputTarget], options: &OutputOptions) -> Result<Self, Error> {
        let missing = options.format.frames;
        let mut outputs = Self { running: vec![], failed: vec![], missing, first_encoded: None };
        for target in targets {
            match Output::start(target.clone(), options) {
                Ok(output) => outputs.running.push(output),
                Err(error) => {
                    let output = target.spec().clone();
                    outputs.failed.push(FailedOutput {
                        output,
                        error: Arc::new(error),
                        remainder: Remainder::Nothing,
                    });
                }
            }
        }
        outputs.check_any_running()?;
        Ok(outputs)
    }

    /// Writes frames `[N,3,H,W]` in -1..1. Frames beyond the length of the clip are ignored: a decoder makes `4n + 1`
    /// frames, which may be more than the clip has.
    ///
    /// # Errors
    /// Returns an error if a frame has another shape, if the run was cancelled, or if all outputs have failed.
    pub fn write(&mut self, frames: ArrayView4<'_, f32>) -> Result<(), Error> {
        self.write_all(frames.outer_iter().map(|frame| frame.to_owned()))
    }

    /// Like [`Self::write`], with an iterator of frames `[3,H,W]`.
    ///
    /// # Errors
    /// The errors of [`Self::write`].
    pub fn write_all(&mut self, frames: impl IntoIterator<Item = Array3<f32>>) -> Result<(), Error> {
        for colours in frames {
            if self.missing == Some(0) {
                break;
            }
            let (channels, height, width) = colours.dim();
            let refused = match channels {
                3 => Error::OddSize { size: PixelSize { width, height } },
                _ => Error::Shape { expected: [3, height, width], found: [channels, height, width] },
            };
            let frame = SharedFrame::new(colours).ok_or(refused)?;
            self.push(&frame)?;
            self.missing = self.missing.map(|missing| missing - 1);
        }
        Ok(())
    }

    /// Writes one frame to every output that has not failed.
    ///
    /// # Errors
    /// Returns an error if the frame has another size, if the run was cancelled, or if all outputs have failed.
    pub fn push(&mut self, frame: &SharedFrame) -> Result<(), Error> {
        let mut index = 0;
        while let Some(output) = self.running.get_mut(index) {
            match output.push(frame) {
                Ok(()) => index += 1,
                Err(error @ (Error::Cancelled | Error::Shape { .. })) => return Err(error),
                Err(error) => {
                    let output = self.running.remove(index);
                    self.failed.push(FailedOutput {
                        output: output.spec().clone(),
                        error: Arc::new(error),
                        remainder: output.interrupt(),
                    });
                }
            }
        }
        self.check_any_running()
    }

    /// The outputs that have failed so far.
    pub fn failed(&self) -> &[FailedOutput] {
        &self.failed
    }

    /// The time when the first encoder returned its first frame, of the outputs that have not failed.
    pub fn first_encoded(&self) -> Option<Instant> {
        let found = self.running.iter().filter_map(Output::first_encoded).min();
        self.first_encoded.or(found)
    }

    /// Closes all outputs and publishes them under their names.
    pub fn finish(mut self) -> Outcome {
        let mut outcome = Outcome { written: vec![], failed: std::mem::take(&mut self.failed) };
        self.running.iter().for_each(Output::end);
        for output in std::mem::take(&mut self.running) {
            let spec = output.spec().clone();
            match output.finish() {
                Ok(clip) => outcome.written.push(clip),
                Err(failure) => {
                    let (error, remainder) = *failure;
                    let error = Arc::new(error);
                    outcome.failed.push(FailedOutput { output: spec, error, remainder });
                }
            }
        }
        outcome
    }

    /// Ends all outputs early. Returns the remainder of each.
    pub fn interrupt(mut self) -> Vec<(OutputSpec, Remainder)> {
        self.running.iter().for_each(Output::end);
        let failed =
            std::mem::take(&mut self.failed).into_iter().map(|failed| (failed.output, failed.remainder));
        let running = std::mem::take(&mut self.running).into_iter();
        failed.chain(running.map(|output| (output.spec().clone(), output.interrupt()))).collect()
    }

    fn check_any_running(&self) -> Result<(), Error> {
        match self.failed.first() {
            Some(first) if self.running.is_empty() => Err(Error::OutputsFailed {
                first: Arc::clone(&first.error),
                remainder: first.remainder.clone(),
                complete: None,
            }),
            _ => Ok(()),
        }
    }
}
