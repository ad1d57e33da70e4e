//! The folder of a job: its spec, its text states, and its snapshots.
//!
//! | file | content |
//! |---|---|
//! | `job.json` | the [`JobSpec`] |
//! | `text-DIGEST.safetensors` | text states, so that going on needs no text encoder |
//! | `newest.safetensors` | the snapshot after the last step |
//! | `synced.safetensors` | the last snapshot that is certainly on disk, at most a second or one step older |
//! | `boundary.safetensors` | the snapshot before the first step of the last expert |

use super::snapshot_writer::SnapshotWriter;
use super::spec::JobSpec;
use super::stored_snapshot::StoredSnapshot;
use super::stored_text;
use crate::Error;
use crate::denoise::TextConditioning;
use bundle::Field;
use bundle::atomic;
use bundle::lock::{Locked, Refusal};
use std::path::{Path, PathBuf};

const SPEC: &str = "job.json";
pub(super) const NEWEST: &str = "newest.safetensors";
pub(super) const SYNCED: &str = "synced.safetensors";
pub(super) const BOUNDARY: &str = "boundary.safetensors";

/// The snapshot of a job that a run goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeFrom {
    /// The one after the last step.
    #[default]
    Newest,
    /// The one before the first step of the last expert.
    Boundary,
}

bundle::named!(ResumeFrom, Field::ResumeFrom, "snapshot", "newest" => Newest, "boundary" => Boundary);

/// A snapshot of a job folder.
#[derive(Debug)]
pub struct FoundSnapshot {
    /// The snapshot.
    pub snapshot: StoredSnapshot,
    /// The problem with the newer snapshot in whose place it is used.
    pub instead_of: Option<String>,
}

/// The folder of a job. No other process can write to it until this is dropped.
#[derive(Debug)]
pub struct JobFolder {
    folder: PathBuf,
    spec: JobSpec,
    _lock: Locked,
}

impl JobFolder {
    /// Creates the folder of a new job. An existing folder must be empty.
    ///
    /// # Errors
    /// The folder holds another job or other files, is in use, or cannot be written.
    pub fn create(folder: &Path, spec: &JobSpec) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(bundle::Error::file("create", folder))?;
        let lock = lock(folder)?;
        Self::check_new(folder)?;
        let json = serde_json::to_vec_pretty(spec).unwrap_or_else(|_| unreachable!("keys are strings"));
        atomic::write_atomic(&folder.join(SPEC), &json)?;
        Ok(Self { folder: folder.to_owned(), spec: spec.clone(), _lock: lock })
    }

    /// Checks that a new job can be kept in a folder: it does not exist, or is empty.
    ///
    /// # Errors
    /// The folder holds another job or other files, or cannot be read.
    pub fn check_new(folder: &Path) -> Result<(), Error> {
        let mut entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(bundle::Error::file("read", folder))?,
        };
        if folder.join(SPEC).exists() {
            let why = "it holds a job already";
            let fix = "go on with it, as `resume`, or choose another folder";
            return Err(refused(folder, why, fix));
        }
        if entries.next().is_some() {
            return Err(refused(folder, "it is not empty", "choose another folder, or an empty one"));
        }
        Ok(())
    }

    /// Opens the folder of a job.
    ///
    /// # Errors
    /// It is no job folder, is in use, or its spec is damaged.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(SPEC);
        let json = match std::fs::read_to_string(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let fix = "give a folder that `rushes audition`, or `rushes generate` with `job_folder`, has written";
                return Err(refused(folder, "it has no job.json", fix));
            }
            Err(error) => return Err(bundle::Error::file("read", &path)(error).into()),
        };
        let spec = JobSpec::from_json(&json)?;
        let lock = lock(folder)?;
        // Those of a run that was killed.
        atomic::remove_parts(folder);
        Ok(Self { spec, _lock: lock, folder: folder.to_owned() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The spec of the job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// Returns true if a snapshot was stored. A run that ended before its first step has none.
    pub fn has_snapshot(&self) -> bool {
        [NEWEST, SYNCED].iter().any(|name| self.folder.join(name).exists())
    }

    /// Reads a snapshot. If the newest one is damaged, the last one that is certainly on disk is used.
    ///
    /// # Errors
    /// There is no snapshot, or it is damaged.
    pub fn snapshot(&self, from: ResumeFrom) -> Result<FoundSnapshot, Error> {
        match from {
            ResumeFrom::Boundary => Ok(FoundSnapshot { snapshot: self.read(BOUNDARY)?, instead_of: None }),
            ResumeFrom::Newest => match self.read(NEWEST) {
                Ok(snapshot) => Ok(FoundSnapshot { snapshot, instead_of: None }),
                Err(error) => {
                    let Ok(snapshot) = self.read(SYNCED) else { return Err(error) };
                    Ok(FoundSnapshot { snapshot, instead_of: Some(error.to_string()) })
                }
            },
        }
    }

    fn read(&self, name: &str) -> Result<StoredSnapshot, Error> {
        let path = self.folder.join(name);
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::NoSnapshot { folder: self.folder.clone(), name: name.to_owned() }
            }
            _ => bundle::Error::file("read", &path)(error).into(),
        })?;
        StoredSnapshot::from_bytes(&bytes).map_err(|error| match error {
            Error::Snapshot { why } => Error::Snapshot { why: format!("{}: {why}", path.display()) },
            other => other,
        })
    }

    /// Reads the text states with this digest; `None` if the folder lacks them or they are damaged.
    pub fn text(&self, digest: &str) -> Option<TextConditioning> {
        let bytes = std::fs::read(self.folder.join(stored_text::file_name(digest))).ok()?;
        stored_text::from_bytes(&bytes).ok().filter(|text| stored_text::digest(text) == digest)
    }

    /// Writes text states.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_text(&self, text: &TextConditioning) -> Result<(), Error> {
        let digest = stored_text::digest(text);
        if self.text(&digest).is_some() {
            return Ok(());
        }
        let path = self.folder.join(stored_text::file_name(&digest));
        Ok(atomic::write_atomic(&path, &stored_text::to_bytes(text))?)
    }

    /// Starts the thread that writes snapshots.
    pub(super) fn writer(&self) -> SnapshotWriter {
        SnapshotWriter::start(self.folder.clone())
    }
}

