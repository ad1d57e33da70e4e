//! Errors of LoRA files.

use super::resolved::Leftover;
use bundle::{Field, Report};
use std::path::{Path, PathBuf};

/// A LoRA that cannot be used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LoraError {
    /// The file is in another format, or the folder has no LoRA.
    NotSafetensors {
        /// The file or folder.
        path: PathBuf,
    },
    /// A tensor is stored in a number format that is not supported.
    Format {
        /// The file.
        path: PathBuf,
        /// The key of the tensor.
        key: String,
        /// The number format.
        format: String,
    },
    /// The settings of PEFT in the file or beside it cannot be used.
    Settings {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// A key names no layer of the model, or is not understood.
    Leftover {
        /// The file.
        path: PathBuf,
        /// The first such key.
        key: String,
        /// Why it cannot be used.
        why: String,
        /// The number of such keys.
        count: usize,
    },
    /// A change is for weights of another size.
    Size {
        /// The file.
        path: PathBuf,
        /// A key of the change.
        key: String,
        /// The shape that the change is for.
        found: Vec<usize>,
        /// The shape of the model's weight.
        expected: Vec<usize>,
    },
    /// The LoRA is for a model with more blocks.
    Depth {
        /// The file.
        path: PathBuf,
        /// The key with the largest number of a block.
        key: String,
        /// The blocks that the file needs.
        found: usize,
        /// The blocks of the model.
        expected: usize,
    },
    /// Tensors of a change do not fit each other, or hold values that are not finite.
    Change {
        /// The file.
        path: PathBuf,
        /// A key of the change.
        key: String,
        /// The problem.
        why: String,
    },
    /// The model does not have the expert that the LoRA is for.
    Expert {
        /// The file.
        path: PathBuf,
        /// The expert.
        asked: String,
        /// The experts of the model.
        available: Vec<String>,
    },
    /// A change can be merged only, not computed beside the weight.
    NoBranch {
        /// The canonical name of the weight.
        weight: String,
        /// The reason.
        why: String,
    },
    /// Nothing of the file applies to the model.
    Nothing {
        /// The file.
        path: PathBuf,
    },
}

impl LoraError {
    /// The error of keys that cannot be applied; none without such keys.
    pub fn of_leftover(path: &Path, leftover: &[Leftover]) -> Option<Self> {
        let Leftover { key, why } = leftover.first()?.clone();
        Some(Self::Leftover { path: path.to_owned(), key, why, count: leftover.len() })
    }

    /// Reports the error.
    pub(crate) fn report(&self) -> Report {
        let report = match self {
            Self::NotSafetensors { path } => Report::bad_input(
                format!("{} is not a safetensors file", path.display()),
                "a LoRA is a .safetensors file, or a folder with adapter_model.safetensors or \
                 pytorch_lora_weights.safetensors",
                "name the file, or convert it to safetensors with the program that made it",
            ),
            Self::Format { path, key, format } => Report::bad_input(
                format!("the LoRA {} cannot be read", path.display()),
                format!("{key} is stored in {format}; expected f32, f16, bf16 or an 8-bit float"),
                "use a version of the file in one of these formats",
            ),
            Self::Settings { path, why } => Report::bad_input(
                format!("the LoRA {} cannot be used", path.display()),
                why.clone(),
                "use a LoRA that was trained with the LORA method of PEFT",
            ),
            Self::Leftover { path, key, why, count } => {
                let others = match count {
                    0 | 1 => String::new(),
                    2 => "; one more key is not understood".to_owned(),
                    _ => format!("; {} more keys are not understood", count - 1),
                };
                Report::bad_input(
                    format!("the LoRA {} has a key that cannot be applied: {key}", path.display()),
                    format!("{why}{others}"),
                    "check that the LoRA was made for this model; with `lora_lenient`, such keys are left out",
                )
            }
            Self::Size { path, key, found, expected } => Report::bad_input(
                format!("the LoRA {} is for a model of another size", path.display()),
                format!("{key} changes a weight of {found:?}, and that of the model is {expected:?}"),
                "use a LoRA that was trained for this model",
            ),
            Self::Depth { path, key, found, expected } => Report::bad_input(
                format!("the LoRA {} is for a model with more blocks", path.display()),
                format!("{key} needs {found} blocks, and the model has {expected}"),
                "use a LoRA that was trained for this model",
            ),
            Self::Change { path, key, why } => Report::damaged(
                format!("the LoRA {} is damaged", path.display()),
                format!("{key}: {why}"),
                "download or copy the file again and compare its size with the original",
            ),
            Self::Expert { path, asked, available } => Report::bad_input(
                format!("the LoRA {} cannot be applied", path.display()),
                format!("it is for the expert {asked}, and the model has {}", available.join(", ")),
                "state the expert before the file, as in all=FILE, or use a LoRA for this model",
            ),
            Self::NoBranch { weight, why } => Report::bad_input(
                format!("the LoRA cannot be applied to {weight} without merging it"),
                why.clone(),
                "merge it into a bundle of its own with `rushes export` and `lora`, and generate with that bundle",
            ),
            Self::Nothing { path } => Report::bad_input(
                format!("the LoRA {} changes nothing", path.display()),
                "none of its keys names a weight of the model",
                "use a LoRA that was trained for this model",
            ),
        };
        report.about(Field::Lora)
    }
}

impl std::fmt::Display for LoraError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.report().fmt(f)
    }
}

impl std::error::Error for LoraError {}
