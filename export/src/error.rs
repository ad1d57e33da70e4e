//! Errors of export: checkpoints that cannot be read, do not hold together, or need what the graphs cannot do.

use bundle::dtype::{ElementType, WeightType};
use bundle::units::ByteCount;
use bundle::{Diagnose, Report};
use std::path::{Path, PathBuf};

/// What can go wrong between a checkpoint and a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    File {
        /// What was being done: `read`, `write`, `create`, `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file of the checkpoint cannot be understood, or a value in it is out of range.
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that the exported graphs do not have.
    Unsupported {
        /// The config file.
        path: PathBuf,
        /// The setting as it stands there.
        setting: String,
        /// What is supported instead.
        why: String,
    },
    /// A scheduler config asks for a trajectory that no solver here takes.
    Scheduler {
        /// The config file.
        path: PathBuf,
        /// The setting as it stands there.
        setting: String,
        /// What can be followed.
        expected: String,
        /// Why.
        why: String,
    },
    /// A file of the checkpoint is a Git LFS pointer.
    LfsPointer {
        /// The file.
        path: PathBuf,
        /// Bytes of what it points to, where it says so.
        bytes: Option<u64>,
    },
    /// The tokenizer cannot be used with this text encoder.
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Two config files that must agree do not.
    ConfigsDiffer {
        /// The key that differs, as the first file calls it.
        key: String,
        /// One file and its value.
        first: (PathBuf, String),
        /// The other file and its value.
        second: (PathBuf, String),
    },
    /// A component's folder holds no weights, or several files and no index.
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was found there.
        found: String,
    },
    /// The index names a shard that is not there.
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The file it names.
        shard: String,
        /// How many tensors should be in it.
        tensors: usize,
    },
    /// A weight file ends before its header or the data that its header describes.
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A weight file was written to while it was read.
    Changed {
        /// The file.
        path: PathBuf,
        /// Bytes that it had when it was opened.
        before: u64,
        /// Bytes that it has now.
        now: u64,
    },
    /// The header of a weight file does not hold.
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Two stored tensors stand for the same weight.
    DuplicateTensor {
        /// The weight's canonical name.
        name: String,
        /// The file of one.
        first: PathBuf,
        /// The file of the other.
        second: PathBuf,
    },
    /// A weight that the config calls for is not there.
    MissingTensor {
        /// Its canonical name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A weight is there that the config leaves no place for.
    UnexpectedTensor {
        /// Its canonical name.
        name: String,
        /// The file that holds it.
        path: PathBuf,
    },
    /// A weight has another shape than the config says.
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
        /// The file that holds it.
        path: PathBuf,
        /// Position of the element, counted in row-major order from 0.
        index: usize,
        /// The element: NaN or an infinity.
        value: f32,
    },
    /// A weight is too large for the number format that was asked for.
    OutOfRange {
        /// Its canonical name.
        name: String,
        /// Position of the element, counted in row-major order from 0.
        index: usize,
        /// The element.
        value: f32,
        /// The number format that was asked for.
        weights: WeightType,
    },
    /// Hard links are refused and the copy would be large.
    CopyRefused {
        /// The first file that could not be linked.
        path: PathBuf,
        /// Where to.
        target: PathBuf,
        /// Bytes of all files that would be copied.
        bytes: ByteCount,
        /// What is copied without asking.
        limit: ByteCount,
        /// What the system said to the link.
        #[source]
        source: std::io::Error,
    },
    /// A graph cannot be built or written.
    Graph(#[from] graph::Error),
    /// A value breaks the contract of bundles.
    Contract(#[from] bundle::Error),
    /// The numbers of a layer do not hold together.
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

    /// A config file that cannot be understood.
    pub(crate) fn config(path: &Path, why: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), why: why.into() }
    }

    /// A setting that the exported graphs do not have.
    pub(crate) fn unsupported(path: &Path, setting: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), setting: setting.into(), why: why.into() }
    }

    /// A scheduler setting that no solver here follows.
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

    /// A weight file whose header does not hold.
    pub(crate) fn header(path: &Path, why: impl Into<String>) -> Self {
        Self::Header { path: path.to_owned(), why: why.into() }
    }
}

const DOWNLOAD_AGAIN: &str = "download or copy the file again and compare its size with the original";
const FITTING_CONFIG: &str = "use the config.json that was published with these weights";