fn lock(folder: &Path) -> Result<Locked, Error> {
    Locked::folder(folder).map_err(|refusal| match refusal {
        Refusal::Busy => refused(folder, "another run is using it", "wait until that run has ended"),
        Refusal::Foreign(why) => refused(folder, &format!("it {why}"), "choose an ordinary folder"),
        Refusal::Io(error) => bundle::Error::file("lock", folder)(error).into(),
    })
}

fn refused(folder: &Path, why: &str, fix: &str) -> Error {
    Error::JobFolder { folder: folder.to_owned(), why: why.to_owned(), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::spec;
    use super::super::stored_snapshot::tests::stored;
    use super::*;
    use bundle::settings::SolverKind;

    #[test]
    fn only_an_empty_folder_becomes_a_job_and_one_process_has_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("job");
        let job = JobFolder::create(&path, &spec()).unwrap();
        assert!(JobFolder::create(&path, &spec()).unwrap_err().to_string().contains("another run"));
        assert!(JobFolder::open(&path).unwrap_err().to_string().contains("another run"));
        drop(job);
        assert!(JobFolder::create(&path, &spec()).unwrap_err().to_string().contains("a job already"));
        assert_eq!(JobFolder::open(&path).unwrap().spec(), &spec());
        std::fs::write(parent.path().join("mine.txt"), "x").unwrap();
        assert!(JobFolder::create(parent.path(), &spec()).unwrap_err().to_string().contains("not empty"));
        assert!(JobFolder::open(parent.path()).unwrap_err().to_string().contains("no job.json"));
        assert_eq!(std::fs::read(parent.path().join("mine.txt")).unwrap(), b"x");
    }

    #[test]
    fn the_newest_snapshot_is_used_and_a_damaged_one_is_replaced_by_the_one_on_disk() {
        let parent = tempfile::tempdir().unwrap();
        let job = JobFolder::create(&parent.path().join("job"), &spec()).unwrap();
        assert!(matches!(job.snapshot(ResumeFrom::Newest), Err(Error::NoSnapshot { .. })));
        let mut writer = job.writer();
        let (first, second) = (stored(SolverKind::UniPc, 5, 1), stored(SolverKind::UniPc, 5, 2));
        writer.write(first.clone(), true);
        writer.finish().unwrap();
        let mut writer = job.writer();
        writer.write(second.clone(), false);
        writer.finish().unwrap();
        let found = job.snapshot(ResumeFrom::Newest).unwrap();
        assert_eq!((found.snapshot, found.instead_of), (second.clone(), None));
        assert_eq!(job.snapshot(ResumeFrom::Boundary).unwrap().snapshot, first);
        // As after a power cut between renaming and writing.
        std::fs::remove_file(job.path().join(NEWEST)).unwrap();
        std::fs::write(job.path().join(NEWEST), b"").unwrap();
        let found = job.snapshot(ResumeFrom::Newest).unwrap();
        assert_eq!(found.snapshot, second);
        assert!(found.instead_of.unwrap().contains(NEWEST));
        let left: Vec<_> = std::fs::read_dir(job.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 4, "{left:?}");
    }
}
