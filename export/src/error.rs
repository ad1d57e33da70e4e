//! Errors of export: checkpoints that cannot be read, are inconsistent, or are not supported.

use crate::differences::Differences;
use bundle::dtype::{ElementType, WeightType};
use bundle::manifest::Component;
use bundle::units::ByteCount;
use bundle::{Diagnose, Field, Report};
use std::path::{Path, PathBuf};

/// An error of an export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    File {
        /// The failed action: `read`, `write`, `create`, `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file of the checkpoint is invalid, or a value in it is out of range.
    Config {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// A setting that is not supported.
    Unsupported {
        /// The config file.
        path: PathBuf,
        /// The setting in the file.
        setting: String,
        /// The supported values.
        why: String,
    },
    /// A scheduler config describes a trajectory that no solver supports.
    Scheduler {
        /// The config file.
        path: PathBuf,
        /// The setting in the file.
        setting: String,
        /// The supported values.
        expected: String,
        /// The reason.
        why: String,
    },
    /// A file of the checkpoint is a Git LFS pointer.
    LfsPointer {
        /// The file.
        path: PathBuf,
        /// Size of the file that it points to, if it states one.
        bytes: Option<u64>,
    },
    /// The tokenizer cannot be used with this text encoder.
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// Two config files disagree.
    ConfigsDiffer {
        /// The key that differs, as named in the first file.
        key: String,
        /// One file and its value.
        first: (PathBuf, String),
        /// The other file and its value.
        second: (PathBuf, String),
    },
    /// A component's folder has no weights, or several files and no index.
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The content of the folder.
        found: String,
    },
    /// A folder has several files for one model, and nothing says which is meant.
    SeveralFiles {
        /// The folder.
        folder: PathBuf,
        /// Their names.
        files: String,
    },
    /// The index lists a shard that does not exist.
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// Number of tensors in the shard.
        tensors: usize,
    },
    /// A weight file ends before its header or the data that its header describes.
    Truncated {
        /// The file.
        path: PathBuf,
        /// Expected length in bytes.
        expected: u64,
        /// Found length in bytes.
        found: u64,
    },
    /// A weight file was changed while it was read.
    Changed {
        /// The file.
        path: PathBuf,
        /// Length in bytes when it was opened.
        before: u64,
        /// Current length in bytes.
        now: u64,
    },
    /// The header of a weight file is invalid.
    Header {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// A PyTorch file in a format of torch before 1.6.
    LegacyTorchFile {
        /// The file.
        path: PathBuf,
    },
    /// A PyTorch file holds something else than a dictionary of tensors.
    Pickle {
        /// The file.
        path: PathBuf,
        /// What was found, such as a global by its name.
        found: String,
    },
    /// Weights that the config requires are missing, and others are there.
    Inventory {
        /// The searched folder or file.
        folder: PathBuf,
        /// The canonical names of missing weights.
        missing: Vec<String>,
        /// The canonical names of unexpected weights.
        extra: Vec<String>,
    },
    /// Two stored tensors are the same weight.
    DuplicateTensor {
        /// The weight's canonical name.
        name: String,
        /// The first file.
        first: PathBuf,
        /// The second file.
        second: PathBuf,
    },
    /// A weight that the config requires is missing.
    MissingTensor {
        /// Its canonical name.
        name: String,
        /// The searched folder.
        folder: PathBuf,
    },
    /// A weight does not belong to the model of the config.
    UnexpectedTensor {
        /// Its canonical name.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// A weight has another shape than the config requires.
    WrongShape {
        /// Its canonical name.
        name: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// The stored shape.
        found: Vec<usize>,
    },
    /// A weight is stored in a number format that cannot be exported.
    WrongType {
        /// Its canonical name.
        name: String,
        /// The number format.
        found: ElementType,
    },
    /// A weight is NaN or infinite.
    NotFinite {
        /// Its canonical name.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Position of the element, counted in row-major order from 0.
        index: usize,
        /// The element: NaN or an infinity.
        value: f32,
    },
    /// A weight is out of range for the requested number format.
    OutOfRange {
        /// Its canonical name.
        name: String,
        /// Position of the element, counted in row-major order from 0.
        index: usize,
        /// The element.
        value: f32,
        /// The requested number format.
        weights: WeightType,
    },
    /// A folder has the layout of no checkpoint.
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// Hard links are refused and the copy would be large.
    CopyRefused {
        /// The first file that could not be linked.
        path: PathBuf,
        /// The folder of the link.
        target: PathBuf,
        /// Size of all files that would be copied.
        bytes: ByteCount,
        /// The size that is copied without request.
        limit: ByteCount,
        /// The I/O error of the link.
        #[source]
        source: std::io::Error,
    },
    /// Graphs without weights were asked for, and the weights of a component would have to be converted or merged.
    NeedsConversion {
        /// The component.
        component: Component,
        /// The number formats in the checkpoint.
        stored: Vec<WeightType>,
        /// The number format that its graphs would read.
        weights: WeightType,
    },
    /// The weights of a checkpoint are not those that graphs were made for.
    OtherWeights {
        /// The component.
        component: Component,
        /// Its folder in the checkpoint.
        folder: PathBuf,
        /// The weights.
        differences: Box<Differences>,
    },
    /// Graphs have a tiny decoder, and the checkpoint has none.
    NoTinyDecoder {
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// A change cannot be merged into a weight.
    Merge {
        /// The weight's canonical name.
        weight: String,
        /// The problem.
        why: String,
    },
    /// A LoRA cannot be used.
    Lora(#[from] crate::lora::LoraError),
    /// A graph cannot be built or written.
    Graph(#[from] graph::Error),
    /// An error of the bundle format.
    Contract(#[from] bundle::Error),
    /// The quantisation of a layer is inconsistent.
    Numerics {
        /// The layer.
        layer: String,
    },
}

impl Error {
    /// Adds the path and the action to an I/O error.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// An invalid config file.
    pub(crate) fn config(path: &Path, why: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), why: why.into() }
    }

    /// A setting that is not supported.
    pub(crate) fn unsupported(path: &Path, setting: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), setting: setting.into(), why: why.into() }
    }

    /// A scheduler setting that no solver supports.
    pub(crate) fn scheduler(
        path: &Path,
        setting: impl Into<String>,
        expected: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::Scheduler {
            path: path.to_owned(),
            setting: setting.into(),
            expected: expected.into(),
            why: why.into(),
        }
    }

    /// A weight file with an invalid header.
    pub(crate) fn header(path: &Path, why: impl Into<String>) -> Self {
        Self::Header { path: path.to_owned(), why: why.into() }
    }
}

const DOWNLOAD_AGAIN: &str = "download or copy the file again and compare its size with the original";
const FITTING_CONFIG: &str = "use the config.json that was published with these weights";

/// The most names that an error lists.
const MOST_NAMES: usize = 10;

/// Names for an error, the first of many.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Diagnose for Error {
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
    fn report(&self) -> Report {
        match self {
            Self::File { action, path, source } => Report::bad_input(
                format!("cannot {action} {}", path.display()),
                source.to_string(),
                "check that the path exists, that there is room and that you have access to it",
            ),
            Self::Lora(error) => error.report(),
            Self::Graph(error) => error.report(),
            Self::Contract(error) => error.report(),
            Self::NotACheckpoint { folder } => Report::bad_input(
                format!("{} is not a checkpoint", folder.display()),
                "it has no model_index.json, as in the diffusers layout, and no high_noise_model, \
                 models_t5_umt5-xxl-enc-bf16.pth or Wan2.1_VAE.pth, as in the official layout",
                "name the folder that holds these files",
            ),
            Self::Config { path, why } => Report::bad_input(
                format!("{} cannot be used", path.display()),
                why.clone(),
                "compare the file with the one that was published with the model",
            ),
            Self::Unsupported { path, setting, why } => Report::bad_input(
                format!("{} has a setting that cannot be exported: {setting}", path.display()),
                why.clone(),
                "export a Wan text-to-video checkpoint, such as Wan2.2-T2V-A14B, in the diffusers or the official layout",
            ),
            Self::Scheduler { path, setting, expected, why } => Report::bad_input(
                format!("{} is not supported: {setting}", path.display()),
                format!("{why}; expected {expected}"),
                "to use another trajectory, change the file, or write sampler and shift into rushes.json next to \
                 model_index.json, such as {\"sampler\": \"unipc\", \"shift\": 5.0, \"steps\": 40}",
            ),
            Self::LfsPointer { path, bytes } => Report::bad_input(
                format!("{} is a Git LFS pointer, not the file", path.display()),
                bytes.map_or("the repository was cloned without its large files".into(), |bytes| {
                    format!("the repository was cloned without its large files; this one has {bytes} bytes")
                }),
                "run `git lfs pull` in the checkpoint's folder, and export again",
            ),
            Self::Tokenizer { path, why } => Report::bad_input(
                format!("the tokenizer {} cannot be used", path.display()),
                why.clone(),
                "use the tokenizer.json that was published with this text encoder",
            ),
            Self::ConfigsDiffer { key, first, second } => Report::bad_input(
                format!("two configs of the checkpoint disagree about {key}"),
                format!(
                    "it is {} in {} and {} in {}",
                    first.1,
                    first.0.display(),
                    second.1,
                    second.0.display()
                ),
                "use folders that belong to one model",
            ),
            Self::NoWeights { folder, found } => Report::bad_input(
                format!("no weights can be read from {}", folder.display()),
                found.clone(),
                "put the component's .safetensors file there, or its shards with their .safetensors.index.json",
            ),
            Self::SeveralFiles { folder, files } => Report::bad_input(
                format!("{} has several files for one model", folder.display()),
                files.clone(),
                "keep one of them in the folder",
            ),
            Self::MissingShard { index, shard, tensors } => Report::bad_input(
                format!("the weight file {shard} is missing"),
                format!("{} lists {tensors} tensors in it", index.display()),
                "download the missing file into the same folder",
            ),
            Self::Truncated { path, expected, found } => Report::damaged(
                format!("{} is truncated", path.display()),
                format!("it should have at least {expected} bytes and has {found}"),
                DOWNLOAD_AGAIN,
            ),
            Self::Changed { path, before, now } => Report::bad_input(
                format!("{} changed while it was read", path.display()),
                if before == now {
                    format!("another process wrote to it; it still has {now} bytes")
                } else {
                    format!("it had {before} bytes and has {now} now")
                },
                "wait until the download or copy into that folder has ended, then run the command again",
            ),
            Self::Header { path, why } => {
                Report::damaged(format!("{} is damaged", path.display()), why.clone(), DOWNLOAD_AGAIN)
            }
            Self::LegacyTorchFile { path } => Report::bad_input(
                format!("{} cannot be read", path.display()),
                "it has the format of torch before 1.6, which is a program rather than data",
                format!(
                    "save it again with a newer torch under another name: python -c 'import sys, torch; \
                     torch.save(torch.load(sys.argv[1], map_location=\"cpu\", weights_only=True), sys.argv[2])' {} \
                     NEW",
                    path.display()
                ),
            ),
            Self::Pickle { path, found } => Report::bad_input(
                format!("{} cannot be read", path.display()),
                format!("it holds {found}, and only a dictionary from names to tensors is read"),
                "save the dictionary of weights alone, torch.save(model.state_dict(), FILE), or use safetensors",
            ),
            Self::Inventory { folder, missing, extra } => Report::bad_input(
                format!("the weights in {} are not those of the model", folder.display()),
                [("missing", missing), ("unexpected", extra)]
                    .into_iter()
                    .filter(|(_, names)| !names.is_empty())
                    .map(|(what, names)| format!("{} {what}: {}", names.len(), listed(names)))
                    .collect::<Vec<_>>()
                    .join("; "),
                FITTING_CONFIG,
            ),
            Self::DuplicateTensor { name, first, second } => Report::bad_input(
                format!("the weight {name} is stored twice"),
                format!("once in {} and once in {}", first.display(), second.display()),
                "keep the files of one version of the model in the folder",
            ),
            Self::MissingTensor { name, folder } => Report::bad_input(
                format!("the weight {name} is missing"),
                format!("config.json requires it, but it is in no file in {}", folder.display()),
                FITTING_CONFIG,
            ),
            Self::UnexpectedTensor { name, path } => Report::bad_input(
                format!("the weight {name} does not belong to the model"),
                format!("it is in {}, but config.json does not require it", path.display()),
                FITTING_CONFIG,
            ),
            Self::WrongShape { name, expected, found } => Report::bad_input(
                format!("the weight {name} has a wrong shape"),
                format!("expected {expected:?} from config.json, found {found:?}"),
                FITTING_CONFIG,
            ),
            Self::WrongType { name, found } => Report::bad_input(
                format!("the weight {name} cannot be exported"),
                format!("expected f32, f16 or bf16, found {found}"),
                "use a checkpoint that is not quantised",
            ),
            Self::NotFinite { name, path, index, value } => Report::damaged(
                format!("the weight {name} is damaged"),
                format!("its element {index} in {} is {value}", path.display()),
                DOWNLOAD_AGAIN,
            ),
            Self::OutOfRange { name, index, value, weights } => Report::bad_input(
                format!("the weight {name} is out of range for {}", weights.element()),
                format!("its element {index} is {value:e}"),
                "use `weights` bf16 or f32",
            )
            .about(Field::Weights),
            Self::NeedsConversion { component, stored, weights } => {
                let stored: Vec<String> = stored.iter().map(|format| format.element().to_string()).collect();
                Report::bad_input(
                    format!("{component} cannot be exported without its weights"),
                    format!(
                        "they are stored in {}, and its graphs would read weights that are converted to {} or merged",
                        stored.join(" and "),
                        weights.element()
                    ),
                    "choose a `target` and `weights` in the number format of the checkpoint, or export the bundle with its \
                     weights",
                )
                .about(Field::GraphsOnly)
            }
            Self::OtherWeights { component, folder, differences } => Report::bad_input(
                format!("{} in {} is not what the graphs were made for", component, folder.display()),
                differences.to_string(),
                "use the checkpoint that the graphs were made from, as it was published, or export this one with \
                 `rushes export`",
            ),
            Self::NoTinyDecoder { checkpoint } => Report::bad_input(
                format!("{} has no tiny decoder", checkpoint.display()),
                "the graphs have one for previews",
                "give its file with `tiny_decoder`",
            )
            .about(Field::TinyDecoder),
            Self::Numerics { layer } => Report::bad_input(
                format!("{layer} cannot be quantised"),
                "its scales and ranges do not match one quantisation scheme",
                "run `rushes calibrate` and `rushes quantize` again",
            ),
            Self::Merge { weight, why } => Report::bad_input(
                format!("the change of the weight {weight} cannot be merged"),
                why.clone(),
                "use low-rank changes that were trained for this model, or a smaller scale",
            ),
            Self::CopyRefused { path, target, bytes, limit, source } => Report::bad_input(
                format!("{} cannot be linked into {}", path.display(), target.display()),
                format!(
                    "{source}; a copy would take {bytes}, and more than {limit} is copied on request only"
                ),
                "put the bundle on the file system of the checkpoint, or allow the copy with `copy`",
            ),
        }
    }
}

