//! Errors of the contract: values out of range, a `bundle.json` that does not hold, files that cannot be written.

use crate::dtype::ElementType;
use crate::{Diagnose, ErrorClass, Report};
use std::path::{Path, PathBuf};

/// What can be wrong with a value or a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that a user gave lies outside what is possible.
    Value {
        /// The name of the value, as the user knows it (`--size`).
        name: &'static str,
        /// What was given.
        given: String,
        /// The rule that it breaks.
        rule: String,
        /// Values that would do.
        fix: String,
    },
    /// A file could not be read or written.
    File {
        /// What was being done: `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The folder to make is there already and is not empty.
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// Another run is making or changing the same folder.
    Busy {
        /// The folder.
        path: PathBuf,
        /// What that run has locked.
        part: PathBuf,
    },
    /// What has the name that a folder needs while it is made was not left by a run.
    InTheWay {
        /// The folder to make.
        path: PathBuf,
        /// What is in its way.
        part: PathBuf,
    },
    /// A text file of the user cannot be read.
    TextFile(#[from] crate::text_file::Error),
    /// The work was stopped on request.
    Stopped,
    /// `bundle.json` is absent.
    NotABundle {
        /// The folder that was given.
        path: PathBuf,
    },
    /// `bundle.json` cannot be understood.
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of a bundle is not what was written.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Weights lie where ONNX Runtime does not read them.
    OutsideWeights {
        /// The file, as `bundle.json` names it.
        path: PathBuf,
        /// Where it really is.
        found: PathBuf,
        /// The folder that it must be in.
        folder: PathBuf,
    },
    /// A preview map cannot be used.
    PreviewMap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The bundle has no graph for what was asked.
    NoGraph {
        /// Which component.
        component: String,
        /// What was asked for, as target and precision.
        asked: String,
        /// What there is.
        available: Vec<String>,
    },
    /// A graph's inputs or outputs are not what the contract says.
    Signature {
        /// Which graph.
        graph: String,
        /// Which tensor.
        tensor: String,
        /// What the contract says.
        expected: String,
        /// What the graph has.
        found: String,
    },
}

impl Error {
    /// Adds the path and the action to an I/O error.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// A file of a bundle that is not what was written.
    pub fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }

    /// A value that breaks a rule.
    pub fn value(
        name: &'static str,
        given: impl ToString,
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Value { name, given: given.to_string(), rule: rule.into(), fix: fix.into() }
    }

    pub(crate) fn element(graph: &str, tensor: &str, expected: ElementType, found: ElementType) -> Self {
        Self::Signature {
            graph: graph.into(),
            tensor: tensor.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::TextFile(error) => error.report(),
            Self::Value { name, given, rule, fix } => {
                Report::bad_input(format!("{name} cannot be {given}"), rule.clone(), fix.clone())
            }
            Self::File { action, path, source } => Report::bad_input(
                format!("cannot {action} {}", path.display()),
                source.to_string(),
                "check that the path exists, that there is room and that you may write there",
            ),
            Self::Taken { path } => Report::bad_input(
                format!("{} cannot be made", path.display()),
                "something is there already",
                "name another folder with --out, or remove that one",
            ),
            Self::Busy { path, part } => Report::bad_input(
                format!("{} cannot be written", path.display()),
                format!("another run is at work there and holds {}", part.display()),
                "wait until it has ended, or name another folder",
            ),
            Self::InTheWay { path, part } => Report::bad_input(
                format!("{} cannot be written", path.display()),
                format!(
                    "{} is needed on the way and is there already; no run of rushes made it",
                    part.display()
                ),
                "move it away, or name another folder",
            ),
            Self::Stopped => Report::new(
                ErrorClass::Interrupted,
                "stopped",
                "it was asked to; nothing half-written was kept",
                "run the same command again",
            ),
            Self::NotABundle { path } => Report::bad_input(
                format!("{} is not a bundle", path.display()),
                "it has no bundle.json",
                "make one with `rushes export CHECKPOINT --out BUNDLE`",
            ),
            Self::Manifest { path, why } => Report::bad_input(
                format!("{} cannot be understood", path.display()),
                why.clone(),
                "export the checkpoint again with this version of rushes",
            ),
            Self::Damaged { path, why } => Report::bad_input(
                format!("{} is damaged", path.display()),
                why.clone(),
                "copy the bundle whole once more, or export the checkpoint again; `rushes inspect BUNDLE --verify` names every \
                 damaged file",
            ),
            Self::OutsideWeights { path, found, folder } => Report::bad_input(
                format!("the weights {} cannot be used", path.display()),
                format!(
                    "they are {}, and ONNX Runtime reads no weights from outside of {}, the folder of their graphs",
                    found.display(),
                    folder.display()
                ),
                "move or copy the file into the bundle in place of the link; a hard link will do too",
            ),
            Self::PreviewMap { path, why } => Report::bad_input(
                format!("the preview map {} cannot be used", path.display()),
                why.clone(),
                "fit it again with `rushes calibrate BUNDLE --preview`",
            ),
            Self::NoGraph { component, asked, available } => Report::bad_input(
                format!("the bundle has no {asked} graph of {component}"),
                format!("it has {}", available.join(", ")),
                "choose one of these with --precision and --ep, or export the checkpoint for that target",
            ),
            Self::Signature { graph, tensor, expected, found } => Report::bad_input(
                format!("the graph {graph} does not keep the contract at `{tensor}`"),
                format!("expected {expected}, found {found}"),
                "export the checkpoint again with this version of rushes",
            ),
        }
    }
}

crate::display_as_report!(Error);
