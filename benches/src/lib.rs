//! Models with random weights for criterion, made by the same code as those of `rushes bench`, variants of a step, and
//! queues of clips.

pub mod queue;
pub mod queue_store;
pub mod step_kinds;

use bundle::spec::DenoiserSpec;
use engines::OnnxRuntime;
use quality::bench::shape::{Subject, random_bundle};
use runtime::model::{Model, ModelOptions};
use tempfile::TempDir;

/// A model with random weights, in a temporary folder.
#[derive(Debug)]
pub struct RandomModel {
    /// The model, with one thread per core and prepacked weights.
    pub model: Model,
    _folder: TempDir,
}

impl RandomModel {
    /// Creates a model with the graphs of `subject`.
    ///
    /// # Panics
    /// Panics if there is no ONNX Runtime, or no disk space for the weights.
    pub fn new(subject: &Subject) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let bundle = random_bundle(folder.path(), subject, &bundle::stop::Stop::new())
            .expect("disk space for random weights");
        let onnx = OnnxRuntime::load(None).unwrap_or_else(|error| panic!("{error}"));
        let model = Model::new(bundle, onnx, ModelOptions::of_variant(None)).expect("graphs for the CPU");
        Self { model, _folder: folder }
    }

    /// Creates a model with a denoiser.
    ///
    /// # Panics
    /// See [`Self::new`].
    pub fn of_step(denoiser: DenoiserSpec) -> Self {
        Self::new(&Subject::Step(denoiser))
    }
}
