//! A disk in memory that records what is done to it, can be full or slow, and can lose its power.

use super::disk::Disk;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};

/// A file, whatever its names: its place in [`State::contents`].
type FileNumber = usize;

/// An operation that succeeded.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A file has this content.
    Content(FileNumber, Vec<u8>),
    /// A name belongs to a file, and another to none.
    Name { name: String, file: FileNumber, gone: Option<String> },
    /// A name belongs to no file.
    Gone(String),
    /// The content of a file is on disk.
    Sync(FileNumber),
    /// All names are on disk.
    SyncFolder,
}

#[derive(Debug, Default)]
struct State {
    log: Vec<Op>,
    names: BTreeMap<String, FileNumber>,
    contents: Vec<Vec<u8>>,
    is_full: bool,
    is_stuck: bool,
    /// The operation that fails, counted from the one that comes next.
    fails_after: Option<usize>,
}

/// A disk in memory with one folder.
#[derive(Debug, Default)]
pub(super) struct FakeDisk {
    state: Mutex<State>,
    freed: Condvar,
}

/// What a power cut does to what is not certainly on disk, chosen by bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    /// Which changes of names are on disk all the same: one bit for each, in turn.
    pub(super) names: u32,
    /// What becomes of the content of a file: two bits for each, in turn.
    pub(super) contents: u32,
}

impl FakeDisk {
    fn begin(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap();
        while state.is_stuck {
            state = self.freed.wait(state).unwrap();
        }
        match &mut state.fails_after {
            Some(0) => return Err(ErrorKind::StorageFull.into()),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    /// Lets every write fail half-way.
    pub(super) fn set_full(&self, is_full: bool) {
        self.state.lock().unwrap().is_full = is_full;
    }

    /// Lets every operation wait.
    pub(super) fn set_stuck(&self, is_stuck: bool) {
        self.state.lock().unwrap().is_stuck = is_stuck;
        self.freed.notify_all();
    }

    /// Lets one operation, and all after it, fail; `None` lets none fail.
    pub(super) fn fail_after(&self, operations: Option<usize>) {
        self.state.lock().unwrap().fails_after = operations;
    }

    pub(super) fn operations(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    /// The files by name: those that a process finds that starts after another was killed.
    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.names.iter().map(|(name, file)| (name.clone(), state.contents[*file].clone())).collect()
    }

    /// The files by name after a kill or, with a loss, after a power cut that came after this many operations.
    pub(super) fn files_after(&self, operations: usize, loss: Option<Loss>) -> BTreeMap<String, Vec<u8>> {
        let log = &self.state.lock().unwrap().log[..operations];
        let certain = log.iter().rposition(|op| matches!(op, Op::SyncFolder)).unwrap_or(0);
        let mut changes = 0;
        let mut survives = |index: usize| {
            let Some(Loss { names, .. }) = loss.filter(|_| index > certain) else { return true };
            changes += 1;
            names >> (changes % u32::BITS) & 1 == 1
        };
        let (mut names, mut contents, mut synced) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (index, op) in log.iter().enumerate() {
            match op {
                Op::Content(file, bytes) => {
                    contents.insert(*file, bytes.clone());
                    synced.insert(*file, false);
                }
                Op::Sync(file) => {
                    synced.insert(*file, true);
                }
                Op::SyncFolder => {}
                Op::Name { name, file, gone } if survives(index) => {
                    names.retain(|name, _| Some(name) != gone.as_ref());
                    names.insert(name.clone(), *file);
                }
                Op::Gone(name) if survives(index) => names.retain(|other, _| other != name),
                Op::Name { .. } | Op::Gone(_) => {}
            }
        }
        let content = |file: &FileNumber| {
            let whole: &Vec<u8> = &contents[file];
            let Some(Loss { contents, .. }) = loss.filter(|_| !synced[file]) else { return whole.clone() };
            match contents >> (2 * *file as u32 % u32::BITS) & 3 {
                0 => Vec::new(),
                1 => whole[..whole.len() / 2].to_vec(),
                2 => vec![0; whole.len()],
                _ => whole.clone(),
            }
        };
        names.iter().map(|(name, file)| (name.clone(), content(file))).collect()
    }
}

/// Writes files to a folder.
pub(super) fn put(files: &BTreeMap<String, Vec<u8>>, folder: &Path) {
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
}

fn absent() -> io::Error {
    ErrorKind::NotFound.into()
}

impl Disk for FakeDisk {
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.begin()?;
        let file = match state.names.get(name) {
            Some(file) => *file,
            None => {
                let file = state.contents.len();
                state.contents.push(Vec::new());
                state.names.insert(name.to_owned(), file);
                state.log.push(Op::Content(file, Vec::new()));
                state.log.push(Op::Name { name: name.to_owned(), file, gone: None });
                file
            }
        };
        let written = if state.is_full { &bytes[..bytes.len() / 2] } else { bytes };
        state.contents[file] = written.to_vec();
        state.log.push(Op::Content(file, written.to_vec()));
        if state.is_full { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        let file = *state.names.get(from).ok_or_else(absent)?;
        assert_eq!(state.names.insert(to.to_owned(), file), None, "the name is taken");
        state.log.push(Op::Name { name: to.to_owned(), file, gone: None });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        let file = state.names.remove(from).ok_or_else(absent)?;
        state.names.insert(to.to_owned(), file);
        state.log.push(Op::Name { name: to.to_owned(), file, gone: Some(from.to_owned()) });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.names.remove(name).is_some() {
            state.log.push(Op::Gone(name.to_owned()));
        }
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.begin()?;
        let file = *state.names.get(name).ok_or_else(absent)?;
        state.log.push(Op::Sync(file));
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.begin()?.log.push(Op::SyncFolder);
        Ok(())
    }
}
