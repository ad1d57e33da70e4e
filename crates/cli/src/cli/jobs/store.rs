//! `--store`: the folder of the queue.

use super::outputs::absolute;
use crate::Error;
use crate::cli::render;
use ::jobs::store::Store;
use bundle::Field;
use clap::Args;
use runtime::scheduler::JobId;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where the queue is kept.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct StoreArgs {
    /// Folder of the queue [default: rushes/queue in the user's data folder]
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    /// The absolute path of the folder.
    ///
    /// # Errors
    /// Returns an error if no folder was given and that of the user's data is unknown.
    pub(super) fn folder(&self) -> Result<PathBuf, Error> {
        match &self.store {
            Some(folder) => Ok(absolute(Field::Store, folder)?),
            None => {
                Ok(user_data(|name| std::env::var_os(name)).ok_or(Error::NoDataFolder)?.join("rushes/queue"))
            }
        }
    }

    /// Opens the store, which is created if it does not exist.
    ///
    /// # Errors
    /// See [`Self::folder`] and [`Store::open`].
    pub(super) fn open(&self) -> Result<Store, Error> {
        Ok(Store::open(&self.folder()?)?)
    }

    /// Opens the store for a command that adds nothing to it; `None` if nothing was ever added to the store of the
    /// user.
    ///
    /// # Errors
    /// See [`Self::folder`] and [`Store::open`]. Returns an error if a folder was given that does not exist.
    pub(super) fn open_existing(&self) -> Result<Option<Store>, Error> {
        let folder = self.folder()?;
        match (folder.exists(), &self.store) {
            (true, _) => Ok(Some(Store::open(&folder)?)),
            (false, None) => Ok(None),
            (false, Some(given)) => {
                let rule = "there is no such folder";
                let fix = "check the path; `rushes jobs submit` creates a store";
                Err(bundle::Error::value(Field::Store, format!("`{}`", given.display()), rule, fix).into())
            }
        }
    }

    /// Opens the store for a command about a job.
    ///
    /// # Errors
    /// See [`Self::open_existing`]. Returns an error if nothing was ever added to the store.
    pub(super) fn open_for(&self, job: JobId) -> Result<Store, Error> {
        self.open_existing()?.ok_or_else(|| ::jobs::Error::NoJob { id: job }.into())
    }

    /// A command for the same store, as a user would type it: `rest` follows `rushes jobs`.
    pub(super) fn command(&self, rest: &str) -> String {
        let store = self
            .store
            .as_deref()
            .map_or(String::new(), |folder| format!(" --store {}", render::quoted(folder)));
        format!("rushes jobs {rest}{store}")
    }

    /// The arguments for a given folder.
    #[cfg(test)]
    pub(super) fn of(folder: &std::path::Path) -> Self {
        Self { store: Some(folder.to_owned()) }
    }
}

/// The user's data folder, by the XDG base directory specification.
pub(in crate::cli) fn user_data(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_follows_the_specification() {
        let found = |xdg: Option<&str>, home: Option<&str>| {
            user_data(|name| if name == "HOME" { home } else { xdg }.map(OsString::from))
        };
        assert_eq!(found(Some("/d"), Some("/h")), Some("/d".into()));
        // A relative path is ignored, as the specification says.
        assert_eq!(found(Some("d"), Some("/h")), Some("/h/.local/share".into()));
        assert_eq!(found(None, Some("/h")), Some("/h/.local/share".into()));
        assert_eq!(found(Some(""), Some("")), None);
        assert_eq!(found(None, None), None);
    }

    #[test]
    fn a_folder_that_was_given_must_exist_and_commands_repeat_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreArgs::of(&folder.path().join("my queue"));
        let error = store.open_existing().unwrap_err().to_string();
        assert!(error.contains("there is no such folder") && error.contains("my queue"), "{error}");
        assert!(!folder.path().join("my queue").exists());
        let command = store.command("list");
        assert!(
            command.starts_with("rushes jobs list --store '/") && command.ends_with("my queue'"),
            "{command}"
        );
        assert_eq!(StoreArgs::default().command("show 7"), "rushes jobs show 7");
    }
}
