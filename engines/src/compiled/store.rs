//! The folder of compiled engines.
//!
//! ```text
//! FOLDER/openvino-DIGEST/engine.json    the record, see `EngineRecord`
//!                        engine-….onnx  the compiled graph, with a name that no other engine has
//!                        …              the files that it refers to
//!        openvino-DIGEST.part/          an engine that is being made, see `bundle::staging`
//!        openvino-DIGEST.unusable/      an engine that was found damaged
//!        timing/                        what TensorRT has measured, for all engines
//! ```
//!
//! An engine is written in the part folder, flushed to disk and renamed. It is never changed in place, because providers
//! map its files: a process dies if a mapped file becomes shorter. Its files have names of their own, because OpenVINO
//! knows what it has read of a file by the path, as long as any of its sessions is open: an engine that is made again in
//! the same process, with the same names, would compute as the one before.

use super::check::{check_digests, check_key, check_lengths, read_record};
use super::record::RECORD;
use super::{EngineFile, EngineKey, EngineNotice, EngineRecord, Unusable};
use bundle::Error;
use bundle::digest::Digest;
use bundle::lock::ReadLock;
use bundle::staging::Staging;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time between two checks for the end of another run.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The ending of an engine that is not used.
pub(super) const ASIDE: &str = ".unusable";
/// The ending of an engine that is being made.
pub(super) const PART: &str = ".part";

/// A folder of compiled engines, and who is told about them. Clones share both.
///
/// ```
/// use engines::compiled::EngineStore;
///
/// let store = EngineStore::new("/var/cache/rushes/engines").with_notices(|notice| eprintln!("{notice}"));
/// assert_eq!(store.compiled(), 0);
/// ```
#[derive(Clone)]
pub struct EngineStore {
    folder: PathBuf,
    notify: Arc<dyn Fn(&EngineNotice) + Send + Sync>,
    counts: Arc<Counts>,
}

/// What was done since the start.
#[derive(Debug, Default)]
struct Counts {
    compiled: AtomicU64,
    opened: AtomicU64,
}

