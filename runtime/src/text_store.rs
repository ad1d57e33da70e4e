//! Text states on disk: a prompt that was encoded before needs no text encoder, which is large and slow to open.
//!
//! Each text has a file that is named after its key, a digest of everything that decides the states. Files are written
//! under another name and renamed, so none is half a file. One that is damaged all the same is removed, and its text is
//! encoded again.

use bundle::units::ByteCount;
use bundle::{Error, atomic};
use ndarray::{Array2, ArrayView2};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// The extension of the files.
const EXTENSION: &str = "states";
/// The name of the tensor.
const TENSOR: &str = "states";
/// The digest of its bytes, in the metadata.
const DIGEST: &str = "blake3";

/// What text states are found by: a digest of the text encoder, of what else decides their bits, and of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextKey(String);

impl TextKey {
    /// The key of these parts.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(bundle::digest::Digest::of_parts(parts).blake3)
    }
}

/// Text states in a folder. The files that were not used for longest are removed when they take more than a budget.
#[derive(Debug)]
pub struct TextStore {
    folder: PathBuf,
    budget: ByteCount,
    /// Held while files are counted and removed.
    turn: Mutex<()>,
}

impl TextStore {
    /// The store in an existing folder, with this budget. What an ended process has left is removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(folder: &Path, budget: ByteCount) -> Result<Self, Error> {
        fs::read_dir(folder).map_err(Error::file("read", folder))?;
        atomic::remove_parts(folder);
        let store = Self { folder: folder.to_owned(), budget, turn: Mutex::default() };
        store.keep_within_budget();
        Ok(store)
    }

    /// Returns true if there are states of a text.
    pub fn has(&self, key: &TextKey) -> bool {
        self.path(key).is_file()
    }

    /// The states of a text, `[tokens,D]`. Files that cannot be read are removed, with a warning.
    pub fn get(&self, key: &TextKey) -> Option<Array2<f32>> {
        let path = self.path(key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("{} cannot be read, so its text is encoded again: {error}", path.display());
                return None;
            }
        };
        match from_bytes(&bytes) {
            Ok(states) => {
                // Without it, the file is removed earlier than it should be.
                let used = File::options().write(true).open(&path);
                drop(used.and_then(|file| file.set_modified(SystemTime::now())));
                Some(states)
            }
            Err(why) => {
                tracing::warn!("{} is damaged, so its text is encoded again: {why}", path.display());
                self.remove(&path);
                None
            }
        }
    }

    /// Keeps the states of a text, `[tokens,D]`. If that fails there is a warning, and the text is encoded again next
    /// time.
    pub fn insert(&self, key: &TextKey, states: ArrayView2<'_, f32>) {
        let path = self.path(key);
        let bytes = to_bytes(states);
        if bytes.len() as u64 > self.budget.0 {
            return;
        }
        match atomic::write_atomic(&path, &bytes) {
            Ok(()) => self.keep_within_budget(),
            Err(error) => tracing::warn!("the states of a text are not kept: {error}"),
        }
    }

    fn path(&self, key: &TextKey) -> PathBuf {
        self.folder.join(&key.0).with_extension(EXTENSION)
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!("{} cannot be removed: {error}", path.display());
        }
    }

    /// Removes the files that were not used for longest, until the others fit.
    fn keep_within_budget(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                path.extension().filter(|extension| *extension == EXTENSION)?;
                let found = fs::symlink_metadata(&path).ok()?;
                Some((found.modified().ok()?, found.len(), path))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= self.budget.0 {
                return;
            }
            self.remove(&path);
            total -= bytes;
        }
    }
}

fn to_bytes(states: ArrayView2<'_, f32>) -> Vec<u8> {
    let values: Vec<u8> = states.iter().flat_map(|value| value.to_le_bytes()).collect();
    let metadata = HashMap::from([(DIGEST.to_owned(), blake3::hash(&values).to_hex().to_string())]);
    let view = TensorView::new(Dtype::F32, states.shape().to_vec(), &values)
        .unwrap_or_else(|_| unreachable!("four bytes for each value"));
    safetensors::serialize([(TENSOR, view)], Some(metadata))
        .unwrap_or_else(|_| unreachable!("tensors in memory are serialised"))
}

