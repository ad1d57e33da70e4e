//! Errors of the runtime: its own, and those of the crates below with their own words.

use bundle::routing::ExpertName;
use bundle::{Diagnose, ErrorClass, Report};
use std::path::PathBuf;

/// What can go wrong between a prompt and a clip.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value or a bundle breaks the contract.
    Contract(#[from] bundle::Error),
    /// A graph cannot be opened or run.
    Engine(#[from] engines::Error),
    /// A prompt or a tokenizer cannot be used.
    Prompt(#[from] prompt::Error),
    /// The tokenizer knows tokens that the text encoder does not.
    Vocabulary {
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the encoder's embedding table.
        encoder: usize,
    },
    /// A graph gave a tensor with another number of axes than its contract says.
    Rank {
        /// The tensor.
        tensor: String,
        /// Axes in the contract.
        expected: usize,
        /// Axes found.
        found: usize,
    },
    /// The latent is not finite any more.
    NotFinite {
        /// The step after which it was seen, from 1.
        step: usize,
        /// Steps of the clip.
        steps: usize,
        /// The expert that ran.
        expert: ExpertName,
    },
    /// `--noise` names a file that does not hold the noise of this clip.
    NoiseFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Files of a bundle are not as they were written.
    DamagedBundle {
        /// The bundle.
        path: PathBuf,
        /// How many files were looked at.
        files: usize,
        /// Those that are damaged, each with the reason.
        damaged: Vec<(String, String)>,
    },
    /// The bundle has no map to show latents with.
    NoPreviewMap,
    /// The bundle has no tiny decoder.
    NoTinyDecoder,
    /// Frames cannot be those of a latent.
    FramesOfLatent {
        /// Shape of the latent, `[C,T,h,w]`.
        latent: Vec<usize>,
        /// Shape of the frames, `[N,3,H,W]`.
        frames: Vec<usize>,
    },
    /// A map has more unknowns than what it is fitted on can tell.
    TooFewPositions {
        /// Latent positions that there are.
        positions: u64,
        /// Unknowns of each colour.
        unknowns: usize,
    },
    /// `--trace` names a file that cannot be written.
    TraceFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A callback of the caller failed, which ended the run.
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
                format!("it has {tokenizer} tokens and the encoder knows {encoder}"),
                "use the tokenizer that was published with the model and export again",
            ),
            Self::Rank { tensor, expected, found } => Report::failed(
                format!("`{tensor}` cannot be used"),
                format!("it has {found} axes and should have {expected}"),
                "export the checkpoint again with this version of rushes",
            ),
            Self::NotFinite { step, steps, expert } => Report::failed(
                format!("the latent is broken after step {step} of {steps}"),
                format!("the {expert} expert gave values that are not finite"),
                "use a lower --guidance, or check the weights with `rushes export` without --no-verify",
            ),
            Self::NoiseFile { path, why } => Report::bad_input(
                format!("the noise in {} cannot be used", path.display()),
                why.clone(),
                "give a safetensors file whose tensor `noise` is f32 and has the shape of the clip's latent",
            ),
            Self::DamagedBundle { path, files, damaged } => Report::bad_input(
                format!("the bundle {} is damaged in {} of {files} files", path.display(), damaged.len()),
                damaged.iter().map(|(file, why)| format!("{file}: {why}")).collect::<Vec<_>>().join("; "),
                "copy these files once more, or export the checkpoint again",
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
                "frames and latent do not belong together",
                format!("a latent of the shape {latent:?} cannot make frames of the shape {frames:?}"),
                "give the frames that the decoder made of this latent",
            ),
            Self::TooFewPositions { positions, unknowns } => Report::bad_input(
                "the preview map cannot be fitted",
                format!("{positions} latent positions do not tell {unknowns} unknowns of each colour apart"),
                "fit it on more clips or larger ones",
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
    /// The error of a callback, which ends the run as an error of its own would.
    pub fn callback(error: impl Diagnose + Send + Sync + 'static) -> Self {
        Self::Callback(Box::new(error))
    }

    /// Whether a run was stopped rather than failed.
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
