//! Models with random weights for criterion, by the same code as `rushes bench`; and the step in several kinds of operators.

pub mod random_weights;
pub mod step_kinds;

use bundle::spec::DenoiserSpec;
use engines::OnnxRuntime;
use quality::bench::shape::{Subject, random_bundle};
use runtime::model::{Model, ModelOptions};
use tempfile::TempDir;

/// A model with random weights, as long as it is needed.
#[derive(Debug)]
pub struct RandomModel {
    /// The model: every core, weights as `generate` holds them where they fit.
    pub model: Model,
    _folder: TempDir,
}

impl RandomModel {
    /// The model that the subject is a part of.
    ///
    /// # Panics
    /// No ONNX Runtime, or no room for the weights: a bench cannot go on without them.
    pub fn new(subject: &Subject) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bundle = random_bundle(folder.path(), subject, &bundle::stop::Stop::new())
            .expect("room for random weights");
        let onnx = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
        let model = Model::new(bundle, onnx, ModelOptions::default()).expect("graphs for the CPU");
        Self { model, _folder: folder }
    }

    /// A denoiser.
    ///
    /// # Panics
    /// See [`Self::new`].
    pub fn of_step(denoiser: DenoiserSpec) -> Self {
        Self::new(&Subject::Step(denoiser))
    }
}
