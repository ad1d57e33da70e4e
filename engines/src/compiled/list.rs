//! The engines of a store.

use super::check::{check_digests, check_lengths, check_name, read_record};
use super::here::NotHere;
use super::key::provider_in;
use super::store::{ASIDE, PART};
use super::{EngineRecord, EngineStore, EnginesHere, Unusable};
use bundle::Error;
use bundle::units::ByteCount;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// An engine of a store.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedEngine {
    /// Its folder.
    pub folder: PathBuf,
    /// The length of its files.
    pub bytes: ByteCount,
    /// Its record, if it can be read.
    pub record: Option<EngineRecord>,
    /// Whether it can be used.
    pub state: EngineState,
}

/// Whether an engine can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// It can be used on this machine.
    Usable,
    /// Its provider cannot be used on this machine, with the reason.
    NoProvider(String),
    /// It was made with other versions or for another device, with the reason.
    OtherVersion(String),
    /// It is damaged, with the reason.
    Damaged(String),
    /// It was found unusable and moved aside.
    SetAside,
    /// It is being made, or the run that made it has ended. Which of both is known once its lock is taken.
    Unfinished,
}

impl EngineState {
    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::NoProvider(_) => "no_provider",
            Self::OtherVersion(_) => "other_version",
            Self::Damaged(_) => "damaged",
            Self::SetAside => "set_aside",
            Self::Unfinished => "unfinished",
        }
    }

    /// Why it cannot be used; `None` if it can.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Usable => None,
            Self::NoProvider(why) | Self::OtherVersion(why) | Self::Damaged(why) => Some(why.clone()),
            Self::SetAside => Some("it was found unusable, and moved aside".into()),
            Self::Unfinished => Some("it is being made, or the run that made it was stopped".into()),
        }
    }
}

/// Lists the engines of a store, sorted by folder. Other files of the folder are not listed. With `verify`, every byte is
/// read.
///
/// # Errors
/// The folder cannot be read. A folder that does not exist has no engines.
pub fn list(store: &EngineStore, here: &EnginesHere, verify: bool) -> Result<Vec<ListedEngine>, Error> {
    let entries = match fs::read_dir(store.folder()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::file("read", store.folder()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::file("read", store.folder()))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let folder = entry.path();
        let is_folder = fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir());
        if let Some((record, state)) = is_folder.then(|| state_of(&folder, &name, here, verify)).flatten() {
            found.push(ListedEngine { bytes: ByteCount(bytes_in(&folder)), folder, record, state });
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(found)
}

/// The record and the state of the engine in a folder; `None` for folders that are no engines.
fn state_of(
    folder: &Path,
    name: &str,
    here: &EnginesHere,
    verify: bool,
) -> Option<(Option<EngineRecord>, EngineState)> {
    let is_engine = |name: &str| provider_in(name).is_some();
    if name.split_once(PART).is_some_and(|(stem, _)| is_engine(stem)) {
        return Some((None, EngineState::Unfinished));
    }
    if name.strip_suffix(ASIDE).is_some_and(is_engine) {
        return Some((read_record(folder).ok().flatten(), EngineState::SetAside));
    }
    let provider = provider_in(name)?;
    let record = match read_record(folder) {
        Ok(Some(record)) => record,
        Ok(None) => return None,
        Err(Unusable::OtherVersion(why)) => return Some((None, EngineState::OtherVersion(why))),
        Err(why) => return Some((None, EngineState::Damaged(why.to_string()))),
    };
    let whole = check_name(name, provider, &record)
        .and_then(|()| check_lengths(folder, &record))
        .and_then(|()| if verify { check_digests(folder, &record) } else { Ok(()) });
    let state = match whole.map_err(|why| why.to_string()).map(|()| here.check(provider, &record)) {
        Err(why) => EngineState::Damaged(why),
        Ok(Ok(())) => EngineState::Usable,
        Ok(Err(NotHere::NoProvider(why))) => EngineState::NoProvider(why),
        Ok(Err(other)) => EngineState::OtherVersion(other.why().to_owned()),
    };
    Some((Some(record), state))
}

/// The length of the files in a folder and its folders. What cannot be read counts as 0.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match fs::symlink_metadata(entry.path()) {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}
