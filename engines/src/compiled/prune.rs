//! Removes engines.

use super::list::{EngineState, ListedEngine, list};
use super::store::{PART, remove};
use super::{EngineStore, EnginesHere};
use bundle::Error;
use bundle::lock::{Locked, Refusal};
use bundle::staging::Staging;
use std::path::Path;
use std::time::Duration;

/// Which engines are removed, besides those that cannot be used whatever the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// All of them.
    pub all: bool,
    /// Those that are at least this old.
    pub older_than: Option<Duration>,
    /// The time from which ages are counted, since 1970.
    pub now: Duration,
    /// Nothing is removed.
    pub dry_run: bool,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pruned {
    /// The engines that were removed, or would be.
    pub removed: Vec<ListedEngine>,
    /// Those that are in use or being made, and stay.
    pub busy: Vec<ListedEngine>,
    /// The number of others that stay.
    pub kept: usize,
}

impl PruneOptions {
    fn takes(&self, engine: &ListedEngine) -> bool {
        let is_old = self.older_than.is_some_and(|limit| {
            let made = engine.record.as_ref().map(|record| Duration::from_secs(record.made_at));
            made.is_some_and(|made| self.now.saturating_sub(made) >= limit)
        });
        match engine.state {
            EngineState::Usable | EngineState::NoProvider(_) => self.all || is_old,
            EngineState::OtherVersion(_)
            | EngineState::Damaged(_)
            | EngineState::SetAside
            | EngineState::Unfinished => true,
        }
    }
}

/// Removes engines that cannot be used: damaged ones, those of other versions, and what stopped runs have left; and those
/// of `options`. Engines that are being opened or made stay, and so does everything else in the folder.
///
/// # Errors
/// The folder cannot be read, or an engine cannot be removed.
pub fn prune(store: &EngineStore, here: &EnginesHere, options: &PruneOptions) -> Result<Pruned, Error> {
    let mut pruned = Pruned::default();
    for engine in list(store, here, false)? {
        if !options.takes(&engine) {
            pruned.kept += 1;
        } else if options.dry_run || remove_engine(&engine)? {
            pruned.removed.push(engine);
        } else {
            pruned.busy.push(engine);
        }
    }
    Ok(pruned)
}

/// Removes what stopped runs have left.
///
/// # Errors
/// The folder cannot be read, or something cannot be removed.
pub(super) fn remove_unfinished(store: &EngineStore) -> Result<(), Error> {
    let engines = list(store, &EnginesHere::default(), false)?;
    let mut unfinished = engines.into_iter().filter(|engine| engine.state == EngineState::Unfinished);
    unfinished.try_for_each(|engine| remove_engine(&engine).map(drop))
}

/// Removes an engine. Returns false if another run has locked it.
fn remove_engine(engine: &ListedEngine) -> Result<bool, Error> {
    let folder = &engine.folder;
    if engine.state == EngineState::Unfinished {
        return remove_part(folder);
    }
    match Locked::folder(folder) {
        Ok(_lock) => remove(folder).map(|()| true),
        Err(Refusal::Busy) => Ok(false),
        Err(Refusal::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(Refusal::Io(source)) => Err(Error::File { action: "lock", path: folder.clone(), source }),
        Err(Refusal::Foreign(_)) => Ok(false),
    }
}

/// Removes a part folder, unless a run is filling it.
fn remove_part(part: &Path) -> Result<bool, Error> {
    let name = part.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, random)) = name.split_once(PART) else { return Ok(false) };
    if !random.is_empty() {
        // It has its fixed name once it is locked; a run that ended before left an empty folder or its lock.
        return match Locked::file(&part.join("lock")) {
            Ok(_lock) => remove(part).map(|()| true),
            Err(_) => Ok(false),
        };
    }
    // Taking the lock removes what a stopped run has left, and dropping it removes the folder.
    match Staging::replace(&part.with_file_name(stem)) {
        Ok(staging) => {
            drop(staging);
            Ok(true)
        }
        Err(Error::Busy { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
