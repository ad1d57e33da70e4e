//! Errors of the runtime. Errors of its dependencies are passed through.

use bundle::routing::ExpertName;
use bundle::{Diagnose, ErrorClass, Report};
use std::path::PathBuf;

/// An error of generating a clip.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value or a bundle is invalid.
    Contract(#[from] bundle::Error),
    /// A graph cannot be opened or run.
    Engine(#[from] engines::Error),
    /// A prompt or a tokenizer cannot be used.
    Prompt(#[from] prompt::Error),
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
    /// The latent is no longer finite.
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Steps of the clip.
        steps: usize,
        /// The expert that ran.
        expert: ExpertName,
    },
    /// The timesteps of the latent frames of a step do not fit the latent.
    FrameTimesteps {
        /// The problem with them.
        why: String,
    },
    /// The file of `--noise` does not contain the noise of this clip.
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
    /// The file of `--trace` cannot be written.
    TraceFile {
        /// The file.
        path: PathBuf,
        /// The problem with it.
        why: String,
    },
    /// A callback of the caller failed and ended the run.
    Callback(Box<dyn Diagnose + Send + Sync>),
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Engine(error) => error.report(),
            Self::Prompt(error) => error.report(),
            Self::Callback(error) => error.report(),
            Self::Vocabulary { tokenizer, encoder } => Report::bad_input(
                "the tokenizer does not belong to the text encoder",
                format!("the tokenizer has {tokenizer} tokens and the encoder {encoder}"),
                "use the tokenizer that was published with the model and export again",
            ),
            Self::Rank { tensor, expected, found } => Report::failed(
                format!("`{tensor}` cannot be used"),
                format!("it has {found} axes and should have {expected}"),
                "export the checkpoint again with this version of rushes",
            ),
            Self::NotFinite { step, steps, expert } => Report::failed(
                format!("the latent is not finite after step {step} of {steps}"),
                format!("the {expert} expert returned values that are not finite"),
                "use a lower --guidance, or check the weights with `rushes export` without --no-verify",
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
            Self::DamagedBundle { path, files, damaged } => Report::bad_input(
                format!("the bundle {} is damaged in {} of {files} files", path.display(), damaged.len()),
                damaged.iter().map(|(file, why)| format!("{file}: {why}")).collect::<Vec<_>>().join("; "),
                "copy these files again, or export the checkpoint again",
            ),
            Self::NoPreviewMap => Report::bad_input(
                "--preview cannot be rgb",
                "the linear map of previews was not fitted for this bundle's decoder",
                "fit it once with `rushes calibrate BUNDLE --preview`, or use --preview full",
            ),
            Self::NoTinyDecoder => Report::bad_input(
                "--preview cannot be tiny",
                "this bundle has no tiny decoder",
                "export again with `--tiny taew2_1.safetensors`, or use --preview rgb or full",
            ),
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

    /// Returns true if the run was stopped by a request rather than by a failure.
    pub fn is_cancelled(&self) -> bool {
        self.report().class == ErrorClass::Interrupted
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