bundle::display_as_report!(Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_state_what_happened_why_and_a_fix() {
        let wrong = Error::WrongShape { name: "proj_out.bias".into(), expected: vec![64], found: vec![48] };
        insta::assert_snapshot!(wrong, @"the weight proj_out.bias has a wrong shape: expected [64] from config.json, found [48] (use the config.json that was published with these weights)");
        let refused = Error::CopyRefused {
            path: "a/model.safetensors".into(),
            target: "b/weights".into(),
            bytes: ByteCount(57_150_000_000),
            limit: ByteCount(1_000_000_000),
            source: std::io::ErrorKind::CrossesDevices.into(),
        };
        insta::assert_snapshot!(refused, @"a/model.safetensors cannot be linked into b/weights: cross-device link or rename; a copy would take 57.1 GB, and more than 1.0 GB is copied on request only (put the bundle on the file system of the checkpoint, or allow the copy with `copy`)");
        let damaged = Error::NotFinite {
            name: "shared.weight".into(),
            path: "model.safetensors".into(),
            index: 7,
            value: f32::NAN,
        };
        insta::assert_snapshot!(damaged, @"the weight shared.weight is damaged: its element 7 in model.safetensors is NaN (download or copy the file again and compare its size with the original)");
        let two = Error::ConfigsDiffer {
            key: "layers".into(),
            first: ("transformer/config.json".into(), "40".into()),
            second: ("transformer_2/config.json".into(), "30".into()),
        };
        insta::assert_snapshot!(two, @"two configs of the checkpoint disagree about layers: it is 40 in transformer/config.json and 30 in transformer_2/config.json (use folders that belong to one model)");
    }
}
