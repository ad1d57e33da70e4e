//! Errors of the runtime. Errors of its dependencies are passed through.

use crate::denoise::{ChannelMismatch, ForkError, StepError};
use crate::scheduler::SchedulerError;
use bundle::routing::ExpertName;
use bundle::{Diagnose, ErrorClass, Field, Report};
use engines::Device;
use std::path::PathBuf;

/// An error of generating a clip.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value or a bundle is invalid.
    Contract(#[from] bundle::Error),
    /// A graph cannot be opened or run.
    Engine(#[from] engines::Error),
    /// A graph has no compiled engine.
    NoEngine {
        /// The error, which names the graph and the device.
        source: Box<engines::Error>,
        /// The command that compiles it.
        command: String,
    },
    /// A prompt or a tokenizer cannot be used.
    Prompt(#[from] prompt::Error),
    /// The scheduler refuses a job or an event.
    Scheduler(#[from] SchedulerError),
    /// A command of the scheduler contradicts the state of the driver.
    Driver {
        /// The command.
        what: String,
        /// The contradiction.
        why: String,
    },
    /// The tokenizer has more tokens than the text encoder.
    Vocabulary {
        /// Size of the tokenizer's vocabulary.
        tokenizer: usize,
        /// Rows of the encoder's embedding table.
        encoder: usize,
    },
    /// A graph returned a tensor whose number of axes differs from its signature.
    Rank {
        /// The tensor.
        tensor: String,
        /// Axes in the signature.
        expected: usize,
        /// Axes found.
        found: usize,
    },
    /// A graph returned a tensor whose shape does not follow from its inputs.
    OutputShape {
        /// The tensor.
        output: String,
        /// The shape that follows from the inputs.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// Text states have not the form of the text encoder's output.
    TextStates {
        /// Number of rows.
        rows: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// Text states are not as wide as the denoiser's text input.
    TextWidth {
        /// Their width.
        given: usize,
        /// The width that the denoiser takes.
        expected: usize,
    },
    /// A step needs the text states of the negative prompt, and the conditioning has none.
    NoNegative {
        /// The step, from 1.
        step: usize,
    },
    /// The latent and the image latents do not have the input channels of the denoiser.
    Channels(ChannelMismatch),
    /// The graphs of this bundle take one noise level for all latent frames.
    FrameLevels,
    /// The record or spec of a job cannot be read.
    Spec {
        /// The problem.
        why: String,
    },
    /// A snapshot cannot be used.
    Snapshot {
        /// The problem.
        why: String,
    },
    /// A snapshot belongs to something else than what it is used with.
    OtherSnapshot {
        /// What differs: bundle, settings or text states.
        what: &'static str,
        /// The digest in the snapshot.
        stored: String,
        /// The digest found.
        found: String,
    },
    /// A job folder has no such snapshot.
    NoSnapshot {
        /// The folder.
        folder: PathBuf,
        /// The file.
        name: String,
    },
    /// A job folder has no whole snapshot after this many steps.
    NoStep {
        /// The folder.
        folder: PathBuf,
        /// The steps.
        steps: usize,
        /// The problem with the snapshot that it has.
        damage: Option<String>,
        /// The steps after which it has snapshots.
        others: Vec<usize>,
    },
    /// The folder of a job cannot be used.
    JobFolder {
        /// The folder.
        folder: PathBuf,
        /// The problem.
        why: String,
        /// What to do.
        fix: String,
    },
    /// A fork cannot be made.
    Fork(#[from] ForkError),
    /// A step does not belong to the state of the clip.
    Step(#[from] StepError),
    /// The latent is no longer finite.
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Steps of the clip.
        steps: usize,
        /// The expert that ran.
        expert: ExpertName,
    },
    /// The decoder returned frames that are not finite.
    FramesNotFinite {
        /// The latent frame that was decoded, from 1.
        chunk: usize,
        /// Latent frames of the clip.
        chunks: usize,
    },
    /// The timesteps of the latent frames of a step do not fit the latent.
    FrameTimesteps {
        /// The problem with them.
        why: String,
    },
    /// The file of the initial noise does not contain the noise of this clip.
    NoiseFile {
        /// The file.
        path: PathBuf,
        /// The problem with it.
        why: String,
    },
    /// Files of a bundle differ from what was written.
    DamagedBundle {
        /// The bundle.
        path: PathBuf,
        /// Number of checked files.
        files: usize,
        /// The damaged files, each with the reason.
        damaged: Vec<(String, String)>,
    },
    /// The bundle has no linear preview map.
    NoPreviewMap,
    /// The bundle has no tiny decoder.
    NoTinyDecoder,
    /// The shape of the frames does not match the latent.
    FramesOfLatent {
        /// Shape of the latent, `[C,T,h,w]`.
        latent: Vec<usize>,
        /// Shape of the frames, `[N,3,H,W]`.
        frames: Vec<usize>,
    },
    /// A preview map has more unknowns than positions to fit it on.
    TooFewPositions {
        /// Available latent positions.
        positions: u64,
        /// Unknowns of each colour.
        unknowns: usize,
    },
    /// The trace of a run cannot be written.
    TraceFile {
        /// The file.
        path: PathBuf,
        /// The problem with it.
        why: String,
    },
    /// A guidance pass failed on one of the two devices of its expert.
    OnDevice {
        /// The device.
        device: Device,
        /// The failure.
        source: Box<Error>,
    },
    /// The thread of a guidance pass cannot be started.
    NoThread {
        /// The problem.
        why: String,
    },
    /// A callback of the caller failed and ended the run.
    Callback(Box<dyn Diagnose + Send + Sync>),
}

impl Diagnose for Error {
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Engine(error) => error.report(),
            Self::NoEngine { source, command } => {
                Report { fix: format!("compile it with `{command}`"), ..source.report() }
            }
            Self::Prompt(error) => error.report(),
            Self::Scheduler(error) => error.report(),
            Self::Driver { what, why } => Report::bug(what, why),
            Self::Callback(error) => error.report(),
            Self::OnDevice { device, source } => {
                let report = source.report();
                Report { what: format!("{} on {device}", report.what), ..report }
            }
            Self::NoThread { why } => Report::failed(
                "a guidance pass cannot be started",
                why.clone(),
                "end other programs, raise the limit of threads, or `place` each expert on one device",
            ),
            Self::Vocabulary { tokenizer, encoder } => Report::damaged(
                "the tokenizer does not belong to the text encoder",
                format!("the tokenizer has {tokenizer} tokens and the encoder {encoder}"),
                "use the tokenizer that was published with the model and export again",
            ),
            Self::Rank { tensor, expected, found } => Report::bug(
                format!("`{tensor}` cannot be used"),
                format!("it has {found} axes and should have {expected}, as in its graph's signature"),
            ),
            Self::OutputShape { output, expected, found } => Report::failed(
                format!("a graph returned `{output}` with the wrong shape"),
                format!("it is {found:?}, and {expected:?} was expected"),
                "check the bundle with `rushes inspect` and `verify`; if it is whole, report this message",
            ),
            Self::TextStates { rows, tokens } => Report::damaged(
                "the text states cannot be used",
                format!(
                    "{rows} rows with {tokens} tokens: 512 rows are needed, and rows after the tokens are zero"
                ),
                "pass the states that the text encoder returned",
            ),
            Self::TextWidth { given, expected } => Report::bad_input(
                "the text states do not belong to the denoiser",
                format!("they are {given} wide, and the denoiser takes {expected}"),
                "use text encoder and denoiser of one model",
            ),
            Self::NoNegative { step } => Report::bad_input(
                format!("step {step} cannot be guided"),
                "its guidance scale is not 1, and there are no text states of a negative prompt",
                "encode the negative prompt too, or use a `guidance` of 1",
            ),
            Self::Channels(ChannelMismatch { expected, given }) => Report::bad_input(
                "the latent does not fit the denoiser",
                format!("the denoiser takes {expected} channels; given were tensors of shape {given:?}"),
                "pass a mask and image latents exactly if the model is conditioned on images",
            ),
            Self::FrameLevels => Report::bad_input(
                "latent frames cannot have different noise levels",
                "the graphs of this bundle take one timestep",
                "export the checkpoint again with this version of rushes",
            ),
            Self::Spec { why } => Report::damaged(
                "the settings of the job cannot be read",
                why.clone(),
                "use a clip or a job folder of this version of rushes",
            ),
            Self::Snapshot { why } => Report::damaged(
                "the snapshot cannot be used",
                why.clone(),
                "go on from the other snapshot of the job, or start the job again",
            ),
            Self::OtherSnapshot { what, stored, found } => Report::bad_input(
                "the run cannot go on from its snapshot",
                format!("the digest of the {what} was {stored}, and it is {found} here"),
                "use the `bundle` and the settings that the run was started with",
            ),
            Self::NoSnapshot { folder, name } => Report::bad_input(
                format!("the job {} cannot go on", folder.display()),
                format!("it has no {name}: the run ended before that step, or the file was removed"),
                "go on from another snapshot of the job, or start it again",
            ),
            Self::NoStep { folder, steps, damage, others } => {
                let others: Vec<String> = others.iter().map(usize::to_string).collect();
                let fix = match &others[..] {
                    [] => "start the job again, and keep this step with `keep_steps`".to_owned(),
                    others => format!(
                        "go on after one of the steps {}, or start the job again and keep this step with `keep_steps`",
                        others.join(", ")
                    ),
                };
                let what = format!("the job {} cannot go on after step {steps}", folder.display());
                match damage {
                    Some(why) => Report::damaged(what, why.clone(), fix),
                    None => Report::bad_input(what, "it has no snapshot of that step", fix),
                }
            }
            Self::JobFolder { folder, why, fix } => Report::bad_input(
                format!("{} cannot be used as the folder of a job", folder.display()),
                why.clone(),
                fix.clone(),
            ),
            Self::Fork(error) => Report::bad_input(
                "the run cannot go on with these changes",
                error.to_string(),
                "go on from the snapshot at the boundary with `resume_from`, leave the change out, or start a new run",
            ),
            Self::Step(error) => Report::bug("a denoising step cannot be made", error.to_string()),
            Self::NotFinite { step, steps, expert } => Report::failed(
                format!("the latent is not finite after step {step} of {steps}"),
                format!("the {expert} expert returned values that are not finite"),
                "use a lower `guidance`; if the bundle was exported unverified, export the checkpoint with verification to check \
                 its weights",
            ),
            Self::FramesNotFinite { chunk, chunks } => Report::failed(
                format!("the frames of latent frame {chunk} of {chunks} are not finite"),
                "the decoder returned values that are not finite",
                "decode again with another `precision` or `kernels`; if the bundle was exported unverified, export the \
                 checkpoint with verification to check its weights",
            ),
            Self::FrameTimesteps { why } => Report::bad_input(
                "the timesteps of the latent frames cannot be used",
                why.clone(),
                "give one timestep from 0 to 1000 for each latent frame",
            ),
            Self::NoiseFile { path, why } => Report::bad_input(
                format!("the noise in {} cannot be used", path.display()),
                why.clone(),
                "give a safetensors file whose tensor `noise` is f32 and has the shape of the clip's latent",
            ),
            Self::DamagedBundle { path, files, damaged } => Report::damaged(
                format!("the bundle {} is damaged in {} of {files} files", path.display(), damaged.len()),
                damaged.iter().map(|(file, why)| format!("{file}: {why}")).collect::<Vec<_>>().join("; "),
                "copy these files again, or export the checkpoint again",
            ),
            Self::NoPreviewMap => Report::bad_input(
                "preview cannot be rgb",
                "the linear map of previews was not fitted for this bundle's decoder",
                "fit it once with `rushes calibrate` and `preview`, or use `preview` full",
            )
            .about(Field::Preview),
            Self::NoTinyDecoder => Report::bad_input(
                "preview cannot be tiny",
                "this bundle has no tiny decoder",
                "export the checkpoint again with `tiny_decoder` taew2_1.safetensors, or use `preview` rgb or full",
            )
            .about(Field::Preview),
            Self::FramesOfLatent { latent, frames } => Report::bad_input(
                "the frames do not match the latent",
                format!("a latent of shape {latent:?} cannot be decoded to frames of shape {frames:?}"),
                "pass the frames that the decoder made from this latent",
            ),
            Self::TooFewPositions { positions, unknowns } => Report::bad_input(
                "the preview map cannot be fitted",
                format!("{positions} latent positions do not determine {unknowns} unknowns per colour"),
                "fit it on more clips or on larger ones",
            ),
            Self::TraceFile { path, why } => Report::bad_input(
                format!("the trace {} cannot be written", path.display()),
                why.clone(),
                "name a file in a folder that exists and that you may write to",
            ),
        }
    }
}

bundle::display_as_report!(Error);

impl Error {
    /// Wraps the error of a callback, which ends the run like any other error.
    pub fn callback(error: impl Diagnose + Send + Sync + 'static) -> Self {
        Self::Callback(Box::new(error))
    }

    /// The same error, with the device on which it happened. Those that name a device or are a request to stop stay as they
    /// are.
    pub(crate) fn on_device(self, device: Device) -> Self {
        use engines::Error as Engine;
        match self {
            Self::Engine(Engine::OutOfMemory { .. } | Engine::NoRoom { .. }) => self,
            other if other.is_cancelled() => other,
            other => Self::OnDevice { device, source: Box::new(other) },
        }
    }

    /// Returns true if the run was stopped by a request rather than by a failure.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
    }
}

impl From<ChannelMismatch> for Error {
    fn from(error: ChannelMismatch) -> Self {
        Self::Channels(error)
    }
}

impl From<engines::LibraryError> for Error {
    fn from(error: engines::LibraryError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<engines::TensorError> for Error {
    fn from(error: engines::TensorError) -> Self {
        Self::Engine(error.into())
    }
}
