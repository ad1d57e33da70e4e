//! All outputs of one run: each frame is converted once and goes to every one that is still well.

use super::{Error, Output, OutputOptions, OutputSpec, OutputTarget, Remainder, SharedFrame, WrittenClip};
use ndarray::{Array3, ArrayView4};
use std::sync::Arc;
use std::time::Instant;

/// An output that ended before its clip did.
#[derive(Debug)]
pub struct FailedOutput {
    /// Which.
    pub output: OutputSpec,
    /// Why.
    pub error: Arc<Error>,
    /// What is left of it.
    pub kept: Remainder,
}

/// What became of all outputs.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Those that are whole.
    pub written: Vec<WrittenClip>,
    /// Those that are not.
    pub failed: Vec<FailedOutput>,
}

/// Outputs that grow together. One that fails leaves, and does not cut the others short.
#[derive(Debug)]
pub struct Outputs {
    running: Vec<Output>,
    failed: Vec<FailedOutput>,
    /// Frames that the clip still lacks; none if it has no end.
    missing: Option<usize>,
    first_encoded: Option<Instant>,
}

impl Outputs {
    /// Starts all outputs of a run.
    ///
    /// # Errors
    /// When not one of them can be started: why the first cannot.
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
                        kept: Remainder::Nothing,
                    });
                }
            }
        }
        outputs.give_up_if_none_is_left()?;
        Ok(outputs)
    }

    /// Adds frames `[N,3,H,W]` in -1..1. Frames beyond the clip's number are left out: a model makes `4n + 1` of them,
    /// whatever was asked for.
    ///
    /// # Errors
    /// Frames of another shape; the run was cancelled; no output is left: what the first one met.
    pub fn write(&mut self, frames: ArrayView4<'_, f32>) -> Result<(), Error> {
        self.write_all(frames.outer_iter().map(|frame| frame.to_owned()))
    }

    /// [`Self::write`] with frames `[3,H,W]` one by one.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn write_all(&mut self, frames: impl IntoIterator<Item = Array3<f32>>) -> Result<(), Error> {
        for colours in frames {
            if self.missing == Some(0) {
                break;
            }
            let (channels, height, width) = colours.dim();
            let frame = SharedFrame::new(colours)
                .ok_or(Error::Shape { expected: [3, height, width], found: [channels, height, width] })?;
            self.push(&frame)?;
            self.missing = self.missing.map(|missing| missing - 1);
        }
        Ok(())
    }

    /// Adds one frame to every output that is still well.
    ///
    /// # Errors
    /// A frame of another size; the run was cancelled; no output is left: what the first one met.
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
                        kept: output.interrupt(),
                    });
                }
            }
        }
        self.give_up_if_none_is_left()
    }

    /// Those that have failed so far.
    pub fn failed(&self) -> &[FailedOutput] {
        &self.failed
    }

    /// When the first frame had come out of an encoder, of those that are still well.
    pub fn first_encoded(&self) -> Option<Instant> {
        let found = self.running.iter().filter_map(Output::first_encoded).min();
        self.first_encoded.or(found)
    }

    /// Closes all outputs and gives them their names.
    pub fn finish(mut self) -> Outcome {
        let mut outcome = Outcome { written: vec![], failed: std::mem::take(&mut self.failed) };
        self.running.iter().for_each(Output::end);
        for output in std::mem::take(&mut self.running) {
            let spec = output.spec().clone();
            match output.finish() {
                Ok(clip) => outcome.written.push(clip),
                Err(failure) => {
                    let (error, kept) = *failure;
                    let error = Arc::new(error);
                    outcome.failed.push(FailedOutput { output: spec, error, kept });
                }
            }
        }
        outcome
    }

    /// Ends all outputs here and says what is left of each.
    pub fn interrupt(mut self) -> Vec<(OutputSpec, Remainder)> {
        self.running.iter().for_each(Output::end);
        let failed = std::mem::take(&mut self.failed).into_iter().map(|failed| (failed.output, failed.kept));
        let running = std::mem::take(&mut self.running).into_iter();
        failed.chain(running.map(|output| (output.spec().clone(), output.interrupt()))).collect()
    }

    fn give_up_if_none_is_left(&self) -> Result<(), Error> {
        match self.failed.first() {
            Some(first) if self.running.is_empty() => {
                Err(Error::Partly { first: Arc::clone(&first.error), kept: first.kept.clone(), whole: None })
            }
            _ => Ok(()),
        }
    }
}
