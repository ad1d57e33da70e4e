//! LoRAs that requests name: plain names of files in a folder of the operator, and nothing else.
//!
//! [`request`] is what a client asks for, [`folder`] finds the files, and [`apply`] gives the job the bundle whose graphs
//! apply them. Making that bundle is left to the program, which hands over a [`LoraBundles`].

pub(crate) mod apply;
mod folder;
pub(crate) mod request;

pub(crate) use folder::names;

use bundle::Report;
use bundle::lora::LoraUse;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The LoRAs of a server.
#[derive(Debug, Clone)]
pub struct ServedLoras {
    /// The folder of the files. It is absolute.
    pub folder: PathBuf,
    /// Makes the bundles that apply them.
    pub bundles: Arc<dyn LoraBundles>,
}

/// Bundles that may be kept, and which of them may be removed for others.
pub struct Room<'a> {
    /// The most bundles with LoRAs of one base.
    pub most: usize,
    /// Returns true if a job that waits or runs needs a bundle.
    pub is_used: &'a dyn Fn(&Path) -> bool,
}

impl Debug for Room<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("most", &self.most).finish_non_exhaustive()
    }
}

/// Makes bundles whose graphs apply LoRAs, and keeps them. It is called by one thread at a time.
pub trait LoraBundles: Debug + Send + Sync {
    /// The folder of a bundle that applies LoRAs beside the weights of the bundle in `base`, as an absolute path; that of
    /// the base if they change nothing. The same LoRAs have the same folder. `None` if there is no room for another one.
    ///
    /// # Errors
    /// A file cannot be applied to the model, or the bundle cannot be written.
    fn open(&self, base: &Path, loras: &[LoraUse], room: &Room<'_>) -> Result<Option<PathBuf>, Report>;
}