impl fmt::Debug for EngineStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl EngineStore {
    /// The engines in a folder, which is created when the first engine is stored.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), notify: Arc::new(|_| ()), counts: Arc::default() }
    }

    /// Calls `notify` with everything that a user should know. It is called from the thread that opens a graph.
    #[must_use]
    pub fn with_notices(self, notify: impl Fn(&EngineNotice) + Send + Sync + 'static) -> Self {
        Self { notify: Arc::new(notify), ..self }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where TensorRT keeps what it has measured, for all engines.
    pub(crate) fn timing_folder(&self) -> PathBuf {
        self.folder.join("timing")
    }

    /// The number of graphs that were compiled since the start, stored or in memory.
    pub fn compiled(&self) -> u64 {
        self.counts.compiled.load(Ordering::Relaxed)
    }

    /// The number of stored engines that were opened since the start.
    pub fn opened(&self) -> u64 {
        self.counts.opened.load(Ordering::Relaxed)
    }

    /// Removes what runs that were stopped while they made an engine have left.
    ///
    /// # Errors
    /// The folder cannot be read, or something cannot be removed.
    pub fn remove_unfinished(&self) -> Result<(), Error> {
        super::prune::remove_unfinished(self)
    }

    pub(super) fn count_compiled(&self) {
        self.counts.compiled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_opened(&self) {
        self.counts.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn notify(&self, notice: &EngineNotice) {
        tracing::info!(%notice, "compiled engine");
        (self.notify)(notice);
    }

    /// The folder of an engine, whether or not it exists.
    pub(super) fn folder_of(&self, key: &EngineKey) -> PathBuf {
        self.folder.join(key.folder_name())
    }

    /// Finds the engine of a key and checks every byte of it; `None` if there is none.
    ///
    /// # Errors
    /// There is one, and it is damaged or another one.
    pub(super) fn find(&self, key: &EngineKey) -> Result<Option<StoredEngine>, Unusable> {
        let folder = self.folder_of(key);
        // Keeps it from being removed while it is checked and opened.
        let lock = ReadLock::acquire(&folder);
        let Some(record) = read_record(&folder)? else { return Ok(None) };
        check_key(key, &record)?;
        check_lengths(&folder, &record)?;
        check_digests(&folder, &record)?;
        Ok(Some(StoredEngine { folder, record, _lock: lock }))
    }

    /// Returns true if there is an engine of a key whose files have their lengths.
    ///
    /// # Errors
    /// There is one, and it is damaged or another one.
    pub(super) fn peek(&self, key: &EngineKey) -> Result<bool, Unusable> {
        let folder = self.folder_of(key);
        let Some(record) = read_record(&folder)? else { return Ok(false) };
        check_key(key, &record)?;
        check_lengths(&folder, &record)?;
        Ok(true)
    }

    /// Begins to make the engine of a key. Waits while another run makes it, and then finds that one.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn begin(&self, key: &EngineKey, graph: &str) -> Result<Begun, Error> {
        let folder = self.folder_of(key);
        let mut is_waiting = false;
        let staging = loop {
            match Staging::replace(&folder) {
                Ok(staging) => break staging,
                Err(Error::Busy { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        self.notify(&EngineNotice::Waiting { graph: graph.to_owned() });
                    }
                    std::thread::sleep(POLL_INTERVAL);
                }
                Err(error) => return Err(error),
            }
        };
        // Another run may have stored it between the search and the lock.
        match self.find(key) {
            Ok(Some(stored)) => return Ok(Begun::Stored(stored)),
            Ok(None) => {}
            Err(why) => self.set_aside(&folder, &why)?,
        }
        Ok(Begun::Building(Building { staging, folder, model: new_name() }))
    }

    /// Moves an engine aside. Its part folder must be locked by this run, so that it is not one that another run has
    /// just stored.
    pub(super) fn set_aside(&self, folder: &Path, why: &Unusable) -> Result<(), Error> {
        let mut aside = folder.as_os_str().to_owned();
        aside.push(ASIDE);
        let aside = PathBuf::from(aside);
        // One is kept for each key.
        remove(&aside)?;
        match fs::rename(folder, &aside) {
            Ok(()) => {
                self.notify(&EngineNotice::SetAside { folder: folder.to_owned(), why: why.to_string() });
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::File { action: "rename", path: folder.to_owned(), source: error }),
        }
    }
}

/// Removes a folder or file, if there is one.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// An engine whose files were checked.
#[derive(Debug)]
pub(super) struct StoredEngine {
    folder: PathBuf,
    pub(super) record: EngineRecord,
    _lock: ReadLock,
}

impl StoredEngine {
    /// The compiled graph.
    pub(super) fn model(&self) -> PathBuf {
        self.folder.join(&self.record.model)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What [`EngineStore::begin`] found.
#[derive(Debug)]
pub(super) enum Begun {
    /// Another run has stored it.
    Stored(StoredEngine),
    /// This run makes it.
    Building(Building),
}

/// An engine that is being made. It is removed if it is not published.
#[derive(Debug)]
pub(super) struct Building {
    staging: Staging,
    folder: PathBuf,
    model: String,
}

impl Building {
    /// Where the compiled graph is written, and the files that it refers to beside it.
    pub(super) fn model(&self) -> PathBuf {
        self.staging.folder().join(&self.model)
    }

    /// Records the files, flushes them to disk and gives the folder its name.
    ///
    /// # Errors
    /// I/O errors, and a file in the folder that is not an ordinary one. Nothing is left then.
    pub(super) fn publish(self, mut record: EngineRecord) -> Result<EngineRecord, Error> {
        let staged = self.staging.folder();
        record.model.clone_from(&self.model);
        record.files = flushed_files(&staged)?;
        let path = staged.join(RECORD);
        let mut text = serde_json::to_vec_pretty(&record).map_err(|error| Error::File {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        text.push(b'\n');
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        flush(&path)?;
        flush(&staged)?;
        let parent = self.folder.parent().map(Path::to_owned);
        self.staging.publish(RECORD)?;
        // The engine is whole with or without it.
        if let Some(parent) = parent {
            let _ = flush(&parent);
        }
        Ok(record)
    }
}

/// The name of a compiled graph: `engine-TIME-NUMBER.onnx`, in hexadecimal digits. The number tells engines of one
/// process apart, also where the clock stands.
fn new_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("engine-{time:x}-{:x}.onnx", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The files of a folder, sorted by name, after they were flushed to disk.
fn flushed_files(folder: &Path) -> Result<Vec<EngineFile>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let path = entry.path();
        let read = Error::file("read", &path);
        let found = fs::symlink_metadata(&path).map_err(read)?;
        let name = entry.file_name().into_string().ok().filter(|_| found.is_file());
        let Some(name) = name else {
            return Err(Error::damaged(&path, "the provider wrote something that is not an ordinary file"));
        };
        flush(&path)?;
        let digest = Digest::of_file(&path).map_err(Error::file("read", &path))?;
        files.push(EngineFile { name, bytes: found.len(), blake3: digest.blake3 });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Flushes a file or folder to disk.
fn flush(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("flush", path))
}