/// # Errors
/// The bytes are not those that were written.
fn from_bytes(bytes: &[u8]) -> Result<Array2<f32>, String> {
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let view = file.tensor(TENSOR).map_err(|error| error.to_string())?;
    let ([rows, width], Dtype::F32) = (view.shape(), view.dtype()) else {
        return Err("it is not a matrix of text states".to_owned());
    };
    let stored = head.metadata().as_ref().and_then(|metadata| metadata.get(DIGEST));
    if stored.is_none_or(|stored| *stored != *blake3::hash(view.data()).to_hex()) {
        return Err("its values have another digest than those that were written".to_owned());
    }
    let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Array2::from_shape_vec((*rows, *width), values).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn key(text: &str) -> TextKey {
        TextKey::of([text.as_bytes()])
    }

    fn states(value: f32) -> Array2<f32> {
        Array2::from_elem((7, 3), value)
    }

    /// The files of states.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|end| end == EXTENSION)).collect()
    }

    #[test]
    fn states_come_back_with_their_bits() {
        let folder = tempfile::tempdir().unwrap();
        let store = TextStore::open(folder.path(), ByteCount(1 << 20)).unwrap();
        assert!(!store.has(&key("a")) && store.get(&key("a")).is_none());
        let mut values = states(0.1);
        values[[2, 1]] = f32::MIN_POSITIVE / 3.0;
        store.insert(&key("a"), values.view());
        assert_eq!(store.get(&key("a")), Some(values.clone()));
        assert!(store.get(&key("b")).is_none());
        // Another process.
        drop(store);
        let store = TextStore::open(folder.path(), ByteCount(1 << 20)).unwrap();
        assert!(store.has(&key("a")));
        assert_eq!(store.get(&key("a")), Some(values));
    }

    #[test]
    fn damaged_files_are_removed_and_count_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = TextStore::open(folder.path(), ByteCount(1 << 20)).unwrap();
        store.insert(&key("a"), states(1.0).view());
        let path = files(folder.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..4], b"", &flipped] {
            fs::write(&path, damaged).unwrap();
            assert!(store.get(&key("a")).is_none());
            assert!(!path.exists());
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(store.get(&key("a")), Some(states(1.0)));
    }

    #[test]
    fn those_that_were_not_used_for_longest_leave() {
        let folder = tempfile::tempdir().unwrap();
        let one = to_bytes(states(0.0).view()).len() as u64;
        let store = TextStore::open(folder.path(), ByteCount(3 * one)).unwrap();
        let used = |text: &str, time: SystemTime| {
            let file = File::options().write(true).open(store.path(&key(text))).unwrap();
            file.set_modified(time).unwrap();
        };
        for (index, text) in ["a", "b", "c"].into_iter().enumerate() {
            store.insert(&key(text), states(0.0).view());
            used(text, SystemTime::UNIX_EPOCH + Duration::from_secs(index as u64));
        }
        // It is used again, so it is the newest.
        assert!(store.get(&key("a")).is_some());
        store.insert(&key("d"), states(0.0).view());
        let kept = ["a", "b", "c", "d"].map(|text| store.has(&key(text)));
        assert_eq!(kept, [true, false, true, true]);
        // The clock of file systems is coarse.
        used("d", SystemTime::now() + Duration::from_secs(60));
        drop(store);
        fs::write(folder.path().join("others"), [0; 10_000]).unwrap();
        let store = TextStore::open(folder.path(), ByteCount(one)).unwrap();
        assert_eq!(files(folder.path()), [store.path(&key("d"))]);
        assert!(folder.path().join("others").exists());
        // Larger than the budget.
        store.insert(&key("e"), Array2::zeros((100, 100)).view());
        assert!(!store.has(&key("e")) && store.has(&key("d")));
    }
}
