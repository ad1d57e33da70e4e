//! Errors of calibration. Errors of its dependencies are passed through.

use crate::codec::CodecError;
use bundle::{Diagnose, Report};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// An error of calibration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the bundle cannot be used.
    Contract(#[from] bundle::Error),
    /// A graph cannot be opened or run.
    Engine(#[from] engines::Error),
    /// A graph cannot be read or written.
    Graph(#[from] graph::Error),
    /// A tensor cannot be quantised.
    Codec(#[from] CodecError),
    /// The weights of a layer cannot be read.
    Weights {
        /// The layer.
        layer: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of a calibration is invalid.
    FileContent {
        /// The file.
        path: PathBuf,
        /// The problem with it.
        why: String,
    },
    /// An activation is not finite.
    ActivationNotFinite {
        /// The point in the graph.
        point: String,
        /// Index of the channel or sample.
        channel: usize,
        /// The value.
        value: f32,
    },
    /// The number of channels of an activation changed.
    Channels {
        /// The point in the graph.
        point: String,
        /// Channels before.
        expected: usize,
        /// Channels now.
        found: usize,
    },
    /// A calibration was made for other weights.
    OtherWeights {
        /// The calibration.
        path: PathBuf,
        /// The component whose weights differ.
        component: String,
        /// Digest of the bundle's weights.
        expected: String,
        /// Digest in the calibration.
        found: String,
    },
    /// A calibration has no statistics of a layer.
    NotObserved {
        /// The layer.
        layer: String,
        /// The component.
        component: String,
    },
}

impl Error {
    /// An error for a file whose content is invalid or cannot be written.
    pub(crate) fn file_content(path: &Path, why: &dyn Display) -> Self {
        Self::FileContent { path: path.to_owned(), why: why.to_string() }
    }
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Engine(error) => error.report(),
            Self::Graph(error) => error.report(),
            Self::Codec(error) => error.report(),
            Self::Weights { layer, source } => Report::damaged(
                format!("the weights of {layer} cannot be read"),
                source.to_string(),
                "copy the whole bundle again, or export the checkpoint again",
            ),
            Self::FileContent { path, why } => Report::damaged(
                format!("{} cannot be used", path.display()),
                why.clone(),
                "remove it and run `rushes calibrate` again",
            ),
            Self::ActivationNotFinite { point, channel, value } => Report::failed(
                format!("the model cannot be calibrated at {point}"),
                format!("its value at position {channel} is {value}"),
                "check that the checkpoint is complete, and use prompts and settings that make good clips",
            ),
            Self::Channels { point, expected, found } => Report::bad_input(
                format!("the model cannot be calibrated at {point}"),
                format!("it had {expected} channels and now has {found}"),
                "remove the folder `calibration` of the bundle and run `rushes calibrate` again",
            ),
            Self::OtherWeights { path, component, expected, found } => Report::bad_input(
                format!("{} was made for other weights", path.display()),
                format!(
                    "{component} has the digest {expected} in this bundle and {found} in the calibration"
                ),
                "run `rushes calibrate` for this bundle",
            ),
            Self::NotObserved { layer, component } => Report::bad_input(
                format!("the calibration has no statistics of {layer} in {component}"),
                "no recorded clip used it",
                "run `rushes calibrate` with clips of more than one latent frame and enough steps for every expert",
            ),
        }
    }
}

bundle::display_as_report!(Error);
