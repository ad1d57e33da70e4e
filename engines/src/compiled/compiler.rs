//! What compiles a graph and opens compiled ones.

use crate::{Error, NodePlacement};
use std::path::Path;

/// Compiles one graph for one device, and opens it.
pub(crate) trait Compiler {
    /// An open graph.
    type Session;

    /// Compiles the graph, and writes the engine `model` and the files that it refers to, which are beside it. Returns on
    /// which providers the nodes of the graph run.
    ///
    /// # Errors
    /// The graph is refused, memory is short, or the files cannot be written.
    fn compile(&self, model: &Path) -> Result<NodePlacement, Error>;

    /// Opens a compiled engine. Returns the operators of its nodes, which is one if all of the graph is in the engine.
    /// Compiles nothing.
    ///
    /// # Errors
    /// The provider refuses it, or memory is short.
    fn open(&self, model: &Path) -> Result<(Self::Session, Vec<String>), Error>;

    /// Compiles the graph in memory.
    ///
    /// # Errors
    /// The graph is refused, or memory is short.
    fn in_memory(&self) -> Result<(Self::Session, NodePlacement), Error>;

    /// What the device says about a compiled engine. It is not loaded.
    fn compatibility(&self, model: &Path) -> Compatibility;
}

/// What a device says about a compiled engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Compatibility {
    /// It can run it.
    Supported,
    /// It says nothing.
    Unknown,
    /// It cannot run it, or runs it worse than one that is compiled again.
    Unsupported(String),
}
