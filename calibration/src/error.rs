//! Errors of calibration: its own, and those of the crates below with their own words.

use crate::codec::CodecError;
use bundle::{Diagnose, Report};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What can go wrong between a bundle and the numbers to quantise it with.
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
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of a calibration cannot be understood.
    FileContent {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Calibration met a value that is not finite.
    ActivationNotFinite {
        /// Where in the graph.
        point: String,
        /// Position among the channels or samples.
        channel: usize,
        /// The value.
        value: f32,
    },
    /// A value has another number of channels than before.
    Channels {
        /// Where in the graph.
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
    /// A calibration has nothing on a layer.
    NotObserved {
        /// The layer.
        layer: String,
        /// The component.
        component: String,
    },
}

impl Error {
    /// A file whose content cannot be understood or written.
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
            Self::Weights { layer, source } => Report::bad_input(
                format!("the weights of {layer} cannot be read"),
                source.to_string(),
                "export the checkpoint again",
            ),
            Self::FileContent { path, why } => Report::bad_input(
                format!("{} cannot be used", path.display()),
                why.clone(),
                "remove it and run `rushes calibrate` again",
            ),
            Self::ActivationNotFinite { point, channel, value } => Report::failed(
                format!("the model cannot be calibrated at {point}"),
                format!("it gave {value} at position {channel}"),
                "check that the checkpoint is whole, and use prompts and settings that make good clips",
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
                format!("the calibration knows nothing of {layer} in {component}"),
                "no recorded clip used it",
                "run `rushes calibrate` with clips of more than one latent frame and enough steps for every expert",
            ),
        }
    }
}

bundle::display_as_report!(Error);
