//! The bundles of `rushes serve`, with their names.

use super::refused_bundle;
use crate::Error;
use crate::cli::devices::DeviceArgs;
use crate::cli::global::GlobalArgs;
use crate::cli::mini_form::mini_form;
use bundle::manifest::Bundle;
use bundle::stop::Stop;
use std::path::{Path, PathBuf};

/// A bundle and, if it was given one, its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BundleArg {
    name: Option<String>,
    folder: PathBuf,
}

/// Parses `[NAME=]DIR`. What follows the first `=` is the folder if a name without a slash precedes it.
///
/// # Errors
/// The name or the folder is empty.
pub(super) fn bundle(text: &str) -> Result<BundleArg, Error> {
    let (name, folder) = match text.split_once('=') {
        Some((name, folder)) if !name.contains('/') => (Some(name.to_owned()), folder),
        _ => (None, text),
    };
    if folder.is_empty() || name.as_ref().is_some_and(String::is_empty) {
        let rule = "the name or the folder is empty";
        return Err(refused_bundle(text, rule, "write DIR or NAME=DIR"));
    }
    Ok(BundleArg { name, folder: folder.into() })
}

/// The bundles by name, with absolute paths: those that were given, or the embedded model.
///
/// # Errors
/// A bundle cannot be opened.
pub(super) fn named(
    given: &[BundleArg],
    devices: &DeviceArgs,
    global: &GlobalArgs,
    stop: &Stop,
) -> Result<Vec<(String, PathBuf)>, Error> {
    if given.is_empty() {
        let folder = global.bundle_or_mini(None, || mini_form(devices, global, None), stop)?;
        return Ok(vec![("mini".to_owned(), absolute(&folder)?)]);
    }
    let named = |BundleArg { name, folder }: &BundleArg| {
        let folder = absolute(folder)?;
        let name = match name {
            Some(name) => name.clone(),
            None => Bundle::open(&folder)?.manifest.model,
        };
        Ok((name, folder))
    };
    given.iter().map(named).collect()
}

fn absolute(folder: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(folder).map_err(|error| {
        refused_bundle(&folder.display().to_string(), &error.to_string(), "give an absolute path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_a_name_or_not() {
        let of =
            |text: &str| bundle(text).map(|BundleArg { name, folder }| (name, folder.display().to_string()));
        assert_eq!(of("models/a14b").unwrap(), (None, "models/a14b".to_owned()));
        assert_eq!(of("wan=models/a14b").unwrap(), (Some("wan".to_owned()), "models/a14b".to_owned()));
        // A folder whose name has a `=`.
        assert_eq!(of("./a=b").unwrap(), (None, "./a=b".to_owned()));
        for wrong in ["", "=x", "x="] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
