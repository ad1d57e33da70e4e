//! Errors of this crate: values out of range, an invalid `bundle.json`, files that cannot be read or written.

use crate::dtype::ElementType;
use crate::routing::ExpertIndex;
use crate::{Diagnose, ErrorClass, Field, Report};
use std::path::{Path, PathBuf};

/// An error about a value, a file or a bundle.
///
/// Its text is that of its [`Report`]:
///
/// ```
/// use bundle::{Diagnose, Error, ErrorClass, Field};
///
/// let error = Error::value(Field::Steps, 0, "a clip is denoised in 1 to 1000 steps", "use 40");
/// assert_eq!(error.report().class, ErrorClass::BadInput);
/// assert_eq!(error.to_string(), "steps cannot be 0: a clip is denoised in 1 to 1000 steps (use 40)");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value that the user gave is out of range or unknown.
    Value {
        /// The setting.
        field: Field,
        /// The given value.
        given: String,
        /// The rule that it breaks.
        rule: String,
        /// Values that are accepted.
        fix: String,
    },
    /// A file could not be read or written.
    File {
        /// The failed action: `read`, `write`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The folder to create exists and is not empty.
    Taken {
        /// The folder.
        path: PathBuf,
    },
    /// Another process is creating or changing the same folder.
    Busy {
        /// The folder.
        path: PathBuf,
        /// The path that it has locked.
        part: PathBuf,
    },
    /// The part folder's name is taken by something that Rushes did not create.
    InTheWay {
        /// The folder to create.
        path: PathBuf,
        /// The path that is taken.
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
    /// The folder has graphs without weights, see [`graph_set`](crate::graph_set).
    WithoutWeights {
        /// The folder that was given.
        path: PathBuf,
    },
    /// `graphs.json` is absent.
    NotAGraphSet {
        /// The folder that was given.
        path: PathBuf,
    },
    /// `graphs.json` is invalid.
    GraphSet {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// `bundle.json` is invalid.
    Manifest {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// A file of a bundle differs from what was written.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// Weights are where ONNX Runtime does not read them.
    OutsideWeights {
        /// The file, as `bundle.json` names it.
        path: PathBuf,
        /// Its path with links resolved.
        found: PathBuf,
        /// The folder that it must be in.
        folder: PathBuf,
    },
    /// A preview map cannot be used.
    PreviewMap {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The bundle has no graph of the requested variant.
    NoGraph {
        /// The component.
        component: String,
        /// The requested target and precision.
        asked: String,
        /// The available variants.
        available: Vec<String>,
    },
    /// The bundle lacks a component.
    NoComponent {
        /// The component.
        component: String,
        /// The components of the bundle.
        available: Vec<String>,
    },
    /// A position is outside the routing table.
    NoExpert {
        /// The position.
        index: ExpertIndex,
        /// Number of experts in the table.
        experts: usize,
    },
    /// A graph's inputs or outputs differ from its signature.
    Signature {
        /// The graph.
        graph: String,
        /// The tensor.
        tensor: String,
        /// The tensor in the signature.
        expected: String,
        /// The tensor in the graph.
        found: String,
    },
}

impl Error {
    /// Returns a closure that adds the path and the action to an I/O error.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// A file of a bundle that differs from what was written.
    pub fn damaged(path: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), why: why.into() }
    }

    /// A value that breaks a rule.
    pub fn value(
        field: Field,
        given: impl ToString,
        rule: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Value { field, given: given.to_string(), rule: rule.into(), fix: fix.into() }
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
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
    fn report(&self) -> Report {
        match self {
            Self::TextFile(error) => error.report(),
            Self::Value { field, given, rule, fix } => {
                Report::bad_input(format!("{field} cannot be {given}"), rule.clone(), fix.clone())
                    .about(*field)
            }
            Self::File { action, path, source } => Report::bad_input(
                format!("cannot {action} {}", path.display()),
                source.to_string(),
                "check that the path exists, that there is room and that you may write there",
            ),
            Self::Taken { path } => Report::bad_input(
                format!("{} cannot be created", path.display()),
                "it already exists and is not empty",
                "choose another `folder`, or remove that one",
            )
            .about(Field::Folder),
            Self::Busy { path, part } => Report::bad_input(
                format!("{} cannot be written", path.display()),
                format!("another run is writing there and holds the lock {}", part.display()),
                "wait until it has ended, or choose another folder",
            ),
            Self::InTheWay { path, part } => Report::bad_input(
                format!("{} cannot be written", path.display()),
                format!(
                    "{} is needed during the run and already exists; it was not created by rushes",
                    part.display()
                ),
                "move it away, or choose another folder",
            ),
            Self::Stopped => Report::new(
                ErrorClass::Interrupted,
                "stopped",
                "a stop was requested; nothing incomplete was kept",
                "run the same command again",
            ),
            Self::NotABundle { path } => Report::bad_input(
                format!("{} is not a bundle", path.display()),
                "it has no bundle.json",
                "make one from a checkpoint with `rushes export`",
            ),
            Self::WithoutWeights { path } => Report::bad_input(
                format!("{} has graphs without weights", path.display()),
                "it has graphs.json and no bundle.json",
                "make a bundle from it and the checkpoint of its model with `rushes attach`",
            ),
            Self::NotAGraphSet { path } => Report::bad_input(
                format!("{} has no graphs that can be attached", path.display()),
                "it has no graphs.json",
                "export a checkpoint with `graphs_only`, or use `rushes export` alone",
            ),
            Self::GraphSet { path, why } => Report::damaged(
                format!("{} is invalid", path.display()),
                why.clone(),
                "copy the folder again, or export it again with this version of rushes",
            ),
            Self::Manifest { path, why } => Report::damaged(
                format!("{} is invalid", path.display()),
                why.clone(),
                "export the checkpoint again with this version of rushes",
            ),
            Self::Damaged { path, why } => Report::damaged(
                format!("{} is damaged", path.display()),
                why.clone(),
                "copy the whole bundle again, or export the checkpoint again; `rushes inspect` with `verify` lists every \
                 damaged file",
            ),
            Self::OutsideWeights { path, found, folder } => Report::bad_input(
                format!("the weights {} cannot be used", path.display()),
                format!(
                    "they are {}, and ONNX Runtime reads no weights outside {}, the folder of their graphs",
                    found.display(),
                    folder.display()
                ),
                "move or copy the file into the bundle in place of the link; a hard link works too",
            ),
            Self::PreviewMap { path, why } => Report::damaged(
                format!("the preview map {} cannot be used", path.display()),
                why.clone(),
                "fit it again with `rushes calibrate` and `preview`",
            ),
            Self::NoGraph { component, asked, available } => Report::bad_input(
                format!("the bundle has no {asked} graph of {component}"),
                format!("it has {}", available.join(", ")),
                "choose one of these with `precision`, or export the checkpoint for that target",
            ),
            Self::NoComponent { component, available } => Report::damaged(
                format!("the bundle lacks {component}"),
                format!("it has {}", available.join(", ")),
                "copy the whole bundle again, or export the checkpoint again with this version of rushes",
            ),
            Self::NoExpert { index, experts } => Report::bug(
                format!("the expert at position {} of the routing table cannot be used", index.0),
                format!("the table has {experts} experts, counted from 0"),
            ),
            Self::Signature { graph, tensor, expected, found } => Report::damaged(
                format!("the tensor `{tensor}` of the graph {graph} is wrong"),
                format!("expected {expected}, found {found}"),
                "export the checkpoint again with this version of rushes",
            ),
        }
    }
}

crate::display_as_report!(Error);
