//! Checks a stored engine before anything reads it: ONNX Runtime and the providers check almost nothing.

use super::key::folder_name;
use super::record::{FORMAT, RECORD};
use super::{EngineKey, EngineRecord};
use crate::Provider;
use bundle::digest::Digest;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

/// The longest record that is read.
const RECORD_MAX: u64 = 1 << 20;

/// The reason why an engine is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is the engine of something else.
    #[error("it belongs to another graph or machine: {0}")]
    Foreign(String),
    /// It was made by other versions.
    #[error("it was made by another version: {0}")]
    OtherVersion(String),
    /// The provider does not accept it.
    #[error("the provider refuses it: {0}")]
    Refused(String),
}

/// Reads the record of the engine in a folder; `None` if there is no engine.
///
/// # Errors
/// The record cannot be read, or is of another version.
pub(super) fn read_record(folder: &Path) -> Result<Option<EngineRecord>, Unusable> {
    let damaged = |why: &dyn std::fmt::Display| Unusable::Damaged(format!("{RECORD}: {why}"));
    match fs::symlink_metadata(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(Unusable::Damaged(error.to_string())),
        Ok(found) if !found.is_dir() => return Err(Unusable::Damaged("it is not a folder".into())),
        Ok(_) => {}
    }
    let path = folder.join(RECORD);
    let found = fs::symlink_metadata(&path).map_err(|error| damaged(&error))?;
    if !found.is_file() || found.len() > RECORD_MAX {
        return Err(damaged(&"it is not a short file"));
    }
    let mut text = Vec::new();
    let file = fs::File::open(&path).map_err(|error| damaged(&error))?;
    file.take(RECORD_MAX).read_to_end(&mut text).map_err(|error| damaged(&error))?;
    // The version comes first: the rest may have other fields.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FORMAT)) {
        let found = format.map_or("none".to_owned(), |format| format.to_string());
        return Err(Unusable::OtherVersion(format!("its record has format {found}, and this is {FORMAT}")));
    }
    serde_json::from_value(value).map(Some).map_err(|error| damaged(&error))
}

/// Checks that a record belongs to the folder with this name: its key has that digest.
///
/// # Errors
/// It does not.
pub(super) fn check_name(name: &str, provider: Provider, record: &EngineRecord) -> Result<(), Unusable> {
    if folder_name(provider, &record.key) == name && record.word("provider") == provider.name() {
        return Ok(());
    }
    Err(Unusable::Foreign("its record has another key than its folder".into()))
}

/// Checks that a record has this key.
///
/// # Errors
/// The first part that differs.
pub(super) fn check_key(key: &EngineKey, record: &EngineRecord) -> Result<(), Unusable> {
    let wanted = key.words();
    if let Some((part, wanted)) = wanted.iter().find(|(part, value)| record.key.get(*part) != Some(value)) {
        let found = record.word(part);
        return Err(Unusable::Foreign(format!("{part} is `{found}` and should be `{wanted}`")));
    }
    if record.key.len() != wanted.len() {
        return Err(Unusable::Foreign("its key has parts that are unknown".into()));
    }
    Ok(())
}

/// Checks that every file is an ordinary one with the recorded length, and that there are no others.
///
/// # Errors
/// The first file that is not.
pub(super) fn check_lengths(folder: &Path, record: &EngineRecord) -> Result<(), Unusable> {
    if !record.files.iter().any(|file| file.name == record.model) {
        return Err(Unusable::Damaged(format!("the model `{}` is not among its files", record.model)));
    }
    for file in &record.files {
        let mut parts = Path::new(&file.name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Unusable::Damaged(format!("its record names the file `{}`", file.name)));
        }
        let found = fs::symlink_metadata(folder.join(&file.name))
            .map_err(|error| Unusable::Damaged(format!("{}: {error}", file.name)))?;
        if !found.is_file() {
            return Err(Unusable::Damaged(format!("{} is not an ordinary file", file.name)));
        }
        if found.len() != file.bytes {
            let (name, found, stated) = (&file.name, found.len(), file.bytes);
            return Err(Unusable::Damaged(format!("{name} has {found} bytes and should have {stated}")));
        }
    }
    let entries = fs::read_dir(folder).map_err(|error| Unusable::Damaged(error.to_string()))?;
    for entry in entries {
        let entry = entry.map_err(|error| Unusable::Damaged(error.to_string()))?;
        let name = entry.file_name();
        if name != RECORD && !record.files.iter().any(|file| name == file.name.as_str()) {
            return Err(Unusable::Damaged(format!("{} is not in its record", name.display())));
        }
    }
    Ok(())
}

/// Checks the bytes of every file. Reads all of them.
///
/// # Errors
/// The first file that differs.
pub(super) fn check_digests(folder: &Path, record: &EngineRecord) -> Result<(), Unusable> {
    for file in &record.files {
        let found = Digest::of_file(&folder.join(&file.name))
            .map_err(|error| Unusable::Damaged(format!("{}: {error}", file.name)))?;
        if found.blake3 != file.blake3 {
            return Err(Unusable::Damaged(format!("{} has other bytes than were written", file.name)));
        }
    }
    Ok(())
}
