//! Where the libraries of providers are.

use crate::Provider;
use std::path::{Path, PathBuf};

/// Folders with a folder for each provider, relative to the folder of the program: beside it, where a package puts them,
/// and where `scripts/setup.sh` puts them, one or two levels above the programs that cargo builds.
const FOLDERS: [&str; 4] = ["providers", "../lib/rushes/providers", "../providers", "../../providers"];

/// The folders that are searched for the libraries of providers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderFolders(pub Vec<PathBuf>);

impl ProviderFolders {
    /// Those of this process.
    pub fn of_process() -> Self {
        let program = std::env::current_exe().ok();
        let folder = program.as_deref().and_then(Path::parent);
        Self(
            folder
                .iter()
                .flat_map(|folder| FOLDERS.map(|name| crate::library::joined(folder, name)))
                .collect(),
        )
    }

    /// The folders of a provider, whether or not they exist. TensorRT is used with the libraries of CUDA.
    pub fn of(&self, provider: Provider) -> impl Iterator<Item = PathBuf> + '_ {
        let name = match provider {
            Provider::TensorRt => Provider::Cuda.name(),
            other => other.name(),
        };
        self.0.iter().map(move |root| root.join(name))
    }

    /// The first file with this name in the folders of a provider.
    pub fn file(&self, provider: Provider, name: &str) -> Option<PathBuf> {
        self.of(provider).map(|folder| folder.join(name)).find(|file| file.is_file())
    }
}