impl Diagnose for Error {
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
    fn report(&self) -> Report {
        match self {
            Self::File { action, path, source } => Report::bad_input(
                format!("cannot {action} {}", path.display()),
                source.to_string(),
                "check that the path exists, that there is room and that you have access to it",
            ),
            Self::Graph(error) => error.report(),
            Self::Contract(error) => error.report(),
            Self::Config { path, why } => Report::bad_input(
                format!("{} cannot be used", path.display()),
                why.clone(),
                "compare the file with the one that was published with the model",
            ),
            Self::Unsupported { path, setting, why } => Report::bad_input(
                format!("{} asks for what cannot be exported: {setting}", path.display()),
                why.clone(),
                "export a Wan text-to-video checkpoint in the diffusers layout, such as Wan2.2-T2V-A14B",
            ),
            Self::Scheduler { path, setting, expected, why } => Report::bad_input(
                format!("{} cannot be followed: {setting}", path.display()),
                format!("{why}; expected {expected}"),
                "if another trajectory will do, change the file, or write how to sample into rushes.json beside \
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
            Self::MissingShard { index, shard, tensors } => Report::bad_input(
                format!("the weight file {shard} is missing"),
                format!("{} says that it holds {tensors} tensors", index.display()),
                "download the missing file into the same folder",
            ),
            Self::Truncated { path, expected, found } => Report::bad_input(
                format!("{} is cut off", path.display()),
                format!("it should have at least {expected} bytes and has {found}"),
                DOWNLOAD_AGAIN,
            ),
            Self::Changed { path, before, now } => Report::bad_input(
                format!("{} changed while it was read", path.display()),
                if before == now {
                    format!("somebody wrote to it; it still has {now} bytes")
                } else {
                    format!("it had {before} bytes at first and has {now} now")
                },
                "wait until the download or copy into that folder has ended, then run the command again",
            ),
            Self::Header { path, why } => {
                Report::bad_input(format!("{} is damaged", path.display()), why.clone(), DOWNLOAD_AGAIN)
            }
            Self::DuplicateTensor { name, first, second } => Report::bad_input(
                format!("the weight {name} is stored twice"),
                format!("once in {} and once in {}", first.display(), second.display()),
                "keep the files of one version of the model in the folder",
            ),
            Self::MissingTensor { name, folder } => Report::bad_input(
                format!("the weight {name} is missing"),
                format!("config.json calls for it and no file in {} holds it", folder.display()),
                FITTING_CONFIG,
            ),
            Self::UnexpectedTensor { name, path } => Report::bad_input(
                format!("the weight {name} has no place in the model"),
                format!("{} holds it and config.json does not call for it", path.display()),
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
            Self::NotFinite { name, path, index, value } => Report::bad_input(
                format!("the weight {name} is damaged"),
                format!("element {index} of it in {} is {value}", path.display()),
                DOWNLOAD_AGAIN,
            ),
            Self::OutOfRange { name, index, value, weights } => Report::bad_input(
                format!("the weight {name} does not fit into {}", weights.element()),
                format!("element {index} of it is {value:e}"),
                "use --weights bf16 or --weights f32",
            ),
            Self::Numerics { layer } => Report::bad_input(
                format!("{layer} cannot be quantised"),
                "its scales and ranges are not those of one kind of quantisation",
                "run `rushes calibrate` and `rushes quantize` again",
            ),
            Self::CopyRefused { path, target, bytes, limit, source } => Report::bad_input(
                format!("{} cannot be linked into {}", path.display(), target.display()),
                format!("{source}; a copy would take {bytes}, and more than {limit} is not copied unasked"),
                "put the bundle on the file system of the checkpoint, or allow the copy with --copy",
            ),
        }
    }
}

bundle::display_as_report!(Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_says_what_why_and_what_to_do() {
        let wrong = Error::WrongShape { name: "proj_out.bias".into(), expected: vec![64], found: vec![48] };
        insta::assert_snapshot!(wrong, @"the weight proj_out.bias has a wrong shape: expected [64] from config.json, found [48] (use the config.json that was published with these weights)");
        let refused = Error::CopyRefused {
            path: "a/model.safetensors".into(),
            target: "b/weights".into(),
            bytes: ByteCount(57_150_000_000),
            limit: ByteCount(1_000_000_000),
            source: std::io::ErrorKind::CrossesDevices.into(),
        };
        insta::assert_snapshot!(refused, @"a/model.safetensors cannot be linked into b/weights: cross-device link or rename; a copy would take 57.1 GB, and more than 1.0 GB is not copied unasked (put the bundle on the file system of the checkpoint, or allow the copy with --copy)");
        let damaged = Error::NotFinite {
            name: "shared.weight".into(),
            path: "model.safetensors".into(),
            index: 7,
            value: f32::NAN,
        };
        insta::assert_snapshot!(damaged, @"the weight shared.weight is damaged: element 7 of it in model.safetensors is NaN (download or copy the file again and compare its size with the original)");
        let two = Error::ConfigsDiffer {
            key: "layers".into(),
            first: ("transformer/config.json".into(), "40".into()),
            second: ("transformer_2/config.json".into(), "30".into()),
        };
        insta::assert_snapshot!(two, @"two configs of the checkpoint disagree about layers: it is 40 in transformer/config.json and 30 in transformer_2/config.json (use folders that belong to one model)");
    }
}
