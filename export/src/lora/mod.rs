//! LoRA files: changes of the weights of experts, in every form in which they are published.
//!
//! | Modules | Contents |
//! |---|---|
//! | `file`, `scaling` | tensors and settings of a file |
//! | `key` | the model, module and part that a key names |
//! | `layer` | the tensors of one module, and the changes that they make |
//! | `modules` | the modules of a denoiser by the names that files give them |
//! | [`summary`] | what a file contains, without a model |
//! | [`matching`] | a file against an expert: every key is applied, skipped for a reason, or left over |
//! | [`resolved`] | all files of an export or a run: their changes, and the proof that they apply |
//!
//! A key is never ignored silently: what is left over is an error that names it, unless leftovers are allowed.

mod error;
mod file;
mod key;
mod layer;
pub mod matching;
mod modules;
pub mod resolved;
mod scaling;
pub mod summary;

pub use error::LoraError;
pub use file::LoraFile;
pub use key::Naming;
pub use layer::Form;

use crate::Error;
use bundle::lora::LoraExpert;
use layer::Layer;
use std::path::Path;

/// A LoRA file with its keys grouped by module.
#[derive(Debug)]
pub struct Lora {
    file: LoraFile,
    layers: Vec<Layer>,
    /// Keys whose end is not one of a LoRA.
    unknown: Vec<String>,
}

impl Lora {
    /// Opens a file and groups its keys.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read, or if two keys are the same part of a module.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::of(LoraFile::open(path)?)
    }

    /// Groups the keys of a file.
    ///
    /// # Errors
    /// Returns an error if two keys are the same part of a module.
    pub fn of(file: LoraFile) -> Result<Self, Error> {
        let (layers, unknown) = layer::layers_of(&file)?;
        Ok(Self { file, layers, unknown })
    }

    /// Returns the file.
    pub fn file(&self) -> &LoraFile {
        &self.file
    }

    /// Returns true if its keys name two transformers: it is for both experts, with different changes.
    pub fn has_both_experts(&self) -> bool {
        self.layers.iter().any(|layer| layer.is_second)
    }

    /// Returns the expert that the name of the file states, if its keys state none.
    pub fn expert_in_name(&self) -> Option<LoraExpert> {
        LoraExpert::in_file_name(&self.file.name()).filter(|_| !self.has_both_experts())
    }
}
