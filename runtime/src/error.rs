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
    /// A checkpoint cannot be exported.
    Export(#[from] export::Error),
    /// A model cannot be calibrated or quantised.
    Calibration(#[from] calibration::Error),
    /// A prompt or a tokenizer cannot be used.
    Prompt(#[from] crate::prompt::Error),
    /// A text file of the user cannot be read.
    TextFile(#[from] crate::text_file::Error),
    /// A clip cannot be written.
    Media(#[from] crate::media::Error),
    /// A model cannot be judged.
    Judge(#[from] crate::judge::Error),
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
    /// A preview cannot be written.
    PreviewFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `--trace` names a file that cannot be written.
    TraceFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No folder is known for the user's cache.
    NoCacheFolder,
    /// The program was built without the embedded model, and no bundle was named.
    NoEmbeddedModel,
    /// The user stopped the run.
    Interrupted {
        /// During what.
        phase: &'static str,
        /// What is left on disk, as a sentence.
        kept: String,
    },
    /// A result could not be written to standard output.
    Stdout(#[source] std::io::Error),
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Engine(error) => error.report(),
            Self::Export(error) => error.report(),
            Self::Calibration(error) => error.report(),
            Self::Prompt(error) => error.report(),
            Self::TextFile(error) => error.report(),
            Self::Media(error) => error.report(),
            Self::Judge(error) => error.report(),
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
            Self::PreviewFile { path, why } => Report::bad_input(
                format!("previews cannot be written to {}", path.display()),
                why.clone(),
                "name a folder, or a file that ends in .png, where you may write",
            ),
            Self::TraceFile { path, why } => Report::bad_input(
                format!("the trace {} cannot be written", path.display()),
                why.clone(),
                "name a file in a folder that exists and that you may write to",
            ),
            Self::NoCacheFolder => Report::missing(
                "there is no place for the embedded model",
                "neither a home folder nor a cache folder is known",
                "name one with --cache-dir, or give a bundle with --bundle",
            ),
            Self::NoEmbeddedModel => Report::bad_input(
                "there is no model to run",
                "this program was built without the embedded one",
                "give a bundle with --bundle; `rushes export` makes one from a checkpoint",
            ),
            Self::Interrupted { phase, kept } => Report::new(
                ErrorClass::Interrupted,
                format!("stopped while {phase}"),
                kept.clone(),
                "run the same command with the same --seed to get the whole clip",
            ),
            Self::Stdout(error) => Report::failed(
                "the result could not be printed",
                error.to_string(),
                "keep the reader of standard output open until the end",
            ),
        }
    }
}

bundle::display_as_report!(Error);

impl Error {
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
